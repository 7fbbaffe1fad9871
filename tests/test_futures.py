"""greenlet_to_future(), future_to_greenlet(), spawn() and Greenlet."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import traceback
from collections.abc import Callable
from typing import Any

import gevent
import gevent.event
import gevent.pool
import pytest
from support import PATCHED, NativeThread, in_native_thread, until, until_in_greenlet

import asyncio_gevent
from asyncio_gevent import Greenlet, await_, future_to_greenlet, greenlet_to_future, spawn

variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable", default=None)
run = asyncio_gevent.run


class Error(Exception):
    pass


def give(value: Any, *, event: Any = None) -> Any:
    if event is not None:
        event.wait()
    if isinstance(value, BaseException):
        raise value
    return value


async def give_async(value: Any, *, turns: int = 1) -> Any:
    for _ in range(turns):
        await asyncio.sleep(0)
    if isinstance(value, BaseException):
        raise value
    return value


class Slow:
    """A function that blocks until it is killed, and takes its time to clean up."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __call__(self, *, swallow: bool = False) -> str:
        self.events.append("begun")
        try:
            gevent.event.Event().wait()
        except gevent.GreenletExit:
            if not swallow:
                raise
        finally:
            gevent.sleep(0)
            self.events.append("cleaned up")
        return "swallowed"


class SlowAsync:
    """The same, a coroutine function."""

    def __init__(self) -> None:
        self.events: list[str] = []

    async def __call__(self) -> None:
        self.events.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.events.append("cleaned up")


# --- greenlet to future: outcomes ---------------------------------------------------------------


def test_a_value() -> None:
    async def main() -> None:
        assert await greenlet_to_future(gevent.spawn(give, 1)) == 1
        event = gevent.event.Event()
        future = greenlet_to_future(gevent.spawn(give, 2, event=event))
        assert isinstance(future, asyncio.Future)
        assert future.get_loop() is asyncio.get_running_loop()
        await asyncio.sleep(0)
        assert not future.done()
        event.set()
        assert await future == 2

    run(main())


def test_an_exception(observed: Any) -> None:
    error = Error()
    error.__cause__ = cause = ValueError()

    async def main() -> None:
        greenlet = gevent.spawn(give, error)
        lengths = []
        for _ in range(3):
            with pytest.raises(Error) as caught:
                await greenlet_to_future(greenlet)
            assert caught.value is error
            assert error.__cause__ is cause
            names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
            assert names[-1] == "give"
            lengths.append(len(names))
        assert len(set(lengths[1:])) == 1
        future = greenlet_to_future(greenlet)
        lengths.clear()
        for _ in range(3):
            with pytest.raises(Error):
                await future
            lengths.append(len(traceback.extract_tb(error.__traceback__)))
        # The future keeps the first one for one raise only.
        assert len(set(lengths[1:])) == 1, lengths

    run(main())
    # gevent prints it, as that of every greenlet.
    assert observed.hub_errors == [error]
    observed.hub_errors.clear()


@pytest.mark.parametrize("dead", [False, True])
def test_stop_iteration(observed: Any, dead: bool) -> None:
    """A future cannot hold one: a RuntimeError, as asyncio makes of it from 3.12 on."""
    error = StopIteration(1)

    async def main() -> None:
        greenlet = gevent.spawn(give, error)
        if dead:
            greenlet.join()
        with pytest.raises(RuntimeError, match="StopIteration") as caught:
            await greenlet_to_future(greenlet)
        assert caught.value.__cause__ is error

    run(main())
    observed.hub_errors.clear()


def test_a_dead_greenlet() -> None:
    async def main() -> None:
        greenlet = gevent.spawn(give, 1)
        greenlet.join()
        future = greenlet_to_future(greenlet)
        assert future.done()
        assert await future == 1
        killed = gevent.spawn(give, 1)
        killed.kill()
        assert greenlet_to_future(killed).cancelled()
        value = await greenlet_to_future(killed, autocancel_future=False)
        assert isinstance(value, gevent.GreenletExit)

    run(main())


# --- greenlet to future: flags ------------------------------------------------------------------


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("autocancel", [True, False])
def test_autocancel_future(autocancel: bool, positional: bool) -> None:
    async def main() -> None:
        greenlet = gevent.spawn(gevent.event.Event().wait)
        if positional:
            future = greenlet_to_future(greenlet, autocancel)
        else:
            future = greenlet_to_future(greenlet, autocancel_future=autocancel)
        await asyncio.sleep(0)
        greenlet.kill(block=False)
        if autocancel:
            with pytest.raises(asyncio.CancelledError):
                await future
            assert future.cancelled()
        else:
            assert isinstance(await future, gevent.GreenletExit)

    run(main())


def test_a_kill_with_another_exception_is_that_exception(observed: Any) -> None:
    async def main() -> None:
        greenlet = gevent.spawn(gevent.event.Event().wait)
        future = greenlet_to_future(greenlet)
        await asyncio.sleep(0)
        error = Error()
        greenlet.kill(error, block=False)
        with pytest.raises(Error) as caught:
            await future
        assert caught.value is error

    run(main())
    observed.hub_errors.clear()


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("autostart", [True, False])
def test_autostart_greenlet(autostart: bool, positional: bool) -> None:
    async def main() -> None:
        greenlet = gevent.Greenlet(give, 1)
        if positional:
            future = greenlet_to_future(greenlet, True, autostart)
        else:
            future = greenlet_to_future(greenlet, autostart_greenlet=autostart)
        if not autostart:
            for _ in range(3):
                await asyncio.sleep(0)
                gevent.sleep(0)
            assert not greenlet.started
            assert not future.done()
            greenlet.start()
        assert await future == 1

    run(main())


def test_a_greenlet_that_starts_later_is_left_alone() -> None:
    async def main() -> None:
        greenlet = gevent.Greenlet(give, 1)
        greenlet.start_later(3600)
        future = greenlet_to_future(greenlet)
        await asyncio.sleep(0)
        gevent.sleep(0)
        assert not greenlet.dead
        assert not future.done()
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
        assert greenlet.dead

    run(main())


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("autokill", [True, False])
def test_autokill_greenlet(autokill: bool, positional: bool) -> None:
    slow = Slow()

    async def main() -> Any:
        greenlet = gevent.spawn(slow)
        if positional:
            future = greenlet_to_future(greenlet, True, True, autokill)
        else:
            future = greenlet_to_future(greenlet, autokill_greenlet=autokill)
        await until(lambda: slow.events)
        assert future.cancel()
        if autokill:
            assert not future.done()  # it waits for the clean-up
        with pytest.raises(asyncio.CancelledError):
            await future
        assert not future.cancel()
        assert slow.events == (["begun", "cleaned up"] if autokill else ["begun"])
        return greenlet

    greenlet = run(main())
    assert greenlet.dead == autokill
    greenlet.kill()


def test_cancel_of_the_task_that_waits() -> None:
    slow = Slow()

    async def body() -> None:
        await greenlet_to_future(gevent.spawn(slow))

    async def main() -> None:
        task = asyncio.ensure_future(body())
        await until(lambda: slow.events)
        task.cancel("reason")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert slow.events == ["begun", "cleaned up"]
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(spawn(Slow()), 0.01)

    run(main())


def test_a_kill_that_is_swallowed() -> None:
    """As with a task that swallows its cancellation: what it returns is the result."""

    async def main() -> None:
        slow = Slow()
        future = greenlet_to_future(gevent.spawn(slow, swallow=True))
        await until(lambda: slow.events)
        future.cancel()
        assert await future == "swallowed"

    run(main())


def test_cancel_before_the_start() -> None:
    async def main() -> None:
        for autostart in (True, False):
            slow = Slow()
            greenlet = gevent.Greenlet(slow)
            future = greenlet_to_future(greenlet, autostart_greenlet=autostart)
            future.cancel("reason")
            future.cancel()
            with pytest.raises(asyncio.CancelledError):
                await future
            assert greenlet.dead
            assert slow.events == []

    run(main())


def test_cancel_while_it_ends() -> None:
    async def main() -> None:
        for _ in range(3):
            event = gevent.event.Event()
            greenlet = gevent.spawn(give, 5, event=event)
            future = greenlet_to_future(greenlet)
            await asyncio.sleep(0)
            event.set()
            future.cancel()
            try:
                assert await future == 5
            except asyncio.CancelledError:
                pass  # as a task whose future was done when it was cancelled
            assert greenlet.ready()

    run(main())


# --- greenlet to future: loops and threads ------------------------------------------------------


def test_without_a_running_loop() -> None:
    """It is the ambient loop's."""
    event = gevent.event.Event()
    future = greenlet_to_future(gevent.spawn(give, 3, event=event))
    assert future.get_loop() is await_(running_loop())
    event.set()
    assert await_(future) == 3
    loop = asyncio_gevent.new_event_loop()
    given = greenlet_to_future(gevent.spawn(give, 4), loop=loop)
    assert loop.run_until_complete(given) == 4
    loop.close()


async def running_loop() -> Any:
    return asyncio.get_running_loop()


def new_loops() -> list[Any]:
    return [asyncio_gevent.EventLoop] + ([] if PATCHED else [asyncio.SelectorEventLoop])


@pytest.mark.parametrize("new_loop", new_loops())
def test_a_greenlet_of_another_thread(new_loop: Callable[[], Any]) -> None:
    slow = Slow()
    event = gevent.event.Event()
    greenlets = [gevent.Greenlet(give, 1), gevent.spawn(give, 2, event=event), gevent.spawn(slow)]

    async def main() -> None:
        futures = [greenlet_to_future(greenlet) for greenlet in greenlets]
        assert await futures[0] == 1
        gevent_hub.loop.run_callback_threadsafe(event.set)
        assert await futures[1] == 2
        futures[2].cancel()
        with pytest.raises(asyncio.CancelledError):
            await futures[2]
        assert slow.events in ([], ["begun", "cleaned up"])

    def in_thread() -> None:
        loop = new_loop()
        try:
            loop.run_until_complete(main())
        finally:
            loop.close()

    gevent_hub = gevent.get_hub()
    in_native_thread(in_thread)
    assert all(greenlet.dead for greenlet in greenlets)


def test_a_closed_loop() -> None:
    """Its futures stay as they are; the greenlet does not mind."""
    loop = asyncio_gevent.new_event_loop()
    event = gevent.event.Event()
    greenlet = gevent.spawn(give, 1, event=event)
    future = greenlet_to_future(greenlet, loop=loop)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    event.set()
    assert greenlet.get() == 1
    gevent.sleep(0)
    assert not future.done()


# --- greenlet to future: bad input --------------------------------------------------------------


@pytest.mark.parametrize("thing", [None, 1, len, give_async])
def test_not_a_greenlet(thing: Any) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match=r"is not a gevent\.Greenlet: use.*gevent\.spawn"):
            greenlet_to_future(thing)

    run(main())


def test_a_greenlet_of_a_destroyed_hub() -> None:
    greenlet = in_native_thread(lambda: gevent.Greenlet(give, 1))

    async def main() -> None:
        with pytest.raises(RuntimeError, match="was destroyed"):
            greenlet_to_future(greenlet)

    run(main())


@pytest.mark.skipif(PATCHED, reason="asyncio's own loop waits in the hub after patching")
def test_asyncios_own_loop() -> None:
    async def main() -> None:
        greenlet = gevent.Greenlet(give, 1)
        with pytest.raises(RuntimeError, match=r"asyncio_gevent\.run\(main\(\)\)"):
            greenlet_to_future(greenlet)
        with pytest.raises(RuntimeError, match=r"asyncio_gevent\.run\(main\(\)\)"):
            await Greenlet(give, 1)

    loop = asyncio.SelectorEventLoop()
    loop.run_until_complete(main())
    loop.close()


@pytest.mark.skipif(not PATCHED, reason="asyncio's own loop stops the hub without patching")
def test_asyncios_own_loop_after_patching() -> None:
    async def main() -> None:
        assert await greenlet_to_future(gevent.spawn(give, 1)) == 1
        assert await spawn(give, 2) == 2
        assert await asyncio_gevent.sync_to_async(give)(3) == 3
        slow = Slow()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(spawn(slow), 0.01)
        assert slow.events == ["begun", "cleaned up"]

    loop = asyncio.SelectorEventLoop()
    loop.run_until_complete(main())
    loop.close()


# --- spawn() and Greenlet -----------------------------------------------------------------------


def test_a_greenlet_can_be_awaited() -> None:
    async def main() -> None:
        greenlet = spawn(give, 1)
        assert isinstance(greenlet, gevent.Greenlet)
        assert await greenlet == 1
        assert await greenlet == 1
        assert await Greenlet(give, 2) == 2  # it is started
        assert greenlet.get() == 1
        error = Error()
        with pytest.raises(Error):
            await Greenlet.spawn(give, error)

    run(main())


@pytest.fixture(autouse=True)
def _printed(observed: Any) -> Any:
    """Leave out what gevent prints: exceptions of this file end greenlets."""
    yield
    observed.hub_errors[:] = [e for e in observed.hub_errors if not isinstance(e, Error)]


def test_a_greenlet_works_in_gevent() -> None:
    greenlets = [spawn(give, n) for n in range(3)]
    assert gevent.joinall(greenlets) == greenlets
    assert {greenlet.value for greenlet in gevent.iwait(greenlets)} == {0, 1, 2}
    assert len(gevent.wait(greenlets)) == 3
    pool = gevent.pool.Pool(2, greenlet_class=Greenlet)
    assert pool.map(give, [1, 2, 3]) == [1, 2, 3]
    greenlet = pool.spawn(give, 4)
    assert await_(wait_for(greenlet)) == 4


async def wait_for(awaitable: Any) -> Any:
    return await awaitable


def test_a_greenlet_runs_in_a_copy_of_the_context() -> None:
    def function() -> Any:
        before = variable.get()
        variable.set("its")
        return before

    async def main() -> None:
        variable.set("mine")
        assert await spawn(function) == "mine"
        assert await Greenlet(function) == "mine"
        assert await greenlet_to_future(gevent.Greenlet(function)) == "mine"
        assert variable.get() == "mine"

    run(main())


def test_a_greenlet_has_no_running_loop() -> None:
    async def inner() -> int:
        await asyncio.sleep(0)
        return 7

    async def main() -> None:
        assert await spawn(run, inner()) == 7

    run(main())


def test_spawn_of_a_coroutine_function() -> None:
    with pytest.raises(TypeError, match=r"spawn\(await_, give_async\(\.\.\.\)\)"):
        spawn(give_async, 1)
    coroutine = give_async(1)
    with pytest.raises(TypeError, match=r"spawn\(await_, give_async\(\.\.\.\)\)"):
        spawn(coroutine)  # type: ignore[arg-type]
    assert coroutine.cr_frame is None
    with pytest.raises(TypeError):
        spawn(3)  # type: ignore[arg-type]
    assert spawn(await_, give_async(1)).get() == 1


# --- future to greenlet -------------------------------------------------------------------------


def serve() -> tuple[Any, Callable[[], None]]:
    loop = asyncio_gevent.new_event_loop()
    server = gevent.spawn(loop.run_forever)

    def stop() -> None:
        loop.call_soon(loop.stop)
        server.get()
        loop.close()

    return loop, stop


def test_a_coroutine() -> None:
    greenlet = future_to_greenlet(give_async(1))
    assert isinstance(greenlet, gevent.Greenlet)
    assert not greenlet.started
    greenlet.start()
    assert greenlet.get() == 1
    loop, stop = serve()
    greenlet = future_to_greenlet(running_loop(), loop)
    greenlet.start()
    assert greenlet.get() is loop
    stop()


def test_a_coroutine_in_a_running_loop() -> None:
    """The running loop of the caller serves it."""

    async def main() -> None:
        greenlet = future_to_greenlet(running_loop())
        assert await greenlet is asyncio.get_running_loop()

    run(main())


def test_a_future(observed: Any) -> None:
    loop, stop = serve()
    future = loop.create_future()
    for autostart in (True, False):
        greenlet = future_to_greenlet(future, autostart_future=autostart)
        greenlet.start()
        gevent.sleep(0)
        if not future.done():
            loop.call_soon(future.set_result, 2)
        assert greenlet.get() == 2
    error = Error()
    failed = loop.create_future()
    failed.set_exception(error)
    greenlet = future_to_greenlet(failed)
    greenlet.start()
    lengths = set()
    for _ in range(3):
        with pytest.raises(Error) as caught:
            greenlet.get()
        assert caught.value is error
        lengths.add(len(traceback.extract_tb(error.__traceback__)))
    assert len(lengths) == 1
    stop()
    observed.hub_errors.clear()


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("autocancel", [True, False])
@pytest.mark.parametrize("kind", ["coroutine", "task", "future"])
def test_autocancel_of_a_future(kind: str, autocancel: bool, positional: bool) -> None:
    loop, stop = serve()
    slow = SlowAsync()
    future: Any = slow()
    if kind == "task":
        future = loop.create_task(future)
    elif kind == "future":
        future.close()
        future = loop.create_future()
        slow.events.append("begun")
    if positional:
        greenlet = future_to_greenlet(future, loop, True, autocancel)
    else:
        greenlet = future_to_greenlet(future, loop=loop, autocancel_future=autocancel)
    greenlet.start()
    until_in_greenlet(lambda: slow.events)
    gevent.sleep(0)
    greenlet.kill()
    assert isinstance(greenlet.value, gevent.GreenletExit)
    if kind == "future":
        assert future.cancelled() == autocancel
    else:
        assert slow.events == (["begun", "cleaned up"] if autocancel else ["begun"])
    for task in asyncio.all_tasks(loop):
        task.cancel()
    until_in_greenlet(lambda: not asyncio.all_tasks(loop))
    stop()


@pytest.mark.parametrize("autocancel", [True, False])
def test_a_kill_before_the_start(autocancel: bool) -> None:
    loop, stop = serve()
    coroutine = give_async(1)
    for awaitable in (coroutine, loop.create_future()):
        greenlet = future_to_greenlet(awaitable, loop, autocancel_future=autocancel)
        greenlet.kill()
        assert greenlet.dead
        gevent.sleep(0)
        if autocancel and awaitable is not coroutine:
            until_in_greenlet(awaitable.cancelled)  # type: ignore[attr-defined]
    assert coroutine.cr_frame is None  # closed: it will never be a task
    started = future_to_greenlet(give_async(1), loop)
    started.start()
    started.kill()
    assert isinstance(started.value, gevent.GreenletExit)
    stop()


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("autokill", [True, False])
@pytest.mark.parametrize("kind", ["coroutine", "future"])
def test_autokill_of_a_greenlet(kind: str, autokill: bool, positional: bool, observed: Any) -> None:
    loop, stop = serve()
    future: Any = give_async(asyncio.CancelledError("message"))
    if kind == "future":
        future.close()
        future = loop.create_future()
        loop.call_soon(future.cancel, "message")
    if positional:
        greenlet = future_to_greenlet(future, loop, True, True, autokill)
    else:
        greenlet = future_to_greenlet(future, loop, autokill_greenlet=autokill)
    greenlet.start()
    greenlet.join()
    if autokill:
        assert isinstance(greenlet.value, gevent.GreenletExit)
        assert greenlet.successful()
    else:
        with pytest.raises(asyncio.CancelledError) as caught:
            greenlet.get()
        assert type(caught.value) is asyncio.CancelledError
        observed.hub_errors.clear()  # gevent prints what is not a GreenletExit
    stop()


def test_autostart_future() -> None:
    coroutine = give_async(1)
    with pytest.raises(ValueError, match="ensure_future"):
        future_to_greenlet(coroutine, None, False)
    assert coroutine.cr_frame is None  # closed: nobody else has it


def test_future_to_greenlet_of_something_else(observed: Any) -> None:
    for thing in (None, 3, give_async, len):
        with pytest.raises(TypeError, match="is not awaitable"):
            future_to_greenlet(thing)  # type: ignore[arg-type]
    loop = asyncio_gevent.new_event_loop()
    other = asyncio_gevent.new_event_loop()
    with pytest.raises(ValueError, match="belongs to another event loop"):
        future_to_greenlet(loop.create_future(), other)
    other.close()
    greenlet = future_to_greenlet(loop.create_future(), loop)
    greenlet.start()
    with pytest.raises(RuntimeError, match="does not run"):
        greenlet.get()
    loop.close()
    greenlet = future_to_greenlet(give_async(1), loop)
    greenlet.start()
    with pytest.raises(RuntimeError, match="is closed"):
        greenlet.get()
    observed.hub_errors.clear()


def test_a_loop_in_a_native_thread() -> None:
    loop = asyncio_gevent.new_event_loop()
    thread = NativeThread(loop.run_forever)
    slow = SlowAsync()
    greenlets = [future_to_greenlet(running_loop(), loop), future_to_greenlet(slow(), loop)]
    for greenlet in greenlets:
        greenlet.start()
    assert greenlets[0].get() is loop
    until_in_greenlet(lambda: slow.events)
    greenlets[1].kill()
    assert slow.events == ["begun", "cleaned up"]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


# --- waiting together ---------------------------------------------------------------------------


def test_greenlets_in_asyncio() -> None:
    async def main() -> None:
        assert await asyncio.gather(spawn(give, 1), give_async(2), spawn(give, 3)) == [1, 2, 3]
        futures = [greenlet_to_future(spawn(give, n)) for n in range(3)]
        done, pending = await asyncio.wait(futures)
        assert not pending
        assert {future.result() for future in done} == {0, 1, 2}
        results = [await each for each in asyncio.as_completed([spawn(give, n) for n in range(3)])]
        assert sorted(results) == [0, 1, 2]

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="TaskGroup is new in 3.11")
def test_a_task_group() -> None:
    slow = Slow()

    async def fails() -> None:
        await until(lambda: slow.events)
        raise Error

    async def main() -> None:
        with pytest.raises(BaseExceptionGroup) as caught:  # noqa: F821 - new in 3.11
            async with asyncio.TaskGroup() as group:
                group.create_task(wait_for(spawn(slow)))
                group.create_task(fails())
        assert [type(error) for error in caught.value.exceptions] == [Error]
        assert slow.events == ["begun", "cleaned up"]

    run(main())


def test_futures_in_gevent() -> None:
    loop, stop = serve()
    tasks = [loop.create_task(give_async(n, turns=n)) for n in range(3)]
    assert sorted(g.get() for g in gevent.joinall([spawn(await_, task) for task in tasks])) == [
        0,
        1,
        2,
    ]
    greenlets = [future_to_greenlet(give_async(n), loop) for n in range(3)]
    for greenlet in greenlets:
        greenlet.start()
    assert {g.value for g in gevent.iwait(greenlets)} == {0, 1, 2}
    assert len(gevent.wait(greenlets, count=2)) == 2
    stop()
