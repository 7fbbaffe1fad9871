"""The event loop: asyncio's own, without a selector, on the gevent hub.

Rule 1: it has no poll of its own. Readiness, time and wake-ups come from watchers of the hub.
Rule 2: handles run in runners, never in the hub and never in the greenlet that called
        `run_forever()` (the caller), which waits.
Rule 3: this file does not know what a suspended step needs; that is in `_steps.py`.

Theory. Whatever makes a handle ready appends it to `_ready` and, unless `_awake` says that
somebody is on the way, asks the hub for one call of `_dispatch`. That gives a parked runner a
batch: up to `MAX_PASSES` passes over the ready queue, each what asyncio calls an iteration. If a
handle blocks in gevent its runner stays behind, suspended, and the next `_dispatch` takes
another one. When nothing is ready the event loop rests: `_awake` is False, one timer of the hub
stands for the head of the heap of timers, and the first one who appends wakes it.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import signal
import sys
import weakref
from asyncio import events
from contextvars import copy_context
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import gevent
import gevent.socket
from gevent.event import Event
from gevent.exceptions import InvalidSwitchError
from gevent.hub import MAIN_THREAD_IDENT, get_hub
from greenlet import getcurrent

from asyncio_gevent import _compat
from asyncio_gevent._children import reaped
from asyncio_gevent._compat import (
    get_hub_if_exists,
    has_deferred_closes,
    running_loop_in_python,
)
from asyncio_gevent._handles import Handle, TimerHandle, shadow_methods, unshadow_methods
from asyncio_gevent._originals import get_ident
from asyncio_gevent._runners import PARKED, Runner, check_tracer, find_left, find_owner, is_killed
from asyncio_gevent._steps import StepsEventLoop, getrefcount
from asyncio_gevent._tasks import Task
from asyncio_gevent._threads import alias, current_thread, give_way, make_hub, note_running, unalias
from asyncio_gevent._timers import take_due
from asyncio_gevent._watchers import (
    IOHandle,
    close,
    file_of,
    unpolled,
    wake_on_signals,
)
from asyncio_gevent.exceptions import BlockingCallError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["EventLoop"]

_T = TypeVar("_T")

#: What a thread has scheduled can be cancelled from there, too, in later Pythons (3.14).
_ThreadSafeHandle: Any = getattr(events, "_ThreadSafeHandle", None)

#: Passes over the ready queue before the hub polls again. More make a busy event loop faster,
#: since each visit costs two switches and a poll (a chain of call_soon: one pass a visit only
#: equals the standard loop, 16 give 1.4 times, 64 give 1.6); fewer let other greenlets and
#: descriptors have their turn sooner, but for that there is `BATCH_SECONDS`. A pass is what asyncio
#: itself does between two polls.
MAX_PASSES = 64

#: The most handles of a pass; of a longer one the rest is taken as the next pass.
MAX_HANDLES = 64

#: Seconds until a batch ends, whatever is still ready, and the hub polls: what gevent gives to its
#: own callbacks (``gevent.getswitchinterval()``), so that neither side starves the other. The
#: clock is looked at after a pass of many handles, and after every fourth one.
BATCH_SECONDS = 0.005

#: What `_finish` switches to the caller with.
_FINISHED = object()

_TASKS_TAKE_CONTEXT = sys.version_info >= (3, 11)

_COUNTDOWN = range(MAX_PASSES - 1, -1, -1)


def _is_own_work(frame: Any) -> bool:
    # Whether the innermost frame of a runner belongs to the event loop, not to what it runs.
    while frame is not None:
        if not frame.f_globals.get("__name__", "").startswith("asyncio_gevent."):
            return False
        frame = frame.f_back
    return True


#: The handles that a batch runs itself. Others, of later Pythons say, have a `_run` of their own.
_OWN_KINDS = frozenset((Handle, IOHandle, TimerHandle, asyncio.Handle, asyncio.TimerHandle))


class EventLoop(StepsEventLoop):
    """An asyncio event loop whose clock, descriptors and wake-ups are the gevent hub's.

    Args:
        suspend: what a blocking gevent call in a coroutine or a callback does. True: it suspends
            that step and nothing else, the other tasks go on. False: it raises
            `BlockingCallError`, so that no other task ever runs without an ``await``.

    It may be made in one OS thread and run in another, and belongs to the hub of the thread that
    runs it. ``run_forever()`` and ``run_until_complete()`` block the calling greenlet, not the
    OS thread; any number of event loops run at the same time in one OS thread, one per greenlet.
    Except for ``call_soon_threadsafe()`` its methods are for greenlets of that OS thread, and
    any of them: a ``call_soon()`` from a greenlet that is not a task wakes the event loop.

    Attributes:
        _awake: somebody is on the way to look at `_ready`, or the event loop does not run. Only
            when it is False must whoever appends to `_ready` call `_wake`.
        _batch: the runner that runs a batch, or None.
        _references: how many references there are to a runner in a batch, if it is not claimed
            and not the primary one.
        _timers: the heap of timers: (when, number, handle).
        _guests: replies that greenlets wait for (`_waiting.Reply`). They fail when it is closed.
        _shadows: methods that the instance has of its own while it runs.
    """

    #: nest_asyncio.apply() would replace the methods that run the event loop by some that poll a
    #: selector. It leaves a class alone that has this.
    _nest_patched = True

    #: It cannot carry the hub, as other event loops can (`gevent_loop`).
    _runs_on_hub = True

    def __init__(self, *, suspend: bool = True) -> None:
        self._hub: Any = None
        self._batch_ends = 0.0
        self._hub_loop: Any = None
        self._is_libuv = False
        self._run_callback: Any = None
        self._awake = True
        self._batch: Runner | None = None
        self._references = 0
        self._waiter: Any = None
        self._thread: Any = None
        self._caller: Any = None
        self._async: Any = None
        self._timer: Any = None
        self._timer_when = 0.0
        # Entries are tuples, which C compares, and by number if the times are equal: comparisons of
        # handles, in Python, are most of what a timer of asyncio costs.
        self._timers: list[tuple[float, int, Any]] = []
        self._timer_numbers = itertools.count()
        self._poll_timer: Any = None
        self._polling = False
        self._failure: BaseException | None = None
        self._stopped = False
        self._frozen = False
        self._forked_in: Runner | None = None
        self._guests: set[Any] = set()
        self._shadows: dict[str, Any] = {}
        super().__init__(suspend)

    # --- running ----------------------------------------------------------------------------

    def run_forever(self) -> None:
        """Run until ``stop()`` is called. Blocks the calling greenlet; others go on.

        Raises:
            RuntimeError: the event loop is closed or runs already, or the caller is code that
                another event loop runs.
            BlockingCallError: called in the hub.
        """
        self._check_closed()
        self._check_running()
        hub = get_hub_if_exists() or make_hub()
        if getcurrent() is hub:
            raise BlockingCallError(
                "an event loop cannot be run in the hub, which all greenlets wait for: use "
                "`gevent.spawn(loop.run_forever)`"
            )
        interrupt = None
        try:
            self._bind(hub)
            interrupt = self._catch_sigint(hub)
            # The hub comes back here by `_finish`, or with an exception of the caller's own: a
            # timeout, a kill, KeyboardInterrupt.
            waiter = self._waiter
            while (result := waiter.get()) is not _FINISHED:
                # Not the hub: somebody switches to the greenlet that runs the event loop, for it
                # to go on with a callback that has switched away (Playwright's sync API does).
                runner = find_left(self)
                if runner is not None:
                    hub.loop.run_callback(runner.switch)
                elif self._waiter is waiter:
                    raise InvalidSwitchError(f"unexpected switch to run_forever(): {result!r}")
        finally:
            if interrupt is not None and signal.getsignal(signal.SIGINT) is interrupt:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            self._unbind()
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # no cycle through the traceback

    def run_until_complete(self, future: Awaitable[_T]) -> _T:
        """Run until the future is done, and return its result or raise its exception.

        Args:
            future: a future of this event loop, or a coroutine, which becomes a task.

        Raises:
            RuntimeError: as `run_forever`, or the event loop was stopped before.

        Blocks the calling greenlet. In a program that has called ``nest_asyncio.apply()`` it may
        also be called in a step of this event loop, which it suspends; elsewhere that is an
        error.
        """
        if not (hasattr(asyncio, "_nest_patched") and events._get_running_loop() is self):
            return super().run_until_complete(future)
        nested = asyncio.ensure_future(future, loop=self)
        done = Event()
        nested.add_done_callback(lambda _: done.set())
        try:
            done.wait()
        except BaseException:
            nested.cancel()  # as the step that waits was: by asyncio, by gevent.Timeout, by a kill
            raise
        return nested.result()

    def _catch_sigint(self, hub: Any) -> Any:
        # Ctrl-C while the hub waits would be printed by the hub before it reaches the main
        # greenlet. If that is the caller, it gets the exception from here. In asyncio.Runner,
        # from 3.11 on, the handler is another one, and stays. Returns the handler, or None.
        if (
            self._thread_id != MAIN_THREAD_IDENT
            or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        ):
            return None
        is_main = hub.parent is getcurrent()

        def interrupt(signum: int, frame: Any) -> None:
            # In a runner it is raised in the code of the handle, as always. In ours, between two
            # handles say, it would be lost, and the handle as well: its task would never go on.
            in_hub = getcurrent() is hub
            if is_main and (in_hub or _is_own_work(frame)):
                self._failure = KeyboardInterrupt()
                self._write_to_self()
            elif not in_hub and _is_own_work(frame):
                # The main greenlet gets it, as it does when the hub is interrupted.
                _compat.call_in_hub(hub, hub.handle_error, None, KeyboardInterrupt, None, None)
            else:
                signal.default_int_handler(signum, frame)

        try:
            signal.signal(signal.SIGINT, interrupt)
        except ValueError:  # a sub-interpreter, whose main thread has no signals
            return None
        return interrupt

    def _run_once(self) -> None:
        # One iteration; asyncio's tests and some programs that pump a loop by hand call it.
        self._stopping = True
        self.run_forever()

    def stop(self) -> None:
        """Let ``run_forever()`` return after the handles that are ready now."""
        self._stopping = True
        if not self._awake:
            self._wake()

    def _bind(self, hub: Any) -> None:
        if hub is not self._hub:
            if self._suspended:
                raise RuntimeError(
                    "this event loop has steps that are suspended in the hub of another OS "
                    "thread: run it there until they have ended"
                )
            self._retire_runners()
            self._hub = hub
            self._hub_loop = hub.loop
            self._is_libuv = _compat.is_libuv(hub.loop)
            self._run_callback = hub.loop.run_callback
            if hub.loop.default:
                reaped.main_hub = hub
        self._waiter = gevent.hub.Waiter(hub)
        self._thread_id = get_ident()
        self._thread = current_thread()
        self._caller = getcurrent()
        for runner in self._idle_runners():
            alias(runner, self._thread)
        self._batch = None
        self._stopped = False
        self._failure = None
        self._outer_depth = sys.get_coroutine_origin_tracking_depth()
        self._set_coroutine_origin_tracking(self._debug)
        self._shadows = shadow_methods(self)
        self._attach()
        note_running(self)
        self._catch_signals(hub)

    def _catch_signals(self, hub: Any) -> None:
        if self._thread_id == MAIN_THREAD_IDENT:
            try:
                wake_on_signals.acquire(self, hub)
            except ValueError:  # the main thread of a sub-interpreter
                pass

    def _unbind(self) -> None:
        self._waiter = None
        self._detach()
        if not self._signal_handlers:
            wake_on_signals.release(self)
        self._stopping = False
        self._thread_id = None
        unshadow_methods(self, self._shadows)
        self._set_coroutine_origin_tracking(False)
        for runner in self._idle_runners():
            unalias(runner)
        self._thread = self._caller = None
        for guest in [*self._guests]:
            guest.note_stopped()

    def _attach(self) -> None:
        # Start the watchers, and look at the ready queue for the first time. As in asyncio,
        # descriptors are looked at before the first pass.
        self._frozen = False
        hub_loop = self._hub_loop
        # Referenced: while the event loop runs, the hub has something to wait for, though
        # nothing but a thread may ever wake it.
        self._async = hub_loop.async_()
        self._async.start(self._on_async)
        self._fresh = unpolled.acquire(hub_loop)
        for handle in self._io_handles():
            if not handle.held:
                handle.restart()
        self._awake = True
        self._polling = True
        self._poll_timer = hub_loop.timer(0)
        self._poll_timer.start(self._on_polled)

    def _detach(self) -> None:
        # Before all else: from here on nobody needs to wake it.
        self._awake = True
        watcher, self._async = self._async, None
        if watcher is not None:
            self._fresh = []
            unpolled.release()
        for each in (watcher, self._poll_timer, self._timer):
            if each is not None:
                close(each)
        self._poll_timer = self._timer = None
        self._polling = False
        for handle in self._io_handles():
            if handle.watcher is not None:
                handle.close_watcher()
                handle.file = file_of(handle.fd)

    def _freeze(self) -> None:
        # In a forked child. `_settle` attaches it again if a step of its own forked and returns.
        if self._waiter is not None:
            self._detach()
            self._batch = None
            self._frozen = True
            # Their calls are in threads of the parent.
            self._hub_executor = self._lookups = None
            self._forked_in = find_owner(getcurrent())

    def _finish(self) -> None:
        # In the hub.
        waiter = self._waiter
        if waiter is not None:
            self._awake = True
            self._waiter = None
            # Not from here: the hub's stack would refer to this event loop, which may be closed
            # and forgotten, until the hub is entered again.
            self._run_callback(waiter.switch, _FINISHED)
        elif self._failure is not None and self._thread_id is None:
            # Of a step that was resumed after the event loop had stopped.
            failure, self._failure = self._failure, None
            get_hub().handle_error(None, type(failure), failure, failure.__traceback__)

    # --- waking -----------------------------------------------------------------------------

    def _wake(self) -> None:
        # `_awake` is False. From another OS thread, where only call_soon_threadsafe() belongs
        # but others are seen, the hub's queue must not be touched.
        if get_ident() != self._thread_id:
            self._write_to_self()
            return
        self._awake = True
        self._run_callback(self._dispatch)

    def _write_to_self(self) -> None:
        # From any OS thread, and from signal handlers.
        watcher = self._async
        if watcher is not None:
            try:
                watcher.send()
            except Exception:  # of different kinds, by the loop of the hub; libuv's is this one
                pass  # closed between the two lines

    def _will_run(self) -> bool:
        # Whether what is scheduled now will be done.
        return self.is_running()

    def _on_async(self) -> None:
        if self._failure is not None and self._batch is None and self._waiter is not None:
            self._finish()
        elif not self._awake:
            self._wake()

    def _on_timer(self) -> None:
        close(self._timer)
        self._timer = None
        if not self._awake:
            self._wake()

    def _on_polled(self) -> None:
        # The hub has polled, but it may have callbacks of descriptors still to call: libev calls
        # those of timers first. The next round of its callbacks comes after all of them.
        try:
            self._polling = False
            if self._poll_timer is not None:
                self._poll_timer.stop()
                self._run_callback(self._dispatch)
                give_way()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        # In the hub: a handler of a signal, a time limit say, has raised this in code of ours. As
        # in asyncio, run_forever() raises it; the hub would print it, and all would stand still.
        self._failure = error
        self._finish()

    def _dispatch(self) -> None:
        # In the hub. More than one batch only where claimed runners take turns.
        try:
            if self._suspended:
                check_tracer()
            self._batch_ends = monotonic() + BATCH_SECONDS
            again = True
            while again and self._waiter is not None and not self._frozen and self._batch is None:
                if self._suspects:
                    self._review_claims()
                runner, self._next = self._next or self._primary, None
                if runner is None:
                    runner = self._primary = self._make_runner()
                elif runner.state is not PARKED:
                    runner = self._parked.pop() if self._parked else self._make_runner()
                self._batch = runner
                try:
                    runner.start(self)
                except BaseException as error:
                    # KeyboardInterrupt in code of ours, in the hub or in the runner.
                    self._failure = error
                if (
                    runner is self._primary
                    and runner.state is PARKED
                    and not self._stopping
                    and self._failure is None
                ):
                    # What `_settle` does with almost every batch.
                    runner.loop = runner.handle = self._batch = None
                    if self._ready:
                        self._poll_first()
                    else:
                        self._rest()
                    return
                again = self._settle(runner)
        except BaseException as error:
            self._fail(error)

    def _settle(self, runner: Runner) -> bool:
        # In the hub, which is not running anybody's code now, or in a tracer: must not switch.
        # True if another batch should follow at once.
        parked = runner.state is PARKED
        if runner.deferred and (parked or runner.dead):
            self._ready.extendleft(reversed(runner.deferred))
            runner.deferred.clear()
            if not self._awake:
                self._wake()
        if runner.dead:
            unalias(runner)
            self._suspended.discard(runner)
            self._claimed.discard(runner)
            for key in runner.claims:
                self._special.pop(key, None)
            if runner is self._primary:
                self._primary = None
        elif parked:
            if runner.resumed and self._batch is not runner:
                self._claim(runner, runner.handle)
            runner.loop = runner.handle = None
            if self._thread_id is None:
                unalias(runner)
            if runner is not self._primary or self._closed:
                if self._closed or runner not in self._claimed:
                    self._put_away(runner)
                else:
                    self._suspects.append(runner)
        if self._batch is not runner:
            self._settle_resumed(runner, parked)
            return False
        self._batch = None
        if self._stopped or self._failure is not None:
            self._finish()
        elif not (self._ready or self._stopping):
            self._rest()
        elif parked and (runner.claims or self._next) and monotonic() < self._batch_ends:
            return True
        else:
            # Also if the runner is suspended: a wait of no time at all, as in select.select(...,
            # 0), is over by then, and has let no other task in. There is sync code in coroutines
            # that relies on that (httpcore asks so whether its idle connections are readable).
            self._poll_first()
        return False

    def _poll_first(self) -> None:
        # There is more to do, after the hub's next poll.
        if not self._polling:
            self._polling = True
            self._poll_timer.start(self._on_polled)

    def _settle_resumed(self, runner: Runner, parked: bool) -> None:
        # The step was suspended, and batches are the business of other runners.
        if self._failure is not None:
            self._finish()
        elif parked and self._frozen and runner is self._forked_in:
            self._attach()
        elif not self._awake:
            self._poll_for_deferred_closes()

    def _rest(self) -> None:
        # In this order: a signal handler may append at any moment, and wakes if this is False.
        self._awake = False
        if self._ready or self._stopping:
            self._wake()
            return
        if self._timers:
            self._drop_cancelled_timers()
            if self._timers:
                when = self._timers[0][0]
                if self._timer is None or when < self._timer_when:
                    self._start_timer(when)
        if has_deferred_closes():
            self._poll_for_deferred_closes()

    def _poll_for_deferred_closes(self) -> None:
        # The patched os.close() closes after the next poll and does not end it: without a poll
        # that ends at once, whoever waits for the end of that pipe waits for ever.
        if has_deferred_closes() and self._poll_timer is not None and not self._polling:
            self._poll_timer.start(self._poll_timer.stop)

    def _start_timer(self, when: float) -> None:
        if self._timer is not None:
            close(self._timer)
        delay = min(when - self.time(), _compat.MAXIMUM_TIMEOUT)
        # Not less than the hub can tell apart (libuv: 1 ms), or it would come back too early,
        # and at once again.
        timer = self._hub_loop.timer(max(delay, self._hub_loop.approx_timer_resolution))
        # The hub's idea of the time is that of its last poll.
        timer.start(self._on_timer, update=True)
        self._timer = timer
        self._timer_when = when

    # --- a batch, in a runner -----------------------------------------------------------------

    def _run_batch(self, runner: Runner) -> None:
        ready = self._ready
        special = self._special
        is_primary = runner is self._primary
        if not self._references:
            # Of the first runner in its first batch: nobody else can have a reference to it.
            self._references = getrefcount(runner) - is_primary
        references = self._references + is_primary
        if events._get_running_loop is running_loop_in_python:
            # asyncio without its C part keeps it in a threading.local, which is the greenlet's
            # own after patching: what `_enter` has set is the hub's.
            events._set_running_loop(self)
        timers = self._timers
        if timers:
            self._drop_cancelled_timers()
        self._io_done = False  # the hub has polled
        # Handles of these kinds are run by a short way, which debug mode has not.
        plain, io, timer = (None,) * 3 if self._debug else (Handle, IOHandle, TimerHandle)
        popleft = ready.popleft
        left = 0
        try:
            for passes_left in _COUNTDOWN:
                if timers:
                    self._move_due_timers()
                todo = handles = left or len(ready)
                left = 0
                if todo > MAX_HANDLES:
                    left = todo - MAX_HANDLES
                    todo = handles = MAX_HANDLES
                while todo:  # to make a range takes as long as half a handle, the usual pass
                    todo -= 1
                    handle = popleft()
                    if handle._cancelled:
                        continue
                    if special:
                        admitted = self._admit(handle, runner)
                        if admitted is None:
                            continue
                        if not admitted:
                            return
                    runner.handle = handle
                    kind = handle.__class__
                    if kind is plain or kind is io or kind is timer:
                        # What their `_run` does, without the call.
                        try:
                            args = handle._args
                            if not args:
                                handle._context.run(handle._callback)
                            elif len(args) == 1:  # to unpack takes longer than to call
                                handle._context.run(handle._callback, args[0])
                            else:
                                handle._context.run(handle._callback, *args)
                        except (SystemExit, KeyboardInterrupt):
                            if kind is io:
                                handle.returned()
                            raise
                        except BaseException as error:
                            self._report(handle, error)
                        if kind is io:
                            # What `returned` does, without the call.
                            handle.queued = False
                            if handle.held or self._busy_io:
                                handle.returned()
                    elif io is None:
                        self._run_in_debug_mode(runner)
                    else:
                        self._run_handle(runner)
                    if runner.resumed:
                        return  # it was suspended, and the rest has gone to another runner
                    if getrefcount(runner) != references:  # also if it is claimed already
                        held = getrefcount(runner) - references
                        self._claim(runner, handle, held)
                        return
                if not left:
                    if self._stopping:
                        self._stopped = True
                        return
                    if not ready and not (timers and self._has_due_timer()):
                        return
                    if self._io_done:
                        # Code that lets so many passes go by, and both ends of whose connection
                        # are here, counts on a poll in between (await asyncio.sleep(0)).
                        self._io_done = False
                        return
                # Passes of few handles take less time than the clock.
                if (handles > 8 or not passes_left & 3) and monotonic() > self._batch_ends:
                    return
        except (SystemExit, KeyboardInterrupt) as error:
            self._failure = error
        finally:
            # An exception keeps this frame, and with it the task that the handle is of, and the
            # runner, which would look claimed.
            handle = runner = args = None  # type: ignore[assignment]

    def _run_in_debug_mode(self, runner: Runner) -> None:
        # The handle is in no local variable: an exception keeps the frames it went through, and
        # the handle its task, which would then be forgotten by the garbage collector only.
        started = self.time()
        suspended = runner.suspended_seconds
        self._current_handle = runner.handle
        try:
            self._run_handle(runner)
        finally:
            self._current_handle = None
        # Time in which it was suspended is time in which it did not hold up anybody.
        duration = self.time() - started - (runner.suspended_seconds - suspended)
        if duration >= self.slow_callback_duration:
            _compat.base_events.logger.warning(
                "Executing %s took %.3f seconds", _compat.format_handle(runner.handle), duration
            )

    def _run_handle(self, runner: Runner) -> None:
        kind = runner.handle.__class__
        if kind not in _OWN_KINDS:
            runner.handle._run()
            return
        try:
            runner.handle._context.run(runner.handle._callback, *runner.handle._args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._report(runner.handle, error)
        finally:
            if kind is IOHandle:
                runner.handle.returned()

    def _report(self, handle: Any, error: BaseException) -> None:
        # As in asyncio.Handle._run().
        if is_killed(error):
            return
        context = {
            "message": f"Exception in callback {_compat.format_callback(handle)}",
            "exception": error,
            "handle": handle,
        }
        if handle._source_traceback:
            context["source_traceback"] = handle._source_traceback
        self.call_exception_handler(context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """Log what has happened, unless it is that `close` has ended a suspended step."""
        if not is_killed(context.get("exception")):
            super().default_exception_handler(context)

    @property
    def _scheduled(self) -> list[Any]:
        # For whoever looks at it, as in asyncio.
        return [timer for _, _, timer in self._timers]

    @_scheduled.setter
    def _scheduled(self, timers: list[Any]) -> None:
        pass  # BaseEventLoop.__init__()

    def _has_due_timer(self) -> bool:
        return bool(self._timers[0][0] < self.time() + self._clock_resolution)

    def _move_due_timers(self) -> None:
        timers = self._timers
        end = self.time() + self._clock_resolution
        if timers[0][0] >= end:
            return
        due: list[tuple[float, int, Any]] = []
        append = self._ready.append
        try:
            take_due(timers, end, due)
            for _, _, timer in due:
                if timer._cancelled:
                    self._timer_cancelled_count -= timer._scheduled
                    timer._scheduled = False
                elif timer._scheduled:
                    # No signal is handled between these two.
                    timer._scheduled = False
                    append(timer)
        except BaseException:  # of the handler of a signal
            timers += due  # those that have been queued are not queued again
            heapq.heapify(timers)
            raise

    def _drop_cancelled_timers(self) -> None:
        # As in BaseEventLoop._run_once().
        timers = self._timers
        if (
            len(timers) > _compat.MIN_SCHEDULED_TIMERS
            and self._timer_cancelled_count / len(timers) > _compat.MIN_CANCELLED_TIMERS_FRACTION
        ):
            kept = []
            for entry in timers:
                if entry[2]._cancelled:
                    entry[2]._scheduled = False
                else:
                    kept.append(entry)
            heapq.heapify(kept)
            timers[:] = kept
            self._timer_cancelled_count = 0
            return
        while timers and timers[0][2]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(timers)[2]._scheduled = False

    # --- callbacks --------------------------------------------------------------------------

    def call_soon(  # type: ignore[override]
        self,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """Call ``callback(*args)`` soon, in the order of these calls.

        From any greenlet of the OS thread that runs the event loop; wakes it. Does not block.
        """
        if self._closed:
            self._check_closed()
        handle: Any
        if self._debug:
            self._check_thread()
            self._check_callback(callback, "call_soon")
            handle = events.Handle(callback, args, self, context)
            if handle._source_traceback:
                del handle._source_traceback[-1]
        else:
            # Not by a constructor: see `Handle`.
            handle = Handle()
            handle._context = copy_context() if context is None else context
            handle._loop = self
            handle._callback = callback
            handle._args = args
            handle._cancelled = False
        self._ready.append(handle)
        if not self._awake:
            self._wake()
        return handle  # type: ignore[no-any-return]

    def call_soon_threadsafe(  # type: ignore[override]
        self,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """Call ``callback(*args)`` soon, in the order of these calls. From any OS thread."""
        if self._closed:
            self._check_closed()
        handle: Any
        if self._debug:
            self._check_callback(callback, "call_soon_threadsafe")
            handle = (_ThreadSafeHandle or events.Handle)(callback, args, self, context)
            if handle._source_traceback:
                del handle._source_traceback[-1]
        elif _ThreadSafeHandle is not None:
            handle = _ThreadSafeHandle(callback, args, self, context)
        else:
            handle = Handle()
            handle._context = copy_context() if context is None else context
            handle._loop = self
            handle._callback = callback
            handle._args = args
            handle._cancelled = False
        self._ready.append(handle)
        # In this order: `_rest` says that nobody is on the way, and looks at the queue then.
        if not self._awake:
            self._write_to_self()
        return handle  # type: ignore[no-any-return]

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call ``callback(*args)`` when ``time()``, in seconds, has reached ``when``.

        From any greenlet of the OS thread that runs the event loop. Does not block.
        """
        if when is None:
            raise TypeError("when cannot be None")
        if self._closed:
            self._check_closed()
        timer: Any
        if self._debug:
            self._check_thread()
            self._check_callback(callback, "call_at")
            timer = asyncio.TimerHandle(when, callback, args, self, context)
            if timer._source_traceback:
                del timer._source_traceback[-1]
        else:
            timer = TimerHandle()
            timer._context = copy_context() if context is None else context
            timer._loop = self
            timer._callback = callback
            timer._args = args
            timer._cancelled = False
            timer._when = when
        timer._scheduled = True
        timers = self._timers
        entry = (when, next(self._timer_numbers), timer)
        heapq.heappush(timers, entry)
        if not self._awake and timers[0] is entry:
            self._wake()
        return timer  # type: ignore[no-any-return]

    def _add_callback(self, handle: Any) -> None:
        if not handle._cancelled:
            self._ready.append(handle)
            if not self._awake:
                self._wake()

    def _add_callback_signalsafe(self, handle: Any) -> None:
        # In a signal handler, at any point of any greenlet's code.
        if not handle._cancelled:
            self._ready.append(handle)
        self._write_to_self()

    def _check_thread(self) -> None:
        # By OS thread: after patching, threading.get_ident() is that of the greenlet.
        if self._thread_id is not None and self._thread_id != get_ident():
            raise RuntimeError(
                "Non-thread-safe operation invoked on an event loop other than the current one: "
                "use loop.call_soon_threadsafe() from other threads"
            )

    def _set_coroutine_origin_tracking(self, enabled: bool) -> None:
        self._coroutine_origin_tracking_enabled = bool(enabled)
        if events._get_running_loop() is self:
            sys.set_coroutine_origin_tracking_depth(
                _compat.DEBUG_STACK_DEPTH if enabled else self._outer_depth
            )

    # --- tasks ------------------------------------------------------------------------------

    def create_task(  # type: ignore[override]
        self,
        coro: Any,
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        **kwargs: Any,
    ) -> asyncio.Task[Any]:
        """Schedule a coroutine object and return the task, an `asyncio.Task`."""
        task: Any
        if _TASKS_TAKE_CONTEXT and self._task_factory is None and not kwargs:
            if self._closed:
                self._check_closed()
            task = Task(coro, loop=self, name=name, context=context)
            if task._source_traceback:
                del task._source_traceback[-1]
            return task  # type: ignore[no-any-return]
        # Only what was given: not every Python, nor every task factory, knows all of them.
        if name is not None:
            kwargs["name"] = name
        if context is not None:
            kwargs["context"] = context
        if self._task_factory is not None or "eager_start" in kwargs:
            return self._create_eager_task(coro, kwargs)
        self._check_closed()
        task = Task(coro, loop=self, **kwargs)
        if task._source_traceback:
            del task._source_traceback[-1]
        try:
            return task  # type: ignore[no-any-return]
        finally:
            del task  # gh-128552: no cycle through the frame of an eager task that failed

    def _create_eager_task(self, coro: Any, kwargs: dict[str, Any]) -> asyncio.Task[Any]:
        # Or one that may be. See `_claim`: its first step is run by the runner of this step.
        runner = getcurrent()
        if not isinstance(runner, Runner):
            runner = None
        references = getrefcount(runner)
        if self._task_factory is not None:
            task = super().create_task(coro, **kwargs)
        else:
            self._check_closed()
            task = Task(coro, loop=self, **kwargs)
        left = getrefcount(runner) - references
        if runner is not None and left > 0 and not task.done():
            runner.eager.append((weakref.ref(task), left))
        return task

    # --- greenlets that wait ----------------------------------------------------------------

    def _add_guest(self, guest: Any) -> None:
        self._guests.add(guest)

    def _remove_guest(self, guest: Any) -> None:
        self._guests.discard(guest)

    # --- closing ----------------------------------------------------------------------------

    def close(self) -> None:
        """Close the event loop, which must not be running.

        Steps that are suspended get ``GreenletExit`` and are waited for, until they end or block
        once more: it may block the calling greenlet.
        """
        if self.is_running():
            raise RuntimeError("Cannot close a running event loop")
        if self._closed:
            return
        try:
            if self._suspended:
                self._kill_suspended()
        finally:
            super().close()
            self._timers.clear()
            self._retire_runners()
            for guest in [*self._guests]:
                guest.fail_closed()
            self._hub = self._hub_loop = self._run_callback = None
