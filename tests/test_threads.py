"""OS threads: loops made here and run there, each thread with its own hub, calls across threads."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import gevent
import gevent.event
import gevent.monkey
import gevent.threadpool
import pytest
from support import (
    NativeThread,
    in_native_thread,
    native_ident,
    native_sleep,
    start_native_thread,
    until,
)

import asyncio_gevent
from asyncio_gevent import EventLoop


async def _everything() -> str:
    """Timers, a suspended step, a native thread and a wake-up, in whatever thread this is."""
    loop = asyncio.get_running_loop()
    gevent.sleep(0.001)
    await asyncio.sleep(0.001)
    assert await asyncio.to_thread(lambda: 1) == 1
    future = loop.create_future()
    start_native_thread(loop.call_soon_threadsafe, (future.set_result, "woken"))
    assert await future == "woken"
    future = loop.create_future()
    gevent.spawn(future.set_result, "by a greenlet")
    assert await future == "by a greenlet"
    return "everything"


def test_made_here_and_run_in_a_native_thread() -> None:
    loop = EventLoop()
    seen: list[int] = []
    loop.call_soon(lambda: seen.append(native_ident()))

    def run() -> Any:
        result = loop.run_until_complete(_everything())
        seen.append(native_ident())
        loop.close()
        return result

    assert in_native_thread(run) == "everything"
    assert seen[0] == seen[1] != native_ident()


def test_made_in_a_native_thread_and_run_here() -> None:
    loop = in_native_thread(EventLoop)
    assert loop.run_until_complete(_everything()) == "everything"
    loop.close()


def test_run_here_and_there_in_turn() -> None:
    loop = EventLoop()
    for _ in range(2):
        assert loop.run_until_complete(_everything()) == "everything"
        assert in_native_thread(lambda: loop.run_until_complete(_everything())) == "everything"
    loop.close()


def test_run_there_and_closed_here() -> None:
    loop = EventLoop()
    assert in_native_thread(lambda: loop.run_until_complete(_everything())) == "everything"
    loop.close()


def test_run_here_and_closed_there() -> None:
    loop = EventLoop()
    assert loop.run_until_complete(_everything()) == "everything"
    in_native_thread(loop.close)
    assert loop.is_closed()


@pytest.mark.parametrize("closed", ["there", "here"])
def test_descriptors_of_a_native_thread_end_with_it(closed: str) -> None:
    """Its hub was made for the loop, and nobody else destroys it."""

    def run() -> None:
        loop = EventLoop()
        loops.append(loop)
        loop.run_until_complete(asyncio.sleep(0))
        if closed == "there":
            loop.close()

    def in_thread_without_help() -> None:
        ended = gevent.event.Event()
        watcher = gevent.get_hub().loop.async_()
        watcher.start(ended.set)
        start_native_thread(lambda: (run(), watcher.send()), ())
        ended.wait()
        watcher.stop()
        watcher.close()

    loops: list[EventLoop] = []
    for _ in range(5):
        in_thread_without_help()
    if closed == "here":
        for loop in loops:
            loop.close()
    # conftest.py looks at the descriptors


def test_greenlets_of_a_native_thread_outlive_its_loop() -> None:
    def run() -> str:
        event = gevent.event.Event()

        async def main() -> gevent.Greenlet:
            greenlet = gevent.spawn(lambda: event.wait() and "woken")
            await asyncio.sleep(0)
            return greenlet

        greenlet = asyncio_gevent.run(main())
        event.set()
        return str(greenlet.get())

    assert in_native_thread(run) == "woken"


def test_several_native_threads_with_a_loop_each() -> None:
    threads = [NativeThread(lambda: asyncio_gevent.run(_everything())) for _ in range(5)]
    assert asyncio_gevent.run(_everything()) == "everything"
    assert [thread.join() for thread in threads] == ["everything"] * 5


def test_several_loops_at_once_in_a_native_thread() -> None:
    def run() -> list[Any]:
        greenlets = [gevent.spawn(asyncio_gevent.run, _everything()) for _ in range(5)]
        gevent.joinall(greenlets, raise_error=True)
        return [greenlet.value for greenlet in greenlets]

    assert in_native_thread(run) == ["everything"] * 5


def test_a_loop_that_runs_cannot_be_run_in_another_thread() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        with pytest.raises(RuntimeError, match="already running"):
            await asyncio.to_thread(loop.run_forever)

    asyncio_gevent.run(main())


def test_a_loop_with_a_suspended_step_stays_in_its_thread() -> None:
    loop = EventLoop()
    release = gevent.event.Event()

    async def step() -> None:
        release.wait()

    task = loop.create_task(step())
    loop.run_until_complete(asyncio.sleep(0))
    with pytest.raises(RuntimeError, match="suspended in the hub of another OS thread"):
        in_native_thread(lambda: loop.run_forever())
    assert not loop.is_running()
    release.set()
    loop.run_until_complete(task)
    in_native_thread(lambda: loop.run_until_complete(asyncio.sleep(0)))
    loop.close()


def test_a_loop_with_a_suspended_step_closed_in_another_thread() -> None:
    loop = EventLoop()
    seen: list[str] = []

    async def step() -> None:
        try:
            gevent.event.Event().wait()
        except gevent.GreenletExit:
            seen.append("ended")
            raise

    task = loop.create_task(step())
    loop.run_until_complete(asyncio.sleep(0))
    in_native_thread(loop.close)
    while not seen:
        gevent.sleep(0)
    assert seen == ["ended"]
    assert isinstance(task.exception(), gevent.GreenletExit)


# --- wake-ups across threads ----------------------------------------------------------------------


def test_bursts_from_many_threads_all_arrive_in_order() -> None:
    threads = 5
    calls = 200
    seen: list[tuple[int, int]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def burst(thread: int) -> None:
            for number in range(calls):
                loop.call_soon_threadsafe(seen.append, (thread, number))

        running = [NativeThread(lambda thread=thread: burst(thread)) for thread in range(threads)]
        while len(seen) < threads * calls:
            await asyncio.sleep(0.001)
        for each in running:
            each.join()

    asyncio_gevent.run(main())
    for thread in range(threads):
        assert [n for t, n in seen if t == thread] == list(range(calls))


def test_each_wake_up_of_a_loop_that_rests_arrives() -> None:
    """One at a time: the next is sent when the one before has arrived."""
    arrived = 0

    async def main() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def arrive() -> None:
            nonlocal arrived
            arrived += 1
            lock.release()

        def send() -> None:
            for _ in range(200):
                lock.acquire()
                loop.call_soon_threadsafe(arrive)
            lock.acquire()
            loop.call_soon_threadsafe(done.set_result, None)

        from gevent.monkey import get_original

        lock = get_original("_thread", "allocate_lock")()
        thread = NativeThread(send)
        await done
        thread.join()

    asyncio_gevent.run(main())
    assert arrived == 200


def test_calls_from_a_thread_while_the_loop_stops_and_closes() -> None:
    """They arrive, or raise RuntimeError since it is closed; nothing else, and no hang."""
    for _ in range(20):
        loop = EventLoop()
        count = 0

        def call(loop: Any = loop) -> str:
            nonlocal count
            try:
                while True:
                    loop.call_soon_threadsafe(int)
                    count += 1
                    native_sleep(0)  # or it would take all the time of the loop's thread
            except RuntimeError as error:
                return str(error)

        thread = NativeThread(call)
        loop.run_until_complete(until(lambda: count > 10))
        loop.close()
        assert thread.join() == "Event loop is closed"


def test_a_busy_loop_leaves_the_interpreter_to_other_threads() -> None:
    """A thread that needs the GIL gets it within some of CPython's switch intervals (5 ms)."""
    turns = 0

    def work() -> None:
        nonlocal turns
        while turns < 50:
            native_sleep(0)
            turns += 1

    thread = NativeThread(work)
    started = time.thread_time()  # not the clock: other processes may keep both from running
    asyncio_gevent.run(until(lambda: turns == 50))
    seconds_a_turn = (time.thread_time() - started) / 50
    thread.join()
    assert seconds_a_turn < 0.025  # it was 0.15 when the hub's polls were the only chance


def test_stop_from_a_native_thread() -> None:
    loop = EventLoop()
    thread = NativeThread(lambda: loop.call_soon_threadsafe(loop.stop))
    loop.run_forever()
    thread.join()
    loop.close()


def test_a_call_before_the_loop_runs_is_not_lost() -> None:
    loop = EventLoop()
    in_native_thread(lambda: loop.call_soon_threadsafe(loop.stop))
    loop.run_forever()
    loop.close()


def test_run_coroutine_threadsafe_from_a_native_thread() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        done = gevent.event.AsyncResult()

        def elsewhere() -> Any:
            hub_free = gevent.monkey.get_original("threading", "Event")()
            future = asyncio.run_coroutine_threadsafe(asyncio.sleep(0.001, "result"), loop)
            future.add_done_callback(lambda future: hub_free.set())
            hub_free.wait()
            return future.result()

        thread = NativeThread(elsewhere)
        gevent.spawn(lambda: done.set(thread.join()))
        while not done.ready():
            await asyncio.sleep(0.001)
        assert done.get() == "result"

    asyncio_gevent.run(main())


def test_a_loop_in_a_native_thread_serves_greenlets_of_this_one() -> None:
    loop = EventLoop()
    thread = NativeThread(loop.run_forever)
    hub = gevent.get_hub()

    def call(number: int) -> Any:
        result = gevent.event.AsyncResult()
        future = asyncio.run_coroutine_threadsafe(asyncio.sleep(0.001, number), loop)
        future.add_done_callback(
            lambda future: hub.loop.run_callback_threadsafe(result.set, future.result())
        )
        return result.get()

    greenlets = [gevent.spawn(call, number) for number in range(20)]
    gevent.joinall(greenlets, raise_error=True)
    assert [greenlet.value for greenlet in greenlets] == list(range(20))
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_future_set_in_another_loops_thread() -> None:
    """Two loops in two OS threads exchange through call_soon_threadsafe."""
    here = EventLoop()
    there = EventLoop()
    thread = NativeThread(there.run_forever)

    async def main() -> list[int]:
        received: list[int] = []
        done = here.create_future()

        def echo(number: int) -> None:
            here.call_soon_threadsafe(receive, number)

        def receive(number: int) -> None:
            received.append(number)
            if len(received) == 50:
                done.set_result(None)

        for number in range(50):
            there.call_soon_threadsafe(echo, number)
        await done
        return received

    assert here.run_until_complete(main()) == list(range(50))
    there.call_soon_threadsafe(there.stop)
    thread.join()
    here.close()
    there.close()


def test_a_worker_of_a_gevent_thread_pool_may_run_a_loop() -> None:
    pool = gevent.threadpool.ThreadPool(1)
    try:
        assert pool.apply(asyncio_gevent.run, (_everything(),)) == "everything"
        assert pool.apply(asyncio_gevent.run, (_everything(),)) == "everything"
    finally:
        pool.kill()


def test_an_executor_thread_may_run_a_loop() -> None:
    async def main() -> Any:
        # Not the default one: gevent keeps its threads, and their hubs, for another five seconds.
        executor = gevent.threadpool.ThreadPoolExecutor(1)
        try:
            return await asyncio.get_running_loop().run_in_executor(
                executor, asyncio_gevent.run, _everything()
            )
        finally:
            executor.shutdown()

    assert asyncio_gevent.run(main()) == "everything"


def test_contexts_of_threads() -> None:
    """asyncio.to_thread() takes the context of the coroutine along."""
    import contextvars

    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")

    async def main() -> None:
        variable.set(1)
        assert await asyncio.to_thread(variable.get) == 1

    asyncio_gevent.run(main())
