"""Calls in native threads: the hub's pool by default, any other executor if it is passed."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import gc
import threading
from typing import Any

import gevent
import gevent.event
import gevent.threadpool
import pytest
from gevent.monkey import get_original
from support import UNIT, Polls, in_greenlet, native_ident, native_sleep, run_script, until

import asyncio_gevent
from asyncio_gevent import EventLoop


class NativeEvent:
    """An event for native threads, also after patching."""

    def __init__(self) -> None:
        self._lock = get_original("_thread", "allocate_lock")()
        self._lock.acquire()

    def wait(self) -> None:
        self._lock.acquire()
        self._lock.release()

    def set(self) -> None:
        self._lock.release()


def test_the_default_is_a_native_thread_of_the_hubs_pool() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        here = native_ident()
        assert await asyncio.to_thread(native_ident) != here
        assert await loop.run_in_executor(None, native_ident) != here
        assert await loop.run_in_executor(None, max, 1, 2) == 2

    asyncio_gevent.run(main())


def test_other_tasks_and_greenlets_go_on() -> None:
    async def main() -> None:
        release = NativeEvent()
        call = asyncio.create_task(asyncio.to_thread(release.wait))
        for _ in range(10):
            await asyncio.sleep(0)
        greenlet = gevent.spawn(gevent.sleep, 0.001)
        await until(greenlet.ready)
        assert not call.done()
        release.set()
        await call

    asyncio_gevent.run(main())


def test_waiting_does_not_poll() -> None:
    async def main() -> None:
        await asyncio.to_thread(int)
        with Polls() as polls:
            await asyncio.to_thread(native_sleep, UNIT)
        assert polls.count <= 10

    asyncio_gevent.run(main())


class Error(Exception):
    pass


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("kind", [Error, ValueError, KeyError])
def test_an_exception_is_raised_by_the_await_and_not_printed(
    kind: type[Exception], capfd: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        error = kind("text")
        with pytest.raises(kind) as caught:
            await asyncio.to_thread(_raise, error)
        assert caught.value is error
        names = [entry.name for entry in caught.traceback]
        assert names[-1] == "_raise"

    asyncio_gevent.run(main())
    assert capfd.readouterr() == ("", "")


def test_stop_iteration_does_not_hang(observed: Any) -> None:
    """A future refuses it; asyncio's own executor leaves the await hanging up to Python 3.11."""

    async def main() -> None:
        with pytest.raises(RuntimeError, match="StopIteration") as caught:
            await asyncio.to_thread(next, iter(()))
        assert isinstance(caught.value.__cause__, StopIteration)

    asyncio_gevent.run(main())


def test_base_exceptions_arrive_as_well(capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        with pytest.raises(gevent.GreenletExit):
            await asyncio.to_thread(_raise, gevent.GreenletExit())
        with pytest.raises(asyncio.CancelledError):
            await asyncio.to_thread(_raise, asyncio.CancelledError())

    asyncio_gevent.run(main())
    assert capfd.readouterr() == ("", "")


def test_the_context_goes_along() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    def change() -> str:
        value = variable.get()
        variable.set("changed")
        return value

    async def main() -> None:
        variable.set("here")
        assert await asyncio.to_thread(change) == "here"
        assert variable.get() == "here"

    asyncio_gevent.run(main())


def test_more_calls_than_threads() -> None:
    async def main() -> None:
        size = gevent.get_hub().threadpool.maxsize
        release = NativeEvent()
        blocked = [asyncio.create_task(asyncio.to_thread(release.wait)) for _ in range(size)]
        await asyncio.sleep(0)
        more = [asyncio.create_task(asyncio.to_thread(int, number)) for number in range(size)]
        await asyncio.sleep(0.001)  # the loop is not blocked by a full pool
        assert not any(task.done() for task in more)
        release.set()
        assert await asyncio.gather(*more) == list(range(size))
        await asyncio.gather(*blocked)

    asyncio_gevent.run(main())


def test_a_pool_that_others_have_filled() -> None:
    async def main() -> None:
        pool = gevent.get_hub().threadpool
        release = NativeEvent()
        others = [gevent.spawn(pool.apply, release.wait) for _ in range(pool.maxsize)]
        await until(lambda: len(pool) == pool.maxsize)
        call = asyncio.create_task(asyncio.to_thread(lambda: "result"))
        await asyncio.sleep(0.001)
        assert not call.done()
        release.set()
        assert await call == "result"
        await until(lambda: all(other.ready() for other in others))

    asyncio_gevent.run(main())


def test_a_call_cancelled_before_a_thread_takes_it_is_not_made() -> None:
    made: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        size = gevent.get_hub().threadpool.maxsize
        release = NativeEvent()
        blocked = [loop.run_in_executor(None, release.wait) for _ in range(size)]
        cancelled = loop.run_in_executor(None, made.append, 1)
        kept = loop.run_in_executor(None, made.append, 2)
        cancelled.cancel()
        release.set()
        await asyncio.gather(*blocked)
        await kept
        assert made == [2]

    asyncio_gevent.run(main())


def test_a_call_cancelled_under_way_is_not_waited_for() -> None:
    release = NativeEvent()

    async def main() -> None:
        call = asyncio.create_task(asyncio.to_thread(release.wait))
        await asyncio.sleep(0.001)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        release.set()

    asyncio_gevent.run(main())


def test_run_waits_for_calls_that_are_under_way() -> None:
    ended: list[bool] = []

    def slow() -> None:
        native_sleep(UNIT)
        ended.append(True)

    async def main() -> None:
        asyncio.get_running_loop().run_in_executor(None, slow)

    asyncio_gevent.run(main())
    assert ended == [True]


def test_after_the_shutdown_no_call_is_taken() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(int)
        await loop.shutdown_default_executor()
        with pytest.raises(RuntimeError, match="Executor shutdown has been called"):
            loop.run_in_executor(None, int)

    asyncio_gevent.run(main())


def test_a_shutdown_that_takes_too_long_warns() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        release = NativeEvent()
        call = loop.run_in_executor(None, release.wait)
        with pytest.warns(RuntimeWarning, match=r"did not finish .* within 0\.001 seconds"):
            await loop.shutdown_default_executor(0.001)
        release.set()
        await call

    asyncio_gevent.run(main())


def test_a_loop_closed_while_a_call_is_under_way() -> None:
    """The result has nobody to go to, which is no error."""
    loop = EventLoop()
    release = NativeEvent()

    async def main() -> None:
        loop.run_in_executor(None, release.wait)

    loop.run_until_complete(main())
    loop.close()
    release.set()
    gevent.get_hub().threadpool.join()
    gevent.sleep(0)


def test_the_functions_arguments_are_forgotten() -> None:
    import weakref

    class Argument:
        pass

    async def main() -> None:
        argument = Argument()
        reference = weakref.ref(argument)
        await asyncio.get_running_loop().run_in_executor(None, str, argument)
        del argument
        # The thread itself may be a moment late.
        while reference() is not None:
            await asyncio.sleep(0.001)
            gc.collect()

    asyncio_gevent.run(main())


# --- executors that are passed --------------------------------------------------------------------


def test_a_standard_executor_is_respected() -> None:
    """A thread of the ``threading`` module: a greenlet after patching."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="own") as executor:
            name = await loop.run_in_executor(executor, lambda: threading.current_thread().name)
            assert name.startswith("own")
            with pytest.raises(Error):
                await loop.run_in_executor(executor, _raise, Error())
            results = await asyncio.gather(
                *(loop.run_in_executor(executor, int, number) for number in range(20))
            )
            assert results == list(range(20))

    asyncio_gevent.run(main())


def test_gevents_executor_is_respected() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        executor = gevent.threadpool.ThreadPoolExecutor(2)
        try:
            assert await loop.run_in_executor(executor, native_ident) != native_ident()
            results = await asyncio.gather(
                *(loop.run_in_executor(executor, int, number) for number in range(20))
            )
            assert results == list(range(20))
            assert await loop.run_in_executor(executor, functools.partial(int, "7")) == 7
        finally:
            executor.shutdown()

    asyncio_gevent.run(main())


def test_an_error_in_gevents_executor(observed: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        executor = gevent.threadpool.ThreadPoolExecutor(1)
        try:
            with pytest.raises(Error):
                await loop.run_in_executor(executor, _raise, Error())
        finally:
            executor.shutdown()

    asyncio_gevent.run(main())
    observed.hub_errors.clear()  # gevent's own pool has the hub print it


def test_a_cancelled_call_in_gevents_executor() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        executor = gevent.threadpool.ThreadPoolExecutor(1)
        release = NativeEvent()
        try:
            call = loop.run_in_executor(executor, release.wait)
            await asyncio.sleep(0.001)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        finally:
            release.set()
            executor.shutdown()
        await asyncio.sleep(0.001)

    asyncio_gevent.run(main())


def test_a_default_executor_that_was_set() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(
            concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="default")
        )
        name = await asyncio.to_thread(lambda: threading.current_thread().name)
        assert name.startswith("default")

    asyncio_gevent.run(main())


def test_an_executor_whose_futures_a_stranger_completes() -> None:
    """Its future is completed by a thread that no event loop knows."""

    class Executor(concurrent.futures.Executor):
        def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            future: concurrent.futures.Future[Any] = concurrent.futures.Future()

            def complete() -> None:
                future.set_result(function(*args))

            get_original("_thread", "start_new_thread")(complete, ())
            return future

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(Executor(), max, 1, 2) == 2

    asyncio_gevent.run(main())


def test_one_pool_serves_many_loops() -> None:
    async def main(number: int) -> list[int]:
        calls = (asyncio.to_thread(lambda n=n: number * n) for n in range(5))
        return list(await asyncio.gather(*calls))

    greenlets = [gevent.spawn(asyncio_gevent.run, main(number)) for number in range(10)]
    gevent.joinall(greenlets, raise_error=True)
    assert [each.value for each in greenlets] == [[n * m for m in range(5)] for n in range(10)]


def test_a_suspended_step_waits_for_the_pool_directly() -> None:
    async def main() -> None:
        apply = gevent.get_hub().threadpool.apply
        assert apply(native_ident) != native_ident()
        assert await asyncio.to_thread(lambda: 1) == 1

    asyncio_gevent.run(main())
    in_greenlet(lambda: asyncio_gevent.run(main()))


def test_a_call_that_cannot_be_started_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(gevent.threadpool.ThreadPool, "spawn", fail)
            with pytest.raises(RuntimeError, match="no thread"):
                await asyncio.to_thread(int)

    def fail(*args: Any) -> None:
        raise RuntimeError("no thread")

    asyncio_gevent.run(main())  # which waits for the calls in the end


@pytest.mark.parametrize("how", ["closed", "left open", "queued", "forked"])
def test_calls_are_finished_before_the_interpreter_ends(how: str) -> None:
    """As those of concurrent.futures, also if nobody called shutdown_default_executor()."""
    calls = 20 if how == "queued" else 1
    # A loop that is not closed warns, as it should.
    warnings = "ignore" if how == "left open" else "error"
    finished = run_script("unfinished_calls", how, warnings=warnings)
    finished.check("\n".join(["program ends", *["call ends"] * calls]))


def test_a_forked_child_does_not_wait_for_calls_of_the_parent() -> None:
    # From 3.12 on a fork beside threads warns.
    run_script("fork_busy", warnings="ignore").check("the child has ended with 0")


def test_a_future_of_a_foreign_executor_that_comes_too_late(observed: Any) -> None:
    executor = gevent.threadpool.ThreadPoolExecutor(1)
    loop = EventLoop()
    ended = gevent.event.Event()

    async def main() -> None:
        loop.run_in_executor(executor, native_sleep, UNIT)

    loop.run_until_complete(main())
    loop.close()
    executor.submit(int).add_done_callback(lambda _: ended.set())
    ended.wait()
    executor.shutdown()
