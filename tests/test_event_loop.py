"""The event loop among greenlets: cooperation, wake-ups, fairness, rest, errors, debug mode."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import gevent
import gevent.event
import gevent.local
import gevent.pool
import pytest
from support import (
    LIBUV,
    PATCHED,
    PLACES,
    UNIT,
    Polls,
    native_ident,
    native_sleep,
    os_close,
    until,
)

import asyncio_gevent
from asyncio_gevent import BlockingCallError, EventLoop


@pytest.fixture
def loop() -> Any:
    loop = EventLoop()
    yield loop
    loop.close()


# --- cooperation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_it_runs_everywhere(place: str) -> None:
    async def main() -> tuple[int, str]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, EventLoop)
        gevent.sleep(0)
        await asyncio.sleep(0.001)
        return native_ident(), await asyncio.to_thread(lambda: "from a thread")

    ident, value = PLACES[place](lambda: asyncio_gevent.run(main()))
    assert value == "from a thread"
    elsewhere = place == "native" or (place == "thread" and not PATCHED)
    assert (ident != native_ident()) == elsewhere


def test_greenlets_go_on_while_it_waits() -> None:
    ticks: list[int] = []

    def tick() -> None:
        for number in range(3):
            gevent.sleep(0)
            ticks.append(number)

    async def main() -> None:
        greenlet = gevent.spawn(tick)
        ended = asyncio.Event()
        greenlet.rawlink(lambda greenlet: ended.set())
        await ended.wait()
        assert ticks == [0, 1, 2]

    asyncio_gevent.run(main())


def test_its_clock_and_its_class() -> None:
    loop = EventLoop()
    assert isinstance(loop, asyncio.SelectorEventLoop)
    before = time.monotonic()
    assert before <= loop.time() <= time.monotonic()
    assert not loop.is_running()
    assert not loop.is_closed()
    assert "running=False closed=False" in repr(loop)
    loop.close()
    assert loop.is_closed()
    loop.close()


def test_it_can_be_run_again_and_again(loop: Any) -> None:
    async def main(value: int) -> int:
        await asyncio.sleep(0)
        return value

    assert [loop.run_until_complete(main(value)) for value in range(3)] == [0, 1, 2]


def test_stop_before_run_runs_what_is_ready_once(loop: Any) -> None:
    seen: list[int] = []

    def again() -> None:
        seen.append(2)
        loop.call_soon(seen.append, 3)

    loop.call_soon(seen.append, 1)
    loop.call_soon(again)
    loop.stop()
    loop.run_forever()
    assert seen == [1, 2]
    loop.run_until_complete(asyncio.sleep(0))
    assert seen == [1, 2, 3]


def test_the_order_of_callbacks_is_that_of_the_calls(loop: Any) -> None:
    seen: list[int] = []

    def first() -> None:
        seen.append(1)
        loop.call_soon(seen.append, 4)

    loop.call_soon(first)
    loop.call_soon(seen.append, 2)
    loop.call_soon_threadsafe(seen.append, 3)
    cancelled = loop.call_soon(seen.append, 0)
    cancelled.cancel()
    loop.run_until_complete(until(lambda: len(seen) == 4))
    assert seen == [1, 2, 3, 4]


def test_timers_fire_in_the_order_of_their_times(loop: Any) -> None:
    seen: list[int] = []
    now = loop.time()
    for number in (3, 1, 2):
        loop.call_at(now + number * 0.002, seen.append, number)
    loop.call_at(now - 1, seen.append, 0)
    loop.call_at(now + 0.004, seen.append, -1).cancel()
    loop.run_until_complete(until(lambda: len(seen) == 4))
    assert seen == [0, 1, 2, 3]
    # The last one is not called before its time.
    assert loop.time() >= now + 0.006 - loop._clock_resolution


def test_many_cancelled_timers_do_not_stay(loop: Any) -> None:
    async def main() -> None:
        for _ in range(1000):
            loop.call_later(3600, int).cancel()
        await asyncio.to_thread(int)  # only now has the event loop rested in any case
        assert len(loop._scheduled) < 200

    loop.run_until_complete(main())


# --- wake-ups from greenlets ----------------------------------------------------------------------
#
# In plain asyncio only call_soon_threadsafe() wakes the loop: of the others it knows that they
# come from its own callbacks.


def _idle(loop: Any, act: Callable[[], Any]) -> None:
    """From a greenlet, when the event loop has nothing to do and waits."""

    def greenlet() -> None:
        while loop._awake and not loop.is_closed():
            gevent.sleep(0.001)
        if not loop.is_closed():
            act()

    gevent.spawn(greenlet)


def test_call_soon_wakes_it(loop: Any) -> None:
    _idle(loop, lambda: loop.call_soon(loop.stop))
    loop.run_forever()


def test_stop_wakes_it(loop: Any) -> None:
    _idle(loop, loop.stop)
    loop.run_forever()


def test_call_later_wakes_it(loop: Any) -> None:
    loop.call_later(3600, int)
    _idle(loop, lambda: loop.call_later(0.001, loop.stop))
    loop.run_forever()


def test_create_task_wakes_it(loop: Any) -> None:
    async def stop() -> None:
        loop.stop()

    tasks: list[Any] = []
    _idle(loop, lambda: tasks.append(loop.create_task(stop())))
    loop.run_forever()
    assert tasks[0].done()


def test_cancelling_the_next_timer_does_not_hold_up_the_one_after_it(loop: Any) -> None:
    timer = loop.call_later(0.001, int)
    loop.call_later(0.002, loop.stop)
    _idle(loop, timer.cancel)
    loop.run_forever()


@pytest.mark.parametrize("what", ["future", "queue", "event", "cancel", "semaphore", "condition"])
def test_what_a_coroutine_waits_for_may_come_from_a_greenlet(what: str) -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        if what == "future":
            future = loop.create_future()
            _idle(loop, lambda: future.set_result("result"))
            assert await future == "result"
        elif what == "queue":
            queue: asyncio.Queue[int] = asyncio.Queue()
            _idle(loop, lambda: queue.put_nowait(1))
            assert await queue.get() == 1
        elif what == "event":
            event = asyncio.Event()
            _idle(loop, event.set)
            await event.wait()
        elif what == "semaphore":
            semaphore = asyncio.Semaphore(0)
            _idle(loop, semaphore.release)
            await semaphore.acquire()
        elif what == "condition":
            condition = asyncio.Condition()

            async def notify() -> None:
                async with condition:
                    condition.notify_all()

            tasks: list[Any] = []
            _idle(loop, lambda: tasks.append(loop.create_task(notify())))
            async with condition:
                await condition.wait()
            await tasks[0]
        else:
            task = asyncio.create_task(asyncio.sleep(3600))
            _idle(loop, task.cancel)
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio_gevent.run(main())


def test_add_reader_from_a_greenlet(loop: Any) -> None:
    import os

    reader, writer = os.pipe()

    def act() -> None:
        loop.add_reader(reader, loop.stop)
        os.write(writer, b"x")

    _idle(loop, act)
    loop.run_forever()
    loop.remove_reader(reader)
    os_close(reader)
    os_close(writer)


def test_a_loop_that_another_loop_of_the_thread_wakes() -> None:
    """Each waits for what the other one sets, in turn."""
    turns: list[int] = []

    async def player(mine: asyncio.Queue[int], theirs: asyncio.Queue[int]) -> None:
        for _ in range(5):
            turns.append(await mine.get())
            theirs.put_nowait(turns[-1] + 1)

    first: asyncio.Queue[int] = asyncio.Queue()
    second: asyncio.Queue[int] = asyncio.Queue()
    greenlets = [
        gevent.spawn(asyncio_gevent.run, player(first, second)),
        gevent.spawn(asyncio_gevent.run, player(second, first)),
    ]
    gevent.sleep(0)
    first.put_nowait(0)
    gevent.joinall(greenlets, raise_error=True)
    assert turns == list(range(10))


# --- fairness and rest ----------------------------------------------------------------------------


def test_a_busy_loop_does_not_starve_greenlets_timers_or_another_loop() -> None:
    async def busy(ended: Callable[[], bool]) -> int:
        count = 0
        while not ended():
            await asyncio.sleep(0)
            count += 1
        return count

    async def other() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(5):
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            await asyncio.sleep(0.001)
        writer.close()
        await writer.wait_closed()

    def echo(connection: Any, address: Any) -> None:
        while data := connection.recv(1):
            connection.sendall(data)

    from gevent.server import StreamServer

    server = StreamServer(("127.0.0.1", 0), echo)
    server.start()
    port = server.server_port
    ticking = gevent.spawn(lambda: [gevent.sleep(0) for _ in range(20)])
    sleeping = gevent.spawn(gevent.sleep, 0.005)
    running = gevent.spawn(asyncio_gevent.run, other())
    greenlets = [ticking, sleeping, running]
    asyncio_gevent.run(busy(lambda: all(greenlet.ready() for greenlet in greenlets)))
    gevent.joinall(greenlets, raise_error=True)
    server.stop()


def test_busy_greenlets_do_not_starve_the_loop() -> None:
    ended = False
    count = 0

    def busy() -> None:
        nonlocal count
        while not ended:
            gevent.sleep(0)
            count += 1

    async def main() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(5):
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
        writer.close()
        await writer.wait_closed()

    from gevent.server import StreamServer

    def echo(connection: Any, address: Any) -> None:
        while data := connection.recv(1):
            connection.sendall(data)

    server = StreamServer(("127.0.0.1", 0), echo)
    server.start()
    port = server.server_port
    greenlets = [gevent.spawn(busy) for _ in range(3)]
    try:
        asyncio_gevent.run(main())
    finally:
        ended = True
        gevent.joinall(greenlets, raise_error=True)
        server.stop()
    assert count > 0


def test_busy_callbacks_do_not_starve_descriptors_of_the_same_loop() -> None:
    import socket

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ended = False

        def again() -> None:
            if not ended:
                loop.call_soon(again)

        again()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.send(b"x")
            assert await loop.sock_recv(ours, 1) == b"x"
            await asyncio.sleep(0.001)
        ended = True

    asyncio_gevent.run(main())


@pytest.mark.parametrize("waiting", ["nothing", "timer", "reader", "suspended step", "thread"])
def test_a_loop_that_waits_does_not_poll(waiting: str) -> None:
    import socket

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        release = gevent.event.Event()
        native = gevent.event.Event()
        tasks = []
        if waiting == "timer":
            loop.call_later(3600, int)
        elif waiting == "reader":
            loop.add_reader(ours, int)
        elif waiting == "suspended step":

            async def step() -> None:
                release.wait()

            tasks.append(asyncio.create_task(step()))
        elif waiting == "thread":
            tasks.append(asyncio.create_task(asyncio.to_thread(native_sleep, UNIT * 2)))
        await asyncio.sleep(0.002)
        with Polls() as polls:
            await asyncio.sleep(UNIT)
        # One for the timer of this sleep, and what libuv needs to tell milliseconds apart.
        assert polls.count <= 10
        release.set()
        native.set()
        loop.remove_reader(ours)
        ours.close()
        theirs.close()
        await asyncio.gather(*tasks)

    asyncio_gevent.run(main())


def test_a_loop_that_does_not_run_costs_the_hub_nothing() -> None:
    loop = EventLoop()
    loop.call_later(3600, int)
    loop.call_soon(int)
    loop.run_until_complete(asyncio.sleep(0))
    loop.call_soon(int)
    with Polls() as polls:
        gevent.sleep(UNIT)
    assert polls.count <= 10
    loop.close()


def test_a_timer_takes_its_time() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for delay in (0.0, 0.001, UNIT):
            started = loop.time()
            await asyncio.sleep(delay)
            assert loop.time() - started >= delay - loop._clock_resolution  # type: ignore[attr-defined]

    asyncio_gevent.run(main())


def test_a_timer_set_after_a_long_computation_does_not_come_too_early() -> None:
    """The hub's idea of the time is that of its last poll."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        native_sleep(UNIT)
        started = loop.time()
        await asyncio.sleep(UNIT)
        assert loop.time() - started >= UNIT - 0.001

    asyncio_gevent.run(main())


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("via", ["call_soon", "call_later", "call_soon_threadsafe", "reader"])
def test_an_error_of_a_callback_goes_to_the_exception_handler(via: str, loop: Any) -> None:
    import socket

    contexts: list[Any] = []
    loop.set_exception_handler(lambda loop, context: contexts.append(context))
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    def fail() -> None:
        if via == "reader":
            ours.recv(1)
        raise ZeroDivisionError

    if via == "reader":
        loop.add_reader(ours, fail)
        theirs.send(b"x")
    elif via == "call_later":
        loop.call_later(0, fail)
    else:
        getattr(loop, via)(fail)
    loop.run_until_complete(until(lambda: contexts))
    (context,) = contexts
    assert isinstance(context["exception"], ZeroDivisionError)
    assert "fail" in context["message"]
    loop.remove_reader(ours)
    ours.close()
    theirs.close()


def test_an_error_in_the_exception_handler_is_handled(loop: Any, observed: Any) -> None:
    def handler(loop: Any, context: Any) -> None:
        raise ZeroDivisionError

    loop.set_exception_handler(handler)
    loop.call_soon(lambda: 1 / 0)
    loop.run_until_complete(asyncio.sleep(0))
    (context,) = observed.handled
    assert "Unhandled error in exception handler" in context["message"]
    observed.handled.clear()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("via", ["call_soon", "call_later", "task", "suspended", "nested greenlet"])
def test_what_ends_a_program_leaves_run_forever(
    error: type[BaseException], via: str, loop: Any, observed: Any
) -> None:
    def fail() -> None:
        raise error("end")

    async def step() -> None:
        if via == "suspended":
            gevent.sleep(0)
        fail()

    task = None
    if via == "call_soon":
        loop.call_soon(fail)
    elif via == "call_later":
        loop.call_later(0.001, fail)
    elif via == "nested greenlet":
        # In a greenlet of its own it is the hub that hears of it, and tells the main greenlet.
        loop.call_soon(gevent.spawn, fail)
    else:
        task = loop.create_task(step())
    with pytest.raises(error, match="end"):
        loop.run_forever()
    assert not loop.is_running()
    if via == "nested greenlet":
        observed.hub_errors.clear()
    loop.run_until_complete(asyncio.sleep(0))
    if task is not None:
        assert isinstance(task.exception(), error)


def test_only_the_caller_of_the_loop_hears_of_it() -> None:
    """A KeyboardInterrupt in one event loop of a thread does not end the others."""

    async def failing() -> None:
        await asyncio.sleep(0)
        raise SystemExit(3)

    async def other() -> str:
        await asyncio.sleep(0.002)
        return "result"

    def run() -> Any:
        with pytest.raises(SystemExit):
            asyncio_gevent.run(failing())
        return "ended"

    greenlets = [gevent.spawn(run), gevent.spawn(asyncio_gevent.run, other())]
    gevent.joinall(greenlets, raise_error=True)
    assert [greenlet.value for greenlet in greenlets] == ["ended", "result"]


def test_the_traceback_of_an_error_starts_with_few_frames_of_ours() -> None:
    async def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        asyncio_gevent.run(main())
    own = [entry for entry in caught.traceback if "asyncio_gevent" in str(entry.path.parent.name)]
    assert len(own) <= 2
    assert caught.traceback[-1].name == "main"


# --- asynchronous generators ----------------------------------------------------------------------


def test_asyncgens_are_closed_at_the_end() -> None:
    seen: list[str] = []

    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            gevent.sleep(0)
            await asyncio.sleep(0)
            seen.append("closed")

    async def main() -> Any:
        generator = generate()
        assert await generator.__anext__() == 1
        return generator

    generator = asyncio_gevent.run(main())
    assert seen == ["closed"]
    del generator


def test_the_hooks_of_two_loops_do_not_mix() -> None:
    """Each closes its own generators, whoever runs in between."""
    closed: list[Any] = []

    async def generate() -> AsyncIterator[int]:
        loop = asyncio.get_running_loop()
        try:
            yield 1
        finally:
            closed.append(asyncio.get_running_loop() is loop)

    async def main() -> None:
        for _ in range(5):
            generator = generate()
            await generator.__anext__()
            gevent.sleep(0)
            await asyncio.sleep(0)
            del generator
        await asyncio.sleep(0)

    greenlets = [gevent.spawn(asyncio_gevent.run, main()) for _ in range(3)]
    gevent.joinall(greenlets, raise_error=True)
    assert closed == [True] * 15


# --- debug mode -----------------------------------------------------------------------------------


@pytest.fixture
def slow(loop: Any, observed: Any) -> Any:
    """The warnings of slow callbacks, taken out of what was observed."""
    loop.set_debug(True)
    loop.slow_callback_duration = UNIT / 2

    def take() -> list[str]:
        messages = [record.getMessage() for record in observed.log]
        observed.log.clear()
        return messages

    return take


def test_a_slow_callback_is_warned_of(loop: Any, slow: Any) -> None:
    loop.call_soon(native_sleep, UNIT)
    loop.run_until_complete(asyncio.sleep(0))
    (message,) = slow()
    assert message.startswith("Executing <Handle")
    assert "sleep" in message


def test_suspended_time_does_not_make_a_callback_slow(loop: Any, slow: Any) -> None:
    async def step() -> None:
        gevent.sleep(UNIT)
        gevent.sleep(UNIT)

    loop.run_until_complete(step())
    loop.call_soon(gevent.sleep, UNIT)
    loop.run_until_complete(asyncio.sleep(UNIT * 2))
    assert slow() == []


def test_the_rest_of_a_suspended_step_can_be_slow(loop: Any, slow: Any) -> None:
    async def step() -> None:
        gevent.sleep(0)
        native_sleep(UNIT)
        gevent.sleep(UNIT * 20)  # does not count

    loop.run_until_complete(step())
    (message,) = slow()
    assert "step()" in message
    taken = float(message.rpartition(" took ")[2].split()[0])
    assert UNIT <= taken + 0.001 < UNIT * 20


def test_debug_mode_knows_threads_from_greenlets(loop: Any) -> None:
    """Any greenlet of the OS thread may call; another OS thread may not."""
    from support import in_native_thread

    loop.set_debug(True)
    errors: list[str] = []

    def elsewhere() -> None:
        for call in (lambda: loop.call_soon(int), lambda: loop.call_later(1, int)):
            with pytest.raises(RuntimeError, match="Non-thread-safe operation") as caught:
                call()
            errors.append(str(caught.value))
        loop.call_soon_threadsafe(int)

    async def main() -> None:
        seen: list[int] = []
        gevent.spawn(lambda: loop.call_soon(seen.append, 1))
        await until(lambda: seen)
        in_native_thread(elsewhere)
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    assert "call_soon_threadsafe" in errors[0]
    assert len(errors) == 2
    # While it does not run, it belongs to nobody.
    in_native_thread(lambda: loop.call_soon(int))
    loop.run_until_complete(asyncio.sleep(0))


def test_origin_tracking_is_for_steps_only(loop: Any) -> None:
    depths: list[int] = []

    async def main() -> None:
        depths.append(sys.get_coroutine_origin_tracking_depth())
        greenlet = gevent.spawn(sys.get_coroutine_origin_tracking_depth)
        greenlet.join()
        assert greenlet.value == 0
        depths.append(sys.get_coroutine_origin_tracking_depth())
        loop.set_debug(False)
        await asyncio.sleep(0)
        depths.append(sys.get_coroutine_origin_tracking_depth())
        gevent.sleep(0)
        depths.append(sys.get_coroutine_origin_tracking_depth())
        loop.set_debug(True)
        await asyncio.sleep(0)
        depths.append(sys.get_coroutine_origin_tracking_depth())

    loop.set_debug(True)
    loop.run_until_complete(main())
    assert sys.get_coroutine_origin_tracking_depth() == 0
    assert [depth > 0 for depth in depths] == [True, True, False, False, True]


def test_debug_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    loop = EventLoop()
    assert loop.get_debug()
    loop.close()


def test_handles_show_where_they_were_made(loop: Any) -> None:
    loop.set_debug(True)
    handle = loop.call_soon(int)
    timer = loop.call_later(1, int)
    for each in (handle, timer):
        assert f"created at {__file__}" in repr(each)
        each.cancel()


def test_nothing_shows_when_debug_is_off(loop: Any, observed: Any) -> None:
    loop.slow_callback_duration = 0
    loop.call_soon(native_sleep, 0.001)
    loop.run_until_complete(asyncio.sleep(0))
    assert not [record for record in observed.log if record.levelno >= logging.WARNING]


# --- suspend=False --------------------------------------------------------------------------------


@pytest.fixture
def strict() -> Any:
    loop = EventLoop(suspend=False)
    yield loop
    loop.close()


def _message(error: BaseException) -> str:
    return str(error)


def test_a_blocking_call_is_an_error_that_names_call_place_and_remedy(strict: Any) -> None:
    async def main() -> None:
        with pytest.raises(BlockingCallError) as caught:
            gevent.sleep(0.001)
        message = _message(caught.value)
        assert "gevent.hub.sleep()" in message
        assert f"{__file__}:" in message
        assert "in main" in message
        assert "suspend=False" in message
        assert "asyncio.to_thread" in message
        with pytest.raises(RuntimeError):
            gevent.event.Event().wait()
        await asyncio.sleep(0)

    strict.run_until_complete(main())


def test_what_does_not_block_is_no_error(strict: Any) -> None:
    async def main() -> None:
        event = gevent.event.Event()
        event.set()
        event.wait()
        queue: gevent.queue.Queue[int] = gevent.queue.Queue()
        queue.put(1)
        assert queue.get() == 1
        gevent.spawn(gevent.sleep, 0)
        await asyncio.sleep(0)
        assert await asyncio.to_thread(lambda: 1) == 1
        assert (await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80))[0][4][1] == 80

    import gevent.queue

    strict.run_until_complete(main())


def test_greenlets_may_block_beside_it(strict: Any) -> None:
    async def main() -> None:
        greenlet = gevent.spawn(gevent.sleep, 0)
        ended = asyncio.Event()
        greenlet.rawlink(lambda greenlet: ended.set())
        await ended.wait()

    strict.run_until_complete(main())


def test_an_error_of_a_callback_is_handled_there_as_well(strict: Any) -> None:
    contexts: list[Any] = []
    strict.set_exception_handler(lambda loop, context: contexts.append(context))
    strict.call_soon(gevent.sleep, 0.001)
    strict.run_until_complete(until(lambda: contexts))
    assert isinstance(contexts[0]["exception"], BlockingCallError)


def test_the_error_reaches_a_raw_greenlet(strict: Any) -> None:
    from test_suspension import await_only, in_raw_greenlet

    def code() -> str:
        with pytest.raises(BlockingCallError, match="asyncio.to_thread"):
            gevent.sleep(3600)
        with pytest.raises(BlockingCallError, match="asyncio.to_thread"):
            gevent.event.Event().wait()
        await_only(asyncio.sleep(0))
        return "result"

    async def main() -> None:
        assert await in_raw_greenlet(code) == "result"

    strict.run_until_complete(main())
    gevent.sleep(0)


def test_subprocesses_work_without_suspending(strict: Any) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec(
            "cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate(b"text")
        assert (out, process.returncode) == (b"text", 0)

    strict.run_until_complete(main())


def test_a_pool_that_is_full_does_not_block_the_executor(strict: Any) -> None:
    async def main() -> None:
        count = gevent.get_hub().threadpool.maxsize * 2
        results = await asyncio.gather(*(asyncio.to_thread(int, n) for n in range(count)))
        assert results == list(range(count))

    strict.run_until_complete(main())


def test_two_loops_of_one_thread_may_differ() -> None:
    async def blocking() -> str:
        gevent.sleep(0.001)
        await asyncio.sleep(0)
        gevent.sleep(0)
        return "suspended"

    def run() -> Any:
        loop = asyncio_gevent.new_event_loop(suspend=False)
        try:
            return loop.run_until_complete(blocking())
        except BlockingCallError:
            return "refused"
        finally:
            loop.close()

    strict = gevent.spawn(run)
    assert asyncio_gevent.run(blocking()) == "suspended"
    assert strict.get() == "refused"


# --- where it must not run ------------------------------------------------------------------------


def test_not_in_the_hub(loop: Any) -> None:
    errors: list[BaseException] = []

    def in_hub() -> None:
        try:
            loop.run_forever()
        except BaseException as error:
            errors.append(error)

    gevent.get_hub().loop.run_callback(in_hub)
    gevent.sleep(0.001)
    (error,) = errors
    assert isinstance(error, BlockingCallError)
    assert "gevent.spawn(loop.run_forever)" in str(error)


def test_nested_in_a_coroutine_it_is_an_error_but_a_greenlet_may() -> None:
    async def inner() -> str:
        await asyncio.sleep(0)
        return "inner"

    async def main() -> None:
        with pytest.raises(RuntimeError, match="cannot be called from a running event loop"):
            asyncio_gevent.run(inner())
        other = EventLoop()
        coroutine = inner()
        with pytest.raises(RuntimeError, match="while another loop is running"):
            other.run_until_complete(coroutine)
        coroutine.close()
        other.close()
        assert gevent.spawn(asyncio_gevent.run, inner()).get() == "inner"

    asyncio_gevent.run(main())


def test_nested_waiting_for_the_same_loop_to_a_depth() -> None:
    """Sync code in a coroutine waits for another coroutine of the same loop, and so on."""

    def sync(depth: int) -> int:
        result = gevent.event.AsyncResult()
        task = asyncio.get_running_loop().create_task(step(depth - 1))
        task.add_done_callback(lambda task: result.set(task.result()))
        return int(result.get()) + 1

    async def step(depth: int) -> int:
        await asyncio.sleep(0)
        return sync(depth) if depth else 0

    assert asyncio_gevent.run(step(30)) == 30


@pytest.mark.skipif(not LIBUV, reason="libev's lists of watchers are not on the C stack")
def test_no_watcher_whose_list_libuv_has_on_the_c_stack(
    loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in a greenlet while the hub calls them, they would destroy memory."""
    made: list[str] = []
    for kind in ("prepare", "check", "idle"):
        monkeypatch.setattr(
            type(gevent.get_hub().loop), kind, lambda *args, kind=kind, **kwargs: made.append(kind)
        )

    async def main() -> None:
        one, other = socket.socketpair()
        with one, other:
            one.setblocking(False)
            other.send(b"x")
            assert await asyncio.get_running_loop().sock_recv(one, 1) == b"x"

    loop.run_until_complete(main())
    assert not made


@pytest.mark.skipif(not LIBUV, reason="libuv's timers know milliseconds only")
def test_a_wait_below_a_millisecond_does_not_spin() -> None:
    async def main() -> None:
        with Polls() as polls:
            for _ in range(5):
                await asyncio.sleep(0.0004)
        assert polls.count <= 30

    asyncio_gevent.run(main())


def test_no_timer_is_lost_when_a_signal_handler_raises_while_they_are_moved(loop: Any) -> None:
    seen: list[int] = []

    class Ready(deque[Any]):
        appended = 0

        def append(self, handle: Any) -> None:
            super().append(handle)
            if isinstance(handle, asyncio.TimerHandle):
                self.appended += 1
                if self.appended == 3:
                    raise ZeroDivisionError  # as from a handler, which is called after a call

    due = loop.time() - 1
    for number in range(10):
        loop.call_at(due, seen.append, number)
    loop._ready = Ready()
    with pytest.raises(ZeroDivisionError):
        loop.run_forever()
    loop.run_until_complete(until(lambda: len(seen) >= 10))
    assert sorted(seen) == [*range(10)]


def test_timers_of_the_same_time_fire_in_the_order_in_which_they_were_made(loop: Any) -> None:
    seen: list[int] = []
    due = loop.time() + 0.001
    for number in range(500):
        loop.call_at(due, seen.append, number)
    loop.run_until_complete(until(lambda: len(seen) == 500))
    assert seen == [*range(500)]


@pytest.mark.parametrize("debug", [False, True])
def test_what_a_thread_schedules_is_a_handle_of_the_kind_that_python_has(
    loop: Any, debug: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Later Pythons have one that may be cancelled from any thread.
    class ThreadSafeHandle(asyncio.Handle):
        pass

    monkeypatch.setattr(asyncio_gevent._event_loop, "_ThreadSafeHandle", ThreadSafeHandle)
    loop.set_debug(debug)
    done = loop.create_future()
    assert type(loop.call_soon_threadsafe(done.set_result, 1)) is ThreadSafeHandle
    assert loop.run_until_complete(done) == 1


def test_what_makes_futures_is_the_loops_own_only_while_it_runs(loop: Any) -> None:
    before = dict(loop.__dict__)

    async def main() -> None:
        future = loop.create_future()
        assert type(future) is asyncio.Future
        assert future.get_loop() is loop
        for debug in (True, False):
            loop.set_debug(debug)
            assert loop.get_debug() is debug
            assert bool(loop.create_future()._source_traceback) is debug

    loop.run_until_complete(main())
    assert loop.__dict__.keys() == before.keys()


def test_what_others_put_in_its_place_makes_futures(loop: Any) -> None:
    made: list[str] = []

    class Mine(asyncio_gevent.EventLoop):
        def create_future(self) -> Any:
            made.append("by a subclass")
            return super().create_future()

    async def main() -> None:
        await asyncio.sleep(0.001)

    mine = Mine()
    mine.run_until_complete(main())
    mine.close()
    assert made == ["by a subclass"]

    def create_future() -> Any:
        made.append("by an attribute")
        return asyncio.Future(loop=loop)

    loop.create_future = create_future
    loop.run_until_complete(main())
    assert made[1:] == ["by an attribute"]
    assert loop.create_future is create_future


@pytest.mark.parametrize("awake", [True, False])
def test_what_a_thread_schedules_as_the_event_loop_goes_to_rest_wakes_it(
    loop: Any, awake: bool
) -> None:
    # Right after it has looked at the queue, before and after it says that nobody is on the way.
    done = loop.create_future()
    looks = 0

    class Ready(deque[Any]):
        def __len__(self) -> int:
            nonlocal looks
            length = super().__len__()
            if not length and loop._awake is awake and not looks:
                looks += 1
                loop.call_soon_threadsafe(done.set_result, looks)
            return length

        def __bool__(self) -> bool:  # deque has its own up to 3.10
            return len(self) > 0

    loop._ready = Ready()
    with gevent.Timeout(10):
        assert loop.run_until_complete(done) == 1
