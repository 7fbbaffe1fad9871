"""Portals: a greenlet that awaits in somebody else's task, and the greenlets of sync_to_async().

Rule 1: a portal has two ends, a greenlet and a task that waits for it. While the task waits, it
        awaits whatever the greenlet asks for, so that the greenlet's `await_()` is an ``await`` in
        that very task.
Rule 2: what is thrown into one end reaches the other: the task is cancelled, the greenlet ends.

Theory. The task is in `serve`. It awaits a future of its own, its signal, which the greenlet
resolves when it has a request or has ended. If the task is cancelled while it awaits the signal,
`_cancelled` tells the greenlet; while it serves a request, the request gets `CancelledError`, and
with that the greenlet.

`GreenletCall` is a portal whose greenlet runs one function, in a `Worker`. Workers are pooled: a
greenlet that runs Python code costs 7 to 8 microseconds to make, since its frame stack is mapped
and unmapped, which would be more than all the rest of a call. But code may keep the current
greenlet: to link to it, in a gevent.local, for a timeout. So a worker is used again only if nobody
refers to it, by a reference or a weak one, when its call is over; otherwise it ends then, as any
greenlet does. Nobody can tell it from a new one.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from asyncio import CancelledError, events
from collections.abc import Callable, Coroutine
from typing import Any, cast
from weakref import getweakrefcount

import gevent.greenlet
from greenlet import GreenletExit, getcurrent, greenlet

from asyncio_gevent._event_loop import EventLoop
from asyncio_gevent._originals import native_local
from asyncio_gevent._waiting import (
    Reply,
    as_exit,
    call_in_loop,
    discard,
    end_turn,
    get_hub_to_wait_in,
    is_frozen,
    lets_hub_run,
    settle,
)

__all__ = ["GreenletCall", "Portal", "call_in_greenlet", "find_portal", "no_hub", "portals"]

#: Workers that have nothing to do, kept for each OS thread; each has a stack of some 10 KiB.
MAX_WORKERS = 64

_switch = greenlet.switch
_getrefcount = sys.getrefcount
_HAS_CANCEL_COUNTS = sys.version_info >= (3, 11)


class Portal:
    """A greenlet at one end, a task at the other.

    Attributes:
        loop: the event loop of the task.
        task: the task.
        ended: the greenlet wants no more.
        is_paused: the greenlet waits for its part until the task goes on.
        _signal: what the task awaits while the greenlet asks for nothing, or None.
        _request: what the greenlet asks for and the task has not seen, or None.
        _is_busy: a request is under way, or nobody serves.
        _cancels: how often the task was cancelled for the sake of the request.
        _missed: the task was cancelled, too late for the greenlet to hear of it.
    """

    __slots__ = (
        "_cancels",
        "_is_busy",
        "_missed",
        "_request",
        "_signal",
        "ended",
        "is_paused",
        "loop",
        "task",
    )

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.task: Any = None
        self.ended = False
        self.is_paused = False
        self._signal: Any = None
        self._request: tuple[Any, Reply] | None = None
        self._is_busy = True
        self._cancels = 0
        self._missed: CancelledError | None = None

    def live_loop(self) -> Any:
        """Return the event loop if it still runs, else None."""
        loop = self.loop
        return loop if loop.is_running() and not is_frozen(loop) else None

    # --- in the greenlet --------------------------------------------------------------------

    def is_free(self) -> bool:
        """Whether `request` may be called."""
        # Not in a forked child, where the task stands still.
        return not (self._is_busy or self.ended or is_frozen(self.loop))

    def request(self, awaitable: Any, hub: Any) -> Any:
        """Have the task await this; return its result or raise its exception. Blocks."""
        reply = Reply(hub)
        self._is_busy = True
        self._request = request = awaitable, reply
        self.notify()

        def cancel() -> None:
            if self._request is request:
                self._request = None
                self._is_busy = False
                reply.fail(CancelledError())
                return
            # As asyncio.timeout() does: `serve` takes it back when the request has heard of it.
            self._cancels += 1
            # At once, or the request may be over by then. It is the same OS thread.
            self.task.cancel()
            if not isinstance(self.loop, EventLoop):
                call_in_loop(self.loop, _nothing)  # wakes the event loop

        try:
            error = settle(reply, self.loop, cancel)
        except BaseException:
            reply.is_abandoned = True
            raise
        if error is None:
            return reply.value
        reply.error = None
        try:
            raise self._convert(error)
        finally:
            del error

    @staticmethod
    def _convert(error: BaseException) -> BaseException:
        """Return what the greenlet raises for this exception of the task."""
        return error

    def release(self) -> None:
        """The greenlet takes no part any more; see `_HeldTask`."""

    def notify(self) -> None:
        """Let the task go on."""
        signal = self._signal
        if signal is not None and not signal.done():
            loop = self.loop
            if isinstance(loop, EventLoop):
                if not loop._closed:  # else nobody waits any more
                    signal.set_result(None)
            elif not loop.is_closed():
                call_in_loop(loop, end_turn, signal)

    # --- in the task ------------------------------------------------------------------------

    async def serve(self) -> None:
        """Await what the greenlet asks for until it has ended."""
        loop = self.loop
        self._is_busy = False
        try:
            while not (self.ended or self.is_paused):
                request = self._request
                if request is not None:
                    self._request = None
                    await self._serve_request(*request)
                    continue
                self._signal = signal = loop.create_future()
                try:
                    await signal
                except CancelledError as error:
                    if self.ended:
                        self._missed = error
                    else:
                        self._cancelled(error)
        finally:
            self._is_busy = True
            self._signal = None

    async def _serve_request(self, awaitable: Any, reply: Reply) -> None:
        counted = self.task.cancelling() if _HAS_CANCEL_COUNTS else 0
        self._cancels = 0
        value = error = None
        try:
            value = await awaitable
        except BaseException as raised:
            error = raised
        self._is_busy = False
        if self._cancels and _HAS_CANCEL_COUNTS:
            for _ in range(self._cancels):
                left = self.task.uncancel()
            if left > counted:
                # Somebody else has cancelled the task as well.
                if reply.is_abandoned:
                    self._cancelled(CancelledError())
                else:
                    error = error if isinstance(error, CancelledError) else CancelledError()
                    reply.is_final = True
        try:
            if error is None:
                reply.succeed(value)
            else:
                reply.fail(error)
        finally:
            del error  # no cycle through the traceback

    def _cancelled(self, error: CancelledError) -> None:
        """Tell the greenlet that the task is cancelled; in the task."""
        raise NotImplementedError


def _nothing() -> None:
    pass


#: Portals of greenlets other than workers, the innermost one of each.
portals: dict[Any, Portal] = {}


def find_portal() -> Portal | None:
    """Return the portal of the calling greenlet, or of the one that has started it, or None."""
    each = getcurrent()
    if not portals and isinstance(each.parent, gevent.hub.Hub) and type(each) is not Worker:
        return None
    # Up to the hub: its parent, the main greenlet, has started none of them.
    while each is not None and not isinstance(each, gevent.hub.Hub):
        if isinstance(each, Worker):
            return each.call
        portal = portals.get(each)
        if portal is not None:
            return portal
        each = each.parent
    return None


# --- functions in greenlets ----------------------------------------------------------------------


class Worker(gevent.greenlet.Greenlet):  # type: ignore[misc]
    """A greenlet that runs the functions of `GreenletCall`, one after the other.

    Attributes:
        call: the one that it runs, or None.
    """

    __slots__ = ("call",)
    call: GreenletCall | None

    def _run(self) -> Any:
        self.unlink(_note_death)
        while True:
            # To here: from the hub, by `start` or `switch` of a callback of the hub.
            call = self.call
            if call is None:
                return None
            value = call._run()
            if call.is_last:
                # Somebody waits for this greenlet, or is about to.
                self.call = None
                return value
            self.call = call = value = None
            try:
                _switch(self.parent)
            except BaseException:
                _note_death(self)
                raise


def _note_death(worker: Worker) -> None:
    # Somebody has killed it, who kills all greenlets there are, before it could begin.
    call, worker.call = worker.call, None
    if call is not None:
        call.abort()


class _Pool(native_local):  # type: ignore[misc]
    """The workers of an OS thread that have nothing to do."""

    def __init__(self) -> None:
        self.workers: list[Worker] = []


_pool = _Pool()


class GreenletCall(Portal):
    """A function that runs in a greenlet of its own, for a task that awaits it.

    Attributes:
        is_last: its worker ends with it.
    """

    # Of ten thousand calls at the same time each one counts.
    __slots__ = (
        "_args",
        "_autokill",
        "_context",
        "_error",
        "_function",
        "_has_begun",
        "_killed",
        "_kwargs",
        "_value",
        "_worker",
        "is_last",
    )

    def __init__(
        self,
        loop: Any,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        autokill: bool = True,
    ) -> None:
        self.loop = loop
        self.task = None
        self.ended = False
        self.is_paused = False
        self.is_last = False
        self._signal = None
        self._request = None
        self._is_busy = True
        self._cancels = 0
        self._missed = None
        self._function: Callable[..., Any] | None = function
        self._args = args
        self._kwargs = kwargs
        self._autokill = autokill
        self._value: Any = None
        self._error: BaseException | None = None
        self._killed: BaseException | None = None
        self._has_begun = False
        self._worker: Any = None
        self._context: Any = None

    def start(self, hub: Any) -> None:
        """Have a worker of this hub begin."""
        workers = _pool.workers
        while workers:
            worker = workers.pop()
            if worker.parent is hub and not worker.dead:
                is_new = False
                break
        else:
            is_new = True
            worker = Worker()
            worker.rawlink(_note_death)
        self._worker = worker
        worker.call = self
        # The context of the task itself: the function is part of the call.
        worker.gr_context = self._context = getcurrent().gr_context
        if is_new:
            worker.start()
        else:
            hub.loop.run_callback(worker.switch)

    def abort(self) -> None:
        """Note that the worker was killed before it could begin. In the hub."""
        self._error = GreenletExit()
        self.is_last = True
        self.ended = True
        self.notify()

    def is_free(self) -> bool:
        """Whether `request` may be called."""
        if not super().is_free():
            return False
        # Not by code in a Context.run(), whose context is not that of the task.
        current = getcurrent()
        return current is not self._worker or current.gr_context is self._context

    def _run(self) -> Any:
        # In the worker.
        function = self._function
        if self._killed is not None:
            self._error = GreenletExit()
        else:
            self._has_begun = True
            try:
                self._value = function(*self._args, **self._kwargs)  # type: ignore[misc]
            except BaseException as error:
                self.is_last = True
                # Without this frame, which refers to it.
                error.__traceback__ = error.__traceback__.tb_next  # type: ignore[union-attr]
                self._error = error
        if not self.is_last and self._worker.has_links():
            self.is_last = True
        self.ended = True
        self._function = None
        self._args = self._kwargs = ()  # type: ignore[assignment]
        self.notify()
        return self._error if isinstance(self._error, GreenletExit) else self._value

    async def result(self) -> Any:
        """Wait for the end of the function; return its value or raise its exception."""
        if not self.ended:
            signal = self._signal = self.loop.create_future()
            self._is_busy = False
            try:
                await signal  # almost always it is the end
            except CancelledError as error:
                if self.ended:
                    self._missed = error
                else:
                    self._cancelled(error)
        if not self.ended:
            self.task = asyncio.current_task()
            try:
                await self.serve()
            finally:
                self.task = None  # a cancelled task keeps its exception, and that this frame
        self._put_back()
        failure, self._error = self._error, None
        if self._missed is not None:
            # As with a task whose future was done when it was cancelled.
            try:
                raise self._missed
            finally:
                self._missed = self._killed = failure = None
        if failure is None:
            return self._value
        try:
            if self._killed is not None and isinstance(failure, GreenletExit):
                raise self._killed
            raise failure
        finally:
            self._killed = None
            del failure

    def _put_back(self) -> None:
        worker, self._worker = self._worker, None
        if worker.dead or self.is_last:
            return
        workers = _pool.workers
        if (
            _getrefcount(worker) > _own_references()
            or getweakrefcount(worker)
            or worker.has_links()
            or worker.__dict__
            or len(workers) >= MAX_WORKERS
        ):
            worker.parent.loop.run_callback(worker.switch)  # it has no call, and ends
        else:
            worker.gr_context = None
            workers.append(worker)

    def _cancelled(self, error: CancelledError) -> None:
        request, self._request = self._request, None
        if request is not None:
            # It was cancelled before it could await this.
            awaitable, reply = request
            self._is_busy = False
            discard(awaitable)
            reply.fail(error)
            return
        if not self._autokill:
            # The function goes on, by itself and in a context of its own.
            worker, self._worker = self._worker, None
            if worker.gr_context is self._context:
                worker.gr_context = worker.gr_context.copy()
            self.ended = True
            self.is_last = True
            raise error
        self._killed = error
        if self._has_begun:
            self.is_last = True
            self._missed = error
            self._worker.parent.loop.run_callback(self._kill)

    def _kill(self) -> None:
        # In the hub.
        worker = self._worker
        if worker is not None and worker.call is self and not self.ended:
            self._missed = None
            worker.throw(as_exit(cast("CancelledError", self._killed)))


@functools.cache
def _own_references() -> int:
    # How many references there are to a worker that has nothing to do, for `_put_back`, if nobody
    # else has one. That depends on the interpreter and on gevent, so they are counted.
    call = GreenletCall(None, int, (), {})
    call._worker = worker = Worker()
    worker.call = call
    worker.parent = getcurrent()
    _switch(worker)
    call._worker = None
    count = _getrefcount(worker)
    _switch(worker)  # it has no call, and ends
    return count


def call_in_greenlet(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    autokill: bool = True,
) -> Coroutine[Any, Any, Any]:
    """Call a function in a greenlet of its own, which may block. Await what this returns.

    Raises:
        RuntimeError: the running event loop does not let the hub run.
    """
    loop = events._get_running_loop()
    hub = get_hub_to_wait_in("sync_to_async()")
    if not lets_hub_run(loop):
        raise RuntimeError(no_hub(loop))
    call = GreenletCall(loop, function, args, kwargs, autokill)
    call.start(hub)
    return call.result()


def no_hub(loop: Any) -> str:
    """Return the message for an event loop that does not let the hub run."""
    return (
        f"{loop!r} keeps this OS thread to itself while it waits, so that no greenlet could run: "
        "run the program with `asyncio_gevent.run(main())`"
    )
