"""Greenlets for those who await, awaitables for greenlets.

    await_(awaitable)            in a greenlet: what ``await awaitable`` is in a coroutine
    spawn(function, ...)         a greenlet that can be awaited
    greenlet_to_future(greenlet) a future of any ``gevent.Greenlet``
    future_to_greenlet(future)   a greenlet of any future or coroutine

Rule: a greenlet's end is a link callback that settles the future: no thread and no polling.
"""

from __future__ import annotations

import asyncio
import contextvars
from asyncio import CancelledError, events, isfuture, tasks
from collections.abc import Awaitable, Callable, Generator
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

import gevent.greenlet
from greenlet import GreenletExit
from greenlet import greenlet as greenlet_type

from asyncio_gevent import _compat
from asyncio_gevent._ambient import find_serving_loop
from asyncio_gevent._compat import get_hub_if_exists
from asyncio_gevent._event_loop import EventLoop
from asyncio_gevent._portals import find_portal, no_hub
from asyncio_gevent._waiting import (
    REUSED,
    as_coroutine,
    call_in_loop,
    can_suspend,
    carries_hub,
    check_awaitable,
    check_running,
    describe,
    discard,
    drive,
    find_running_loop,
    get_hub_to_wait_in,
    is_own_thread,
    lets_hub_run,
    make_reply,
    result_of,
    start_call,
    wait_for_call,
    wait_for_future,
)
from asyncio_gevent.exceptions import BlockingCallError, CancelledExit

__all__ = ["Greenlet", "await_", "future_to_greenlet", "greenlet_to_future", "spawn"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

# --- await_ --------------------------------------------------------------------------------------


def await_(awaitable: Awaitable[_T], *, loop: asyncio.AbstractEventLoop | None = None) -> _T:
    """Wait in a greenlet for an awaitable, and return its result.

    ``await_(f())`` is ``await f()`` in a function that is not ``async``. Below a task, that is in
    a function that a coroutine calls or that runs by ``sync_to_async``, it *is* ``await``, in that
    very task: ``asyncio.current_task()``, ``asyncio.timeout()``, context variables and
    ``Task.cancel()`` are the task's own. In any other greenlet a task is made of a coroutine, in
    the context of the caller, whose variables it may set.

    Args:
        awaitable: a coroutine, a future or task of any event loop, or any other awaitable.
        loop: the event loop of the task, which runs in another greenlet or OS thread. None: the
            running one, the one whose ``sync_to_async`` call this greenlet belongs to, or else
            the ambient loop of this OS thread.

    Returns:
        What the awaitable returns.

    Raises:
        TypeError: it is not awaitable.
        RuntimeError: a coroutine that was awaited before; an event loop that is closed, or that
            nobody runs, or that cannot go on while a function below it waits.
        BlockingCallError: called in the hub.
        asyncio.CancelledError: the awaitable was cancelled. In a greenlet that is no part of a
            task it is `CancelledExit`, which ends the greenlet quietly.
        BaseException: whatever the awaitable raises; the same object.

    Blocks the greenlet. From any greenlet but the hub, in any OS thread. When the greenlet is
    killed, or times out by ``gevent.Timeout``, the awaitable is cancelled and waited for, so that
    its clean-up is done, and then the exception goes on; a second one does not wait. To let it
    go on instead, ``await_(asyncio.shield(task))``.
    """
    running = events._get_running_loop()
    if running is not None and type(running) is not EventLoop:
        running = find_running_loop()
    if running is not None and (loop is None or loop is running):
        task = tasks.current_task(running)
        if task is not None:
            # Below a task: `await` in that very task.
            if type(awaitable) is not CoroutineType or awaitable.cr_await is not None:
                return _await_in_task(awaitable, running, task)  # type: ignore[no-any-return]
            if not ((type(running) is EventLoop and running._suspend) or can_suspend(running)):
                _refuse_to_suspend(awaitable, running)
            try:
                yielded = awaitable.send(None)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            except RuntimeError as error:
                if error.args == REUSED and error.__traceback__.tb_next is None:  # type: ignore[union-attr]
                    check_awaitable(awaitable, "await_")
                raise
            return drive(awaitable, yielded, running, task)  # type: ignore[no-any-return]
    return wait_for(awaitable, loop, running)  # type: ignore[no-any-return]


def _await_in_task(awaitable: Any, loop: Any, task: Any) -> Any:
    # Other things than a coroutine that has not begun.
    check_awaitable(awaitable, "await_")
    if isfuture(awaitable):
        if awaitable.done():
            return result_of(awaitable)
        if awaitable.get_loop() is not loop:
            return wait_for(awaitable, None, loop)
    if not can_suspend(loop):
        _refuse_to_suspend(awaitable, loop)
    steps = as_coroutine(awaitable)
    try:
        yielded = steps.send(None)
    except StopIteration as stop:
        return stop.value
    return drive(steps, yielded, loop, task)


def _refuse_to_suspend(awaitable: Any, loop: Any) -> None:
    check_awaitable(awaitable, "await_")
    discard(awaitable)
    if isinstance(loop, EventLoop):
        raise BlockingCallError(
            "await_() would block a step of an event loop that was made with suspend=False: "
            "`await` it in a coroutine, or let steps be suspended: `EventLoop()`"
        )
    problem = (
        f"await_() was called below a task of {loop!r}, which cannot go on while a function that "
        "it calls waits: `await` it in a coroutine"
    )
    if carries_hub(loop):
        raise BlockingCallError(
            f"{problem}, call the function in a greenlet, `await sync_to_async(function)(...)`, or "
            "let the coroutine block: `@asyncio_gevent.green`"
        )
    raise RuntimeError(f"{problem}, or run the program with `asyncio_gevent.run(main())`")


def wait_for(awaitable: Any, loop: Any, running: Any, autocancel: bool = True) -> Any:
    """Wait for an awaitable in a greenlet, by a task of its own where it needs one.

    Args:
        awaitable: as for `await_`.
        loop: the event loop, if it is given.
        running: the running event loop, if this greenlet is a step of one, else None.
        autocancel: cancel it when an exception is thrown into the greenlet.
    """
    try:
        hub = get_hub_to_wait_in("await_()")
        if type(awaitable) is not CoroutineType or awaitable.cr_await is not None:
            check_awaitable(awaitable, "await_")
        if running is not None and not can_suspend(running):
            _refuse_to_suspend(awaitable, running)
        portal = None if running is not None else find_portal()
        if type(awaitable) is not CoroutineType and isfuture(awaitable):
            if loop is not None and awaitable.get_loop() is not loop:
                raise ValueError(
                    f"{awaitable!r} belongs to another event loop than {loop!r}: leave out `loop=`"
                )
            if portal is None or awaitable.get_loop() is not portal.loop or not portal.is_free():
                return wait_for_future(awaitable, hub, autocancel)
        if portal is not None and portal.is_free() and loop in (None, portal.loop):
            return portal.request(awaitable, hub)
        if loop is None:
            loop = running or find_serving_loop(portal)
        else:
            check_running(loop)
        reply = make_reply(hub, loop)
        call = start_call(loop, awaitable, reply, shares_context=portal is None and autocancel)
    except BaseException:
        discard(awaitable)
        raise
    return wait_for_call(loop, call, autocancel)


#: Whether a greenlet has begun and not ended. A gevent.Greenlet itself says so of one that is
#: about to begin, too.
_is_active = greenlet_type.__bool__


# --- greenlet to future --------------------------------------------------------------------------


class GreenletFuture(asyncio.Future[Any]):
    """The future of a greenlet. To cancel it is to kill the greenlet, as with a task.

    Attributes:
        _greenlet: the greenlet, until it has ended.
        _hub: its hub.
        _flags: ``autocancel_future`` and ``autokill_greenlet``.
        _kill: the arguments of the last ``cancel()`` that is to kill the greenlet, or None.
        _is_kill_due: the greenlet has not heard of it.
    """

    __slots__ = ("_flags", "_greenlet", "_hub", "_is_kill_due", "_kill")
    _flags: tuple[bool, bool]
    _greenlet: Any
    _hub: Any
    _kill: tuple[Any, ...] | None
    _is_kill_due: bool

    def cancel(self, msg: Any = None) -> bool:
        """Kill the greenlet, and be cancelled when it has ended.

        Returns:
            Whether the future was not done.

        Does not block. From any greenlet of the OS thread of the event loop.
        """
        if self.done():
            return False
        if self._greenlet is None or not self._flags[1]:
            return super().cancel(msg)
        self._kill = (msg,)
        self._is_kill_due = True
        if self._hub.loop is None:
            return super().cancel(msg)  # it was destroyed, with all its greenlets
        if self._hub is not get_hub_if_exists():
            _compat.call_in_hub(self._hub, self._throw)
        elif _is_active(self._greenlet):
            self._hub.loop.run_callback(self._throw)
        elif not self._greenlet.ready():  # it has not begun, and is dead at once
            self._is_kill_due = False
            self._greenlet.kill(block=False)
        return True

    def _throw(self) -> None:
        # In the hub of the greenlet.
        greenlet = self._greenlet
        if self._is_kill_due and greenlet is not None and not greenlet.ready():
            self._is_kill_due = False
            greenlet.throw(GreenletExit())

    def _note_end(self, greenlet: Any) -> None:
        # A link: in the hub of the greenlet.
        loop = self.get_loop()
        if loop.is_closed():
            return
        if is_own_thread(loop):
            self._settle(greenlet)
        else:
            loop.call_soon_threadsafe(self._settle, greenlet)

    def _settle(self, greenlet: Any) -> None:
        self._greenlet = None
        if self.done():
            return
        if self._is_kill_due:
            # It has ended before: the result comes too late, as that of a task's future does.
            super().cancel(*(self._kill or ()))
            return
        error = greenlet.exception
        value = greenlet.value
        if error is None and isinstance(value, GreenletExit):
            if self._flags[0] or self._kill is not None:
                super().cancel(*(self._kill or ()))
            else:
                self.set_result(value)
        elif error is None:
            self.set_result(value)
        elif isinstance(error, CancelledError):
            super().cancel(*error.args[:1])
        elif isinstance(error, StopIteration):
            # As asyncio does from 3.12 on (gh-112559).
            wrapper = RuntimeError(
                "StopIteration interacts badly with generators and cannot be raised into a Future"
            )
            wrapper.__cause__ = wrapper.__context__ = error
            self.set_exception(wrapper)
        else:
            # As it was, or it would be longer with each future of this greenlet that is awaited.
            kept = greenlet.__dict__.setdefault("_asyncio_gevent_traceback", error.__traceback__)
            self.set_exception(error.with_traceback(kept))

    if _compat.FUTURES_GROW_TRACEBACKS:

        def __await__(self) -> Generator[Any, None, Any]:
            if not self.done():
                self._asyncio_future_blocking = True
                yield self
            return result_of(self)

        __iter__ = __await__


def _begin(greenlet: Any, context: Any) -> None:
    if greenlet.gr_context is None:
        greenlet.gr_context = context
    greenlet.start()


def _begin_elsewhere(greenlet: Any, context: Any, link: Any) -> None:
    # In the OS thread of the greenlet.
    if context is not None and not (greenlet.started or greenlet.ready()):
        _begin(greenlet, context)
    greenlet.rawlink(link)


def greenlet_to_future(
    greenlet: Any,
    autocancel_future: bool = True,
    autostart_greenlet: bool = True,
    autokill_greenlet: bool = True,
    *,
    loop: asyncio.AbstractEventLoop | None = None,
) -> asyncio.Future[Any]:
    """Return a future for the end of a greenlet.

    Args:
        greenlet: a ``gevent.Greenlet`` of any OS thread. It may have ended.
        autocancel_future: if the greenlet is killed, that is ends with ``GreenletExit``, the
            future is cancelled. False: ``GreenletExit()`` is its result.
        autostart_greenlet: start the greenlet if it was not started, in a copy of the caller's
            context.
        autokill_greenlet: to cancel the future kills the greenlet; the future is cancelled when
            the greenlet has ended. False: the future is cancelled at once, the greenlet goes on.
        loop: the event loop of the future; None: as in `await_`.

    Returns:
        The future. Its exception is that of the greenlet, the same object. If the greenlet,
        although killed, returns a value or raises something else, that is the outcome.

    Raises:
        TypeError: not a ``gevent.Greenlet``.
        RuntimeError: the running event loop does not let greenlets run, or the hub of the
            greenlet was destroyed.

    Does not block. From the OS thread of the event loop.
    """
    if not isinstance(greenlet, gevent.Greenlet):
        if callable(greenlet):
            remedy = f"use `greenlet_to_future(gevent.spawn({greenlet!r}))`"
        else:
            remedy = "use `greenlet_to_future(gevent.spawn(function))`"
        raise TypeError(f"{greenlet!r} is not a gevent.Greenlet: {remedy}")
    running = find_running_loop()
    if loop is None:
        loop = running
        if loop is None:
            loop = find_serving_loop(find_portal())
    future = GreenletFuture(loop=loop)
    future._flags = autocancel_future, autokill_greenlet
    future._kill = None
    future._is_kill_due = False
    if greenlet.ready():
        future._settle(greenlet)
        return future
    hub = greenlet.parent
    if not isinstance(hub, gevent.hub.Hub) or hub.loop is None:
        hub = _hub_of(greenlet)
    future._greenlet = greenlet
    future._hub = hub
    if hub is get_hub_if_exists():
        if running is not None and not lets_hub_run(running):
            raise RuntimeError(no_hub(running))
        if autostart_greenlet and not greenlet.started:
            _begin(greenlet, contextvars.copy_context())
        greenlet.rawlink(future._note_end)
    else:
        context = contextvars.copy_context() if autostart_greenlet else None
        _compat.call_in_hub(hub, _begin_elsewhere, greenlet, context, future._note_end)
    return future


def _hub_of(greenlet: Any) -> Any:
    hub = greenlet.parent
    while hub is not None and not isinstance(hub, gevent.hub.Hub):
        hub = hub.parent
    if hub is None or hub.loop is None:
        raise RuntimeError(
            f"the hub of {greenlet!r} was destroyed, so it will never run: spawn the greenlet in "
            "an OS thread whose hub lives"
        )
    return hub


# --- greenlets that can be awaited ---------------------------------------------------------------


class Greenlet(gevent.greenlet.Greenlet, Generic[_T]):  # type: ignore[misc]
    """A ``gevent.Greenlet`` that can be awaited: ``await spawn(function)``.

    It runs in a copy of the context of whoever makes it. To await it is what ``await
    greenlet_to_future(greenlet)`` is, and it works wherever a gevent.Greenlet does: in
    ``gevent.pool.Pool(greenlet_class=Greenlet)``, ``gevent.joinall``, ``gevent.iwait``.
    """

    def __init__(self, run: Callable[..., _T] | None = None, *args: Any, **kwargs: Any) -> None:
        super().__init__(run, *args, **kwargs)
        self.gr_context = contextvars.copy_context()

    def __await__(self) -> Generator[Any, None, _T]:
        return greenlet_to_future(self).__await__()

    if TYPE_CHECKING:

        def get(self, block: bool = True, timeout: float | None = None) -> _T: ...


def spawn(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Greenlet[_T]:
    """Run a function in a new greenlet, and return the greenlet, which can be awaited.

    ``await spawn(function)`` is ``spawn(function).get()`` in a coroutine. The greenlet runs in a
    copy of the caller's context, and is not one of a running event loop: it may call
    ``asyncio_gevent.run()`` itself.

    Args:
        function: may block in gevent.
        args, kwargs: its arguments.

    Raises:
        TypeError: not callable, or a coroutine function.

    Does not block. From any greenlet of any OS thread.
    """
    if asyncio.iscoroutine(function):
        function.close()
        raise TypeError(
            f"{function!r} is a coroutine, not a function: `spawn(await_, "
            f"{describe(function)}(...))`, or in a coroutine `asyncio.create_task(...)`"
        )
    if asyncio.iscoroutinefunction(function):
        raise TypeError(
            f"{function!r} is a coroutine function: `asyncio.create_task({describe(function)}"
            f"(...))`, or in a greenlet `spawn(await_, {describe(function)}(...))`"
        )
    greenlet: Greenlet[_T] = Greenlet(function, *args, **kwargs)
    greenlet.start()
    return greenlet


# --- future to greenlet --------------------------------------------------------------------------


class FutureGreenlet(Greenlet[_T]):
    """A greenlet that waits for a future or a coroutine."""

    def __init__(self, awaitable: Any, loop: Any, autocancel: bool, autokill: bool) -> None:
        super().__init__()
        self._awaitable = awaitable
        self._loop = loop
        self._autocancel = autocancel
        self._autokill = autokill
        self._has_begun = False
        self.rawlink(type(self)._note_end)

    def _run(self) -> Any:
        self._has_begun = True
        awaitable, self._awaitable = self._awaitable, None
        try:
            return wait_for(awaitable, self._loop, None, self._autocancel)
        except CancelledExit as error:
            if self._autokill or error.__cause__ is None:
                raise
            cancelled = error.__cause__
        raise cancelled

    def _note_end(self) -> None:
        # Killed before it began.
        awaitable, self._awaitable = self._awaitable, None
        if self._has_begun:
            return
        if not isfuture(awaitable):
            discard(awaitable)  # it was to become a task, and never will
        elif self._autocancel and not awaitable.get_loop().is_closed():
            call_in_loop(awaitable.get_loop(), awaitable.cancel)


def future_to_greenlet(
    future: Awaitable[_T],
    loop: asyncio.AbstractEventLoop | None = None,
    autostart_future: bool = True,
    autocancel_future: bool = True,
    autokill_greenlet: bool = True,
) -> Greenlet[_T]:
    """Return a greenlet that waits for a future, or for a coroutine, and returns its result.

    The greenlet is not started: call its ``start()``. A coroutine becomes a task when it starts.

    Args:
        future: a future or task of any event loop, a coroutine, or another awaitable.
        loop: the event loop of the task; None: as in `await_`, as seen by the caller.
        autostart_future: False: nothing is made a task, so that only a future can be given.
        autocancel_future: to kill the greenlet cancels the future; the greenlet ends when the
            future is done. False: the greenlet ends at once, the future goes on.
        autokill_greenlet: if the future is cancelled, the greenlet ends as a killed one:
            ``GreenletExit()`` is its value. False: it raises ``asyncio.CancelledError``.

    Raises:
        TypeError: not awaitable.
        ValueError: ``autostart_future=False`` with something that would have to be started; a
            future of another event loop than ``loop``.
        RuntimeError: a coroutine that was awaited before. The greenlet raises it if the event
            loop is closed or nobody runs it.

    Does not block. From any greenlet of any OS thread.
    """
    check_awaitable(future, "future_to_greenlet")
    if isfuture(future):
        if loop is not None and future.get_loop() is not loop:
            raise ValueError(
                f"{future!r} belongs to another event loop than {loop!r}: leave out `loop`"
            )
    elif not autostart_future:
        discard(future)
        raise ValueError(
            "autostart_future=False, so that nobody would ever start this coroutine: make it a "
            "task before, `future_to_greenlet(asyncio.ensure_future(...), autostart_future=False)`"
        )
    if loop is None and not isfuture(future):
        loop = find_running_loop()
        if loop is None:
            portal = find_portal()
            loop = portal.live_loop() if portal is not None else None
    return FutureGreenlet(future, loop, autocancel_future, autokill_greenlet)
