"""Native threads for the event loop: the hub's pool, and executors of other people.

``concurrent.futures`` is made of locks and conditions that are greenlets' after patching, and
its futures call back through them. Here a call is a function for ``gevent.threadpool``, and its
outcome is set on asyncio's future by the hub: no lock, no second future.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from gevent.event import Event
from gevent.hub import get_hub

from asyncio_gevent import _compat
from asyncio_gevent._compat import get_hub_if_exists

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncio_gevent._loop_io import IOEventLoop

__all__ = ["HubExecutor", "wrap_foreign_future"]


class _Call:
    """A call that waits for a thread, or is under way in one.

    The outcome is kept here and not raised in the pool, which would print it.
    """

    __slots__ = ("args", "error", "func", "future", "result")

    def __init__(self, future: Any, func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.future = future
        self.func = func
        self.args = args
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Make the call; in a native thread."""
        if self.future.cancelled():
            return
        try:
            self.result = self.func(*self.args)
        except BaseException as error:
            self.error = error


class HubExecutor:
    """The default executor: the threads of ``gevent.get_hub().threadpool``.

    Its methods are for the OS thread of the event loop, and but for `finish` do not block the
    greenlet.

    Args:
        is_joined: the interpreter waits for the calls before it ends.

    Attributes:
        _waiting: calls that found every thread of the pool busy, oldest first.
        _unfinished: how many calls wait or are under way.
        _joined: set when none is, if somebody waits for that.
        _idle: the same for the end of the interpreter.
    """

    def __init__(self, loop: IOEventLoop, is_joined: bool = True) -> None:
        self._loop = loop
        self._is_joined = is_joined
        self._hub: Any = None
        self._idle: Event | None = None
        self._waiting: deque[_Call] = deque()
        self._unfinished = 0
        self._joined: asyncio.Future[None] | None = None

    def submit(self, func: Callable[..., Any], args: tuple[Any, ...]) -> asyncio.Future[Any]:
        """Return a future for the result of ``func(*args)`` in a native thread.

        A call whose future is cancelled before a thread takes it is not made.
        """
        self._hub = hub = get_hub()
        pool = hub.threadpool
        future: asyncio.Future[Any] = self._loop.create_future()
        call = _Call(future, func, args)
        if self._is_joined and not self._unfinished:
            _note_busy(self)
        self._unfinished += 1
        if self._waiting or _compat.pool_is_full(pool):
            # spawn() would block, and this is to return at once.
            self._waiting.append(call)
            if self._unfinished == len(self._waiting):
                # The threads are busy for others, so nobody of ours is going to come by.
                self._loop.call_later(POOL_RETRY_DELAY, self._start_waiting)
        else:
            try:
                self._start(pool, call)
            except BaseException:
                self._note_finished()
                raise
        return future

    def _note_finished(self) -> None:
        self._unfinished -= 1
        if not self._unfinished:
            _busy.discard(self)
            if self._idle is not None:
                self._idle.set()
            joined = self._joined
            if joined is not None and not (joined.done() or self._loop.is_closed()):
                joined.set_result(None)

    def _start(self, pool: Any, call: _Call) -> None:
        pool.spawn(call.run).rawlink(lambda _: self._done(call))

    def _start_waiting(self) -> None:
        pool = get_hub().threadpool
        while self._waiting and not _compat.pool_is_full(pool):
            call = self._waiting.popleft()
            try:
                self._start(pool, call)
            except BaseException as error:
                self._note_finished()
                if not isinstance(error, Exception):
                    raise
                if not call.future.done():
                    _fail(call.future, error)
        if self._waiting and self._unfinished == len(self._waiting) and not self._loop.is_closed():
            self._loop.call_later(POOL_RETRY_DELAY, self._start_waiting)

    def _done(self, call: _Call) -> None:
        # In the hub.
        self._note_finished()
        if self._waiting:
            self._start_waiting()
        future = call.future
        if future.cancelled() or self._loop.is_closed():
            return
        if call.error is None:
            future.set_result(call.result)
        else:
            error, call.error = call.error, None  # whose traceback has the frame of the call
            _fail(future, error)

    async def join(self, timeout: float | None) -> None:
        """Wait until no call waits or is under way, or warn after ``timeout`` seconds."""
        if not self._unfinished:
            return
        if self._joined is None or self._joined.done():
            self._joined = self._loop.create_future()
        try:
            # Shielded: others may wait for it, too.
            await asyncio.wait_for(asyncio.shield(self._joined), timeout)
        except (asyncio.TimeoutError, TimeoutError):
            warnings.warn(
                f"The executor did not finish its calls within {timeout} seconds.",
                RuntimeWarning,
                stacklevel=3,
            )

    def finish(self) -> None:
        """Wait until no call waits or is under way, though the event loop does not run."""
        self._idle = Event()
        while self._unfinished:
            self._start_waiting()
            self._idle.wait(POOL_RETRY_DELAY if self._waiting else None)


#: Executors with calls that have not ended. A program whose event loop was closed without
#: ``shutdown_default_executor()`` waits for them when it ends, as it does for threads of its own
#: and those of concurrent.futures. (A native thread that ends waits for those of its hub.)
_busy: WeakSet[HubExecutor] = WeakSet()
_process: int | None = None


def _note_busy(executor: HubExecutor) -> None:
    global _process
    if _process != os.getpid():
        if _process is None:
            atexit.register(_finish_at_exit)
        _process = os.getpid()
        _busy.clear()  # in a forked child: the threads are the parent's
    _busy.add(executor)


def _finish_at_exit() -> None:
    if _process == os.getpid():
        for executor in list(_busy):
            if executor._hub is get_hub_if_exists():
                executor.finish()


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if isinstance(error, StopIteration):
        # A future refuses it, since in the coroutine that awaits it would look like the end.
        replacement = RuntimeError("the function in the executor raised StopIteration")
        replacement.__cause__ = error
        error = replacement
    future.set_exception(_compat.convert_future_exception(error))


#: Seconds until a call looks again for a thread of the hub's pool, when other users of the pool
#: have taken them all. gevent tells only those who block for one that a thread is free.
POOL_RETRY_DELAY = 0.01


def wrap_foreign_future(future: Any, loop: IOEventLoop) -> asyncio.Future[Any]:
    """Return a future of this loop for one of an executor that somebody passed.

    ``asyncio.wrap_future()`` takes ``concurrent.futures.Future`` and no other; the one of
    ``gevent.threadpool.ThreadPoolExecutor`` only looks like it.
    """
    if asyncio.isfuture(future) or isinstance(future, concurrent.futures.Future):
        return asyncio.wrap_future(future, loop=loop)
    wrapper: asyncio.Future[Any] = loop.create_future()

    def copy(future: Any) -> None:
        if wrapper.cancelled() or loop.is_closed():
            return
        # gevent's future is done, but its exception() raises what it should return.
        try:
            result = future.result()
        except BaseException as error:
            _fail(wrapper, error)
        else:
            wrapper.set_result(result)

    def cancel(wrapper: asyncio.Future[Any]) -> None:
        if wrapper.cancelled():
            future.cancel()

    wrapper.add_done_callback(cancel)

    def done(future: Any) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(copy, future)

    future.add_done_callback(done)
    return wrapper
