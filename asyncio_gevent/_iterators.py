"""Iterators and generators of one kind for the loops of the other.

``async for item in async_iter(iterable)`` takes each step of a blocking iterator in a greenlet,
as `sync_to_async` does; ``for item in sync_iter(async_iterable)`` waits for each step as `await_`
does.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Generator,
    Iterable,
    Iterator,
)
from typing import Any, TypeVar, overload

from asyncio_gevent._futures import await_
from asyncio_gevent._portals import call_in_greenlet

__all__ = ["async_iter", "sync_iter"]

_T = TypeVar("_T")
_S = TypeVar("_S")

#: What a step returns when the iterator has ended: ``StopIteration`` cannot leave a coroutine.
_END: Any = object()


def _step(method: Any, *args: Any) -> Any:
    try:
        return method(*args)
    except StopIteration:
        return _END


class _AsyncIterator(AsyncIterator[_T]):
    def __init__(self, iterator: Iterator[_T]) -> None:
        self._iterator: Any = iterator

    def __aiter__(self) -> AsyncIterator[_T]:
        return self

    async def __anext__(self) -> _T:
        return await self._take(self._iterator.__next__)  # type: ignore[no-any-return]

    async def _take(self, method: Any, *args: Any) -> Any:
        item = await call_in_greenlet(_step, (method, *args), {})
        if item is _END:
            raise StopAsyncIteration
        return item


class _AsyncGenerator(_AsyncIterator[_T], AsyncGenerator[_T, Any]):
    async def asend(self, value: Any) -> _T:
        """Send a value into the generator, and return the next item."""
        return await self._take(self._iterator.send, value)  # type: ignore[no-any-return]

    async def athrow(self, *args: Any) -> _T:
        """Raise an exception in the generator, and return the next item."""
        return await self._take(self._iterator.throw, *args)  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        """Close the generator."""
        await call_in_greenlet(self._iterator.close, (), {})


@overload
def async_iter(iterable: Generator[_T, _S, Any]) -> AsyncGenerator[_T, _S]: ...
@overload
def async_iter(iterable: Iterable[_T]) -> AsyncIterator[_T]: ...
def async_iter(iterable: Iterable[_T]) -> AsyncIterator[_T]:
    """Iterate in a coroutine over an iterable that blocks in gevent.

    ``async for item in async_iter(f())`` is ``for item in f()``, of which each step runs in a
    greenlet: while it blocks the event loop goes on. The steps run in the context of the calling
    task.

    Args:
        iterable: an iterator, a generator, or whatever can be iterated over.

    Returns:
        An async iterator; of a generator an async generator, with ``asend()``, ``athrow()`` and
        ``aclose()``. If the loop is left early, `contextlib.aclosing` closes it.

    Raises:
        TypeError: it is not iterable.
    """
    if isinstance(iterable, AsyncIterable):
        raise TypeError(
            f"{iterable!r} is an async iterable already: `async for item in iterable`, or in a "
            "greenlet `for item in sync_iter(iterable)`"
        )
    if inspect.isgeneratorfunction(iterable):
        raise TypeError(f"call it: `async_iter({iterable.__name__}(...))`")
    if isinstance(iterable, Generator):
        return _AsyncGenerator(iterable)
    return _AsyncIterator(iter(iterable))


class _SyncIterator(Iterator[_T]):
    def __init__(self, iterator: AsyncIterator[_T]) -> None:
        self._iterator: Any = iterator

    def __iter__(self) -> Iterator[_T]:
        return self

    def __next__(self) -> _T:
        return self._take(self._iterator.__anext__)  # type: ignore[no-any-return]

    def _take(self, method: Any, *args: Any) -> Any:
        item = await_(_async_step(method, args))
        if item is _END:
            raise StopIteration
        return item


async def _async_step(method: Any, args: tuple[Any, ...]) -> Any:
    # Called here: an async generator belongs to the event loop that runs when it is first asked.
    try:
        return await method(*args)
    except StopAsyncIteration:
        return _END


class _SyncGenerator(_SyncIterator[_T], Generator[_T, Any, None]):  # type: ignore[misc]
    def __next__(self) -> _T:
        return self._take(self._iterator.__anext__)  # type: ignore[no-any-return]

    def send(self, value: Any) -> _T:
        """Send a value into the async generator, and return the next item."""
        return self._take(self._iterator.asend, value)  # type: ignore[no-any-return]

    def throw(self, *args: Any) -> _T:
        """Raise an exception in the async generator, and return the next item."""
        return self._take(self._iterator.athrow, *args)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the async generator."""
        await_(_async_step(self._iterator.aclose, ()))


@overload
def sync_iter(iterable: AsyncGenerator[_T, _S]) -> Generator[_T, _S, None]: ...
@overload
def sync_iter(iterable: AsyncIterable[_T]) -> Iterator[_T]: ...
def sync_iter(iterable: AsyncIterable[_T]) -> Iterator[_T]:
    """Iterate in a greenlet over an async iterable.

    ``for item in sync_iter(f())`` is ``async for item in f()``, of which each step is waited for
    as `await_` does.

    Args:
        iterable: an async iterator, an async generator, or another async iterable.

    Returns:
        An iterator; of an async generator a generator, with ``send()``, ``throw()`` and
        ``close()``. If the loop is left early, `contextlib.closing` closes it; otherwise the event
        loop does, when it is forgotten.

    Raises:
        TypeError: it is not an async iterable.

    Each step blocks the greenlet. Below a task all steps are taken in that task. Elsewhere each
    is a task of its own: around an async generator that has a time limit or a ``TaskGroup`` around
    its ``yield``, put ``with sync_context(aclosing(generator))``, which gives it one task.
    """
    if not isinstance(iterable, AsyncIterable):
        if asyncio.iscoroutine(iterable):
            iterable.close()
            raise TypeError(f"{iterable!r} is no async iterable but a coroutine: use `await_()`")
        if callable(iterable):
            raise TypeError(f"{iterable!r} is not an async iterable: call it, if it returns one")
        raise TypeError(
            f"{iterable!r} is not an async iterable: `for item in iterable`, or in a coroutine "
            "`async for item in async_iter(iterable)`"
        )
    if isinstance(iterable, AsyncGenerator):
        return _SyncGenerator(iterable)
    return _SyncIterator(aiter(iterable))
