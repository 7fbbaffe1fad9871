"""Context managers of one kind for the ``with`` statements of the other.

A context manager may depend on who enters it: ``gevent.Timeout`` raises in the greenlet that has
entered it, an RLock is released by the greenlet that holds it, ``asyncio.timeout()`` and
``TaskGroup`` cancel the task that has. So entering and leaving happen in one greenlet, or one
task, which waits in between, and what is thrown into that is raised in the body of the block.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import CancelledError, events
from collections import namedtuple
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Any, TypeVar, cast

from gevent.hub import Waiter
from gevent.timeout import Timeout
from greenlet import GreenletExit, getcurrent

from asyncio_gevent._ambient import find_serving_loop
from asyncio_gevent._compat import current_task
from asyncio_gevent._futures import await_
from asyncio_gevent._portals import GreenletCall, Portal, find_portal, no_hub, portals
from asyncio_gevent._waiting import (
    Reply,
    as_exit,
    call_in_loop,
    describe,
    find_running_loop,
    get_hub_to_wait_in,
    lets_hub_run,
    make_reply,
    start_call,
    wait_for_call,
)
from asyncio_gevent.exceptions import CancelledExit

__all__ = ["async_context", "sync_context"]

_T = TypeVar("_T")
_Exception = tuple["type[BaseException] | None", "BaseException | None", "TracebackType | None"]
_NOTHING: _Exception = (None, None, None)


def _make(manager: Any, of: _Kind) -> Any:
    # The context manager itself, or what a function returns that makes one where it is used.
    if hasattr(type(manager), of.enter) and hasattr(type(manager), of.leave):
        return manager
    made = manager()
    if not (hasattr(type(made), of.enter) and hasattr(type(made), of.leave)):
        raise TypeError(f"{describe(manager)}() returned {made!r}, which is no {of.name}")
    return made


def _check(manager: Any, of: _Kind, other: _Kind) -> None:
    if hasattr(type(manager), of.enter) and hasattr(type(manager), of.leave):
        return
    if hasattr(type(manager), other.enter):
        raise TypeError(
            f"{manager!r} is no {of.name} but one for `{other.statement}`: use that statement"
        )
    if not callable(manager):
        raise TypeError(f"{manager!r} is no {of.name}, nor a function that returns one")


_Kind = namedtuple("_Kind", "name statement enter leave")
_SYNC = _Kind("context manager", "with", "__enter__", "__exit__")
_ASYNC = _Kind("async context manager", "async with", "__aenter__", "__aexit__")


# --- async with, of a sync context manager ------------------------------------------------------


class _HeldGreenlet(GreenletCall):
    """A greenlet that has entered a context manager and waits for the end of the block.

    Attributes:
        entered: what ``__enter__`` has returned.
        thrown: what was thrown into the greenlet while it waited; the block is to raise it.
        is_cancelled: the task was cancelled for that.
        cancelled: the task was cancelled just when ``__enter__`` returned.
    """

    def __init__(self, loop: Any, manager: Any, hub: Any) -> None:
        super().__init__(loop, self._hold, (manager,), {})
        self.task = asyncio.current_task()
        self.is_last = True
        self.entered: Any = None
        self.thrown: BaseException | None = None
        self.cancelled: CancelledError | None = None
        self._hub = hub
        self._waiter: Any = None
        self._left: _Exception | None = None
        self.is_cancelled = False

    def _hold(self, manager: Any) -> bool:
        # In the greenlet.
        manager = _make(manager, _SYNC)
        leave = type(manager).__exit__
        self.entered = type(manager).__enter__(manager)
        waiter = self._waiter = Waiter(self._hub)
        self.is_paused = True
        self.notify()
        while self._left is None:
            try:
                waiter.get()
            except BaseException as error:
                if self._left is None and self.thrown is None:
                    call_in_loop(self.loop, self._cancel_block)
                self.thrown = error
        exception = self._left
        if self.thrown is not None:
            exception = type(self.thrown), self.thrown, self.thrown.__traceback__
        try:
            return bool(leave(manager, *exception))
        except BaseException as error:
            if error is exception[1]:
                return False
            raise
        finally:
            exception = self._left = _NOTHING  # no cycle through the traceback

    def _cancel_block(self) -> None:
        # In the loop.
        if self._left is None:  # else the block has just ended
            self.is_cancelled = True
            self.task.cancel()

    def _cancelled(self, error: CancelledError) -> None:
        if self.is_paused:
            self.cancelled = error
        else:
            super()._cancelled(error)

    async def leave(self, exception: _Exception) -> bool:
        """End the block, with this exception; return whether it was handled."""
        self._left = exception
        self.is_paused = False
        self._hub.loop.run_callback(self._waiter.switch, None)
        return bool(await self.result())


class _AsyncContext(AbstractAsyncContextManager[_T, bool]):
    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._held: _HeldGreenlet | None = None

    async def __aenter__(self) -> _T:
        if self._held is not None:
            raise RuntimeError("it is entered already: make one for each `async with`")
        loop = events._get_running_loop()
        hub = get_hub_to_wait_in("async_context()")
        if not lets_hub_run(loop):
            raise RuntimeError(no_hub(loop))
        held = _HeldGreenlet(loop, self._manager, hub)
        held.start(hub)
        await held.serve()
        if held.ended:
            await held.result()
        if held.cancelled is not None:
            error = held.cancelled
            if not await held.leave((type(error), error, error.__traceback__)):
                raise error
            raise CancelledError
        self._held = held
        return held.entered  # type: ignore[no-any-return]

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        held, self._held = self._held, None
        assert held is not None
        task = held.task
        try:
            is_handled = await held.leave((kind, error, traceback))
        finally:
            thrown, held.thrown = held.thrown, None
            if sys.version_info >= (3, 11) and held.is_cancelled:
                task.uncancel()
        if thrown is None:
            return is_handled
        if is_handled:
            return True
        try:
            raise thrown
        finally:
            del thrown


def async_context(
    manager: AbstractContextManager[_T, Any] | Callable[[], AbstractContextManager[_T, Any]],
) -> AbstractAsyncContextManager[_T, bool]:
    """Return an async context manager that enters and leaves a blocking one in a greenlet.

    ``async with async_context(manager) as x`` is ``with manager as x`` in a coroutine: while
    entering or leaving blocks in gevent, the event loop goes on. Both happen in the same greenlet,
    which waits in between. If something is thrown into that (``gevent.Timeout`` does so), the
    block gets ``asyncio.CancelledError`` and then raises what was thrown.

    Args:
        manager: a context manager (a gevent lock, a ``gevent.Timeout``, a connection ...), or a
            function that returns one, which is called in the greenlet.

    Raises:
        TypeError: neither of them.
    """
    _check(manager, _SYNC, _ASYNC)
    return _AsyncContext(manager)


# --- with, of an async context manager ----------------------------------------------------------


class _HeldTask(Portal):
    """A task that has entered an async context manager and waits for the end of the block.

    Meanwhile it serves the greenlet of the block as a portal.
    """

    def __init__(self, loop: Any, hub: Any) -> None:
        super().__init__(loop)
        self.call: Any = None
        self.left: _Exception = _NOTHING
        self._hub = hub
        self._greenlet = getcurrent()
        self._is_released = False

    async def hold(self, manager: Any, end: Reply) -> bool:
        self.task = asyncio.current_task()
        manager = _make(manager, _ASYNC)
        leave = type(manager).__aexit__
        value = await type(manager).__aenter__(manager)
        self.call.hand_over(value, end)
        await self.serve()
        missed, self._missed = self._missed, None
        try:
            if missed is None:
                return bool(await leave(manager, *self.left))
            # The task was cancelled when the block had just ended.
            if self.left[1] is None:
                if not await leave(manager, CancelledError, missed, missed.__traceback__):
                    raise missed
                return False
            if sys.version_info >= (3, 11):
                self.task.uncancel()
            self.task.cancel(*missed.args)  # what it awaits next
            return bool(await leave(manager, *self.left))
        finally:
            del missed

    _convert = staticmethod(as_exit)

    def release(self) -> None:
        """Let the block end in the task when that is cancelled, without the greenlet."""
        self._is_released = True

    async def _serve_request(self, awaitable: Any, reply: Reply) -> None:
        await super()._serve_request(awaitable, reply)
        if self._is_released and not self.ended:
            self.end((CancelledError, CancelledError(), None))

    def _cancelled(self, error: CancelledError) -> None:
        if self._greenlet.dead or self._is_released:
            self.end((CancelledError, error, error.__traceback__))
        else:
            self._missed = error
            self._hub.loop.run_callback(self._throw, error)

    def _throw(self, error: CancelledError) -> None:
        # In the hub, so that the greenlet of the block waits.
        if not self.ended:
            self._missed = None
            self._greenlet.throw(as_exit(error))

    def end(self, exception: _Exception) -> None:
        """End the block, with this exception."""
        self.left = exception
        self.ended = True
        self.notify()


def _to_async(
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
) -> _Exception:
    # What the block has raised, for an async context manager.
    if isinstance(error, CancelledExit) and isinstance(error.__cause__, CancelledError):
        # To asyncio it is what asyncio has raised in the task.
        cause = error.__cause__
        return CancelledError, cause, cause.__traceback__
    if isinstance(error, (GreenletExit, Timeout)) and not isinstance(error, Exception):
        # A kill on this side is a cancel on the other. A TaskGroup knows nothing else.
        cause = CancelledError()
        cause.__cause__ = error
        return CancelledError, cause, traceback
    return kind, error, traceback


class _SyncContext(AbstractContextManager[_T, bool]):
    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._entered: Any = None
        self._held: _HeldTask | None = None
        self._outer: Portal | None = None

    def __enter__(self) -> _T:
        manager = self._manager
        running = find_running_loop()
        portal = None if running is not None else find_portal()
        if (running is not None and current_task(running) is not None) or (
            portal is not None and portal.is_free()
        ):
            # There is a task for both.
            return cast("_T", await_(self._enter(manager)))
        if self._held is not None:
            raise RuntimeError("it is entered already: make one for each `with`")
        hub = get_hub_to_wait_in("sync_context()")
        loop = running or find_serving_loop(portal)
        held = _HeldTask(loop, hub)
        end = make_reply(hub, loop)
        held.call = start_call(loop, held.hold(manager, end), make_reply(hub, loop))
        try:
            value = wait_for_call(loop, held.call)
        except BaseException as error:
            if held.call.is_for(end):
                # Entered, but this greenlet was killed before it heard of that.
                given = _to_async(type(error), error, error.__traceback__)
                held.end(given)
                try:
                    wait_for_call(loop, held.call)
                except CancelledExit as raised:
                    if raised.__cause__ is not given[1]:
                        raise
                finally:
                    held.left = _NOTHING
                    del given
            else:
                if not held.call.is_settled():
                    # It may still be entered, as nobody waits for its clean-up: it is left then.
                    held.end(_to_async(type(error), error, error.__traceback__))
                end.close()
            raise
        self._outer = portals.get(held._greenlet)
        portals[held._greenlet] = self._held = held
        return cast("_T", value)

    async def _enter(self, manager: Any) -> Any:
        self._entered = manager = _make(manager, _ASYNC)
        return await type(manager).__aenter__(manager)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        exception = _to_async(kind, error, traceback)
        held, self._held = self._held, None
        try:
            if held is None:
                manager, self._entered = self._entered, None
                return bool(await_(type(manager).__aexit__(manager, *exception)))
            if self._outer is None:
                portals.pop(held._greenlet, None)
            else:
                portals[held._greenlet], self._outer = self._outer, None
            if held.loop.is_closed() and not held.call.is_settled():
                return False  # in a forked child: the parent leaves it
            held.end(exception)
            return bool(wait_for_call(held.loop, held.call))
        except BaseException as raised:
            given = exception[1]
            if given is not None and (
                raised is given or (isinstance(raised, CancelledExit) and raised.__cause__ is given)
            ):
                return False  # the same goes on
            raise
        finally:
            del exception
            if held is not None:
                held.left = _NOTHING


def sync_context(
    manager: AbstractAsyncContextManager[_T, Any]
    | Callable[[], AbstractAsyncContextManager[_T, Any]],
) -> AbstractContextManager[_T, bool]:
    """Return a context manager that enters and leaves an async one from a greenlet.

    ``with sync_context(manager) as x`` is ``async with manager as x`` in a function that is not
    async. Both happen in the same task: below a task in that one, elsewhere in one of its own,
    which waits in between, and in which the block's ``await_()`` awaits. So ``asyncio.timeout()``
    and ``TaskGroup`` work: when they cancel the task, the block gets ``CancelledExit``.

    Args:
        manager: an async context manager (a session, a lock of asyncio ...), or a function that
            returns one, which is called in the task: what asks for the running loop when it is
            made needs that, ``sync_context(lambda: asyncio.timeout(1))``.

    Raises:
        TypeError: neither of them.

    Entering and leaving block the greenlet; which event loop serves them is as in `await_`.
    """
    _check(manager, _ASYNC, _SYNC)
    return _SyncContext(manager)
