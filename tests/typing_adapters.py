"""What the adapters mean to a type checker. Read by mypy (`make types`), run by nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any

from asyncio_gevent import (
    Greenlet,
    async_context,
    async_iter,
    async_to_sync,
    await_,
    future_to_greenlet,
    spawn,
    sync_context,
    sync_iter,
    sync_to_async,
)

if TYPE_CHECKING:
    from typing_extensions import assert_type

    def blocking(number: int, *, text: str = "") -> str: ...

    async def coroutine(number: int, *, text: str = "") -> str: ...

    def generator() -> Generator[int, str, None]: ...

    async def async_generator() -> AsyncGenerator[int, str]:
        yield 1

    class Thing:
        @sync_to_async
        def blocking(self, number: int) -> str: ...

        @async_to_sync
        async def coroutine(self, number: int) -> str: ...

    async def awaiting(future: asyncio.Future[int]) -> None:
        assert_type(await_(coroutine(1)), str)
        assert_type(await_(future), int)
        assert_type(await spawn(blocking, 1, text="x"), str)
        assert_type(spawn(blocking, 1), Greenlet[str])
        assert_type(spawn(blocking, 1).get(), str)
        spawn(blocking, "1")  # type: ignore[arg-type]
        assert_type(future_to_greenlet(future), Greenlet[int])
        assert_type(future_to_greenlet(coroutine(1)).get(), str)

        assert_type(await sync_to_async(blocking)(1, text="x"), str)
        await sync_to_async(blocking)("1")  # type: ignore[arg-type]
        assert_type(await sync_to_async(autokill_greenlet=False)(blocking)(1), str)
        assert_type(await Thing().blocking(1), str)

        assert_type(async_to_sync(coroutine)(1, text="x"), str)
        async_to_sync(coroutine)("1")  # type: ignore[arg-type]
        assert_type(async_to_sync(autokill_greenlet=False)(coroutine)(1), str)
        assert_type(Thing().coroutine(1), str)

        assert_type(async_iter([1]), AsyncIterator[int])
        assert_type(async_iter(generator()), AsyncGenerator[int, str])
        assert_type(sync_iter(async_generator()), Generator[int, str, None])

    def contexts(
        manager: AbstractContextManager[int], async_manager: AbstractAsyncContextManager[int]
    ) -> None:
        assert_type(async_context(manager), AbstractAsyncContextManager[int, bool])
        assert_type(sync_context(async_manager), AbstractContextManager[int, bool])
        with sync_context(lambda: async_manager) as value:
            assert_type(value, int)

    def plain(iterator: AsyncIterator[int]) -> None:
        assert_type(sync_iter(iterator), Iterator[int])

    callback: Callable[[int], Coroutine[Any, Any, str]] = sync_to_async(blocking)
