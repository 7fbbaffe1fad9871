"""async_context() and sync_context(): context managers of one kind for statements of the other."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import gevent
import gevent.event
import gevent.lock
import pytest
from support import PATCHED, until, until_in_greenlet

import asyncio_gevent
from asyncio_gevent import (
    CancelledExit,
    async_context,
    async_to_sync,
    await_,
    spawn,
    sync_context,
    sync_to_async,
)

run = asyncio_gevent.run
variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable", default=None)

needs_timeout = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="asyncio.timeout() and TaskGroup are new in 3.11"
)


class Error(Exception):
    pass


class Log(list[Any]):
    """What happens in a context manager, and where."""

    @contextlib.contextmanager
    def manager(self, *, swallow: bool = False, fail: bool = False) -> Iterator[str]:
        me = gevent.getcurrent()
        gevent.sleep(0)
        self.append("entered")
        try:
            yield "value"
        except BaseException as error:
            self.append(type(error).__name__)
            if not swallow:
                raise
        finally:
            gevent.sleep(0)
            assert gevent.getcurrent() is me
            self.append("left")
            if fail:
                raise Error("on leaving")

    @contextlib.asynccontextmanager
    async def async_manager(
        self, *, swallow: bool = False, fail: bool = False
    ) -> AsyncIterator[str]:
        task = asyncio.current_task()
        await asyncio.sleep(0)
        self.append("entered")
        try:
            yield "value"
        except BaseException as error:
            self.append(type(error).__name__)
            if not swallow:
                raise
        finally:
            await asyncio.sleep(0)
            assert asyncio.current_task() is task
            self.append("left")
            if fail:
                raise Error("on leaving")


# --- async with, of a sync context manager ------------------------------------------------------


def test_async_context() -> None:
    log = Log()

    async def main() -> None:
        async with async_context(log.manager()) as value:
            assert value == "value"
            await asyncio.sleep(0)
            log.append("body")

    run(main())
    assert log == ["entered", "body", "left"]


def test_an_exception_in_the_body_of_async_with() -> None:
    async def main() -> None:
        log = Log()
        error = Error()
        with pytest.raises(Error) as caught:
            async with async_context(log.manager()):
                raise error
        assert caught.value is error
        assert log == ["entered", "Error", "left"]
        async with async_context(log.manager(swallow=True)):
            raise error
        with pytest.raises(Error, match="on leaving") as caught:
            async with async_context(log.manager(fail=True)):
                raise KeyError
        assert isinstance(caught.value.__context__, KeyError)

    run(main())


def test_an_exception_on_entering_async_with() -> None:
    error = Error()

    @contextlib.contextmanager
    def fails() -> Iterator[None]:
        gevent.sleep(0)
        raise error
        yield

    async def main() -> None:
        with pytest.raises(Error) as caught:
            async with async_context(fails()):
                pytest.fail("entered")
        assert caught.value is error

    run(main())


def test_a_lock_of_gevent() -> None:
    lock = gevent.lock.RLock()
    inside = 0

    async def worker() -> None:
        nonlocal inside
        async with async_context(lock):
            inside += 1
            assert inside == 1
            await asyncio.sleep(0)
            inside -= 1

    def greenlet() -> None:
        nonlocal inside
        with lock:
            inside += 1
            assert inside == 1
            gevent.sleep(0)
            inside -= 1

    async def main() -> None:
        greenlets = [spawn(greenlet) for _ in range(5)]
        await asyncio.gather(*(worker() for _ in range(5)), *greenlets)

    run(main())


def test_a_timeout_of_gevent_around_awaits() -> None:
    async def main() -> None:
        events = []
        timeout = gevent.Timeout(0.01)
        with pytest.raises(gevent.Timeout) as caught:
            async with async_context(timeout):
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    events.append("cancelled")
                    raise
        assert caught.value is timeout
        assert events == ["cancelled"]
        async with async_context(gevent.Timeout(0.01, False)):
            await asyncio.Event().wait()
        async with async_context(lambda: gevent.Timeout(60)):
            await asyncio.sleep(0)
        task: Any = asyncio.current_task()
        if sys.version_info >= (3, 11):
            assert task.cancelling() == 0
        await asyncio.sleep(0)

    run(main())


def test_a_timeout_that_the_body_does_not_notice() -> None:
    """The time is up just when the block ends."""

    async def main() -> None:
        for silent in (False, True):
            try:
                async with async_context(gevent.Timeout(0.01, False if silent else None)):
                    gevent.sleep(0.02)  # one step, which nothing interrupts but its end
            except gevent.Timeout:
                pass
            except asyncio.CancelledError:
                pytest.fail("it was cancelled")
            await asyncio.sleep(0)

    run(main())


@pytest.mark.parametrize("where", ["entering", "body", "leaving"])
def test_cancel_of_async_with(where: str) -> None:
    log: list[str] = []

    class Manager:
        def step(self, name: str) -> None:
            log.append(name)
            if name == where:
                gevent.event.Event().wait()

        def __enter__(self) -> None:
            self.step("entering")

        def __exit__(self, kind: Any, *_: Any) -> None:
            log.append(str(getattr(kind, "__name__", None)))
            self.step("leaving")

    async def body() -> None:
        async with async_context(Manager()):
            log.append("body")
            if where == "body":
                await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.ensure_future(body())
        await until(lambda: where in log)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert {
            "entering": ["entering"],
            "body": ["entering", "body", "CancelledError", "leaving"],
            "leaving": ["entering", "body", "None", "leaving"],
        }[where] == log

    run(main())


def test_cancel_while_it_is_being_entered() -> None:
    """Whenever it comes: what was entered is left."""

    async def main() -> None:
        for turns in range(12):
            log = Log()

            async def body() -> None:
                async with async_context(log.manager()):
                    log.append("body")
                    await asyncio.Event().wait()

            task = asyncio.ensure_future(body())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert log.count("entered") == log.count("left")

    run(main())


# --- with, of an async context manager ----------------------------------------------------------


@pytest.fixture(params=["greenlet", "task", "sync_to_async"])
def call(request: pytest.FixtureRequest) -> Any:
    """Call a function in a greenlet, in a step of a task, or in a greenlet of one."""

    def in_task(function: Any) -> Any:
        async def main() -> Any:
            return function()

        return run(main())

    def in_greenlet_of_task(function: Any) -> Any:
        async def main() -> Any:
            return await sync_to_async(function)()

        return run(main())

    return {
        "greenlet": lambda function: gevent.spawn(function).get(),
        "task": in_task,
        "sync_to_async": in_greenlet_of_task,
    }[request.param]


def test_sync_context(call: Any) -> None:
    log = Log()

    def body() -> None:
        with sync_context(log.async_manager()) as value:
            assert value == "value"
            gevent.sleep(0)
            log.append("body")

    call(body)
    assert log == ["entered", "body", "left"]


def test_an_exception_in_the_body_of_with(call: Any, observed: Any) -> None:
    def body() -> None:
        log = Log()
        error = Error()
        with pytest.raises(Error) as caught:
            with sync_context(log.async_manager()):
                raise error
        assert caught.value is error
        assert log == ["entered", "Error", "left"]
        with sync_context(log.async_manager(swallow=True)):
            raise error
        with pytest.raises(Error, match="on leaving") as caught:
            with sync_context(log.async_manager(fail=True)):
                raise KeyError
        assert isinstance(caught.value.__context__, KeyError)

        @contextlib.asynccontextmanager
        async def fails() -> AsyncIterator[None]:
            await asyncio.sleep(0)
            raise error
            yield

        with pytest.raises(Error) as caught:
            with sync_context(fails()):
                pytest.fail("entered")
        assert caught.value is error

    call(body)


def test_await_in_the_body_is_in_the_same_task(call: Any) -> None:
    async def current() -> Any:
        await asyncio.sleep(0)
        return asyncio.current_task()

    class Manager:
        async def __aenter__(self) -> Any:
            return asyncio.current_task()

        async def __aexit__(self, *_: Any) -> None:
            pass

    def body() -> None:
        with sync_context(Manager()) as task:
            assert await_(current()) is task
            with sync_context(Manager) as inner:  # a function that returns one
                assert inner is task
                assert async_to_sync(current)() is task
            assert await_(current()) is task

    call(body)


@needs_timeout
def test_a_timeout_of_asyncio_around_blocking_calls(call: Any) -> None:
    def body() -> None:
        events = []
        with pytest.raises(TimeoutError):
            with sync_context(lambda: asyncio.timeout(0.01)):
                try:
                    gevent.sleep(3600)
                except asyncio.CancelledError:
                    events.append("cancelled")
                    raise
                finally:
                    gevent.sleep(0)
        assert events == ["cancelled"]
        with pytest.raises(TimeoutError):
            with sync_context(lambda: asyncio.timeout(0.01)):
                await_(asyncio.sleep(3600))
        # Nested, the inner one first, and with one of gevent.
        with sync_context(lambda: asyncio.timeout(60)):
            with pytest.raises(TimeoutError):
                with sync_context(lambda: asyncio.timeout(0.01)):
                    gevent.sleep(3600)
            with pytest.raises(gevent.Timeout):
                with gevent.Timeout(0.01):
                    await_(asyncio.sleep(3600))
            await_(asyncio.sleep(0))
        with gevent.Timeout(60):
            with pytest.raises(TimeoutError):
                with sync_context(lambda: asyncio.timeout(0.01)):
                    gevent.sleep(3600)

    call(body)


@needs_timeout
def test_a_task_group_around_blocking_calls(call: Any) -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise Error

    async def works() -> int:
        await asyncio.sleep(0)
        return 3

    def body() -> None:
        with pytest.raises(BaseExceptionGroup) as caught:  # noqa: F821 - new in 3.11
            with sync_context(lambda: asyncio.TaskGroup()) as group:
                group.create_task(fails())
                gevent.sleep(3600)
        assert [type(error) for error in caught.value.exceptions] == [Error]
        with sync_context(lambda: asyncio.TaskGroup()) as group:
            task = group.create_task(works())
        assert task.result() == 3

    call(body)


def test_the_task_of_a_block_is_not_that_of_other_greenlets() -> None:
    async def current() -> Any:
        await asyncio.sleep(0)
        return asyncio.current_task()

    lock = await_(new_lock())
    with sync_context(lock):
        mine = await_(current())
        assert await_(current()) is mine
        assert gevent.spawn(await_, current()).get() is not mine


@needs_timeout
def test_a_kill_of_a_task_group(call: Any) -> None:
    """What is thrown into the greenlet is raised by the block, not wrapped in a group."""

    def body() -> None:
        with pytest.raises(gevent.Timeout) as caught:
            with gevent.Timeout(0.01) as timeout:
                with sync_context(lambda: asyncio.TaskGroup()):
                    gevent.sleep(3600)
        assert caught.value is timeout

    call(body)


@needs_timeout
def test_a_timeout_of_asyncio_around_one_of_gevent(call: Any) -> None:
    """It expires while the clean-up for the inner one is under way."""

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.02)

    def body() -> None:
        with pytest.raises(TimeoutError):
            with sync_context(lambda: asyncio.timeout(0.02)):
                with gevent.Timeout(0.01, False):
                    await_(slow())

    call(body)


@needs_timeout
def test_a_kill_when_a_task_group_was_entered() -> None:
    for turns in range(12):
        error: Any = None

        def body() -> None:
            nonlocal error
            try:
                with sync_context(lambda: asyncio.TaskGroup()):
                    gevent.event.Event().wait()
            except BaseException as raised:
                error = raised
                raise

        greenlet = gevent.spawn(body)
        for _ in range(turns):
            gevent.sleep(0)
        greenlet.kill()
        assert isinstance(greenlet.value, gevent.GreenletExit)
        assert error is None or error is greenlet.value


def test_killed_twice_while_it_is_being_entered() -> None:
    """It may still be entered then, and is left."""
    events: list[str] = []
    release = []

    class Manager:
        async def __aenter__(self) -> None:
            try:
                events.append("entering")
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                while not release:
                    await asyncio.sleep(0)
            events.append("entered")

        async def __aexit__(self, *_: Any) -> None:
            events.append("left")

    def body() -> None:
        with sync_context(Manager()):
            events.append("body")

    greenlet = gevent.spawn(body)
    until_in_greenlet(lambda: events)
    greenlet.kill(block=False)
    gevent.sleep(0)
    greenlet.kill()
    release.append(True)
    until_in_greenlet(lambda: "left" in events)
    assert events == ["entering", "entered", "left"]


def test_a_cancel_while_a_timeout_leaves() -> None:
    """It is not taken for the one that the timeout has caused."""

    class Manager:
        def __enter__(self) -> Any:
            self.timeout = gevent.Timeout.start_new(0.01)

        def __exit__(self, *_: Any) -> None:
            self.timeout.close()
            left.append(True)
            gevent.event.Event().wait()

    left: list[bool] = []

    async def body() -> None:
        with contextlib.suppress(KeyError):
            async with async_context(Manager()):
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    raise KeyError from None

    async def main() -> None:
        task = asyncio.ensure_future(body())
        await until(lambda: left)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


def test_shutdown_in_a_block() -> None:
    """The greenlet that shuts the loop down is not cancelled by that."""
    log = Log()
    with sync_context(log.async_manager()):
        asyncio_gevent.shutdown()
        assert log == ["entered", "CancelledError", "left"]


def test_a_lock_of_asyncio() -> None:
    lock: asyncio.Lock = await_(new_lock())
    inside = 0

    def worker() -> None:
        nonlocal inside
        with sync_context(lock):
            inside += 1
            assert inside == 1
            gevent.sleep(0)
            inside -= 1

    gevent.joinall([gevent.spawn(worker) for _ in range(5)], raise_error=True)
    assert not lock.locked()


async def new_lock() -> asyncio.Lock:
    return asyncio.Lock()


def test_a_kill_of_with() -> None:
    log = Log()

    def body() -> None:
        with sync_context(log.async_manager()):
            log.append("body")
            gevent.event.Event().wait()

    greenlet = gevent.spawn(body)
    until_in_greenlet(lambda: "body" in log)
    greenlet.kill()
    assert log == ["entered", "body", "CancelledError", "left"]  # what asyncio knows
    for turns in range(12):
        log.clear()
        greenlet = gevent.spawn(body)
        for _ in range(turns):
            gevent.sleep(0)
        greenlet.kill()
        assert log.count("entered") == log.count("left")


def test_context_variables_of_context_managers(call: Any) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("tasks take no context there: a variable is seen, a token is not valid")

    class Manager:
        async def __aenter__(self) -> None:
            self.token = variable.set("inside")

        async def __aexit__(self, *_: Any) -> None:
            variable.reset(self.token)

        def __enter__(self) -> None:
            self.token = variable.set("inside")

        def __exit__(self, *_: Any) -> None:
            variable.reset(self.token)

    def body() -> None:
        variable.set("outside")
        with sync_context(Manager()):
            assert variable.get() == "inside"
        assert variable.get() == "outside"

    async def main() -> None:
        variable.set("outside")
        async with async_context(Manager()):
            assert variable.get() == "inside"
        assert variable.get() == "outside"

    call(body)
    run(main())


def test_cancel_of_the_task_of_a_with() -> None:
    log = Log()

    def body() -> None:
        with sync_context(log.async_manager()):
            log.append(await_(current()))
            gevent.event.Event().wait()

    async def current() -> Any:
        return asyncio.current_task()

    greenlet = gevent.spawn(body)
    until_in_greenlet(lambda: log[1:])
    log[1].cancel()
    assert isinstance(greenlet.get(), CancelledExit)
    assert log[2:] == ["CancelledError", "left"]


# --- bad input ----------------------------------------------------------------------------------


def test_not_context_managers() -> None:
    lock = gevent.lock.RLock()
    log = Log()
    with pytest.raises(TypeError, match="is no async context manager but one for `with`"):
        sync_context(lock)
    with pytest.raises(TypeError, match="is no context manager but one for `async with`"):
        async_context(log.async_manager())  # type: ignore[arg-type]
    for function in (sync_context, async_context):
        with pytest.raises(TypeError, match="nor a function that returns one"):
            function(3)

    async def main() -> None:
        with pytest.raises(TypeError, match=r"int\(\) returned 0"):
            async with async_context(int):  # type: ignore[arg-type]
                pytest.fail("entered")
        with pytest.raises(TypeError, match=r"int\(\) returned 0"):
            with sync_context(int):  # type: ignore[arg-type]
                pytest.fail("entered")

    run(main())
    with pytest.raises(TypeError, match=r"int\(\) returned 0"):
        with sync_context(int):  # type: ignore[arg-type]
            pytest.fail("entered")


def test_entered_twice() -> None:
    manager = async_context(gevent.lock.BoundedSemaphore(5))

    async def main() -> None:
        async with manager:
            with pytest.raises(RuntimeError, match="make one for each"):
                async with manager:
                    pass

    run(main())
    lock = sync_context(await_(new_lock()))

    def enter() -> None:
        with pytest.raises(RuntimeError, match="make one for each"):
            with lock:
                pass

    with lock:
        gevent.spawn(enter).get()


@pytest.mark.skipif(PATCHED, reason="asyncio's own loop waits in the hub after patching")
def test_asyncios_own_loop() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"asyncio_gevent\.run\(main\(\)\)"):
            async with async_context(gevent.lock.RLock()):
                pass

    loop = asyncio.SelectorEventLoop()
    loop.run_until_complete(main())
    loop.close()
