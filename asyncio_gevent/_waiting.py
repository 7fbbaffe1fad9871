"""How a greenlet waits for async code.

Rule 1: whatever a greenlet waits for ends in one `Reply`, which is settled once.
Rule 2: nothing here or above knows which of the two systems it runs on; what differs between event
        loops is asked of `can_suspend`, `lets_hub_run` and `is_own_thread`.

Theory. Below a task, sync code can wait for a coroutine without a task of its own: `drive` sends
into the coroutine what a task would, and while the coroutine waits for a future, the step that
called is suspended. The coroutine is then part of that very task, as if it were awaited. In any
other greenlet the coroutine becomes a task, whose steps go through `Call`, which settles the reply.

When a greenlet that waits is killed or timed out, what it waits for is cancelled, and then waited
for, so that its clean-up is over before the exception goes on. A second exception ends the wait.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from asyncio import CancelledError, events
from collections.abc import Callable, Coroutine
from functools import partial
from inspect import isawaitable
from time import monotonic
from types import CoroutineType
from typing import Any
from weakref import WeakKeyDictionary, ref

import gevent
from gevent.hub import Waiter
from greenlet import getcurrent

from asyncio_gevent import _compat
from asyncio_gevent._compat import get_hub_if_exists
from asyncio_gevent._event_loop import EventLoop
from asyncio_gevent._green_tasks import Step
from asyncio_gevent._hosts import LONGEST_WAIT
from asyncio_gevent._originals import get_ident
from asyncio_gevent._threads import make_hub
from asyncio_gevent._watchers import close
from asyncio_gevent.exceptions import BlockingCallError, CancelledExit

__all__ = [
    "REUSED",
    "Call",
    "Reply",
    "add_context",
    "as_coroutine",
    "as_exit",
    "call_in_loop",
    "can_suspend",
    "carries_hub",
    "check_awaitable",
    "check_running",
    "describe",
    "discard",
    "drive",
    "end_turn",
    "find_carrying_loop",
    "find_running_loop",
    "get_hub_to_wait_in",
    "is_frozen",
    "is_own_thread",
    "lets_hub_run",
    "make_reply",
    "result_of",
    "settle",
    "start_call",
    "wait_for_call",
    "wait_for_future",
]

#: Seconds in which an event loop that does not run yet must have started: it may be on its way in
#: a native thread. After that it is taken for one that never will, and nobody waits for ever.
START_SECONDS = 1.0

#: What the interpreter says of a coroutine that was awaited before (Objects/genobject.c).
REUSED = ("cannot reuse already awaited coroutine",)

#: Seconds between two looks at whether an event loop of another make still runs.
CLEAN_UP_TICK = 0.05

_HAS_TASK_CONTEXTS = sys.version_info >= (3, 11)
_MISSING: Any = object()


# --- event loops ---------------------------------------------------------------------------------


def can_suspend(loop: Any) -> bool:
    """Whether the calling step of this running event loop may block in the hub."""
    if isinstance(loop, EventLoop):
        return loop._suspend
    return type(getcurrent()) is Step


def carries_hub(loop: Any) -> bool:
    """Whether this event loop runs in this OS thread and carries its hub."""
    return loop is not None and find_carrying_loop() is loop


def find_carrying_loop() -> Any:
    """Return the event loop that runs in this OS thread and carries its hub, or None."""
    hub = get_hub_if_exists()
    return None if hub is None else getattr(hub.loop, "attached", None)


def lets_hub_run(loop: Any) -> bool:
    """Whether the hub of the thread goes on while this event loop, which runs there, waits."""
    if isinstance(loop, EventLoop) or carries_hub(loop):
        return True
    # asyncio's own loop under gevent's selectors, after patching, with another loop of gevent's.
    selector = getattr(loop, "_selector", None)
    return selector is not None and type(selector).__module__.startswith("gevent.")


def find_running_loop() -> Any:
    """Return the event loop that the caller is part of, or None."""
    running = events._get_running_loop()
    if running is None or isinstance(running, EventLoop):
        return running
    if carries_hub(running) or not lets_hub_run(running):
        return running  # greenlets that are not part of it do not see it
    # asyncio's own, after patching: all greenlets of the thread see it, those that are not below
    # it as well.
    frame: Any = sys._getframe(1)
    each = getcurrent()
    while True:
        while frame is not None:
            if frame.f_code.co_name == "run_forever" and frame.f_locals.get("self") is running:
                return running
            frame = frame.f_back
        # A plain greenlet is part of the one that waits for it, up to the hub.
        each = each.parent
        if each is None or isinstance(each, gevent.hub.Hub):
            return None
        frame = each.gr_frame


def is_frozen(loop: Any) -> bool:
    """Whether this is a forked child, and the event loop the parent's, which stands still here."""
    return isinstance(loop, EventLoop) and loop._frozen


def is_own_thread(loop: Any) -> bool:
    """Whether ``call_soon()`` of this event loop may be called here, and wakes it."""
    if isinstance(loop, EventLoop):
        return loop._thread_id in (None, get_ident())
    return carries_hub(loop)


def call_in_loop(loop: Any, function: Callable[..., Any], *args: Any) -> None:
    """Have an event loop call this, from any greenlet of any OS thread."""
    if is_own_thread(loop):
        loop.call_soon(function, *args)
    else:
        loop.call_soon_threadsafe(function, *args)


def check_running(loop: Any) -> None:
    """Raise ``RuntimeError`` for an event loop that nobody runs. May block the greenlet."""
    if loop.is_running():
        return
    ends = monotonic() + START_SECONDS
    delay = 0.0
    while not (loop.is_running() or loop.is_closed()) and monotonic() < ends:
        gevent.sleep(delay)  # a greenlet, or a thread, that is to run it may be about to start
        delay = 0.001
    if loop.is_closed():
        raise RuntimeError(
            f"{loop!r} is closed: leave out `loop=`, for the running or the ambient loop, or make "
            "what belongs to it anew"
        )
    if not loop.is_running():
        if lets_hub_run(loop):
            remedy = "a greenlet, `gevent.spawn(loop.run_forever)`"
        else:
            remedy = "another OS thread"
        raise RuntimeError(
            f"{loop!r} does not run, so nothing in it would ever be done: run it in {remedy}, or "
            "leave out `loop=`"
        )


def get_hub_to_wait_in(name: str) -> Any:
    """Return the hub of this OS thread, for a greenlet that is about to wait.

    Raises:
        BlockingCallError: the calling greenlet is the hub.
    """
    hub = get_hub_if_exists()
    if hub is None:
        return make_hub()
    if getcurrent() is hub:
        raise BlockingCallError(
            f"{name} was called in the hub, which all greenlets wait for, and would wait for "
            f"itself: use `gevent.spawn({name.partition('(')[0]}, ...)`"
        )
    return hub


# --- awaitables ----------------------------------------------------------------------------------


def describe(thing: Any) -> str:
    """Return how to write this function or object in code."""
    return str(getattr(thing, "__name__", None) or repr(thing))


def check_awaitable(awaitable: Any, name: str) -> None:
    """Raise for what cannot be awaited, or has been.

    Raises:
        TypeError: not an awaitable.
        RuntimeError: a coroutine that was awaited before, or is just now.
    """
    if isinstance(awaitable, CoroutineType):
        if awaitable.cr_await is not None or awaitable.cr_running:
            raise RuntimeError(
                f"{awaitable!r} is being awaited already: make a task of it, `task = "
                f"asyncio.ensure_future({describe(awaitable)}(...))`, which can be awaited more "
                "than once"
            )
        if awaitable.cr_frame is None:
            raise RuntimeError(
                f"{awaitable!r} was awaited before, and a coroutine can be awaited once: call the "
                f"function again, `{name}({describe(awaitable)}(...))`"
            )
    elif not isawaitable(awaitable):
        if isinstance(awaitable, gevent.Greenlet):
            remedy = "in a greenlet wait for it by `greenlet.get()`, in a coroutine " + (
                "`await greenlet_to_future(greenlet)`"
            )
        elif asyncio.iscoroutinefunction(awaitable):
            remedy = f"call it: `{name}({describe(awaitable)}(...))`"
        elif callable(awaitable):
            remedy = "only the result of an `async def` function can be awaited: call this directly"
        else:
            remedy = f"`{name}(function(...))` with an `async def` function"
        raise TypeError(f"{awaitable!r} is not awaitable: {remedy}")


def discard(awaitable: Any) -> None:
    """Close a coroutine that will not be awaited, if it has not begun."""
    if (
        isinstance(awaitable, CoroutineType)
        and awaitable.cr_await is None
        and not awaitable.cr_running
    ):
        awaitable.close()


async def as_coroutine(awaitable: Any) -> Any:
    """Await this: a coroutine of any awaitable."""
    return await awaitable


def _steps_of(awaitable: Any) -> Any:
    # A coroutine object: what has send() and throw(), and ends with StopIteration.
    if type(awaitable) is CoroutineType or isinstance(awaitable, Coroutine):
        return awaitable
    return as_coroutine(awaitable)


# --- replies -------------------------------------------------------------------------------------


class Reply:
    """The outcome that a greenlet waits for. It is settled once; what comes later is ignored.

    Attributes:
        done: it is settled.
        is_final: its error goes before what was thrown into the greenlet meanwhile.
        is_abandoned: nobody waits for it any more.
        is_for_clean_up: it is waited for only while its event loop runs.
        value, error: the outcome.
        context: variables that the caller takes over, if they were set in another context.
    """

    __slots__ = (
        "_hub",
        "_waiter",
        "context",
        "done",
        "error",
        "is_abandoned",
        "is_final",
        "is_for_clean_up",
        "value",
    )

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._waiter = Waiter(hub)
        self.done = self.is_final = self.is_abandoned = self.is_for_clean_up = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.context: contextvars.Context | None = None

    def succeed(self, value: Any) -> None:
        """Settle it. From the OS thread of the event loop."""
        if not self.done:
            self.value = value
            self.done = True
            self._wake()

    def fail(self, error: BaseException) -> None:
        """Settle it. From the OS thread of the event loop."""
        if not self.done:
            self.error = error
            self.done = True
            self._wake()

    def fail_closed(self) -> None:
        """Settle it for an event loop that is closed, and will not."""
        self.fail(
            RuntimeError(
                "the event loop was closed before what this greenlet waits for was done: wait for "
                "its tasks before you close a loop"
            )
        )

    def _wake(self) -> None:
        hub = self._hub
        if hub.thread_ident == get_ident():
            hub.loop.run_callback(self._waiter.switch, None)
        else:
            # The loop ran in no thread when the greenlet began to wait.
            _compat.call_in_hub(hub, self._waiter.switch, None)

    def wait(self) -> None:
        """Wait until it is settled. Blocks the greenlet."""
        waiter = self._waiter
        while not self.done:
            waiter.get()

    def wait_for_clean_up(self, loop: Any) -> None:
        """Wait until it is settled, or its event loop does not run any more. Blocks the greenlet.

        A stopped event loop may never run again, and may be one that this greenlet is to run.
        """
        waiter = self._waiter
        ticks = None
        self.is_for_clean_up = True
        try:
            if isinstance(loop, EventLoop):
                goes_on = loop._will_run
            else:
                goes_on = loop.is_running
                # Those of another make tell nobody that they stop.
                ticks = self._hub.loop.timer(CLEAN_UP_TICK, CLEAN_UP_TICK)
                ticks.start(waiter.switch, None)
            while not self.done and goes_on():
                waiter.get()
        finally:
            self.is_for_clean_up = False
            if ticks is not None:
                close(ticks)

    def note_stopped(self) -> None:
        """Have a greenlet that waits for a clean-up see whether the event loop still runs."""
        if self.is_for_clean_up:
            self._wake()

    def close(self) -> None:
        """Take back what was opened; when nobody waits any more."""


class _ThreadReply(Reply):
    """The same, settled in another OS thread.

    Its watcher is also what keeps the hub from saying that there is nothing to wait for.
    """

    __slots__ = ("_async",)

    def __init__(self, hub: Any) -> None:
        super().__init__(hub)
        self._async = hub.loop.async_()
        self._async.start(self._waiter.switch, None)

    def _wake(self) -> None:
        try:
            self._async.send()
        except Exception:  # of different kinds, by the loop of the hub; libuv's is this one
            pass  # nobody waits any more

    def close(self) -> None:
        close(self._async)


def make_reply(hub: Any, loop: Any) -> Reply:
    """Return a reply of this event loop for the calling greenlet."""
    return Reply(hub) if is_own_thread(loop) else _ThreadReply(hub)


def settle(reply: Reply, loop: Any, cancel: Callable[[], Any] | None) -> BaseException | None:
    """Wait for a reply. Blocks the greenlet.

    Args:
        reply: where the outcome comes.
        loop: the event loop it comes from.
        cancel: called if an exception is thrown into the greenlet meanwhile; None leaves alone
            what it waits for.

    Returns:
        What the caller is to raise, if not None.
    """
    if not isinstance(loop, EventLoop):
        closing = _hear_of_closing(loop, reply)
        try:
            return _settle(reply, loop, cancel)
        finally:
            kept = closing()
            if kept is not None:
                kept.replies.discard(reply)
    loop._add_guest(reply)
    try:
        return _settle(reply, loop, cancel)
    finally:
        loop._remove_guest(reply)


class _Closing:
    """Hears that an event loop of another make is closed, which tells nobody.

    It is an argument of a timer of that event loop, and nobody else refers to it for long: to
    close an event loop drops its timers, and all that is queued.

    Attributes:
        replies: of those who wait for something in it.
    """

    __slots__ = ("__weakref__", "replies")

    def __init__(self) -> None:
        self.replies: set[Reply] = set()

    def __del__(self) -> None:
        for reply in [*self.replies]:
            reply.fail_closed()


#: That of each event loop.
_closings: WeakKeyDictionary[Any, ref[_Closing]] = WeakKeyDictionary()


def _hear_of_closing(loop: Any, reply: Reply) -> ref[_Closing]:
    # Have the reply fail when the event loop is closed.
    reference = _closings.get(loop)
    closing = None if reference is None else reference()
    if reference is not None and closing is not None:
        closing.replies.add(reply)
        return reference
    closing = _Closing()
    closing.replies.add(reply)
    reference = _closings[loop] = ref(closing)
    try:
        call_in_loop(loop, _keep, closing)
    except RuntimeError:
        pass  # it is closed already, and `closing` goes with this frame
    return reference


def _keep(closing: _Closing) -> None:
    events.get_running_loop().call_later(LONGEST_WAIT, _keep, closing)


def _settle(reply: Reply, loop: Any, cancel: Callable[[], Any] | None) -> BaseException | None:
    try:
        reply.wait()
    except BaseException as error:
        caught = error
    else:
        return reply.error
    failed = None
    try:
        if cancel is not None and not (reply.done or loop.is_closed()):
            cancel()
            reply.wait_for_clean_up(loop)
        failed = reply.error
        if failed is None or (isinstance(failed, CancelledError) and not reply.is_final):
            return caught
        add_context(failed, caught)
        return failed
    finally:
        del failed, caught  # no cycle through the traceback


def add_context(error: BaseException, context: BaseException) -> None:
    # The clean-up has failed after this exception, which must not be forgotten.
    seen = set()
    while error is not context and id(error) not in seen:
        seen.add(id(error))
        if error.__context__ is None:
            error.__context__ = context
            return
        error = error.__context__


# --- a task for a greenlet -----------------------------------------------------------------------


class Call(Coroutine[Any, Any, None]):
    """A coroutine whose outcome goes to a reply instead of its task.

    It is an object, not an ``async def`` around the coroutine, because that has no code yet when
    its task is cancelled before the first step, or dropped with its event loop. And a greenlet's
    ``SystemExit`` is not to end the event loop.
    """

    __slots__ = ("_copies_context", "_reply", "_steps", "task")

    def __init__(self, steps: Any, reply: Reply, copies_context: bool) -> None:
        self._steps = steps
        self._reply = reply
        self._copies_context = copies_context
        self.task: Any = None

    def send(self, value: Any) -> Any:
        if self.task is None:
            self.task = asyncio.current_task()  # an eager one, which is just being made
        try:
            return self._steps.send(value)
        except StopIteration as stop:
            self._note_context()
            self.task = None  # no cycle: the task refers to this
            self._reply.succeed(stop.value)
            raise
        except BaseException as error:
            self._end(error)
        raise StopIteration

    def throw(self, *args: Any) -> Any:
        try:
            return self._steps.throw(*args)
        except StopIteration as stop:
            self._note_context()
            self.task = None
            self._reply.succeed(stop.value)
            raise
        except BaseException as error:
            self._end(error)
        raise StopIteration

    def _end(self, error: BaseException) -> None:
        self._note_context()
        traceback = error.__traceback__
        if traceback is not None:
            error.__traceback__ = traceback.tb_next  # not the frame of `send`
            if traceback.tb_next is None and error.args == REUSED:
                try:
                    check_awaitable(self._steps, "await_")
                except RuntimeError as better:
                    error = better
        self._reply.fail(error)
        self.task = None  # a cancelled task keeps its exception, and that this frame
        if isinstance(error, CancelledError):
            raise error  # the task is a cancelled one

    def is_settled(self) -> bool:
        """Whether the outcome is there."""
        return self._reply.done

    def is_for(self, reply: Reply) -> bool:
        """Whether this is the reply that the outcome goes to."""
        return self._reply is reply

    def hand_over(self, value: Any, reply: Reply) -> None:
        """Settle the reply, and go on for another one."""
        self._note_context()
        self._reply.succeed(value)
        self._reply = reply

    def _note_context(self) -> None:
        if self._copies_context:
            self._reply.context = contextvars.copy_context()

    def close(self) -> None:
        self._steps.close()
        self._reply.fail_closed()

    def __await__(self) -> Any:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        # For those who describe the task: `__qualname__`, `cr_code`, `cr_frame` ...
        return getattr(self._steps, name)


def start_call(loop: Any, awaitable: Any, reply: Reply, shares_context: bool = True) -> Call:
    """Make a task that awaits this and settles the reply.

    Args:
        loop: an event loop of any OS thread.
        awaitable: it was checked before.
        reply: see `make_reply`.
        shares_context: the task may run in the context of the calling greenlet. False if that is
            one of another task, too, which cannot enter it meanwhile.

    Does not block.
    """
    steps = _steps_of(awaitable)
    is_own = is_own_thread(loop)
    try:
        if shares_context and is_own and _HAS_TASK_CONTEXTS and loop.get_task_factory() is None:
            context = getcurrent().gr_context
            if context is None:
                contextvars.copy_context()  # lets the greenlet have one
                context = getcurrent().gr_context
            try:
                context.run(int)
            except RuntimeError:
                pass  # entered: what the greenlet does is in a call of Context.run()
            else:
                call = Call(steps, reply, False)
                call.task = loop.create_task(call, context=context)
                return call
        call = Call(steps, reply, True)
        context = contextvars.copy_context()
        if is_own and loop.get_task_factory() is None:
            call.task = context.run(loop.create_task, call)
        else:
            # Not here: an eager task would take its first step in this greenlet.
            call_in_loop(loop, _start, loop, call, context)
    except BaseException:
        reply.fail(CancelledError())
        reply.close()
        discard(awaitable)
        raise
    return call


def _start(loop: Any, call: Call, context: contextvars.Context) -> None:
    try:
        task = context.run(loop.create_task, call)
        if not call._reply.done:  # an eager one may have ended
            call.task = task
    except BaseException as error:
        call._reply.fail(error)
        call._steps.close()
        raise


def _cancel(loop: Any, call: Call) -> None:
    # After its first step, in any case: a coroutine that has not begun leaves others that it was
    # to await, and they complain of that.
    call_in_loop(loop, _cancel_here, call)


def _cancel_here(call: Call) -> None:
    if call.task is not None:  # else it has ended
        call.task.cancel()


def wait_for_call(loop: Any, call: Call, autocancel: bool = True) -> Any:
    """Wait for the task of this call, and return its result or raise its exception.

    Raises:
        CancelledExit: the task was cancelled.

    Blocks the greenlet.
    """
    reply = call._reply
    try:
        error = settle(reply, loop, partial(_cancel, loop, call) if autocancel else None)
    finally:
        reply.close()
        if loop.is_closed():
            # The error says so, to who can do something about it.
            discard(call._steps)
            if call.task is not None:
                _compat.forget_pending(call.task)
        if not (reply.done or call._copies_context):
            # The task goes on by itself, in what was this greenlet's context.
            getcurrent().gr_context = contextvars.copy_context()
        if reply.context is not None:
            _take_over(reply.context)
    if error is None:
        return reply.value
    if error is reply.error:  # not one that was thrown into this greenlet
        error = as_exit(error)
    reply.error = None
    try:
        raise error
    finally:
        del error  # no cycle through the traceback


def as_exit(error: BaseException) -> BaseException:
    """Return what a greenlet raises for this exception of async code."""
    if type(error) is not CancelledError:
        return error
    exit_ = CancelledExit(*error.args)
    exit_.__cause__ = error
    return exit_


def _take_over(context: contextvars.Context) -> None:
    # What was set in a copy of the calling greenlet's context.
    for variable, value in context.items():
        if variable.get(_MISSING) is not value:
            variable.set(value)


# --- futures -------------------------------------------------------------------------------------


def wait_for_future(future: Any, hub: Any, autocancel: bool = True) -> Any:
    """Wait in a greenlet that is no part of a task for a future of any event loop.

    Raises:
        CancelledExit: the future was cancelled.

    Blocks the greenlet.
    """
    error = None if future.done() else _settle_future(future, hub, autocancel)
    if error is None:
        try:
            return result_of(future)
        except CancelledError as cancelled:
            error = as_exit(cancelled)
    try:
        raise error
    finally:
        del error


def _settle_future(future: Any, hub: Any, autocancel: bool) -> BaseException | None:
    loop = future.get_loop()
    check_running(loop)
    reply = make_reply(hub, loop)
    note = reply.succeed
    try:
        if is_own_thread(loop):
            future.add_done_callback(note)
        else:
            loop.call_soon_threadsafe(future.add_done_callback, note)
        cancel = partial(call_in_loop, loop, future.cancel) if autocancel else None
        error = settle(reply, loop, cancel)
    finally:
        reply.close()
        if not (reply.done or loop.is_closed()):
            call_in_loop(loop, future.remove_done_callback, note)
    if error is not None and autocancel and future.done() and not future.cancelled():
        failed: BaseException | None = future.exception()
        if failed is not None and failed is not error:
            add_context(failed, error)
            return failed
    return error


def result_of(future: Any) -> Any:
    """Return the result of a future that is done, or raise its exception."""
    if not _compat.FUTURES_GROW_TRACEBACKS:
        return future.result()
    error = None if future.cancelled() else future.exception()
    if error is None:
        return future.result()
    kept = getattr(future, "_asyncio_gevent_traceback", None)
    if kept is None:
        kept = future._asyncio_gevent_traceback = error.__traceback__
    raise error.with_traceback(kept)


# --- below a task --------------------------------------------------------------------------------


def drive(steps: Any, first: Any, loop: Any, task: Any) -> Any:
    """Go on with a coroutine in the calling step of a task, to its end.

    Args:
        steps: the coroutine, which has begun.
        first: what it has yielded.
        loop: the running event loop.
        task: the current task.

    Returns:
        What the coroutine returns.

    Blocks the greenlet, that is, it suspends the step.
    """
    # What a task does in its steps: Lib/asyncio/tasks.py, Task.__step_run_and_handle_result().
    hub = get_hub_if_exists()
    step: Any = getcurrent()
    if type(step) is not Step:
        step = None
    injected: BaseException | None = None
    yielded = first
    while True:
        failure: BaseException | None = None
        if step is not None:
            # A green task: the task itself awaits it.
            failure, thrown = _pass_on(step, yielded)
            injected = thrown or injected
        elif getattr(yielded, "_asyncio_future_blocking", None) is not None:
            if yielded.get_loop() is not loop:
                failure = RuntimeError(
                    f"{task!r} awaits {yielded!r}, which belongs to another event loop"
                )
            elif not yielded._asyncio_future_blocking:
                failure = RuntimeError(
                    f"yield was used instead of yield from in {task!r} with {yielded!r}"
                )
            elif yielded is task:
                failure = RuntimeError(f"{task!r} cannot await itself")
            else:
                yielded._asyncio_future_blocking = False
                failure, thrown = _wait_in_step(hub, yielded, injected is not None)
                injected = thrown or injected  # the last one, as from any call that blocks
        elif yielded is None:
            turn = loop.create_future()
            loop.call_soon(end_turn, turn)
            failure, thrown = _wait_in_step(hub, turn, injected is not None)
            injected = thrown or injected
        else:
            failure = RuntimeError(f"{task!r} got a bad yield: {yielded!r}")
        try:
            yielded = steps.send(None) if failure is None else steps.throw(failure)
        except StopIteration as stop:
            if injected is None:
                return stop.value
            break
        except CancelledError:
            if injected is None:
                raise
            break
        except BaseException as error:
            if injected is not None:
                add_context(error, injected)
            raise
        finally:
            del failure
            thrown = None
    try:
        raise injected
    finally:
        del injected


def _pass_on(step: Step, yielded: Any) -> tuple[BaseException | None, BaseException | None]:
    # Returns what `_wait_in_step` does.
    try:
        step.pass_on(yielded)
    except CancelledError as error:
        # Of the task. Of what it awaits, if something else was thrown before.
        return error, None
    except BaseException as error:
        return CancelledError(), error
    return None, None


def end_turn(turn: Any) -> None:
    """Resolve a future that only says that it is time to go on, if nobody has cancelled it."""
    if not turn.done():
        turn.set_result(None)


def _wait_in_step(
    hub: Any, future: Any, is_ending: bool
) -> tuple[BaseException | None, BaseException | None]:
    # Returns what to throw into the coroutine, and what was thrown into this greenlet if that is
    # for others than the coroutine.
    waiter = Waiter(hub)
    wake = partial(hub.loop.run_callback, waiter.switch)
    future.add_done_callback(wake)
    injected: BaseException | None = None
    failure: BaseException | None = None
    while not future.done():
        try:
            waiter.get()
        except CancelledError as error:
            # As Task.cancel() does: what the task awaits is cancelled, and the task goes on when
            # that is done.
            if injected is not None or is_ending:
                injected = error  # the last one
            if not future.cancel(*error.args[:1]):
                failure = error
        except BaseException as error:
            if injected is not None or is_ending or not future.cancel():
                # Twice, or it cannot be cancelled: nobody waits any longer.
                future.remove_done_callback(wake)
                failure = CancelledError()
                injected = error
                break
            injected = error
    if future.done() and not future.cancelled():
        if failure is not None or injected is not None:
            future.exception()  # or it would be logged as never retrieved
    elif failure is None:
        failure = CancelledError()
    try:
        return failure, injected
    finally:
        del failure, injected  # no cycle through the traceback
