"""Wrappers of functions: blocking ones for coroutines, coroutine functions for greenlets.

Both keep name, docstring and signature, and work as functions, on methods, and as decorators with
and without arguments. The flags are those of `greenlet_to_future` and `future_to_greenlet`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, overload

from greenlet import GreenletExit

from asyncio_gevent._compat import current_task
from asyncio_gevent._futures import await_, wait_for
from asyncio_gevent._portals import call_in_greenlet
from asyncio_gevent._waiting import describe, find_running_loop
from asyncio_gevent.exceptions import CancelledExit

__all__ = ["async_to_sync", "sync_to_async"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _is_coroutine_function(function: Any) -> bool:
    return asyncio.iscoroutinefunction(function) or asyncio.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - of an object that is like one
    )


def _check_function(function: Any, name: str) -> None:
    if inspect.iscoroutine(function):
        function.close()
        raise TypeError(
            f"{name} takes a function, not the coroutine that it returns: "
            f"`{name}({describe(function)})(...)`"
        )
    if isinstance(function, classmethod):
        raise TypeError(f"put @classmethod above @{name}, not below it")
    if not callable(function):
        raise TypeError(f"{name} takes a function, not {function!r}")


@overload
def sync_to_async(
    fn: Callable[_P, _T],
    autocancel_future: bool = True,
    autostart_greenlet: bool = True,
    autokill_greenlet: bool = True,
) -> Callable[_P, Coroutine[Any, Any, _T]]: ...
@overload
def sync_to_async(
    fn: None = None,
    autocancel_future: bool = True,
    autostart_greenlet: bool = True,
    autokill_greenlet: bool = True,
) -> Callable[[Callable[_P, _T]], Callable[_P, Coroutine[Any, Any, _T]]]: ...
def sync_to_async(
    fn: Callable[..., Any] | None = None,
    autocancel_future: bool = True,
    autostart_greenlet: bool = True,
    autokill_greenlet: bool = True,
) -> Callable[..., Any]:
    """Return a coroutine function that calls a blocking function in a greenlet.

    ``await sync_to_async(function)(x)`` is ``function(x)``, in a greenlet of its own: while it
    blocks in gevent, the event loop goes on. It has no running loop, so that it may call
    ``asyncio_gevent.run()``. It runs in the context of the calling task, which sees what it sets.
    Its ``await_()`` awaits in the calling task, and is cancelled with it, whatever the flags.

    Args:
        fn: the function. None: return a decorator.
        autocancel_future: if the function ends with ``GreenletExit``, raise
            ``asyncio.CancelledError``. False: return the ``GreenletExit``.
        autostart_greenlet: has to be true: nobody else could start the greenlet.
        autokill_greenlet: to cancel the calling task raises ``GreenletExit`` in the function, and
            waits for its end. False: it goes on by itself, and its outcome is dropped.

    Raises:
        TypeError: not a function, or a coroutine function.
        ValueError: ``autostart_greenlet=False``.

    The coroutine function raises what the function raises, the same object, and ``RuntimeError``
    if the running event loop does not let greenlets run. What blocks natively stops the thread
    as in any greenlet: ``asyncio.to_thread()``.
    """
    if fn is None:
        return functools.partial(
            sync_to_async,
            autocancel_future=autocancel_future,
            autostart_greenlet=autostart_greenlet,
            autokill_greenlet=autokill_greenlet,
        )
    _check_function(fn, "sync_to_async")
    if _is_coroutine_function(fn):
        raise TypeError(
            f"{fn!r} is a coroutine function, which sync_to_async is not for: `await "
            f"{describe(fn)}(...)`, or in a greenlet `async_to_sync({describe(fn)})(...)`"
        )
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise TypeError(
            f"{fn!r} is a generator function, which is not awaited but iterated over: `async for "
            f"item in async_iter({describe(fn)}(...))`"
        )
    if not autostart_greenlet:
        raise ValueError(
            "autostart_greenlet=False, so that nobody could ever start the greenlet: use "
            "`greenlet_to_future(greenlet, autostart_greenlet=False)` with a greenlet of your own"
        )

    @functools.wraps(fn)
    async def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return await call_in_greenlet(fn, args, kwargs, autokill_greenlet)
        except GreenletExit as error:
            if isinstance(error, CancelledError):
                raise
            ended = error
        if autocancel_future:
            raise CancelledError(*ended.args)
        return ended

    return call


@overload
def async_to_sync(
    coroutine: Callable[_P, Awaitable[_T]],
    autostart_future: bool = True,
    autocancel_future: bool = True,
    autokill_greenlet: bool = True,
    *,
    loop: asyncio.AbstractEventLoop | None = None,
) -> Callable[_P, _T]: ...
@overload
def async_to_sync(
    coroutine: None = None,
    autostart_future: bool = True,
    autocancel_future: bool = True,
    autokill_greenlet: bool = True,
    *,
    loop: asyncio.AbstractEventLoop | None = None,
) -> Callable[[Callable[_P, Awaitable[_T]]], Callable[_P, _T]]: ...
def async_to_sync(
    coroutine: Callable[..., Any] | None = None,
    autostart_future: bool = True,
    autocancel_future: bool = True,
    autokill_greenlet: bool = True,
    *,
    loop: asyncio.AbstractEventLoop | None = None,
) -> Callable[..., Any]:
    """Return a function that calls a coroutine function and waits for its result.

    ``async_to_sync(function)(x)`` is ``await_(function(x))``: see there for where it may be
    called, which event loop serves it, and what it raises.

    Args:
        coroutine: the coroutine function, or any function that returns an awaitable. None: return
            a decorator.
        autostart_future: has to be true: nobody else could start the coroutine.
        autocancel_future: to kill the calling greenlet, or time it out, cancels the coroutine and
            waits for its end. False: it goes on by itself. Below a task the coroutine is part of
            the task, and always cancelled.
        autokill_greenlet: if the coroutine is cancelled, the call raises `CancelledExit`, which
            ends the greenlet as a killed one. False: it raises ``asyncio.CancelledError``. Below
            a task it is always that.
        loop: see `await_`.

    Raises:
        TypeError: not a function; the function, when it is called, raises it if it does not return
            an awaitable.
        ValueError: ``autostart_future=False``.
    """
    if coroutine is None:
        return functools.partial(
            async_to_sync,
            autostart_future=autostart_future,
            autocancel_future=autocancel_future,
            autokill_greenlet=autokill_greenlet,
            loop=loop,
        )
    _check_function(coroutine, "async_to_sync")
    if inspect.isasyncgenfunction(coroutine) or inspect.isgeneratorfunction(coroutine):
        raise TypeError(
            f"{coroutine!r} is a generator function, which is not awaited but iterated over: "
            f"`for item in sync_iter({describe(coroutine)}(...))`"
        )
    if not autostart_future:
        raise ValueError(
            "autostart_future=False, so that nobody could ever start the coroutine: leave it out"
        )

    @functools.wraps(coroutine)
    def call(*args: Any, **kwargs: Any) -> Any:
        awaitable = coroutine(*args, **kwargs)
        if not hasattr(awaitable, "__await__") and not inspect.isawaitable(awaitable):
            raise TypeError(
                f"{describe(coroutine)}() returned {awaitable!r}, which is not awaitable, and "
                f"async_to_sync() is for `async def` functions: call `{describe(coroutine)}()` "
                "directly"
            )
        return await_(awaitable, loop=loop)

    _unmark(call)
    if autocancel_future and autokill_greenlet:
        return call

    @functools.wraps(coroutine)
    def call_with_flags(*args: Any, **kwargs: Any) -> Any:
        running = find_running_loop()
        is_below_task = running is not None and current_task(running) is not None
        try:
            if autocancel_future or is_below_task:
                return call(*args, **kwargs)
            return wait_for(coroutine(*args, **kwargs), loop, running, autocancel=False)
        except CancelledExit as error:
            if autokill_greenlet or error.__cause__ is None:
                raise
            cancelled = error.__cause__
        raise cancelled

    _unmark(call_with_flags)
    return call_with_flags


def _unmark(function: Any) -> None:
    # functools.wraps() has copied what makes a function one of the other kind.
    for mark in ("_is_coroutine", "_is_coroutine_mark"):
        function.__dict__.pop(mark, None)
