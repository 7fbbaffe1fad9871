"""Green tasks: tasks of an asyncio loop, which carries the hub, that may block in gevent."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import weakref
from typing import Any

import gevent
import gevent.event
import gevent.local
import gevent.lock
import gevent.pool
import gevent.queue
import pytest
from hosts import HOST, run
from support import BLOCKERS, Blocker, blocker, until

import asyncio_gevent
from asyncio_gevent import BlockingCallError, await_, green, green_task_factory, sync_to_async
from asyncio_gevent._green_tasks import MAX_STEPS, Step

variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable", default=None)


def run_green(main: Any, **options: Any) -> Any:
    """Run a coroutine function whose tasks are all green, itself too."""

    async def outer() -> Any:
        asyncio.get_running_loop().set_task_factory(green_task_factory)
        return await asyncio.create_task(main())

    return run(outer(), **options)


@pytest.mark.parametrize("kind", BLOCKERS)
def test_what_blocks_suspends_the_task_only(kind: type[Blocker]) -> None:
    async def main() -> None:
        with blocker(kind) as blocking:
            events: list[str] = []

            async def block() -> str:
                task = asyncio.current_task()
                running = asyncio.get_running_loop()
                events.append("begin")
                blocking.block()
                events.append("end")
                assert asyncio.current_task() is task
                assert asyncio.get_running_loop() is running
                await asyncio.sleep(0)
                return "result"

            async def other() -> None:
                await until(lambda: events)
                for _ in range(3):
                    await asyncio.sleep(0)
                events.append("other")
                blocking.release()

            results = await asyncio.gather(block(), other())
            assert results[0] == "result"
            assert events[0] == "begin"
            assert sorted(events) == ["begin", "end", "other"]

    run_green(main)


@pytest.mark.parametrize("kind", BLOCKERS)
def test_a_cancel_ends_the_blocking_call(kind: type[Blocker]) -> None:
    async def main() -> None:
        with blocker(kind) as blocking:
            began = asyncio.Event()

            async def block() -> None:
                began.set()
                blocking.block()
                await asyncio.sleep(1000)

            task = asyncio.create_task(block())
            await began.wait()
            await asyncio.sleep(0)
            assert task.cancel("message")
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()
            blocking.release()

    run_green(main)


def test_time_limits_of_both_kinds() -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.create_task(blocks()), 0.002)
        if sys.version_info >= (3, 11):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.002):
                    gevent.sleep(1000)
            assert asyncio.current_task().cancelling() == 0
        with gevent.Timeout(0.002, False):
            gevent.sleep(1000)
        with gevent.Timeout(0.002, False):
            await asyncio.sleep(1000)
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.002):
            await asyncio.get_running_loop().create_future()
        if sys.version_info >= (3, 11):
            assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0)
        gevent.sleep(0)

    async def blocks() -> None:
        gevent.sleep(1000)

    run_green(main)


def test_a_timeout_around_await_in_a_function() -> None:
    """What the function waits for is cancelled, and the timeout is raised where it was set."""
    ended = []

    async def wait() -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    def function() -> str:
        try:
            with gevent.Timeout(0.002):
                await_(wait())
        except gevent.Timeout:
            return "timeout"
        return "nothing"

    async def main() -> None:
        assert function() == "timeout"
        await asyncio.sleep(0)
        if sys.version_info >= (3, 11):
            assert asyncio.current_task().cancelling() == 0

    run_green(main)
    assert ended == ["cancelled"]


def test_exceptions_are_those_of_the_coroutine() -> None:
    async def fail(error: BaseException) -> None:
        gevent.sleep(0)
        await asyncio.sleep(0)
        gevent.sleep(0)
        raise error

    async def main() -> None:
        for error in (ValueError("x"), gevent.GreenletExit(), gevent.Timeout(1)):
            with pytest.raises(type(error)) as caught:
                await asyncio.create_task(fail(error))
            assert caught.value is error
            names = [entry.name for entry in caught.traceback]
            assert names[-1] == "fail"
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.create_task(fail(StopIteration(3)))

    run_green(main)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program(kind: Any) -> None:
    async def main() -> None:
        gevent.sleep(0)
        raise kind(3)

    with pytest.raises(kind):
        run_green(main)


def test_context_variables_are_the_tasks() -> None:
    async def child(value: int) -> None:
        variable.set(value)
        gevent.sleep(0.001)
        assert variable.get() == value
        await asyncio.sleep(0)
        assert variable.get() == value

        def function() -> None:
            variable.set(-value)

        function()
        gevent.sleep(0)
        assert variable.get() == -value

    async def main() -> None:
        variable.set("main")
        await asyncio.gather(*(child(number) for number in range(1, 5)))
        assert variable.get() == "main"

    run_green(main)


def test_a_task_is_one_greenlet_for_gevent() -> None:
    local = gevent.local.local()

    async def child(value: int) -> None:
        me = gevent.getcurrent()
        local.value = value
        for _ in range(3):
            gevent.sleep(0)
            await asyncio.sleep(0)
            assert gevent.getcurrent() is me
            assert local.value == value

    async def main() -> None:
        await asyncio.gather(*(child(number) for number in range(5)))
        await asyncio.gather(*(no_value() for _ in range(5)))

    async def no_value() -> None:
        assert not hasattr(local, "value")

    run_green(main)


def test_greenlets_wake_green_tasks_and_the_other_way_round() -> None:
    async def main() -> None:
        queue: Any = gevent.queue.Queue()
        back: Any = gevent.queue.Queue()

        def echo() -> None:
            for item in queue:
                back.put(item)
            back.put(StopIteration)

        gevent.spawn(echo)
        for number in range(10):
            queue.put(number)
            assert back.get() == number
        queue.put(StopIteration)
        assert list(back) == []
        pool = gevent.pool.Pool(2)
        assert pool.map(lambda x: gevent.sleep(0) or x * 2, range(5)) == [0, 2, 4, 6, 8]
        lock = gevent.lock.Semaphore()
        order = []

        async def with_lock(number: int) -> None:
            with lock:
                order.append(number)
                await asyncio.sleep(0)
                gevent.sleep(0)
                order.append(number)

        await asyncio.gather(*(with_lock(number) for number in range(4)))
        assert order == [0, 0, 1, 1, 2, 2, 3, 3]

    run_green(main)


def test_await_below_a_green_task_is_await() -> None:
    async def inner(depth: int) -> Any:
        await asyncio.sleep(0)
        if depth:
            return sync(depth - 1)
        return asyncio.current_task()

    def sync(depth: int) -> Any:
        return await_(inner(depth))

    async def main() -> None:
        assert sync(10) is asyncio.current_task()
        assert await_(asyncio.create_task(inner(0))) is not asyncio.current_task()
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, 5)
        assert await_(future) == 5
        assert await_(asyncio.gather(*(inner(0) for _ in range(3))))
        assert asyncio_gevent.async_to_sync(inner)(0) is asyncio.current_task()

    run_green(main)


# --- @green ---------------------------------------------------------------------------------------


def test_one_function_may_block() -> None:
    @green
    async def may_block(value: int, *, more: int) -> int:
        gevent.sleep(0.001)
        await asyncio.sleep(0)
        return value + more + await_(asyncio.sleep(0, 1))

    async def main() -> None:
        assert await may_block(1, more=2) == 4
        task = asyncio.current_task()

        @green
        async def same_task() -> bool:
            gevent.sleep(0)
            return asyncio.current_task() is task

        assert await same_task()
        with pytest.raises(BlockingCallError):
            gevent.sleep(0)  # the others may not
        assert await asyncio.gather(*(may_block(n, more=0) for n in range(3))) == [1, 2, 3]

    run(main())
    assert may_block.__name__ == "may_block"


def test_green_functions_in_green_tasks() -> None:
    @green
    async def inner() -> Any:
        gevent.sleep(0)
        return gevent.getcurrent()

    async def main() -> None:
        assert await inner() is gevent.getcurrent()

    run_green(main)


def test_it_changes_nothing_on_our_event_loop() -> None:
    @green
    async def may_block() -> int:
        gevent.sleep(0.001)
        await asyncio.sleep(0)
        return 1

    async def main() -> int:
        asyncio.get_running_loop().set_task_factory(green_task_factory)
        return await asyncio.create_task(may_block())

    assert asyncio_gevent.run(main()) == 1


def test_bad_input() -> None:
    async def agen() -> Any:
        yield 1

    with pytest.raises(TypeError, match="async generator function"):
        green(agen)
    with pytest.raises(TypeError, match="sync_to_async"):
        green(lambda: 1)
    with pytest.raises(TypeError, match="not a function"):
        green(3)  # type: ignore[arg-type]

    async def main() -> None:
        with pytest.raises(TypeError):
            green_task_factory(asyncio.get_running_loop(), 3)  # type: ignore[arg-type]

    run(main())


# --- what is left ---------------------------------------------------------------------------------


def test_nothing_is_left() -> None:
    steps: weakref.WeakSet[Step] = weakref.WeakSet()
    coroutines: weakref.WeakSet[Any] = weakref.WeakSet()

    async def child(number: int) -> None:
        steps.add(gevent.getcurrent())
        gevent.sleep(0)
        if number % 3 == 0:
            raise ValueError
        if number % 3 == 1:
            await asyncio.sleep(1000)

    async def main() -> None:
        for _ in range(3):
            tasks = [asyncio.create_task(child(number)) for number in range(3 * MAX_STEPS)]
            for task in tasks:
                coroutines.add(task.get_coro())
            await asyncio.wait(tasks, timeout=0.01)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            del task, tasks

    run_green(main)
    gc.collect()
    assert not coroutines
    assert len([step for step in steps if not step.dead]) <= MAX_STEPS


def test_a_task_that_blocks_when_the_loop_ends_is_cancelled() -> None:
    ended = []

    async def child() -> None:
        try:
            gevent.sleep(1000)
        finally:
            ended.append(1)

    async def main() -> None:
        asyncio.create_task(child())
        await asyncio.sleep(0.001)

    run_green(main)
    assert ended == [1]


def test_a_description_of_a_green_task() -> None:
    async def child() -> None:
        gevent.sleep(0)

    async def main() -> None:
        task = asyncio.create_task(child(), name="mine")
        assert "child" in repr(task)
        assert task.get_name() == "mine"
        await task

    run_green(main)


def test_debug_mode() -> None:
    async def main() -> None:
        gevent.sleep(0.001)
        await asyncio.sleep(0)
        assert await sync_to_async(lambda: gevent.sleep(0) or 1)() == 1

    run_green(main, debug=True)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_eager_tasks() -> None:
    async def child() -> int:
        gevent.sleep(0.001)
        await asyncio.sleep(0)
        return 1

    async def main() -> None:
        running = asyncio.get_running_loop()
        running.set_task_factory(
            lambda loop, coro, **options: green_task_factory(
                loop, coro, **{**options, "eager_start": True}
            )
        )
        assert await asyncio.gather(*(child() for _ in range(3))) == [1, 1, 1]

    run(main())


def test_code_below_context_run_may_block() -> None:
    async def main() -> None:
        variable.set("outer")

        def inner() -> Any:
            variable.set("inner")
            gevent.sleep(0)
            await_(asyncio.sleep(0))
            assert variable.get() == "inner"
            gevent.sleep(0)
            return variable.get()

        for _ in range(2):
            assert contextvars.copy_context().run(inner) == "inner"
            await asyncio.sleep(0)
            assert variable.get() == "outer"

    run_green(main)


def test_raw_greenlets_of_a_green_task() -> None:
    """As those of SQLAlchemy: they switch to their parent with what the task is to await."""
    from sqlalchemy.util import await_only, greenlet_spawn

    def sync() -> Any:
        return await_only(asyncio.sleep(0, 7))

    async def main() -> None:
        gevent.sleep(0)
        assert await greenlet_spawn(sync) == 7
        gevent.sleep(0)

    run_green(main)


def test_a_task_that_blocks_at_once_after_gevent_has_run() -> None:
    gevent.sleep(0.001)

    @green
    async def main() -> Any:
        gevent.sleep(0.001)
        return asyncio.current_task() is not None

    assert run(main())


def test_two_greenlets_with_event_loops_of_their_own() -> None:
    @green
    async def inner(value: int) -> int:
        gevent.sleep(0.001)
        await asyncio.sleep(0.001)
        return value

    async def main() -> list[Any]:
        return await asyncio.gather(
            *(asyncio_gevent.spawn(run, inner(number)) for number in range(2))
        )

    assert run(main()) == [0, 1]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
@pytest.mark.skipif(HOST == "uvloop", reason="it passes options that asyncio's factory refuses")
def test_eager_tasks_below_a_green_one() -> None:
    @green
    async def child() -> Any:
        gevent.sleep(0.001)
        return asyncio.current_task()

    async def plain() -> None:
        gevent.sleep(0.001)

    @green
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        task = asyncio.create_task(child())
        assert await task is task
        with pytest.raises(BlockingCallError, match="eager"):
            await asyncio.create_task(plain())

    run(main())
