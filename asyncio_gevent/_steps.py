"""What the event loop knows of runners and of the steps that are suspended in them.

Rule 1: the thread-wide state of asyncio (running loop, current task, hooks) is set and taken back
        in `_enter` and `_leave`, which `_runners.py` calls around every switch to a runner, in
        their short forms `_enter_again` and `_leave_again`, and nowhere else.
Rule 2: a suspended step is not entered a second time: not its context, not its task, not the
        callback of its descriptor.
Rule 3: a task whose step has left something with its runner, a raw greenlet say, gets that runner
        again. It has claimed it.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import weakref
from asyncio import events
from typing import TYPE_CHECKING, Any

from gevent.event import Event
from gevent.hub import get_hub
from greenlet import getcurrent

from asyncio_gevent import _compat
from asyncio_gevent._compat import (
    current_task,
    enter_task,
    get_hub_if_exists,
    has_deferred_closes,
    leave_task,
)
from asyncio_gevent._loop_io import IOEventLoop
from asyncio_gevent._runners import LIVE, PARKED, Runner, find_owner, note_stray
from asyncio_gevent._tasks import Task, holds, shadow_cancel, unshadow_cancel
from asyncio_gevent._threads import alias, unalias
from asyncio_gevent._watchers import IOHandle
from asyncio_gevent.exceptions import BlockingCallError

__all__ = ["MAX_PARKED", "StepsEventLoop", "getrefcount"]

#: Parked runners kept by an event loop beside its primary one. A greenlet that runs Python code
#: costs 7 to 8 microseconds to make, since its frame stack is mapped and unmapped, a parked one
#: 0.7; what it costs to keep one is its stack, about 10 KiB.
MAX_PARKED = 64

_get_asyncgen_hooks = sys.get_asyncgen_hooks
_set_asyncgen_hooks = sys.set_asyncgen_hooks
getrefcount = sys.getrefcount


class StepsEventLoop(IOEventLoop):
    """The runners of an event loop, and the steps suspended in them.

    Attributes:
        _primary: the runner that is preferred, so that what goes by the greenlet stays the same.
        _parked: the other ones that have nothing to do.
        _suspended: the runners with a suspended step, or one that runs and has been suspended.
        _suspended_tasks: the tasks of these, each with its runner.
        _special: what a batch must look at before it runs a handle: ids of the handles and the
            contexts that these steps have entered, and of the tasks that have claimed a runner.
        _claimed: the runners that tasks have claimed; see `_claim`.
        _suspects: parked runners, out of the pool until it is known whether they are claimed.
        _next: the claimed runner that the next batch is for.
        _resumed: the runners that the hub has resumed and that have not come back to it.
        _cancels: tasks into whose suspended step `CancelledError` is about to be thrown.
    """

    if TYPE_CHECKING:
        _awake: bool
        _failure: BaseException | None
        _hub: Any
        _thread: Any
        _frozen: bool

        def _poll_for_deferred_closes(self) -> None: ...

    def __init__(self, suspend: bool) -> None:
        self._suspend = suspend
        self._primary: Runner | None = None
        self._parked: list[Runner] = []
        self._suspended: set[Runner] = set()
        self._suspended_tasks: dict[Any, Runner] = {}
        self._special: dict[int, Runner] = {}
        self._claimed: set[Runner] = set()
        self._suspects: list[Runner] = []
        self._next: Runner | None = None
        self._cancels: set[Any] = set()
        self._resumed: list[Runner] = []
        self._outer_depth = 0
        super().__init__()
        # Bound once: they are set at every edge.
        self._hooks = (self._asyncgen_firstiter_hook, self._asyncgen_finalizer_hook)

    # --- the edge ---------------------------------------------------------------------------

    def _enter(self, runner: Runner) -> Any:
        # Of whoever runs the hub: none, or those of an event loop of another make that waits in it.
        outer = events._get_running_loop(), _get_asyncgen_hooks()
        if self._frozen:
            # In a forked child no event loop runs, and the step that forked may run a new one.
            self._forget_suspended(runner)
            return outer
        events._set_running_loop(self)
        _set_asyncgen_hooks(*self._hooks)
        if self._coroutine_origin_tracking_enabled:
            self._outer_depth = sys.get_coroutine_origin_tracking_depth()
            sys.set_coroutine_origin_tracking_depth(_compat.DEBUG_STACK_DEPTH)
        if runner.resumed:
            self._forget_suspended(runner)
        return outer

    def _enter_again(self, runner: Runner) -> Any:
        # The short way: the step stays noted as suspended, since that is what it often is next.
        # `_throw_cancel` and `_kill_suspended` know better by who calls.
        outer = events._get_running_loop(), _get_asyncgen_hooks()
        events._set_running_loop(self)
        _set_asyncgen_hooks(*self._hooks)
        task = runner.task
        if task is not None:
            enter_task(self, task)
        return outer

    def _leave_again(self, runner: Runner, outer: Any) -> bool:
        """Leave a step that is suspended with nothing changed, all that is noted of it is true.

        Returns:
            False if that is not so, and nothing was done.
        """
        task = runner.task
        if (
            id(runner.gr_context) != runner.entered[2]
            or self._failure is not None
            or self._frozen
            or self._debug
        ):
            return False
        if task is None:
            if current_task(self) is not None:
                return False
        elif task._must_cancel:
            return False
        else:
            try:
                leave_task(self, task)
            except RuntimeError:  # another one is the current task
                return False
        _set_asyncgen_hooks(*outer[1])
        events._set_running_loop(outer[0])
        if not self._awake and has_deferred_closes():
            self._poll_for_deferred_closes()
        return True

    def _leave(self, runner: Runner, outer: Any) -> None:
        try:
            if runner.state is not PARKED:
                self._note_suspended(runner)
            if self._frozen:
                return
            if self._coroutine_origin_tracking_enabled:
                sys.set_coroutine_origin_tracking_depth(self._outer_depth)
            _set_asyncgen_hooks(*outer[1])
        finally:
            events._set_running_loop(outer[0])

    def _restore(self, runner: Runner, outer: Any) -> None:
        # What `_leave` has to do in any case. Once more does no harm.
        try:
            if (
                runner.state is not PARKED
                and not self._frozen
                and (runner not in self._suspended or current_task(self) is not None)
            ):
                self._note_suspended(runner)
        finally:
            _set_asyncgen_hooks(*outer[1])
            events._set_running_loop(outer[0])

    def _note_suspended(self, runner: Runner) -> None:
        if runner.dead:
            return  # of KeyboardInterrupt in code of ours
        self._suspended.add(runner)
        runner.is_plain = not self._debug
        task = current_task(self)
        if task is not None:
            # In this order: nothing is lost to what a signal handler raises in between.
            runner.task = task
            self._suspended_tasks[task] = runner
            leave_task(self, task)
            if type(task) is not Task:
                runner.is_plain = False
                shadow_cancel(task)
            elif task._must_cancel and _compat.UNCANCEL_FORGETS:
                # It was cancelled while it ran: this is the place where it hears of that.
                task._throw_instead()
        handle = runner.handle
        # The handle, its context, and the one entered last inside of that.
        runner.entered = id(handle), id(handle._context), id(runner.gr_context)
        for key in runner.entered:
            self._special[key] = runner
        if handle.__class__ is IOHandle:
            self._hold_io(handle)
        if self._debug:
            runner.suspended_at = self.time()
        if runner.state is LIVE:
            # Not the runner but a raw greenlet of the step went to the hub.
            note_stray(runner)
            if not self._suspend:
                runner.parent.loop.run_callback(
                    runner.throw_into_step,
                    BlockingCallError(
                        "a gevent function would block in a greenlet that a coroutine started, "
                        "and this event loop was made with suspend=False. Make the call in a "
                        "thread: `await asyncio.to_thread(function, ...)`"
                    ),
                )

    def _forget_suspended(self, runner: Runner) -> None:
        task = runner.task
        self._forget_notes(runner)
        if task is not None:
            enter_task(self, task)

    def _forget_notes(self, runner: Runner) -> None:
        self._suspended.discard(runner)
        if runner.suspended_at is not None:
            runner.suspended_seconds += self.time() - runner.suspended_at
            runner.suspended_at = None
        for key in runner.entered:
            self._special.pop(key, None)
        task = runner.task
        if task is not None:
            runner.task = None
            del self._suspended_tasks[task]
            if type(task) is not Task:
                unshadow_cancel(task)

    # --- runners ----------------------------------------------------------------------------

    def _make_runner(self) -> Runner:
        runner = Runner(self._hub)
        alias(runner, self._thread)
        return runner

    def _idle_runners(self) -> list[Runner]:
        runners = [*self._parked]
        runners += [runner for runner in self._claimed if runner.state is PARKED]
        if self._primary is not None and self._primary.state is PARKED:
            runners.append(self._primary)
        return runners

    def _put_away(self, runner: Runner) -> None:
        if self._closed or runner.discarded or len(self._parked) >= MAX_PARKED:
            unalias(runner)
            runner.parent.loop.run_callback(runner.retire)
        else:
            self._parked.append(runner)

    def _retire_runners(self) -> None:
        runners = self._idle_runners()
        self._parked.clear()
        self._claimed.clear()
        self._suspects.clear()
        self._special.clear()
        self._primary = self._next = None
        hub = self._hub
        for runner in runners:
            unalias(runner)
            if hub is get_hub_if_exists():
                runner.retire()
            else:
                # A greenlet can be switched to in its own OS thread only.
                _compat.call_in_hub(hub, runner.retire)

    # --- claims -----------------------------------------------------------------------------
    #
    # A raw greenlet that a step starts is a child of the runner, and switches back to it when it
    # wants the task to await (SQLAlchemy's greenlet_spawn), also in later steps. So these steps
    # must run in that runner, and it must run nothing else meanwhile. There is no hook for the
    # start of a greenlet, but a greenlet refers to its parent: a runner to which somebody refers
    # after a step is claimed by the task, until nobody does. Eager tasks take their first step in
    # that of another task, so that several may have claimed the same runner.

    def _claim(self, runner: Runner, handle: Any, references: int | None = None) -> None:
        # After a handle that has left so many references, to be reviewed when the runner is parked.
        tasks = []
        by_eager = 0
        for ref, count in runner.eager:
            task = ref()
            if task is not None:
                tasks.append(task)
                by_eager += count
        runner.eager.clear()
        if not runner.claims and not (tasks and references == by_eager):
            task = getattr(handle._callback, "__self__", None)
            if asyncio.isfuture(task):
                tasks.append(task)
        tasks = [task for task in tasks if not task.done()]
        for task in tasks:
            self._add_claim(runner, task)
        if not (runner.claims or runner.resumed):
            self._discard(runner)  # somebody keeps it, but no task that it could be kept for

    def _add_claim(self, runner: Runner, task: Any) -> None:
        # Weak, all of them: what a parked runner refers to cannot be garbage collected.
        loop, claimed, key = weakref.ref(self), weakref.ref(runner), id(task)

        def forgotten(_: Any) -> None:
            self, runner = loop(), claimed()
            if self is not None and runner is not None:
                self._special.pop(key, None)
                runner.claims.pop(key, None)
                self._suspects.append(runner)

        runner.claims[key] = weakref.ref(task, forgotten)
        self._special[key] = runner
        self._claimed.add(runner)
        if runner is self._primary:
            self._primary = None

    def _review_claims(self) -> None:
        # In the hub, where nothing but what has claimed a parked runner refers to it.
        suspects, self._suspects = self._suspects, []
        for runner in suspects:
            if runner not in self._claimed or runner.state is not PARKED:
                continue
            for key, claim in [*runner.claims.items()]:
                task = claim()
                if task is None or task.done():
                    self._special.pop(key, None)
                    del runner.claims[key]
            # One of them is by `_special` for each claim, and for one that is counted in any case.
            is_held = getrefcount(runner) - len(runner.claims) > _own_references() - 1
            if is_held and runner.claims:
                continue
            for key in runner.claims:
                self._special.pop(key, None)
            runner.claims.clear()
            self._claimed.discard(runner)
            if is_held:
                self._discard(runner)
            if self._primary is None and not (is_held or self._closed):
                self._primary = runner
            else:
                self._put_away(runner)

    def _discard(self, runner: Runner) -> None:
        # It ends when it is put away. In the pool it would be claimed by whatever it runs next.
        runner.discarded = True
        if runner is self._primary:
            self._primary = None

    def _admit(self, handle: Any, runner: Runner) -> bool | None:
        # Whether this runner may run the handle. If not, the next batch is for the one that may.
        # None if it has to wait.
        special = self._special
        suspended = special.get(id(handle))
        if suspended is not None:
            # The handler of a signal, say, that has come again.
            suspended.deferred.append(handle)
            return None
        task = getattr(handle._callback, "__self__", None)
        claimed = special.get(id(task))
        if claimed is not None and claimed is not runner and claimed.state is not PARKED:
            if claimed.task is not task and claimed.task is not None:
                # A step of another task that has claimed the runner is suspended in it.
                claimed.deferred.append(handle)
                return None
            claimed = None  # it is no step of the task, then
        if claimed is not runner and (claimed is not None or runner.claims):
            self._ready.appendleft(handle)
            self._next = claimed
            return False
        if id(handle._context) in special:
            # A context can be entered once, and a suspended step is still in it.
            handle._context = handle._context.copy()
        return True

    # --- exceptions for suspended steps -------------------------------------------------------

    def _throw_cancel(self, task: Any, msg: Any) -> bool:
        """Cancel the suspended step of a task; False if it has none."""
        runner = self._suspended_tasks.get(task)
        if runner is None or task.done() or find_owner(getcurrent()) is runner:
            return False  # the step runs, perhaps in that of an eager task inside of it
        # Once, however often it is asked for before the step has heard of it.
        if task not in self._cancels:
            self._cancels.add(task)
            runner.parent.loop.run_callback(self._deliver_cancel, runner, task, msg)
        return True

    def _deliver_cancel(self, runner: Runner, task: Any, msg: Any) -> None:
        if task not in self._cancels:
            return  # taken back by `uncancel`
        self._cancels.discard(task)
        if self._suspended_tasks.get(task) is runner:
            error = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
            runner.throw_into_step(error)
        elif not task.done():
            task._cancel_instead(msg)

    def _throw_into_claimant(self, runner: Runner, tasks: list[Any], error: BaseException) -> bool:
        """Let what one of these tasks, which have claimed the runner, awaits raise this.

        Returns:
            False if it is for the step that is suspended in the runner.
        """
        task = tasks[0]
        if len(tasks) > 1:
            # Of eager tasks, or the one that has made them.
            holders = [task for task in tasks if holds(task, error)]
            task = holders[-1] if holders else tasks[-1]
            if runner.state is not PARKED and not (holders and task is not runner.task):
                return False
        self._throw_into_awaiting(task, error)
        return True

    def _throw_into_awaiting(self, task: Any, error: BaseException) -> None:
        """Let what a task waits for, an ``await`` or by now a blocking call, raise this."""
        if task.done() or self._closed or _compat.is_closed_timeout(error):
            return
        runner = self._suspended_tasks.get(task)
        if runner is not None:
            runner.parent.loop.run_callback(self._throw_into_suspended, runner, task, error)
            return
        waiter = task._fut_waiter
        for callback, context in (waiter is not None and waiter._callbacks) or ():
            if getattr(callback, "__self__", None) is task:
                # What the task awaits does not wake it any more; a future that failed does.
                waiter.remove_done_callback(callback)
                failed = self.create_future()
                failed.set_exception(error)
                self.call_soon(callback, failed, context=context)
                # As when the task is cancelled: what it awaits has nobody else (shield() it).
                waiter.add_done_callback(_retrieve)
                waiter.cancel()
                return
        # Its next step is on the way, or waits for the runner: let it await something first.
        claimed = self._special.get(id(task))
        if claimed is not None and claimed.state is not PARKED:
            handle = events.Handle(self._throw_into_awaiting, (task, error), self, None)
            claimed.deferred.append(handle)
        else:
            self.call_soon(self._throw_into_awaiting, task, error)

    def _throw_into_suspended(self, runner: Runner, task: Any, error: BaseException) -> None:
        if self._suspended_tasks.get(task) is runner:
            runner.throw_into_step(error)
        else:
            self._throw_into_awaiting(task, error)

    def _kill_suspended(self) -> None:
        hub = self._hub
        if hub.loop is None:
            # Destroyed, with all that waited in it.
            self._suspended.clear()
            self._suspended_tasks.clear()
            self._special.clear()
            return
        own = find_owner(getcurrent())
        if own in self._suspended:
            self._forget_notes(own)  # it is this step that closes the loop, and goes on
        # Not the caller, which is suspended only while it waits for them.
        runners = [*self._suspended]
        if not runners:
            return
        if hub is not get_hub_if_exists():
            _compat.call_in_hub(hub, self._kill_steps, runners)
        elif getcurrent() is hub:
            self._kill_steps(runners)
        else:
            done = Event()
            hub.loop.run_callback(self._kill_steps, runners, done)
            done.wait()

    def _kill_steps(self, runners: list[Runner], done: Event | None = None) -> None:
        try:
            for runner in runners:
                if runner not in self._suspended:
                    continue  # it has ended meanwhile
                task = runner.task
                runner.kill_step()
                if task is not None and task.done():
                    task._log_traceback = False  # it is GreenletExit, and nobody asks for it
        finally:
            if done is not None:
                done.set()


def _retrieve(future: Any) -> None:
    # Or the exception of its clean-up, say, would be logged as never retrieved.
    if not future.cancelled():
        future.exception()


class _Idle:
    """Stands for an event loop that gives a runner nothing to do."""

    def _enter(self, runner: Runner) -> None:
        pass

    def _leave(self, runner: Runner, outer: None) -> None:
        pass

    def _restore(self, runner: Runner, outer: None) -> None:
        pass

    def _run_batch(self, runner: Runner) -> None:
        pass


@functools.cache
def _own_references() -> int:
    # How many references there are to a parked runner that `_review_claims` looks at, if nobody
    # else has one. That depends on the interpreter, so they are counted.
    runner = Runner(get_hub())
    runner.start(_Idle())
    held = [runner], {runner}, {0: runner}  # as by `suspects`, `_claimed` and `_special`
    count = getrefcount(runner)
    del held
    runner.retire()
    return count
