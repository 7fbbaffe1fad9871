"""async_iter() and sync_iter(): iterators and generators, both ways."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from typing import Any

import gevent
import gevent.event
import gevent.queue
import pytest
from support import until, until_in_greenlet

import asyncio_gevent
from asyncio_gevent import async_iter, sync_iter, sync_to_async

run = asyncio_gevent.run
variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable", default=None)


class Error(Exception):
    pass


class Blocking:
    """An iterator that blocks at each step."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        gevent.sleep(0)
        if not self.left:
            raise StopIteration
        self.left -= 1
        return self.left


class Async:
    """The same for ``async for``."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    async def __anext__(self) -> int:
        await asyncio.sleep(0)
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        return self.left


def echo(log: list[Any]) -> Generator[Any, Any, None]:
    """Give back what is sent."""
    value = "first"
    try:
        while True:
            gevent.sleep(0)
            try:
                value = yield value
            except Error as error:
                value = error
            if value == "end":
                return
    finally:
        gevent.sleep(0)
        log.append("closed")


async def async_echo(log: list[Any]) -> AsyncGenerator[Any, Any]:
    value: Any = "first"
    try:
        while True:
            await asyncio.sleep(0)
            try:
                value = yield value
            except Error as error:
                value = error
            if value == "end":
                return
    finally:
        await asyncio.sleep(0)
        log.append("closed")


@pytest.fixture(params=["greenlet", "task", "sync_to_async"])
def call(request: pytest.FixtureRequest) -> Any:
    def in_task(function: Any) -> Any:
        async def main() -> Any:
            return function()

        return run(main())

    def in_greenlet_of_task(function: Any) -> Any:
        return run(sync_to_async(function)())

    return {
        "greenlet": lambda function: gevent.spawn(function).get(),
        "task": in_task,
        "sync_to_async": in_greenlet_of_task,
    }[request.param]


def test_async_iter() -> None:
    async def main() -> None:
        assert [n async for n in async_iter(Blocking(3))] == [2, 1, 0]
        assert [n async for n in async_iter([1, 2])] == [1, 2]
        assert [n async for n in async_iter({})] == []
        iterator = async_iter(Blocking(1))
        assert isinstance(iterator, AsyncIterator)
        assert not isinstance(iterator, AsyncGenerator)
        assert await anext(iterator) == 0
        for _ in range(2):
            with pytest.raises(StopAsyncIteration):
                await anext(iterator)
        queue: Any = gevent.queue.Queue()
        for item in (1, 2, StopIteration):
            queue.put(item)
        assert [n async for n in async_iter(queue)] == [1, 2]

    run(main())


def test_sync_iter(call: Any) -> None:
    def body() -> None:
        assert list(sync_iter(Async(3))) == [2, 1, 0]
        iterator = sync_iter(Async(1))
        assert isinstance(iterator, Iterator)
        assert not isinstance(iterator, Generator)
        assert next(iterator) == 0
        for _ in range(2):
            with pytest.raises(StopIteration):
                next(iterator)

    call(body)


def test_generators_of_async_iter() -> None:
    log: list[Any] = []

    async def main() -> None:
        generator = async_iter(echo(log))
        assert isinstance(generator, AsyncGenerator)
        assert await anext(generator) == "first"
        assert await generator.asend(2) == 2
        error = Error()
        assert await generator.athrow(error) is error
        with pytest.raises(KeyError):
            await generator.athrow(KeyError())
        assert log == ["closed"]
        with pytest.raises(StopAsyncIteration):
            await anext(generator)
        generator = async_iter(echo(log))
        async with contextlib.aclosing(generator):
            async for value in generator:
                assert value == "first"
                break
        assert log == ["closed"] * 2
        await generator.aclose()
        generator = async_iter(echo(log))
        await anext(generator)
        with pytest.raises(StopAsyncIteration):
            await generator.asend("end")

    run(main())


def test_generators_of_sync_iter(call: Any) -> None:
    def body() -> None:
        log: list[Any] = []
        generator = sync_iter(async_echo(log))
        assert isinstance(generator, Generator)
        assert next(generator) == "first"
        assert generator.send(2) == 2
        error = Error()
        assert generator.throw(error) is error
        with pytest.raises(KeyError):
            generator.throw(KeyError())
        assert log == ["closed"]
        with pytest.raises(StopIteration):
            next(generator)
        generator = sync_iter(async_echo(log))
        with contextlib.closing(generator):
            for value in generator:
                assert value == "first"
                break
        assert log == ["closed"] * 2
        generator.close()
        generator = sync_iter(async_echo(log))
        next(generator)
        with pytest.raises(StopIteration):
            generator.send("end")

    call(body)


def test_exceptions(call: Any) -> None:
    error = Error()

    def fails() -> Iterator[int]:
        yield 1
        raise error

    async def fails_async() -> AsyncIterator[int]:
        yield 1
        raise error

    async def main() -> None:
        items = []
        with pytest.raises(Error) as caught:
            async for item in async_iter(fails()):
                items.append(item)
        assert caught.value is error
        assert items == [1]

    def body() -> None:
        items = []
        with pytest.raises(Error) as caught:
            for item in sync_iter(fails_async()):
                items.append(item)
        assert caught.value is error
        assert items == [1]

    run(main())
    call(body)


def test_cancel_of_a_step() -> None:
    events: list[Any] = []

    def blocks() -> Iterator[int]:
        try:
            events.append("begun")
            gevent.event.Event().wait()
            yield 1
        except gevent.GreenletExit:
            events.append("killed")
            raise

    async def body() -> None:
        async for _ in async_iter(blocks()):
            pass

    async def main() -> None:
        task = asyncio.ensure_future(body())
        await until(lambda: events)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert events == ["begun", "killed"]

    run(main())


def test_a_timeout_of_a_step() -> None:
    events: list[Any] = []

    async def waits() -> AsyncIterator[int]:
        try:
            await asyncio.Event().wait()
            yield 1
        finally:
            await asyncio.sleep(0)
            events.append("cleaned up")

    with pytest.raises(gevent.Timeout):
        with gevent.Timeout(0.01):
            list(sync_iter(waits()))
    assert events == ["cleaned up"]


def test_context_variables(call: Any) -> None:
    def sets() -> Iterator[Any]:
        yield variable.get()
        variable.set("its")
        yield 2

    async def sets_async() -> AsyncIterator[Any]:
        yield variable.get()
        variable.set("its")
        yield 2

    async def main() -> None:
        variable.set("mine")
        assert [item async for item in async_iter(sets())] == ["mine", 2]
        assert variable.get() == "its"

    def body() -> None:
        variable.set("mine")
        assert list(sync_iter(sets_async())) == ["mine", 2]
        assert variable.get() == "its"

    run(main())
    call(body)


def test_an_async_generator_that_is_forgotten() -> None:
    """The event loop closes it, as always."""
    log: list[Any] = []
    assert next(iter(sync_iter(async_echo(log)))) == "first"
    until_in_greenlet(lambda: log)
    assert log == ["closed"]


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="is an async iterable already"):
        async_iter(Async(1))  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="is not an async iterable"):
        sync_iter([1])  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="not iterable"):
        async_iter(3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="is not an async iterable"):
        sync_iter(async_echo)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"call it: `async_iter\(echo\(\.\.\.\)\)`"):
        async_iter(echo)  # type: ignore[call-overload]
    coroutine = until(lambda: True)
    with pytest.raises(TypeError, match=r"use `await_\(\)`"):
        sync_iter(coroutine)  # type: ignore[call-overload]
    assert coroutine.cr_frame is None
