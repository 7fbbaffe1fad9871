"""sync_to_async() and async_to_sync(): wrappers of functions, both ways."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import sys
import traceback
from typing import Any

import gevent
import gevent.event
import gevent.local
import pytest
from greenlet import greenlet
from support import PATCHED, until, until_in_greenlet

import asyncio_gevent
from asyncio_gevent import _portals, async_to_sync, await_, sync_to_async

run = asyncio_gevent.run
variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable", default=None)


class Error(Exception):
    pass


def give(value: Any, *, event: Any = None) -> Any:
    """Return the value, or raise it."""
    if event is not None:
        event.wait()
    if isinstance(value, BaseException):
        raise value
    return value


async def give_async(value: Any, *, turns: int = 1) -> Any:
    """Return the value, or raise it, later."""
    for _ in range(turns):
        await asyncio.sleep(0)
    if isinstance(value, BaseException):
        raise value
    return value


class Slow:
    """A function that blocks until it is killed, and takes its time to clean up."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __call__(self) -> None:
        self.events.append("begun")
        try:
            gevent.event.Event().wait()
        except BaseException as error:
            self.events.append(type(error).__name__)
            raise
        finally:
            gevent.sleep(0)
            self.events.append("cleaned up")


# --- forms --------------------------------------------------------------------------------------


def test_forms_of_sync_to_async() -> None:
    @sync_to_async
    def bare(x: int) -> int:
        """Doc."""
        return x

    @sync_to_async()
    def called(x: int) -> int:
        return x

    @sync_to_async(None, True, True, False)
    def positional(x: int) -> int:
        return x

    class Thing:
        @sync_to_async
        def method(self, x: int) -> tuple[Any, int]:
            return self, x

        @classmethod
        @sync_to_async
        def class_method(cls, x: int) -> tuple[Any, int]:
            return cls, x

        @staticmethod
        @sync_to_async(autokill_greenlet=False)
        def static_method(x: int) -> int:
            return x

        def plain(self, x: int) -> int:
            return x

    async def main() -> None:
        for function in (bare, called, positional, Thing.static_method):
            assert inspect.iscoroutinefunction(function)
            assert await function(1) == 1
            assert await function(x=2) == 2
        thing = Thing()
        assert await thing.method(1) == (thing, 1)
        assert await Thing.class_method(1) == (Thing, 1)
        assert await sync_to_async(thing.plain)(3) == 3
        assert isinstance(await sync_to_async(Thing)(), Thing)
        assert await sync_to_async(functools.partial(give, 4))() == 4
        assert await sync_to_async(lambda: 5)() == 5
        assert await sync_to_async(int)("6") == 6

    run(main())
    assert bare.__name__ == "bare"
    assert bare.__doc__ == "Doc."
    assert str(inspect.signature(bare)) == "(x: 'int') -> 'int'"


def test_forms_of_async_to_sync() -> None:
    @async_to_sync
    async def bare(x: int) -> int:
        """Doc."""
        await asyncio.sleep(0)
        return x

    @async_to_sync()
    async def called(x: int) -> int:
        return x

    @async_to_sync(None, True, True, False)
    async def positional(x: int) -> int:
        return x

    class Thing:
        @async_to_sync
        async def method(self, x: int) -> tuple[Any, int]:
            return self, x

        @classmethod
        @async_to_sync
        async def class_method(cls, x: int) -> tuple[Any, int]:
            return cls, x

        @staticmethod
        @async_to_sync(autocancel_future=False)
        async def static_method(x: int) -> int:
            return x

        async def plain(self, x: int) -> int:
            return x

        async def __call__(self, x: int) -> int:
            return x

    thing = Thing()

    def check() -> None:
        for function in (bare, called, positional, Thing.static_method):
            assert not inspect.iscoroutinefunction(function)
            assert function(1) == 1
            assert function(x=2) == 2
        assert thing.method(1) == (thing, 1)
        assert Thing.class_method(1) == (Thing, 1)
        assert async_to_sync(thing.plain)(3) == 3
        assert async_to_sync(thing)(4) == 4
        assert async_to_sync(functools.partial(give_async, 5))() == 5
        assert async_to_sync(lambda: give_async(6))() == 6

    check()
    gevent.spawn(check).get()

    async def main() -> None:
        check()
        await sync_to_async(check)()

    run(main())
    assert bare.__name__ == "bare"
    assert bare.__doc__ == "Doc."
    assert str(inspect.signature(bare)) == "(x: 'int') -> 'int'"


# --- sync_to_async ------------------------------------------------------------------------------


def test_it_runs_in_a_greenlet_of_its_own() -> None:
    greenlets = set()

    def function() -> None:
        assert asyncio._get_running_loop() is None
        assert isinstance(gevent.getcurrent(), gevent.Greenlet)
        greenlets.add(gevent.getcurrent())
        gevent.sleep(0)
        assert run(give_async(1)) == 1

    async def main() -> None:
        task = asyncio.current_task()
        await asyncio.gather(*(sync_to_async(function)() for _ in range(3)))
        assert asyncio.current_task() is task

    run(main())
    assert len(greenlets) == 3


ERRORS = [Error(), SystemExit(1), KeyboardInterrupt(), gevent.Timeout(), BaseException()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_exception(error: BaseException) -> None:
    async def main() -> None:
        for _ in range(2):
            try:
                await sync_to_async(give)(error)
            except BaseException as caught:
                assert caught is error
                names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
                assert names[0] == "main"
                assert names[-1] == "give"
                assert len(names) <= 5, names
            else:
                pytest.fail("it was not raised")
            error.__traceback__ = None

    run(main())


def test_stop_iteration() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await sync_to_async(give)(StopIteration())

    run(main())


@pytest.mark.parametrize("autocancel", [True, False])
def test_autocancel_future(autocancel: bool) -> None:
    greenlets = []

    def function() -> None:
        greenlets.append(gevent.getcurrent())
        gevent.event.Event().wait()

    async def main() -> None:
        task = asyncio.ensure_future(sync_to_async(function, autocancel)())
        await until(lambda: greenlets)
        greenlets[0].kill()
        assert greenlets[0].dead
        if autocancel:
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            assert type(caught.value) is asyncio.CancelledError
        else:
            assert isinstance(await task, gevent.GreenletExit)

    run(main())


@pytest.mark.parametrize("autokill", [True, False])
def test_autokill_greenlet(autokill: bool) -> None:
    slow = Slow()
    greenlets = []
    killed = ["begun", "CancelledExit", "cleaned up"]

    def function() -> None:
        greenlets.append(gevent.getcurrent())
        slow()

    async def main() -> None:
        wrapped = sync_to_async(function, True, True, autokill)
        task = asyncio.ensure_future(wrapped())
        await until(lambda: slow.events)
        task.cancel("reason")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert slow.events == (killed if autokill else ["begun"])

    run(main())
    greenlets[0].kill()
    assert slow.events == (killed if autokill else ["begun", "GreenletExit", "cleaned up"])


def test_cancel_before_it_begins() -> None:
    slow = Slow()

    async def main() -> None:
        task = asyncio.ensure_future(sync_to_async(slow)())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert slow.events in ([], ["begun", "CancelledExit", "cleaned up"])
        assert await sync_to_async(give)(1) == 1

    run(main())


def test_cancel_while_it_ends() -> None:
    """A cancel that is taken is not lost, though the function cannot hear of it any more."""

    async def main() -> None:
        for turns in range(5):
            event = gevent.event.Event()
            task = asyncio.ensure_future(sync_to_async(give)(1, event=event))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            event.set()
            for _ in range(turns):
                gevent.sleep(0)
            if task.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                assert await task == 1
            assert await sync_to_async(give)(turns) == turns

    run(main())


def test_cancel_by_a_function_that_does_not_block() -> None:
    """It comes in the last stretch of the function: Ctrl-C does."""

    async def main() -> None:
        task: Any = asyncio.current_task()
        function = sync_to_async(lambda: task.get_loop().call_soon_threadsafe(task.cancel))
        with pytest.raises(asyncio.CancelledError):
            await function()
            await asyncio.sleep(0)

    with pytest.raises(asyncio.CancelledError):
        run(cancelled_by(main()))


async def cancelled_by(coroutine: Any) -> None:
    await coroutine
    raise asyncio.CancelledError


def test_cancel_between_a_request_and_the_task() -> None:
    """The function has called await_(), and its task has not seen that yet."""

    async def main() -> None:
        for autokill in (True, False):
            heard: list[Any] = []

            def function() -> None:
                heard.append("begun")
                try:
                    await_(asyncio.sleep(3600))
                except BaseException as error:
                    heard.append(type(error))

            call = sync_to_async(function, autokill_greenlet=autokill)
            task = asyncio.ensure_future(call())
            while not heard:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert heard[1:] == [asyncio.CancelledError]

    run(main())


def test_a_worker_that_is_killed_before_it_begins() -> None:
    """By a program that kills all greenlets, say."""
    import gc

    def kill_all() -> None:
        for each in gc.get_objects():
            if isinstance(each, _portals.Worker) and not each.dead:
                each.kill(block=False)

    async def main() -> None:
        for is_pooled in (False, True):
            _portals._pool.workers.clear()
            if is_pooled:
                await sync_to_async(give)(1)
            task = asyncio.ensure_future(sync_to_async(give)(1))
            await asyncio.sleep(0)
            kill_all()
            try:
                assert await task == 1
            except asyncio.CancelledError:
                pass
            kill_all()
            gevent.sleep(0)
            assert await sync_to_async(give)(2) == 2

    run(main())


def test_a_function_that_is_left_alone_has_a_context_of_its_own() -> None:
    event = gevent.event.Event()
    done = []

    def function() -> None:
        event.wait()
        variable.set("its")
        done.append(True)

    async def main() -> None:
        variable.set("mine")
        task = asyncio.ensure_future(body())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        assert await task == "mine"

    async def body() -> Any:
        try:
            await sync_to_async(function, autokill_greenlet=False)()
        except asyncio.CancelledError:
            event.set()
            await until(lambda: done)
        return variable.get()

    run(main())


def test_await_in_a_context_of_its_own() -> None:
    """In a Context.run() the coroutine sees the variables of that."""

    async def read() -> Any:
        await asyncio.sleep(0)
        return variable.get()

    def function() -> Any:
        variable.set("outer")
        context = contextvars.copy_context()
        context.run(variable.set, "inner")
        return context.run(lambda: await_(read())), await_(read())

    async def main() -> None:
        assert await sync_to_async(function)() == ("inner", "outer")

    run(main())


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="3.10 does not count cancels: the two cannot be told apart"
)
def test_a_cancel_while_a_timeout_of_the_function_cleans_up() -> None:
    """The function has only heard of its timeout, and does not block again."""
    events: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            events.append("cleaning")
            await asyncio.sleep(0.01)

    def function() -> str:
        with gevent.Timeout(0.01, False):
            await_(slow())
        return "result"

    async def main() -> None:
        task = asyncio.ensure_future(sync_to_async(function)())
        await until(lambda: events)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


def test_a_timeout_of_asyncio_around_another_loop() -> None:
    loop = asyncio_gevent.new_event_loop()
    server = gevent.spawn(loop.run_forever)

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(in_step(), 0.01)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(sync_to_async(elsewhere)(), 0.01)
        if sys.version_info >= (3, 11):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    elsewhere()

    async def in_step() -> None:
        elsewhere()

    def elsewhere() -> None:
        await_(asyncio.sleep(3600), loop=loop)

    run(main())
    loop.call_soon(loop.stop)
    server.get()
    loop.close()


def test_cancel_twice_while_it_cleans_up() -> None:
    release = gevent.event.Event()
    events = []

    def stubborn() -> None:
        events.append("begun")
        try:
            gevent.event.Event().wait()
        finally:
            events.append("cleaning")
            release.wait()
            events.append("cleaned up")

    async def main() -> None:
        task = asyncio.ensure_future(sync_to_async(stubborn)())
        await until(lambda: events)
        task.cancel()
        await until(lambda: events[1:])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert events == ["begun", "cleaning"]

    run(main())


def test_clean_up_that_awaits() -> None:
    events = []

    async def clean_up() -> None:
        await asyncio.sleep(0)
        events.append(asyncio.current_task())

    def function() -> None:
        events.append("begun")
        try:
            gevent.event.Event().wait()
        finally:
            await_(clean_up())

    async def main() -> None:
        task = asyncio.ensure_future(sync_to_async(function)())
        await until(lambda: events)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert events == ["begun", task]

    run(main())


def test_a_timeout_of_gevent_in_the_function() -> None:
    """It cancels what the function awaits in the task, and nothing else of the task."""
    events = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            events.append("cleaned up")

    def function() -> str:
        with gevent.Timeout(0.01, False):
            await_(forever())
        return str(await_(give_async("after")))

    async def main() -> None:
        assert await sync_to_async(function)() == "after"
        task: Any = asyncio.current_task()
        if sys.version_info >= (3, 11):
            assert task.cancelling() == 0
        await asyncio.sleep(0)
        assert events == ["cleaned up"]

    run(main())


def test_a_chain() -> None:
    async def down(depth: int) -> Any:
        if depth == 0:
            return asyncio.current_task()
        return await sync_to_async(up)(depth)

    def up(depth: int) -> Any:
        return async_to_sync(down)(depth - 1)

    async def main() -> None:
        assert await down(20) is asyncio.current_task()

    run(main())
    assert up(20) is not None

    async def fails(depth: int) -> Any:
        if depth == 0:
            raise Error
        return await sync_to_async(lambda: await_(fails(depth - 1)))()

    with pytest.raises(Error):
        run(fails(10))


def test_cancel_of_a_chain() -> None:
    events = []

    async def down(depth: int) -> None:
        try:
            if depth == 0:
                events.append("begun")
                await asyncio.Event().wait()
            await sync_to_async(up)(depth)
        finally:
            await asyncio.sleep(0)
            events.append(depth)

    def up(depth: int) -> None:
        await_(down(depth - 1))

    async def main() -> None:
        task = asyncio.ensure_future(down(5))
        await until(lambda: events)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert events == ["begun", 0, 1, 2, 3, 4, 5]

    run(main())


def test_several_greenlets_of_one_call() -> None:
    """Only the function itself awaits in the task; a greenlet that it spawns has one of its own."""

    async def main() -> None:
        task = asyncio.current_task()

        async def current() -> Any:
            await asyncio.sleep(0)
            return asyncio.current_task()

        def function() -> None:
            assert await_(current()) is task
            loop = task.get_loop()  # type: ignore[union-attr]
            others = [gevent.spawn(await_, current(), loop=loop) for _ in range(3)]
            assert task not in [each.get() for each in others]
            # Raw greenlets that it starts are part of it.
            raw = greenlet(lambda: await_(current()))
            assert raw.switch() is task

        await sync_to_async(function)()

    run(main())


# --- the pool of greenlets ----------------------------------------------------------------------


def workers() -> int:
    return len(_portals._pool.workers)


def test_a_greenlet_that_somebody_keeps_is_not_used_again() -> None:
    kept: list[Any] = []
    local = gevent.local.local()

    def keep() -> None:
        kept.append(gevent.getcurrent())

    def keep_local() -> None:
        assert not hasattr(local, "value")
        local.value = 1

    def keep_link() -> None:
        gevent.getcurrent().link(lambda _: None)

    def keep_name() -> None:
        gevent.getcurrent().attribute = 1

    async def main() -> None:
        _portals._pool.workers.clear()
        await sync_to_async(give)(1)
        before = workers()
        assert before == 1
        for function in (keep, keep_local, keep_link, keep_name):
            for _ in range(3):
                await sync_to_async(function)()
                assert workers() == before - 1
                await sync_to_async(give)(1)
                assert workers() == before

    run(main())
    for each in kept:
        each.join()
        assert each.dead


def test_whoever_waits_for_the_greenlet_is_woken() -> None:
    joined = []

    def function() -> int:
        me = gevent.getcurrent()
        joined.append(gevent.spawn(me.join))
        gevent.sleep(0)
        return 5

    async def main() -> None:
        assert await sync_to_async(function)() == 5

    run(main())
    joined[0].get()


def test_a_late_exception_hits_no_other_call() -> None:
    """One that was on its way when the call ended."""

    def function() -> None:
        me = gevent.getcurrent()
        gevent.get_hub().loop.run_callback(me.kill, gevent.GreenletExit, False)

    async def main() -> None:
        for _ in range(3):
            try:
                await sync_to_async(function)()
            except asyncio.CancelledError:
                pass
            event = gevent.event.Event()
            task = asyncio.ensure_future(sync_to_async(give)(1, event=event))
            for _ in range(3):
                await asyncio.sleep(0)
            event.set()
            assert await task == 1

    run(main())


def test_many_calls_at_the_same_time() -> None:
    async def main() -> None:
        event = gevent.event.Event()
        calls = [asyncio.ensure_future(sync_to_async(give)(n, event=event)) for n in range(300)]
        await asyncio.sleep(0)
        event.set()
        assert await asyncio.gather(*calls) == list(range(300))
        assert workers() <= _portals.MAX_WORKERS

    run(main())


# --- async_to_sync ------------------------------------------------------------------------------


@pytest.mark.parametrize("autocancel", [True, False])
def test_autocancel_of_a_coroutine(autocancel: bool) -> None:
    events: list[str] = []
    tasks: list[Any] = []

    async def slow() -> None:
        tasks.append(asyncio.current_task())
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            events.append("cleaned up")

    greenlet = gevent.spawn(async_to_sync(slow, True, autocancel))
    until_in_greenlet(lambda: tasks)
    greenlet.kill()
    assert isinstance(greenlet.value, gevent.GreenletExit)
    assert events == (["cleaned up"] if autocancel else [])
    asyncio_gevent.shutdown()
    assert events == ["cleaned up"]


@pytest.mark.parametrize("autokill", [True, False])
def test_autokill_of_the_caller(autokill: bool) -> None:
    function = async_to_sync(give_async, True, True, autokill)
    with pytest.raises(asyncio.CancelledError, match="message") as caught:
        function(asyncio.CancelledError("message"))
    assert isinstance(caught.value, gevent.GreenletExit) == autokill

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError) as caught:
            function(asyncio.CancelledError("message"))
        assert type(caught.value) is asyncio.CancelledError

    run(main())


def test_a_loop() -> None:
    loop = asyncio_gevent.new_event_loop()
    server = gevent.spawn(loop.run_forever)

    async def running_loop() -> Any:
        return asyncio.get_running_loop()

    assert async_to_sync(running_loop, loop=loop)() is loop
    assert async_to_sync(loop=loop)(running_loop)() is loop
    loop.call_soon(loop.stop)
    server.get()
    loop.close()


def test_a_decorator_of_sync_functions_on_async_ones() -> None:
    """What greenback's users know as decorate_as_sync()."""
    calls = []

    async def double(number: int) -> int:
        await asyncio.sleep(0)
        calls.append(asyncio.current_task())
        return 2 * number

    cached = sync_to_async(functools.lru_cache(async_to_sync(double)))

    async def main() -> None:
        assert [await cached(n) for n in (1, 2, 1)] == [2, 4, 2]
        assert calls == [asyncio.current_task()] * 2

    run(main())


# --- bad input ----------------------------------------------------------------------------------


async def generate() -> Any:
    yield 1


def numbers() -> Any:
    yield 1


def test_sync_to_async_of_something_else() -> None:
    for thing in (give_async, functools.partial(give_async, 1)):
        with pytest.raises(TypeError, match=r"is a coroutine function.*async_to_sync"):
            sync_to_async(thing)
    for thing in (3, "x"):
        with pytest.raises(TypeError, match="takes a function"):
            sync_to_async(thing)
    with pytest.raises(TypeError, match=r"async_iter\(numbers\(\.\.\.\)\)"):
        sync_to_async(numbers)
    with pytest.raises(TypeError, match="put @classmethod above @sync_to_async"):
        sync_to_async(classmethod(give))
    with pytest.raises(ValueError, match="nobody could ever start"):
        sync_to_async(give, True, False)
    with pytest.raises(ValueError, match="nobody could ever start"):
        sync_to_async(autostart_greenlet=False)(give)


def test_async_to_sync_of_something_else() -> None:
    with pytest.raises(TypeError, match=r"give\(\) returned 1, which is not awaitable"):
        async_to_sync(give)(1)
    coroutine = give_async(1)
    with pytest.raises(TypeError, match=r"`async_to_sync\(give_async\)\(\.\.\.\)`"):
        async_to_sync(coroutine)  # type: ignore[arg-type]
    assert coroutine.cr_frame is None
    with pytest.raises(TypeError, match=r"sync_iter\(generate\(\.\.\.\)\)"):
        async_to_sync(generate)
    with pytest.raises(TypeError, match="takes a function"):
        async_to_sync(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="put @classmethod above @async_to_sync"):
        async_to_sync(classmethod(give_async))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nobody could ever start"):
        async_to_sync(give_async, False)
    with pytest.raises(ValueError, match="nobody could ever start"):
        async_to_sync(autostart_future=False)(give_async)


@pytest.mark.skipif(PATCHED, reason="asyncio's own loop waits in the hub after patching")
def test_asyncios_own_loop() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"asyncio_gevent\.run\(main\(\)\)"):
            await sync_to_async(give)(1)
        with pytest.raises(RuntimeError, match=r"asyncio_gevent\.run\(main\(\)\)"):
            async_to_sync(give_async)(1)

    loop = asyncio.SelectorEventLoop()
    loop.run_until_complete(main())
    loop.close()
