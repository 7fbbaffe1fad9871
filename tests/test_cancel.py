"""Cancel and timeouts reach a step that is suspended in a blocking gevent call.

Once, with the counts of ``cancelling()`` and ``uncancel()`` as asyncio has them, for tasks of
every class, and whatever else happens at the same moment.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import gevent
import gevent.event
import greenlet
import pytest
from support import (
    BLOCKERS,
    PATCHED,
    UNIT,
    Blocker,
    Event,
    NativeThread,
    Sleep,
    Socket,
    blocker,
    native_sleep,
    until,
)
from test_suspension import NOBODY, await_only, identity, in_raw_greenlet

import asyncio_gevent

counts = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="cancelling() and uncancel() came with Python 3.11"
)

# --- classes of tasks -----------------------------------------------------------------------------


def _c_task(loop: Any, coro: Any, **kwargs: Any) -> Any:
    return asyncio.tasks._CTask(coro, loop=loop, **kwargs)  # type: ignore[attr-defined]


def _py_task(loop: Any, coro: Any, **kwargs: Any) -> Any:
    return asyncio.tasks._PyTask(coro, loop=loop, **kwargs)  # type: ignore[attr-defined]


class SlottedTask(asyncio.Task):  # type: ignore[type-arg]
    __slots__ = ()


def _slotted_task(loop: Any, coro: Any, **kwargs: Any) -> Any:
    return SlottedTask(coro, loop=loop, **kwargs)


FACTORIES: dict[str, Any] = {
    "default": None,
    "C": _c_task,
    "Python": _py_task,
    "subclass": _slotted_task,
}
# Eager tasks have tests of their own, below: their first step is part of the step that makes them.


@pytest.fixture(params=FACTORIES)
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """``asyncio_gevent.run`` with a task factory."""

    def run(main: Coroutine[Any, Any, Any]) -> Any:
        async def with_factory() -> Any:
            asyncio.get_running_loop().set_task_factory(FACTORIES[request.param])
            return await asyncio.create_task(main)

        return asyncio_gevent.run(with_factory())

    return run


async def suspended(function: Callable[[], Any]) -> asyncio.Task[Any]:
    """Return a task whose step is suspended in this function.

    A callback makes it: the first step of an eager task is part of the step that makes the task,
    so that both are suspended.
    """
    entered: list[asyncio.Task[Any]] = []

    async def step() -> Any:
        task = asyncio.current_task()
        assert task is not None
        entered.append(task)
        return function()

    asyncio.get_running_loop().call_soon(lambda: asyncio.create_task(step()))
    await until(lambda: entered)
    return entered.pop()


# --- the plain case -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BLOCKERS, ids=lambda kind: kind.__name__)
def test_cancel_is_raised_by_the_blocking_call(kind: type[Blocker]) -> None:
    seen: list[Any] = []

    def block() -> None:
        before = identity()
        try:
            call.block()
        except asyncio.CancelledError:
            seen.append("cancelled")
            assert identity() == before
            raise
        finally:
            seen.append("finally")

    async def main() -> None:
        task = await suspended(block)
        assert task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert not task.cancel()

    with blocker(kind) as call:
        asyncio_gevent.run(main())
    assert seen == ["cancelled", "finally"]


def test_it_works_for_tasks_of_every_class(run: Any) -> None:
    seen: list[Any] = []

    def block() -> None:
        try:
            gevent.event.Event().wait()
        except asyncio.CancelledError as error:
            seen.append(error.args)
            raise

    async def main() -> None:
        for message in (), ("why",):
            task = await suspended(block)
            assert task.cancel(*message)
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()
        assert seen == [(), ("why",)]

    run(main())


def test_a_step_that_catches_it_is_not_cancelled_again(run: Any) -> None:
    async def main() -> None:
        entered: list[None] = []

        async def step() -> str:
            entered.append(None)
            with pytest.raises(asyncio.CancelledError):
                gevent.event.Event().wait()
            gevent.sleep(0)
            await asyncio.sleep(0)
            return "result"

        task = asyncio.create_task(step())
        await until(lambda: entered)
        task.cancel()
        assert await task == "result"

    run(main())


def test_it_can_be_cancelled_again_and_again(run: Any) -> None:
    """In a blocking call, in an await, and in a blocking call again."""
    seen: list[str] = []

    async def main() -> None:
        async def step() -> None:
            for name in "blocking", "await", "blocking", "await":
                seen.append(name)
                with pytest.raises(asyncio.CancelledError):
                    if name == "await":
                        await asyncio.sleep(3600)
                    else:
                        gevent.event.Event().wait()

        task = asyncio.create_task(step())
        for number in range(4):
            await until(lambda number=number: len(seen) > number)
            await asyncio.sleep(0)
            assert task.cancel()
        await task

    run(main())


def test_from_a_greenlet_and_from_a_native_thread() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        task = await suspended(gevent.event.Event().wait)
        gevent.spawn(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        task = await suspended(gevent.event.Event().wait)
        thread = NativeThread(lambda: loop.call_soon_threadsafe(task.cancel))
        with pytest.raises(asyncio.CancelledError):
            await task
        thread.join()

    asyncio_gevent.run(main())


def test_through_a_chain_of_tasks() -> None:
    seen: list[str] = []

    def block() -> None:
        try:
            gevent.event.Event().wait()
        finally:
            seen.append("finally")

    async def main() -> None:
        inner = await suspended(block)

        async def middle() -> None:
            await inner

        outer = asyncio.gather(middle(), asyncio.sleep(3600))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        outer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await outer
        await asyncio.sleep(0.001)
        assert inner.cancelled()
        assert seen == ["finally"]

    asyncio_gevent.run(main())


def test_a_shield_protects_a_suspended_step() -> None:
    async def main() -> None:
        release = gevent.event.Event()
        inner = await suspended(release.wait)
        outer = asyncio.ensure_future(asyncio.shield(inner))
        await asyncio.sleep(0)
        outer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await outer
        assert not inner.done()
        release.set()
        assert await inner is True

    asyncio_gevent.run(main())


def test_what_a_step_raises_instead() -> None:
    def block() -> None:
        try:
            gevent.event.Event().wait()
        except asyncio.CancelledError:
            raise ZeroDivisionError from None

    async def main() -> None:
        task = await suspended(block)
        task.cancel()
        with pytest.raises(ZeroDivisionError):
            await task
        assert not task.cancelled()

    asyncio_gevent.run(main())


def test_a_step_that_cancels_its_own_task_hears_of_it_once() -> None:
    """In the blocking call that follows or at the next await."""
    errors: list[str] = []

    async def step() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        for _ in range(2):
            try:
                gevent.sleep(0)
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                errors.append("cancelled")

    async def main() -> None:
        await asyncio.create_task(step())
        assert errors == ["cancelled"]

    asyncio_gevent.run(main())


def test_a_step_that_blocks_in_its_finally_can_be_cancelled_there() -> None:
    seen: list[str] = []

    def block() -> None:
        try:
            gevent.event.Event().wait()
        finally:
            seen.append("finally")
            try:
                gevent.event.Event().wait()
            finally:
                seen.append("its finally")

    async def main() -> None:
        task = await suspended(block)
        task.cancel()
        await until(lambda: seen)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == ["finally", "its finally"]

    asyncio_gevent.run(main())


def test_a_suspended_task_is_forgotten_after_its_cancel(run: Any) -> None:
    async def main() -> None:
        async def cancelled() -> weakref.ref[Any]:
            task = await suspended(gevent.event.Event().wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return weakref.ref(task)

        reference = await cancelled()
        await asyncio.sleep(0)
        gc.collect()
        assert reference() is None

    run(main())


# --- raw greenlets --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BLOCKERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("time", ["first", "second"])
def test_cancel_reaches_a_raw_greenlet(kind: type[Blocker], time: str) -> None:
    """The first time its greenlet has to be searched for; later on it is known."""
    seen: list[str] = []

    def code() -> None:
        if time == "second":
            gevent.sleep(0)
        seen.append("blocks")
        try:
            call.block()
        except asyncio.CancelledError:
            seen.append("cancelled")
            with pytest.raises(ZeroDivisionError):
                await_only(_fail())
            raise

    async def _fail() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    async def main() -> None:
        task = asyncio.create_task(in_raw_greenlet(code))
        await until(lambda: seen)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)

    with blocker(kind) as call:
        asyncio_gevent.run(main())
    assert seen == ["blocks", "cancelled"]
    gevent.sleep(0)
    assert greenlet.gettrace() is None


def test_the_right_one_of_many_raw_greenlets_is_cancelled() -> None:
    releases = [gevent.event.Event() for _ in range(5)]
    entered: list[int] = []

    def code(number: int) -> int:
        entered.append(number)
        releases[number].wait()
        return number

    async def main() -> None:
        tasks = [asyncio.create_task(in_raw_greenlet(code, number)) for number in range(5)]
        await until(lambda: len(entered) == 5)
        tasks[2].cancel()
        tasks[4].cancel()
        await asyncio.wait([tasks[2], tasks[4]])
        for release in releases:
            release.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(result) for result in results] == ["0", "1", "", "3", ""]

    asyncio_gevent.run(main())


# --- timeouts and task groups ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", BLOCKERS, ids=lambda kind: kind.__name__)
def test_wait_for(kind: type[Blocker]) -> None:
    if issubclass(kind, Sleep):
        pytest.skip("it ends by itself, perhaps before the timeout")

    async def step() -> None:
        call.block()

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(step(), 0.001)

    with blocker(kind) as call:
        asyncio_gevent.run(main())


@counts
def test_timeout(run: Any) -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        for _ in range(2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    gevent.event.Event().wait()
            assert task.cancelling() == 0
            await asyncio.sleep(0)
            gevent.sleep(0)
        async with asyncio.timeout(3600):
            gevent.sleep(0)
        assert task.cancelling() == 0

    run(main())


@counts
def test_timeout_around_a_raw_greenlet(run: Any) -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        for _ in range(2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await in_raw_greenlet(lambda: gevent.event.Event().wait() and None)
            assert task.cancelling() == 0

    run(main())


def test_cancel_reaches_a_raw_greenlet_that_runs_no_python_code() -> None:
    """It has no frame that could be looked at."""

    async def main() -> None:
        task = asyncio.create_task(in_raw_greenlet(gevent.event.Event().wait))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio_gevent.run(main())


@counts
def test_nested_timeouts(run: Any) -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.002):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.001):
                        gevent.event.Event().wait()
                assert task.cancelling() == 0
                gevent.event.Event().wait()
        assert task.cancelling() == 0
        # The outer one goes first: the inner one lets it pass.
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.001):
                async with asyncio.timeout(3600):
                    gevent.event.Event().wait()
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        assert task.cancelling() == 0

    run(main())


@counts
def test_a_timeout_and_a_cancel_at_the_same_time(run: Any) -> None:
    """A cancel from outside is not swallowed by a timeout that fires as well."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        entered: list[Any] = []

        async def step() -> None:
            async with asyncio.timeout(3600) as timeout:
                entered.append(timeout)
                gevent.event.Event().wait()

        task = asyncio.create_task(step())
        await until(lambda: entered)
        entered[0].reschedule(loop.time())
        loop.call_soon(lambda: loop.call_soon(task.cancel))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelling() == 1

    run(main())


@counts
def test_a_task_group_cancels_a_suspended_child(run: Any) -> None:
    seen: list[str] = []

    async def blocking() -> None:
        try:
            seen.append("blocks")
            gevent.event.Event().wait()
        finally:
            seen.append("finally")

    async def failing() -> None:
        await until(lambda: seen)
        raise ZeroDivisionError

    async def main() -> None:
        with pytest.raises(BaseExceptionGroup) as caught:  # noqa: F821 - from Python 3.11 on
            async with asyncio.TaskGroup() as group:
                group.create_task(failing())
                group.create_task(blocking())
        assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]

    run(main())
    assert seen == ["blocks", "finally"]


@counts
def test_a_task_group_cancels_its_suspended_parent(run: Any) -> None:
    seen: list[str] = []

    async def failing() -> None:
        await until(lambda: seen)
        raise ZeroDivisionError

    async def main() -> None:
        with pytest.raises(BaseExceptionGroup):  # noqa: F821 - from Python 3.11 on
            async with asyncio.TaskGroup() as group:
                group.create_task(failing())
                await asyncio.sleep(0)
                try:
                    seen.append("blocks")
                    gevent.event.Event().wait()
                finally:
                    seen.append("finally")
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)

    run(main())
    assert seen == ["blocks", "finally"]


@counts
def test_counts(run: Any) -> None:
    async def main() -> None:
        seen: list[int] = []

        def block() -> None:
            task = asyncio.current_task()
            assert task is not None
            with pytest.raises(asyncio.CancelledError):
                gevent.event.Event().wait()
            seen.append(task.cancelling())
            while task.cancelling():
                seen.append(task.uncancel())
            # Not below zero.
            seen.append(task.uncancel())
            gevent.sleep(0)

        task = await suspended(block)
        assert task.cancelling() == 0
        assert task.cancel()
        assert task.cancelling() == 1
        assert task.cancel()
        assert task.cancelling() == 2
        await task
        assert seen == [2, 1, 0, 0]
        assert task.cancelling() == 0

    run(main())


@counts
def test_counts_of_both_kinds_of_requests_add_up(run: Any) -> None:
    async def main() -> None:
        release = gevent.event.Event()
        entered: list[str] = []

        async def step() -> int:
            task = asyncio.current_task()
            assert task is not None
            with pytest.raises(asyncio.CancelledError):
                entered.append("await")
                await asyncio.sleep(3600)
            with pytest.raises(asyncio.CancelledError):
                entered.append("blocks")
                release.wait()
            with pytest.raises(asyncio.CancelledError):
                entered.append("await")
                await asyncio.sleep(3600)
            assert task.cancelling() == 3
            assert [task.uncancel() for _ in range(3)] == [2, 1, 0]
            return 1

        task = asyncio.create_task(step())
        for number in range(3):
            await until(lambda number=number: len(entered) > number)
            await asyncio.sleep(0)
            task.cancel()
            assert task.cancelling() == number + 1
        assert await task == 1

    run(main())


# --- races ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["cancel, release", "release, cancel"])
def test_cancel_at_the_moment_of_the_resume_is_raised_once(run: Any, order: str) -> None:
    """In the blocking call or at the next await, but neither twice nor never."""
    errors: list[str] = []
    entered: list[None] = []

    async def step(release: Any) -> None:
        entered.append(None)
        try:
            release.wait()
        except asyncio.CancelledError:
            errors.append("in the blocking call")
        for _ in range(2):
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                errors.append("in an await")
        try:
            gevent.sleep(0)
        except asyncio.CancelledError:
            errors.append("in another blocking call")

    async def main() -> None:
        release = gevent.event.Event()
        task = asyncio.create_task(step(release))
        await until(lambda: entered)
        if order == "cancel, release":
            task.cancel()
            release.set()
        else:
            release.set()
            task.cancel()
        await task
        assert len(errors) == 1

    run(main())


def test_cancel_at_the_moment_of_the_resume_in_the_next_blocking_call(run: Any) -> None:
    errors: list[str] = []
    entered: list[None] = []

    async def step(release: Any) -> None:
        entered.append(None)
        for _ in range(3):
            try:
                release.wait()
                release.clear()
                gevent.sleep(0)
            except asyncio.CancelledError:
                errors.append("cancelled")
                release.set()

    async def main() -> None:
        release = gevent.event.Event()
        task = asyncio.create_task(step(release))
        await until(lambda: entered)
        release.set()
        task.cancel()
        await until(lambda: errors)
        release.set()
        while not task.done():
            release.set()
            await asyncio.sleep(0)
        await task
        assert errors == ["cancelled"]

    run(main())


def test_cancel_of_a_step_that_ends_at_the_same_moment(run: Any) -> None:
    async def main() -> None:
        release = gevent.event.Event()
        task = await suspended(lambda: release.wait() and "result")
        release.set()
        task.cancel()
        # Either is right, as with a coroutine that has no await left.
        try:
            assert await task == "result"
        except asyncio.CancelledError:
            assert task.cancelled()
        await asyncio.sleep(0.001)

    run(main())


@counts
def test_a_timeout_that_is_left_at_the_same_moment_leaves_no_cancel_behind(run: Any) -> None:
    """What `uncancel` takes back before the step has heard of it is not raised later."""
    entered: list[Any] = []

    async def step(release: Any) -> str:
        task = asyncio.current_task()
        assert task is not None
        try:
            async with asyncio.timeout(3600) as timeout:
                entered.append(timeout)
                release.wait()
        except TimeoutError:
            pass  # fine as well
        assert task.cancelling() == 0
        gevent.sleep(0)
        await asyncio.sleep(0)
        gevent.sleep(0)
        await asyncio.sleep(0)
        assert task.cancelling() == 0
        return "result"

    async def main() -> None:
        release = gevent.event.Event()
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(step(release))
        await until(lambda: entered)

        def both() -> None:
            release.set()
            entered[0].reschedule(loop.time())

        loop.call_soon(both)
        assert await task == "result"

    run(main())


@counts
def test_uncancel_before_the_step_has_heard_of_it(run: Any) -> None:
    """Asyncio raises it all the same up to 3.12, and drops it from 3.13 on: in an await."""

    async def main() -> None:
        release = gevent.event.Event()
        task = await suspended(lambda: release.wait() and "result")
        task.cancel()
        task.cancel()
        assert task.uncancel() == 1
        assert task.cancelling() == 1
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


def test_cancel_of_a_task_that_was_resumed_in_the_same_pass() -> None:
    """The request comes while its step is not suspended any more, but scheduled."""
    errors: list[str] = []
    entered: list[None] = []

    async def step() -> None:
        entered.append(None)
        gevent.sleep(0)
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            errors.append("in an await")

    async def main() -> None:
        task = asyncio.create_task(step())
        await until(lambda: entered)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gevent.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    asyncio_gevent.run(main())
    assert len(errors) <= 1


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_the_first_step_of_an_eager_task_is_suspended() -> None:
    """It runs inside the step of its parent, which is suspended with it."""
    seen: list[Any] = []
    release = gevent.event.Event()

    async def child() -> str:
        me = asyncio.current_task()
        seen.append(me)
        release.wait()
        assert asyncio.current_task() is me
        await asyncio.sleep(0)
        assert asyncio.current_task() is me
        return "child"

    async def parent() -> str:
        me = asyncio.current_task()
        task = asyncio.create_task(child())
        assert asyncio.current_task() is me
        return await task

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        me = asyncio.current_task()
        waiting = asyncio.Task(parent(), loop=loop)
        await until(lambda: seen)
        assert asyncio.current_task() is me
        release.set()
        assert await waiting == "child"
        # And the cancel of the child reaches it.
        seen.clear()
        release.clear()
        waiting = asyncio.Task(parent(), loop=loop)
        await until(lambda: seen)
        seen[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio_gevent.run(main())


# --- around run() ---------------------------------------------------------------------------------


async def _clean_up(seen: list[str], block: bool) -> None:
    try:
        seen.append("waits")
        if block:
            gevent.event.Event().wait()
        else:
            await asyncio.Event().wait()
    finally:
        seen.append("finally")
        await asyncio.sleep(0)
        gevent.sleep(0)
        seen.append("cleaned up")


@pytest.mark.parametrize("block", [False, True])
def test_a_timeout_of_gevent_around_run(block: bool) -> None:
    seen: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().call_later(0.001, fire)
        await _clean_up(seen, block)

    with gevent.Timeout(None) as timeout:
        # What its timer does, when the coroutine waits and not before.
        caller = gevent.getcurrent()

        def fire() -> None:
            gevent.get_hub().loop.run_callback(caller.throw, timeout)

        with pytest.raises(gevent.Timeout):
            asyncio_gevent.run(main())
    assert seen == ["waits", "finally", "cleaned up"]
    assert identity() == NOBODY


@pytest.mark.parametrize("block", [False, True])
def test_a_greenlet_that_is_killed_in_run(block: bool) -> None:
    seen: list[str] = []
    victim = gevent.spawn(asyncio_gevent.run, _clean_up(seen, block))
    while not seen:
        gevent.sleep(0)
    victim.kill()
    assert isinstance(victim.value, gevent.GreenletExit)
    assert seen == ["waits", "finally", "cleaned up"]


def test_an_error_thrown_into_a_greenlet_in_run_forever() -> None:
    loop = asyncio_gevent.EventLoop()
    gevent.get_hub().loop.run_callback(gevent.getcurrent().throw, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        loop.run_forever()
    assert not loop.is_running()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_the_end_of_run_cancels_suspended_tasks() -> None:
    seen: list[str] = []

    async def main() -> str:
        task = asyncio.create_task(_clean_up(seen, True))  # noqa: F841 - a strong reference
        await until(lambda: seen)
        return "result"

    assert asyncio_gevent.run(main()) == "result"
    assert seen == ["waits", "finally", "cleaned up"]


def test_a_timeout_of_gevent_in_a_step_is_not_a_cancel() -> None:
    async def main() -> str:
        try:
            with gevent.Timeout(0.001):
                gevent.event.Event().wait()
        except gevent.Timeout:
            await asyncio.sleep(0)
            return "timed out"
        return "not reached"

    assert asyncio_gevent.run(main()) == "timed out"


@counts
def test_timeouts_of_both_kinds_in_one_step() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                with gevent.Timeout(3600):
                    gevent.event.Event().wait()
        with pytest.raises(gevent.Timeout):
            async with asyncio.timeout(3600):
                with gevent.Timeout(0.001):
                    gevent.event.Event().wait()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    asyncio_gevent.run(main())


@pytest.mark.skipif(not PATCHED, reason="the patched socket is what it is about")
def test_a_timeout_of_a_socket_in_a_step() -> None:
    import socket

    async def main() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(0.001)
            with pytest.raises(socket.timeout):
                ours.recv(1)
            await asyncio.sleep(0)

    asyncio_gevent.run(main())


@pytest.mark.parametrize("kind", [Event, Socket], ids=lambda kind: kind.__name__)
def test_a_cancelled_call_takes_nothing_with_it(kind: type[Blocker]) -> None:
    """Released after the cancel, it is there for the next one."""

    async def main() -> None:
        with blocker(kind) as call:
            task = await suspended(call.block)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            call.release()
            call.block()
            await asyncio.sleep(UNIT / 10)

    asyncio_gevent.run(main())


def test_a_gevent_timeout_finds_a_step_that_has_just_begun_to_block() -> None:
    """It expires while the task's wake-up is queued, and the next step blocks at once."""
    seconds = 0.0

    async def main() -> None:
        nonlocal seconds
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        timeout = gevent.Timeout(UNIT)

        def wake() -> None:
            native_sleep(2 * UNIT)
            future.set_result(None)

        started = time.thread_time()
        with pytest.raises(gevent.Timeout), timeout:
            loop.call_soon(wake)
            await future
            gevent.event.Event().wait()
        seconds = time.thread_time() - started

    asyncio_gevent.run(main())
    assert seconds < 0.5  # it waits


def test_a_gevent_timeout_that_was_closed_reaches_nobody() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def wake() -> None:
            native_sleep(2 * UNIT)
            future.set_result(None)

        with gevent.Timeout(UNIT):
            loop.call_soon(wake)
            await future
        gevent.sleep(UNIT)
        await asyncio.sleep(UNIT)

    asyncio_gevent.run(main())
