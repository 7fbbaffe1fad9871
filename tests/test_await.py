"""await_(): how a greenlet, and sync code below a task, waits for async code."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.event
import pytest
from gevent.monkey import get_original
from greenlet import greenlet
from support import PATCHED, NativeThread, never, until_in_greenlet

import asyncio_gevent
from asyncio_gevent import CancelledExit, await_, spawn, sync_to_async
from asyncio_gevent._originals import NativeSelector

allocate_native_lock = get_original("_thread", "allocate_lock")

variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable", default=None)


class Error(Exception):
    pass


# --- event loops that serve ---------------------------------------------------------------------


@contextlib.contextmanager
def ambient() -> Iterator[dict[str, Any]]:
    yield {}


@contextlib.contextmanager
def in_another_greenlet() -> Iterator[dict[str, Any]]:
    loop = asyncio_gevent.new_event_loop()
    server = gevent.spawn(loop.run_forever)
    yield {"loop": loop}
    loop.call_soon(loop.stop)
    server.get()
    loop.close()


def in_thread_of(new_loop: Callable[[], Any]) -> Any:
    @contextlib.contextmanager
    def serve() -> Iterator[dict[str, Any]]:
        loop = new_loop()
        thread = NativeThread(loop.run_forever)
        yield {"loop": loop}
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    return serve


SERVERS = {
    "ambient": ambient,
    "greenlet": in_another_greenlet,
    "thread": in_thread_of(asyncio_gevent.new_event_loop),
}
if not PATCHED:  # asyncio's own is made of greenlets' sockets after patching
    SERVERS["standard"] = in_thread_of(asyncio.SelectorEventLoop)


@pytest.fixture(params=SERVERS)
def served(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Keyword arguments of await_(), for event loops in different places."""
    with SERVERS[request.param]() as arguments:
        yield arguments


# --- outcomes -----------------------------------------------------------------------------------


async def give(value: Any, *, turns: int = 1) -> Any:
    for _ in range(turns):
        await asyncio.sleep(0)
    if isinstance(value, BaseException):
        raise value
    return value


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_a_value(served: dict[str, Any], turns: int) -> None:
    assert await_(give(42, turns=turns), **served) == 42


ERRORS = [Error("mine"), SystemExit(3), KeyboardInterrupt(), gevent.Timeout(), BaseException("b")]


@pytest.mark.parametrize("turns", [0, 1])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_exception(served: dict[str, Any], error: BaseException, turns: int) -> None:
    """The same object; a SystemExit of the coroutine does not end the event loop."""
    error.__cause__ = cause = ValueError()
    error.__context__ = context = KeyError()
    with pytest.raises(type(error)) as caught:
        await_(give(error, turns=turns), **served)
    assert caught.value is error
    assert error.__cause__ is cause
    assert error.__context__ is context
    assert await_(give(1), **served) == 1


def test_stop_iteration(served: dict[str, Any]) -> None:
    """Python makes a RuntimeError of one that leaves a coroutine, here as everywhere."""
    with pytest.raises(RuntimeError, match="StopIteration"):
        await_(give(StopIteration(1)), **served)


def test_a_coroutine_that_cancels_itself(served: dict[str, Any]) -> None:
    with pytest.raises(CancelledExit, match="message") as caught:
        await_(give(asyncio.CancelledError("message")), **served)
    assert isinstance(caught.value, asyncio.CancelledError)
    assert isinstance(caught.value, gevent.GreenletExit)
    # A greenlet ends quietly by it, as a killed one.
    greenlet = gevent.spawn(lambda: await_(give(asyncio.CancelledError()), **served))
    assert isinstance(greenlet.get(), gevent.GreenletExit)


class Awaitable:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __await__(self) -> Any:
        yield from asyncio.sleep(0).__await__()
        return self.value


class BareIterator:
    """An awaitable whose iterator has no send()."""

    def __await__(self) -> Any:
        return iter([None, None])


def test_other_awaitables(served: dict[str, Any]) -> None:
    assert await_(Awaitable(7), **served) == 7
    assert await_(BareIterator(), **served) is None


def test_other_awaitables_below_a_task() -> None:
    async def main() -> None:
        assert await_(Awaitable(7)) == 7
        assert await_(BareIterator()) is None
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, 8)
        assert await_(future) == 8
        assert await_(future) == 8

    asyncio_gevent.run(main())


def test_futures_of_any_loop(served: dict[str, Any]) -> None:
    loop = await_(running_loop(), **served)
    pending = loop.create_future()
    greenlets = [gevent.spawn(await_, pending) for _ in range(3)]
    gevent.sleep(0)
    loop.call_soon_threadsafe(pending.set_result, 5)
    assert [greenlet.get() for greenlet in greenlets] == [5, 5, 5]
    assert await_(pending) == 5
    failed = loop.create_future()
    error = Error()
    loop.call_soon_threadsafe(failed.set_exception, error)
    with pytest.raises(Error) as caught:
        await_(failed)
    assert caught.value is error
    cancelled = loop.create_future()
    loop.call_soon_threadsafe(cancelled.cancel)
    with pytest.raises(CancelledExit):
        await_(cancelled)


async def running_loop() -> Any:
    return asyncio.get_running_loop()


def test_a_future_of_another_loop_below_a_task(served: dict[str, Any]) -> None:
    """What ``await`` refuses, await_() does."""
    loop = await_(running_loop(), **served)

    async def main() -> Any:
        future = loop.create_future()
        loop.call_soon_threadsafe(future.set_result, 3)
        return await_(future)

    assert asyncio_gevent.run(main()) == 3


def test_calls_from_many_greenlets(served: dict[str, Any]) -> None:
    greenlets = [
        gevent.spawn(lambda n=n: await_(give(n, turns=n % 5), **served)) for n in range(200)
    ]
    assert [greenlet.get() for greenlet in greenlets] == list(range(200))


# --- tracebacks ---------------------------------------------------------------------------------


async def innermost() -> None:
    await asyncio.sleep(0)
    raise Error


async def outer() -> None:
    await innermost()


def frames(error: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


def test_a_traceback_has_the_users_frames(served: dict[str, Any]) -> None:
    with pytest.raises(Error) as caught:
        await_(outer(), **served)
    names = frames(caught.value)
    assert names[0] == "test_a_traceback_has_the_users_frames"
    assert names[-2:] == ["outer", "innermost"]
    assert len(names) <= 6, names


def test_a_traceback_below_a_task() -> None:
    def below() -> None:
        await_(outer())

    async def main() -> None:
        below()

    with pytest.raises(Error) as caught:
        asyncio_gevent.run(main())
    names = frames(caught.value)
    assert names[names.index("below") :] == ["below", "await_", "drive", "outer", "innermost"]


def test_a_traceback_does_not_grow(served: dict[str, Any]) -> None:
    loop = await_(running_loop(), **served)
    future = loop.create_future()
    loop.call_soon_threadsafe(future.set_exception, Error())
    lengths = set()
    for _ in range(5):
        with pytest.raises(Error) as caught:
            await_(future)
        lengths.add(len(frames(caught.value)))
    assert len(lengths - {max(lengths)}) <= 1, lengths  # the first one waits, the others do not


def test_no_reference_cycles(served: dict[str, Any]) -> None:
    """Neither the exception nor what its frames refer to waits for the garbage collector."""

    class Thing:
        pass

    def fail() -> Any:
        thing = Thing()
        note = weakref.ref(thing)

        async def raises() -> None:
            assert thing
            await asyncio.sleep(0)
            raise Error

        try:
            await_(raises(), **served)
        except Error:
            pass
        return note

    fail()
    gc.collect()
    gc.disable()
    try:
        note = fail()
        gevent.sleep(0)
        await_(give(1), **served)  # the other thread drops its part
        assert note() is None
    finally:
        gc.enable()


# --- kills and timeouts -------------------------------------------------------------------------


class Slow:
    """A coroutine that waits until it is cancelled, and takes its time to clean up."""

    def __init__(self) -> None:
        self.events: list[str] = []

    async def __call__(self, *, swallow: bool = False, fail: BaseException | None = None) -> str:
        self.events.append("begun")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not swallow:
                raise
        finally:
            await asyncio.sleep(0)
            self.events.append("cleaned up")
            if fail is not None:
                raise fail
        return "swallowed"


def test_a_kill_waits_for_the_clean_up(served: dict[str, Any]) -> None:
    slow = Slow()
    greenlet = gevent.spawn(lambda: await_(slow(), **served))
    until_in_greenlet(lambda: slow.events)
    greenlet.kill()
    assert slow.events == ["begun", "cleaned up"]
    assert isinstance(greenlet.value, gevent.GreenletExit)
    assert not isinstance(greenlet.value, CancelledExit)


def test_a_kill_that_does_not_wait(served: dict[str, Any]) -> None:
    slow = Slow()
    greenlet = gevent.spawn(lambda: await_(slow(), **served))
    until_in_greenlet(lambda: slow.events)
    greenlet.kill(block=False)
    assert slow.events == ["begun"]
    greenlet.join()
    assert slow.events == ["begun", "cleaned up"]


def test_a_kill_by_an_exception(served: dict[str, Any]) -> None:
    slow = Slow()

    def call() -> BaseException:
        with pytest.raises(Error) as caught:
            await_(slow(), **served)
        return caught.value

    greenlet = gevent.spawn(call)
    until_in_greenlet(lambda: slow.events)
    error = Error()
    greenlet.kill(error)
    assert greenlet.get() is error
    assert slow.events == ["begun", "cleaned up"]


def test_a_kill_before_it_begins(served: dict[str, Any]) -> None:
    """The greenlet has called, the coroutine has not begun."""
    slow = Slow()
    greenlet = gevent.Greenlet(lambda: await_(slow(), **served))
    greenlet.start()
    gevent.get_hub().loop.run_callback(greenlet.kill, gevent.GreenletExit, False)
    greenlet.join()
    assert isinstance(greenlet.value, gevent.GreenletExit)
    assert slow.events in ([], ["begun", "cleaned up"])


def test_a_second_kill_does_not_wait(served: dict[str, Any]) -> None:
    release: list[Any] = []
    events = []
    begun = []

    async def stubborn() -> None:
        try:
            begun.append(1)
            await asyncio.Event().wait()
        finally:
            event = asyncio.Event()
            release.append((asyncio.get_running_loop(), event))
            await event.wait()
            events.append("done")

    greenlet = gevent.spawn(lambda: await_(stubborn(), **served))
    until_in_greenlet(lambda: begun)  # an event loop of another thread may not run yet
    greenlet.kill(block=False)
    until_in_greenlet(lambda: release)
    greenlet.kill()
    assert greenlet.dead
    assert not events
    loop, event = release[0]
    loop.call_soon_threadsafe(event.set)
    until_in_greenlet(lambda: events)


def test_a_timeout_of_gevent(served: dict[str, Any]) -> None:
    slow = Slow()
    with pytest.raises(gevent.Timeout) as caught:
        with gevent.Timeout(0.01) as timeout:
            await_(slow(), **served)
    assert caught.value is timeout
    assert slow.events == ["begun", "cleaned up"]
    assert gevent.with_timeout(0.01, await_, slow(), timeout_value="late", **served) == "late"


def test_a_timeout_that_is_swallowed_is_raised_where_it_was_set(served: dict[str, Any]) -> None:
    with pytest.raises(gevent.Timeout):
        with gevent.Timeout(0.01):
            await_(Slow()(swallow=True), **served)


def test_a_clean_up_that_fails(served: dict[str, Any]) -> None:
    """What it raises is not lost, and nor is the timeout: it is the context."""
    error = Error()
    with pytest.raises(Error) as caught:
        with gevent.Timeout(0.01) as timeout:
            await_(Slow()(fail=error), **served)
    assert caught.value is error
    chain = []
    each: BaseException | None = error
    while each is not None:
        chain.append(each)
        each = each.__context__
    assert timeout in chain


def test_timeouts_nested_in_both_orders(served: dict[str, Any]) -> None:
    async def inner_first() -> str:
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 0.01)
        except asyncio.TimeoutError:
            return "inner"
        return "none"

    async def outer_first() -> None:
        await asyncio.wait_for(asyncio.Event().wait(), 60)

    with gevent.Timeout(60):
        assert await_(inner_first(), **served) == "inner"
    with pytest.raises(gevent.Timeout):
        with gevent.Timeout(0.01):
            await_(outer_first(), **served)


def test_cancel_by_others(served: dict[str, Any]) -> None:
    """A task of a greenlet is one of the loop: whoever cancels all tasks cancels it."""
    slow = Slow()

    def call() -> None:
        with pytest.raises(CancelledExit):
            await_(slow(), **served)

    greenlet = gevent.spawn(call)
    until_in_greenlet(lambda: slow.events)

    async def cancel_all() -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    await_(cancel_all(), **served)
    greenlet.get()
    assert slow.events == ["begun", "cleaned up"]


def test_cancel_before_the_first_step() -> None:
    loop = asyncio_gevent.new_event_loop()
    greenlet = gevent.spawn(loop.run_forever)
    gevent.sleep(0)
    waiting = gevent.spawn(lambda: await_(give(1), loop=loop))

    def cancel_all() -> None:
        for task in asyncio.all_tasks(loop):
            task.cancel()

    loop.call_soon(loop.call_soon, int)
    gevent.get_hub().loop.run_callback(cancel_all)
    assert isinstance(waiting.get(), CancelledExit | int)
    loop.call_soon(loop.stop)
    greenlet.get()
    loop.close()


def test_a_shared_future_can_be_shielded(served: dict[str, Any]) -> None:
    loop = await_(running_loop(), **served)
    future = loop.create_future()

    async def shielded() -> Any:
        return await asyncio.shield(future)

    greenlet = gevent.spawn(lambda: await_(shielded(), **served))
    gevent.sleep(0)
    await_(give(1), **served)
    greenlet.kill()
    assert not future.done()
    loop.call_soon_threadsafe(future.set_result, 1)
    assert await_(future) == 1


@pytest.mark.parametrize("where", ["greenlet", "thread"])
def test_a_timeout_while_the_loop_is_stopped(where: str) -> None:
    """Nobody waits for the clean-up in a loop that may never run again."""
    loop = asyncio_gevent.new_event_loop()
    if where == "thread":
        thread = NativeThread(loop.run_forever)
        join: Any = thread.join
    else:
        join = gevent.spawn(loop.run_forever).get
    slow = Slow()

    def call() -> None:
        with pytest.raises(gevent.Timeout):
            with gevent.Timeout(0.05):
                await_(slow(), loop=loop)

    greenlet = gevent.spawn(call)
    until_in_greenlet(lambda: slow.events)
    loop.call_soon_threadsafe(loop.stop)
    join()
    greenlet.get()
    loop.run_until_complete(asyncio.sleep(0.01))
    assert slow.events == ["begun", "cleaned up"]
    loop.close()


@pytest.mark.parametrize("make", ["ours", "standard"])
def test_a_loop_that_stops_before_a_clean_up_is_over(make: str) -> None:
    """Nobody waits for it any longer."""
    if make == "ours":
        loop: Any = asyncio_gevent.new_event_loop()
    else:
        loop = asyncio.SelectorEventLoop(NativeSelector())
    ended = asyncio.Event()
    steps = []

    async def slow() -> None:
        steps.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            steps.append("cleaning up")
            await ended.wait()
            steps.append("cleaned up")

    thread = NativeThread(loop.run_forever)
    greenlet = gevent.spawn(lambda: await_(slow(), loop=loop))
    until_in_greenlet(lambda: steps)
    greenlet.kill(block=False)
    until_in_greenlet(lambda: len(steps) == 2)
    assert not greenlet.ready()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    greenlet.join()
    assert isinstance(greenlet.value, gevent.GreenletExit)
    assert steps == ["begun", "cleaning up"]

    async def end() -> None:
        ended.set()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait(others)

    loop.run_until_complete(end())
    loop.close()
    assert steps == ["begun", "cleaning up", "cleaned up"]


def test_a_call_that_is_left_alone_has_a_context_of_its_own() -> None:
    released = []

    async def goes_on() -> None:
        while not released:
            await asyncio.sleep(0)
        variable.set("its")

    def body() -> None:
        variable.set("mine")
        with pytest.raises(gevent.Timeout):
            with gevent.Timeout(0.01):
                asyncio_gevent.async_to_sync(goes_on, autocancel_future=False)()
        released.append(True)
        for _ in range(5):
            await_(asyncio.sleep(0))
        assert variable.get() == "mine"

    gevent.spawn(body).get()


def test_a_token_after_a_call_that_is_left_alone() -> None:
    async def waits() -> None:
        await asyncio.Event().wait()

    def body() -> None:
        token = variable.set("mine")
        with gevent.Timeout(0.01, False):
            asyncio_gevent.async_to_sync(waits, autocancel_future=False)()
        variable.reset(token)
        assert variable.get() is None

    gevent.spawn(body).get()


def test_a_cancel_while_a_timeout_cleans_up() -> None:
    """The last one counts, as from any call that blocks."""
    events: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            events.append("cleaning")
            await asyncio.Event().wait()

    async def body() -> None:
        with gevent.Timeout(0.01, False):
            await_(slow())
        events.append("went on")

    async def main() -> None:
        task = asyncio.ensure_future(body())
        while not events:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert events == ["cleaning"]

    asyncio_gevent.run(main())


def test_a_result_is_not_kept() -> None:
    class Result:
        pass

    async def new() -> Any:
        return Result()

    await_(new())
    gc.collect()
    gc.disable()
    try:
        note = weakref.ref(await_(new()))
        gevent.sleep(0)
        assert note() is None
    finally:
        gc.enable()


def test_a_future_of_a_thread_that_has_ended() -> None:
    """To cancel it works; nobody else could end it."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        greenlets: list[Any] = []
        futures: list[Any] = []
        begun = gevent.event.Event()

        def thread() -> None:
            # Not a timer: with libuv the hub could not be destroyed until that is due.
            greenlets.append(gevent.spawn(gevent.event.Event().wait))
            loop.call_soon_threadsafe(begun.set)
            while not (futures and greenlets[0].has_links()):
                gevent.sleep(0.001)

        native = NativeThread(thread)
        begun.wait()
        futures.append(asyncio_gevent.greenlet_to_future(greenlets[0]))
        native.join()
        assert futures[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await futures[0]

    asyncio_gevent.run(main())


@pytest.mark.parametrize("kind", ["begun", "queued", "future"])
def test_an_event_loop_of_another_thread_that_is_closed(kind: str, observed: Any) -> None:
    """asyncio's own, which tells nobody."""
    loops: list[Any] = []
    running = gevent.get_hub().loop.async_()
    is_running = gevent.event.Event()
    running.start(is_running.set)
    end = allocate_native_lock()
    end.acquire()

    def thread() -> None:
        loop = asyncio.SelectorEventLoop(NativeSelector())
        loops.append((loop, loop.create_future()))
        loop.call_soon(running.send)
        if kind == "queued":
            loop.call_soon(end.acquire)  # nothing that comes later is called
            loop.call_soon(loop.stop)
        loop.run_forever()
        if kind != "queued":
            end.acquire()
        loop.close()

    native = NativeThread(thread)
    is_running.wait()
    running.close()
    loop, future = loops[0]
    awaitable = future if kind == "future" else never()
    waiting = gevent.spawn(await_, awaitable, loop=loop)
    gevent.sleep(0.01)
    if kind != "queued":
        loop.call_soon_threadsafe(loop.stop)
    end.release()
    with pytest.raises(RuntimeError, match="closed before"):
        waiting.get()
    native.join()
    observed.hub_errors.clear()


@pytest.mark.skipif(not PATCHED, reason="asyncio's own loop stops the hub without patching")
def test_asyncios_own_loop_in_another_greenlet() -> None:
    """It is the running loop of the thread, but not of a greenlet that is not below it."""
    loop = asyncio.SelectorEventLoop()
    release = gevent.event.Event()

    async def main() -> None:
        assert await sync_to_async(lambda: await_(give(1)))() == 1
        task = asyncio.current_task()
        assert await sync_to_async(lambda: await_(current()))() is task
        while not release.is_set():
            await asyncio.sleep(0)

    async def current() -> Any:
        return asyncio.current_task()

    server = gevent.spawn(loop.run_until_complete, main())
    gevent.sleep(0)
    for _ in range(3):
        assert await_(give(1)) == 1
        assert await_(give(1, turns=0)) == 1
    assert spawn(lambda: await_(give(2))).get() == 2
    release.set()
    server.get()
    loop.close()


@pytest.mark.skipif(not PATCHED, reason="asyncio's own loop stops the hub without patching")
def test_a_raw_greenlet_below_asyncios_own_loop() -> None:
    """It is part of the greenlet that waits for it, as SQLAlchemy's are."""

    async def main() -> None:
        def body() -> None:
            with pytest.raises(RuntimeError, match="below a task"):
                await_(give(1))

        greenlet(body).switch()

    loop = asyncio.SelectorEventLoop()
    loop.run_until_complete(main())
    loop.close()


# --- below a task -------------------------------------------------------------------------------


def test_it_is_await_in_that_very_task() -> None:
    async def inner() -> Any:
        await asyncio.sleep(0)
        return asyncio.current_task()

    def below() -> Any:
        return await_(inner())

    async def main() -> None:
        assert below() is asyncio.current_task()
        assert await sync_to_async(below)() is asyncio.current_task()

        def nested() -> Any:
            return await_(sync_to_async(below)())

        assert nested() is asyncio.current_task()

    asyncio_gevent.run(main())


def test_the_loop_goes_on() -> None:
    async def main() -> None:
        event = asyncio.Event()

        async def other() -> None:
            await asyncio.sleep(0)
            event.set()

        task = asyncio.ensure_future(other())
        assert await_(event.wait())
        await task

    asyncio_gevent.run(main())


@pytest.mark.parametrize("call", [lambda f: f(), None], ids=["in the step", "sync_to_async"])
def test_cancel_below_a_task(call: Any) -> None:
    slow = Slow()

    def below() -> Any:
        return await_(slow())

    async def body() -> Any:
        return below() if call is not None else await sync_to_async(below)()

    async def main() -> None:
        task = asyncio.ensure_future(body())
        while not slow.events:
            await asyncio.sleep(0)
        task.cancel("reason")
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert type(caught.value) is asyncio.CancelledError
        assert task.cancelled()
        assert slow.events == ["begun", "cleaned up"]

    asyncio_gevent.run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout() is new in 3.11")
@pytest.mark.parametrize("in_greenlet", [False, True])
def test_timeouts_below_a_task(in_greenlet: bool) -> None:
    slow = Slow()

    def below() -> Any:
        return await_(slow())

    async def body() -> Any:
        if in_greenlet:
            return await sync_to_async(below)()
        return below()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await body()
        assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(body(), 0.01)
        with pytest.raises(gevent.Timeout):
            with gevent.Timeout(0.01):
                below()
        await asyncio.sleep(0)  # nothing of it is left for the next await
        assert slow.events == ["begun", "cleaned up"] * 3

        async def own() -> str:
            try:
                async with asyncio.timeout(0.01):
                    await asyncio.Event().wait()
            except TimeoutError:
                return "own"
            return "none"

        assert await_(own()) == "own"

    asyncio_gevent.run(main())


def test_an_exception_below_a_task_is_the_same() -> None:
    error = Error()

    async def main() -> None:
        for turns in (0, 1):
            with pytest.raises(Error) as caught:
                await_(give(error, turns=turns))
            assert caught.value is error

    asyncio_gevent.run(main())


def test_an_awaited_task_is_cancelled_with_the_one_that_waits() -> None:
    async def main() -> None:
        slow = Slow()
        inner = asyncio.ensure_future(slow())

        async def body() -> None:
            await_(inner)

        task = asyncio.ensure_future(body())
        while not slow.events:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert inner.cancelled()
        assert slow.events == ["begun", "cleaned up"]

    asyncio_gevent.run(main())


def test_a_cancel_that_an_awaited_task_swallows() -> None:
    """As with await: the task goes on with the result."""

    async def main() -> None:
        slow = Slow()
        inner = asyncio.ensure_future(slow(swallow=True))

        async def body() -> Any:
            return await_(inner)

        task = asyncio.ensure_future(body())
        while not slow.events:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        assert await task == "swallowed"

    asyncio_gevent.run(main())


def test_a_task_cannot_await_itself() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="cannot await itself"):
            await_(asyncio.current_task())  # type: ignore[arg-type]

        async def foreign() -> None:
            other = asyncio_gevent.new_event_loop()
            try:
                await other.create_future()
            finally:
                other.close()

        with pytest.raises(RuntimeError, match="another event loop"):
            await_(foreign())

        class Bad:
            def __await__(self) -> Any:
                yield 3

        with pytest.raises(RuntimeError, match="bad yield"):
            await_(Bad())

    asyncio_gevent.run(main())


def test_in_a_callback() -> None:
    """A step that is no task's: a task is made."""

    async def main() -> None:
        done = asyncio.get_running_loop().create_future()

        def callback() -> None:
            done.set_result(await_(give(4)))

        asyncio.get_running_loop().call_soon(callback)
        assert await done == 4

    asyncio_gevent.run(main())


def test_depth() -> None:
    async def deep(depth: int) -> int:
        await asyncio.sleep(0)
        return depth if depth == 0 else below(depth - 1) + 1

    def below(depth: int) -> int:
        return await_(deep(depth))

    async def main() -> None:
        assert below(30) == 30
        assert await sync_to_async(below)(30) == 30

    asyncio_gevent.run(main())
    assert below(30) == 30


# --- context variables --------------------------------------------------------------------------


async def set_variable(value: Any) -> Any:
    before = variable.get()
    variable.set((value, "early"))
    await asyncio.sleep(0)
    variable.set(value)
    return before


@pytest.mark.parametrize("entered", [False, True])
def test_context_variables(served: dict[str, Any], entered: bool) -> None:
    """A coroutine sees the caller's, who sees what it has set, also in a Context.run()."""

    def body() -> None:
        variable.set("mine")
        assert await_(set_variable("its"), **served) == "mine"
        assert variable.get() == "its"

        async def fails() -> None:
            variable.set("set")
            raise Error

        with pytest.raises(Error):
            await_(fails(), **served)
        assert variable.get() == "set"

    if entered:
        contextvars.copy_context().run(body)
    else:
        gevent.spawn(body).get()
    assert variable.get() is None


def test_context_variables_below_a_task() -> None:
    async def main() -> None:
        variable.set("mine")
        assert await_(set_variable("its")) == "mine"
        assert variable.get() == "its"

        def function() -> None:
            assert variable.get() == "its"
            assert await_(set_variable("inner")) == "its"
            assert variable.get() == "inner"
            variable.set("last")

        await sync_to_async(function)()
        assert variable.get() == "last"

    asyncio_gevent.run(main())


# --- which loop ---------------------------------------------------------------------------------


def test_which_loop_serves() -> None:
    first = await_(running_loop())
    assert await_(running_loop()) is first
    assert gevent.spawn(await_, running_loop()).get() is first

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await_(running_loop()) is loop
        assert await sync_to_async(lambda: await_(running_loop()))() is loop
        # A greenlet that is no part of the call.
        assert await spawn(lambda: await_(running_loop())) is first
        assert await spawn(lambda: await_(running_loop(), loop=loop)) is loop

    asyncio_gevent.run(main())


def test_the_loop_is_closed_while_a_greenlet_waits() -> None:
    loop = asyncio_gevent.new_event_loop()
    server = gevent.spawn(loop.run_forever)
    future = loop.create_future()
    greenlets = [
        gevent.spawn(pytest.raises, RuntimeError, await_, awaitable, loop=loop)
        for awaitable in (future, asyncio.sleep(3600))
    ]
    gevent.sleep(0)
    gevent.sleep(0)
    loop.call_soon(loop.stop)
    server.get()
    assert not any(greenlet.ready() for greenlet in greenlets)  # it may be run again
    task = next(iter(asyncio.all_tasks(loop)))
    loop.close()
    for each in greenlets:
        assert "was closed" in str(each.get().value)
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_a_loop_that_is_run_again() -> None:
    loop = asyncio_gevent.new_event_loop()
    future = loop.create_future()
    server = gevent.spawn(loop.run_forever)
    greenlet = gevent.spawn(await_, future)
    gevent.sleep(0)
    gevent.sleep(0)
    loop.call_soon(loop.stop)
    server.get()
    future.set_result(1)
    assert not greenlet.ready()
    loop.run_until_complete(asyncio.sleep(0))
    assert greenlet.get() == 1
    loop.close()


# --- bad input ----------------------------------------------------------------------------------


@pytest.fixture(params=["greenlet", "task"])
def caller(request: pytest.FixtureRequest) -> Callable[[Callable[[], Any]], Any]:
    def in_task(function: Callable[[], Any]) -> Any:
        async def main() -> Any:
            return function()

        return asyncio_gevent.run(main())

    return in_task if request.param == "task" else lambda function: function()


@pytest.mark.parametrize(
    ("thing", "remedy"),
    [
        (3, "await_(function"),
        (give, "call it: `await_(give(...))`"),
        (len, "call this directly"),
        (None, "await_(function"),
        (gevent.Greenlet(int), "greenlet_to_future"),
    ],
)
def test_not_awaitable(caller: Any, thing: Any, remedy: str) -> None:
    with pytest.raises(TypeError) as caught:
        caller(lambda: await_(thing))
    assert "is not awaitable" in str(caught.value)
    assert remedy in str(caught.value)


def test_a_coroutine_that_was_awaited(caller: Any) -> None:
    coroutine = give(1)
    assert caller(lambda: await_(coroutine)) == 1
    with pytest.raises(RuntimeError, match=r"was awaited before.*await_\(give\(\.\.\.\)\)"):
        caller(lambda: await_(coroutine))


def test_a_coroutine_that_is_being_awaited(caller: Any) -> None:
    event = gevent.event.Event()

    async def waits() -> str:
        await asyncio.sleep(0)
        await sync_to_async(event.wait)()
        return "done"

    coroutine = waits()
    greenlet = gevent.spawn(await_, coroutine)
    until_in_greenlet(lambda: coroutine.cr_await is not None)
    with pytest.raises(RuntimeError, match="is being awaited already.*ensure_future"):
        caller(lambda: await_(coroutine))
    event.set()
    assert greenlet.get() == "done"


def test_a_closed_loop() -> None:
    loop = asyncio_gevent.new_event_loop()
    loop.close()
    with pytest.raises(RuntimeError, match="is closed: leave out `loop=`"):
        await_(give(1), loop=loop)


def test_a_loop_that_nobody_runs() -> None:
    loop = asyncio_gevent.new_event_loop()
    with pytest.raises(RuntimeError, match=r"does not run.*gevent\.spawn\(loop\.run_forever\)"):
        await_(give(1), loop=loop)
    with pytest.raises(RuntimeError, match="does not run"):
        await_(loop.create_future())
    loop.close()


def test_a_loop_that_is_about_to_run() -> None:
    loop = asyncio_gevent.new_event_loop()
    server = gevent.spawn(loop.run_forever)
    assert await_(give(1), loop=loop) == 1
    loop.call_soon(loop.stop)
    server.get()
    loop.close()


def test_a_future_and_another_loop() -> None:
    loop = asyncio_gevent.new_event_loop()
    with pytest.raises(ValueError, match="belongs to another event loop"):
        await_(await_(new_future()), loop=loop)
    loop.close()


async def new_future() -> Any:
    return asyncio.get_running_loop().create_future()


def test_in_the_hub() -> None:
    caught: list[BaseException] = []

    def callback() -> None:
        try:
            await_(give(1))
        except BaseException as error:
            caught.append(error)

    gevent.get_hub().loop.run_callback(callback)
    until_in_greenlet(lambda: caught)
    assert isinstance(caught[0], asyncio_gevent.BlockingCallError)
    assert "gevent.spawn(await_, ...)" in str(caught[0])


def test_below_a_task_of_asyncios_own_loop() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"await.*asyncio_gevent\.run\(main\(\)\)"):
            await_(give(1))

    loop = asyncio.SelectorEventLoop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def test_below_a_task_that_must_not_block() -> None:
    loop = asyncio_gevent.new_event_loop(suspend=False)

    async def main() -> None:
        with pytest.raises(asyncio_gevent.BlockingCallError, match="`await` it"):
            await_(give(1))
        assert await sync_to_async(lambda: await_(give(2)))() == 2

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
