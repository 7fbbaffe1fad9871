"""The ambient loop: made on first use, shared by the greenlets of a thread, ended in order."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import weakref
from typing import Any

import gevent
import pytest
from support import (
    PATCHED,
    in_native_thread,
    native_ident,
    run_script,
    start_native_thread,
    until,
    until_in_greenlet,
)

import asyncio_gevent
from asyncio_gevent import await_, shutdown, spawn


async def running_loop() -> Any:
    return asyncio.get_running_loop()


def test_it_is_made_on_first_use_and_shared() -> None:
    loop = await_(running_loop())
    assert isinstance(loop, asyncio_gevent.EventLoop)
    loops = {gevent.spawn(await_, running_loop()).get() for _ in range(5)}
    assert loops == {loop}
    if PATCHED:
        thread = threading.Thread(target=lambda: loops.add(await_(running_loop())))
        thread.start()
        thread.join()
        assert loops == {loop}
    assert asyncio._get_running_loop() is None
    assert not loop.is_closed()


def test_what_is_made_in_one_greenlet_is_used_in_others() -> None:
    """A queue and a lock of asyncio, which belong to the loop that first waits in them."""

    async def new() -> tuple[asyncio.Queue[int], asyncio.Lock]:
        return asyncio.Queue(1), asyncio.Lock()

    queue, lock = await_(new())
    producers = [gevent.spawn(await_, queue.put(n)) for n in range(5)]
    consumers = [gevent.spawn(await_, queue.get()) for _ in range(5)]
    assert sorted(greenlet.get() for greenlet in consumers) == [0, 1, 2, 3, 4]
    gevent.joinall(producers)
    await_(lock.acquire())
    waiting = gevent.spawn(await_, lock.acquire())
    gevent.sleep(0)
    assert not waiting.ready()
    lock.release()
    assert waiting.get() is True


def test_background_tasks_go_on() -> None:
    event: Any = None
    events = []

    async def start() -> Any:
        nonlocal event
        event = asyncio.Event()

        async def background() -> None:
            await event.wait()
            events.append("done")

        return asyncio.ensure_future(background())

    task = await_(start())
    event.set()
    until_in_greenlet(lambda: events)
    assert await_(task) is None


def test_shutdown() -> None:
    events = []

    async def start() -> Any:
        async def background() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                events.append("cleaned up")

        task = asyncio.ensure_future(background())
        await asyncio.sleep(0)
        return task

    task = await_(start())
    loop = await_(running_loop())
    waiting = gevent.spawn(await_, asyncio.sleep(3600))
    gevent.sleep(0)
    shutdown()
    assert events == ["cleaned up"]
    assert task.cancelled()
    assert loop.is_closed()
    assert isinstance(waiting.get(), asyncio_gevent.CancelledExit)
    shutdown()  # nothing is left to do
    assert await_(running_loop()) is not loop
    # Several at the same time wait for the same end.
    gevent.joinall([gevent.spawn(shutdown) for _ in range(3)], raise_error=True)


def test_shutdown_before_it_has_begun() -> None:
    """It was made in this very moment."""
    asyncio_gevent.greenlet_to_future(gevent.spawn(int))
    shutdown()


def test_a_shut_down_loop_is_forgotten() -> None:
    note = weakref.ref(await_(running_loop()))
    shutdown()
    gevent.sleep(0)
    gc.collect()
    assert note() is None


def test_shutdown_in_its_own_task() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"gevent\.spawn\(asyncio_gevent\.shutdown\)"):
            shutdown()

    await_(main())
    asyncio_gevent.run(in_a_run())


async def in_a_run() -> None:
    shutdown()  # another loop's task may


def test_shutdown_in_the_hub() -> None:
    caught: list[BaseException] = []
    await_(asyncio.sleep(0))

    def callback() -> None:
        try:
            shutdown()
        except BaseException as error:
            caught.append(error)

    gevent.get_hub().loop.run_callback(callback)
    until_in_greenlet(lambda: caught)
    assert isinstance(caught[0], asyncio_gevent.BlockingCallError)


def test_the_handler_of_sigterm() -> None:
    """It is set where there is none, and taken back."""
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    await_(asyncio.sleep(0))
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    shutdown()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def handler(*_: Any) -> None:
        pass

    signal.signal(signal.SIGTERM, handler)
    try:
        await_(asyncio.sleep(0))
        assert signal.getsignal(signal.SIGTERM) is handler
        shutdown()
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_signals_of_run_beside_it() -> None:
    """Ctrl-C cancels the main task of run(), though the ambient loop was there first."""
    await_(asyncio.sleep(0))
    handler = signal.getsignal(signal.SIGINT)
    assert handler is signal.default_int_handler

    async def main() -> None:
        await asyncio.sleep(0)
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        asyncio_gevent.run(main())
    assert await_(asyncio.sleep(0, 1)) == 1


# --- threads ------------------------------------------------------------------------------------


def test_each_thread_has_its_own() -> None:
    """A hub that the thread destroys itself, as gevent's pool does."""
    mine = await_(running_loop())
    other = in_native_thread(lambda: await_(running_loop()))
    assert other is not mine
    until_in_greenlet(other.is_closed)  # at the very end of the thread, after its outcome is known
    asyncio_gevent.run(to_thread())


async def to_thread() -> None:
    """The same in a thread of the hub's pool, as long as that lasts."""
    ident, loop = await asyncio.to_thread(lambda: (native_ident(), await_(running_loop())))
    assert ident != native_ident()
    gevent.get_hub().threadpool.kill()
    await until(loop.is_closed)


def test_it_ends_with_its_thread() -> None:
    events = []
    loops = []

    async def start() -> None:
        async def background() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                events.append(native_ident())

        loops.append(asyncio.get_running_loop())
        asyncio.get_running_loop().task = asyncio.ensure_future(background())  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    idents = []

    def thread() -> None:
        idents.append(native_ident())
        await_(start())

    start_native_thread(thread, ())
    until_in_greenlet(lambda: loops and loops[0].is_closed())
    assert events == idents


# --- the end of the process ---------------------------------------------------------------------

ALL = ["task cleaned up", "generator closed", "thread done"]


@pytest.mark.parametrize(
    ("how", "status", "before", "after"),
    [
        ("end", 0, [], []),
        ("main greenlet", 0, [], []),
        ("exception", 1, ["uncaught ValueError"], []),
        ("sys.exit", 3, [], []),
        ("sys.exit in a greenlet", 3, [], []),
        ("sys.exit in a task", 3, [], []),
        ("sys.exit in a background task", 3, [], []),
        ("sigterm", -15, [], []),
        ("sigterm of a busy process", -15, [], []),
        ("sigterm in a greenlet", -15, [], []),
        ("sigterm in a task", -15, [], []),
        ("own handler of sigterm", 4, [], []),
        ("ctrl-c", -2, ["uncaught KeyboardInterrupt"], []),
        ("shutdown", 0, [], ["shut down"]),
        ("killall", 0, [], []),
        ("fork", 0, ALL, ["child ended", *ALL]),
        ("fork in a view", 0, ["child 7"], []),
        ("clean-up that calls", 0, [], ["sync in async: 42", "greenlet: 42"]),
        ("waiting greenlet", 0, [], ["waiting greenlet: CancelledExit"]),
        ("shutdown under way", 0, [], []),
        ("shutdown in a clean-up", 0, [], ["shut down"]),
        ("sigterm in a block", -15, [], ["left by CancelledError"]),
        ("greenlet that tries for ever", 0, [], ["cancelled"]),
        ("clean-up of a greenlet", 0, [], ["greenlet cleaned up"]),
    ],
)
def test_the_end_of_the_process(how: str, status: int, before: list[str], after: list[str]) -> None:
    finished = run_script("ambient_exit", how)
    lines = finished.out.splitlines()
    expected = before + after if how == "fork" else [*before, *ALL, *after]
    assert sorted(lines) == sorted(expected), finished
    if how not in ("fork", "waiting greenlet", "clean-up that calls"):
        assert lines[: len(before)] == before, finished
    assert finished.status == status, finished
    if not (how == "ctrl-c" or how.startswith("sys.exit in a ")):
        assert finished.err == "", finished


def test_it_keeps_nobody_waiting() -> None:
    run_script("ambient_exit", "no leftovers").check("LoopExit")


def test_spawn_at_exit() -> None:
    assert spawn(await_, running_loop()).get() is await_(running_loop())
