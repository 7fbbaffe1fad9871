"""Green tasks: tasks of an asyncio loop that may block in gevent, though the loop carries the hub.

Theory. The greenlet that runs the event loop cannot wait in the hub (see `gevent_loop`). So the
steps of a green task run in a greenlet of the task's own, a `Step`, which can. The task's *driver*,
whichever greenlet runs the event loop, switches to it and gets back what the coroutine yields.

When code in the step blocks, gevent goes to the hub, after it has told the step (``switch_out``).
The hub switches to the driver, and the task awaits a future, its *waker*. For asyncio it is a task
that awaits a future: cancel, timeouts and ``current_task()`` need nothing special.

Whatever gevent does to wake the step calls ``switch`` or ``throw`` of it, in the hub, and the
blocked code goes on right there, as gevent's locks rely on; the event loop and the task are set as
the current ones meanwhile. When the coroutine yields or ends, that is noted, the waker is
resolved, and the task gets it in its next step.

    state       the step's greenlet                            the task goes on by
    IDLE        waits for work, in `Step.run`                  `work`, and a switch
    PASSING     is in `Step.pass_on`, for `await_()`           a switch
    BLOCKED     is in gevent's ``hub.switch()``                its waker

Something that gevent throws into a step which is not blocked, that is, whose task awaits, cancels
what the task awaits, and is raised there instead of ``CancelledError``: ``gevent.Timeout`` works
around an ``await``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from asyncio import CancelledError, events
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar
from weakref import getweakrefcount

from greenlet import getcurrent, greenlet

from asyncio_gevent import _compat
from asyncio_gevent._blocking import blocking_call
from asyncio_gevent._compat import exception_of_throw, get_hub_if_exists
from asyncio_gevent._hosts import set_running_loop
from asyncio_gevent._originals import native_local
from asyncio_gevent.exceptions import BlockingCallError

__all__ = ["Step", "green", "green_task_factory"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: Steps without work that are kept, for each OS thread.
MAX_STEPS = 64

IDLE = "idle"
PASSING = "passing"
BLOCKED = "blocked"

_switch = greenlet.switch
_throw = greenlet.throw
_getrefcount = sys.getrefcount
_HAS_UNCANCEL = sys.version_info >= (3, 11)


class Step(greenlet):  # type: ignore[misc]
    """The greenlet in which the steps of one green task run, one after the other.

    Attributes:
        driver: the greenlet that has switched to it.
        state: see above.
        work: what to call, and with what.
        outcome: what the coroutine has yielded, or what it has raised; None while it runs.
        waker: the future that its task awaits while it is blocked.
        loop, task: its event loop and its task.
        is_hidden: the event loop and the task are not the current ones, since it has blocked and
            its driver has not heard of it.
        own_context: the context in which it is suspended, if that is not the task's.
        thrown: what was thrown while its task awaits, or None.
    """

    __slots__ = (
        "driver",
        "is_hidden",
        "loop",
        "outcome",
        "own_context",
        "state",
        "task",
        "thrown",
        "waker",
        "work",
    )

    def __init__(self, hub: Any) -> None:
        # A child of the hub, as all greenlets of gevent's are.
        super().__init__(None, hub)
        self.driver: Any = None
        self.state = IDLE
        self.work: Any = None
        self.outcome: tuple[Any, BaseException | None] | None = None
        self.waker: Any = None
        self.loop: Any = None
        self.task: Any = None
        self.thrown: BaseException | None = None
        self.own_context: Any = None
        self.is_hidden = False

    def run(self) -> None:
        # `work` is None when the step is not needed any more.
        while self.work is not None:
            method, value = self.work
            self.work = None
            try:
                self.outcome = method(value), None
            except BaseException as error:
                self.outcome = None, error
            method = value = None
            _switch(self.driver)

    def pass_on(self, yielded: Any) -> Any:
        """Have the task await what a coroutine has yielded. In the step itself.

        Returns:
            What the task sends; it raises what the task throws.
        """
        self.outcome = yielded, None
        self.state = PASSING
        try:
            return _switch(self.driver)
        finally:
            self.state = IDLE

    # --- what gevent calls --------------------------------------------------------------------

    def switch_out(self) -> None:
        """Note that code in the step blocks; gevent calls it before it goes to the hub."""
        loop, task = self.loop, self.task
        if _compat.current_task(loop) is not task:
            raise blocking_call(
                sys._getframe(1),
                "in the first step of an eager task, which its maker waits for, and which is not "
                "green: make it of a coroutine function that is, `@asyncio_gevent.green`",
            )
        self.state = BLOCKED
        hub = get_hub_if_exists()
        if self.driver is not hub:
            hub.loop._blocked.append((loop, self.driver))  # it is to know
            self.is_hidden = True
            if task is not None:
                _compat.leave_task(loop, task)
            set_running_loop(None)

    def switch(self, *args: Any) -> Any:
        """Have the blocked code go on with this. In the hub.

        A raw greenlet that code of the step has made (SQLAlchemy's ``greenlet_spawn`` makes some)
        switches to it as to any parent.
        """
        if self.state is BLOCKED:
            self._go_on(_switch, args)
            return None
        if getcurrent() is not get_hub_if_exists():
            return _switch(self, *args)
        return None

    def throw(self, *args: Any) -> Any:
        """Have the blocked code, or what the task awaits, raise this."""
        if getcurrent() is self:
            raise exception_of_throw(args)
        if self.state is BLOCKED:
            self._go_on(_throw, (exception_of_throw(args),))
        elif getcurrent().parent is self:
            return _throw(self, *args)
        elif self.task is not None and not self.task.done():
            self.thrown = exception_of_throw(args)
            self.task.cancel()
            self.loop.call_soon_threadsafe(int)  # it may be asleep, if a signal handler has thrown
        return None

    def _go_on(self, how: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.state = IDLE
        self.driver = getcurrent()
        loop, task = self.loop, self.task
        outside = events._get_running_loop()
        set_running_loop(loop)
        if task is not None:
            _compat.enter_task(loop, task)
        get_hub_if_exists().loop._drop_stopped()  # it is code of an event loop
        try:
            how(self, *args)
        finally:
            if task is not None:
                _compat.leave_task(loop, task)
            set_running_loop(outside)
        waker = self.waker
        if self.outcome is not None and waker is not None:
            if not (waker.done() or loop.is_closed()):
                waker.set_result(None)


class _Pool(native_local):  # type: ignore[misc]
    """The steps of an OS thread that have no work."""

    def __init__(self) -> None:
        self.steps: list[Step] = []


_pool = _Pool()


def _take(hub: Any) -> Step:
    steps = _pool.steps
    while steps:
        step = steps.pop()
        if step.parent is hub and step:
            return step
    return Step(hub)


def _put_back(step: Step, references: int) -> None:
    # Only if nobody refers to it: a gevent.local, a timeout, a waiter. Otherwise it ends, as a
    # greenlet of gevent's does.
    step.driver = step.loop = step.task = step.waker = step.outcome = step.thrown = (
        step.own_context
    ) = None
    if (
        step
        and _getrefcount(step) <= references
        and not getweakrefcount(step)
        and not step.__dict__
        and len(_pool.steps) < MAX_STEPS
    ):
        step.gr_context = None
        _pool.steps.append(step)
    elif step:
        step.parent = getcurrent()
        _switch(step)


@functools.cache
def _own_references() -> int:
    # How many references there are, for `_put_back`, if nobody else has one.
    step = Step(getcurrent())
    step.driver = getcurrent()
    step.work = (int, 0)
    _switch(step)
    step.outcome = None
    count = _count(step)
    _switch(step)
    return count


def _count(step: Step) -> int:
    return _getrefcount(step)


class GreenCoroutine(Coroutine[Any, Any, Any]):
    """A coroutine whose steps run in a greenlet. To be awaited, or to make a task of.

    Args:
        coroutine: the coroutine, which has not begun.
    """

    __slots__ = ("__weakref__", "_coroutine", "_is_plain", "_step")

    def __init__(self, coroutine: Any) -> None:
        self._coroutine = coroutine
        self._step: Step | None = None
        self._is_plain: bool | None = None  # not known yet

    def send(self, value: Any) -> Any:
        step = self._step
        if step is None:
            if self._is_plain is None:
                step = self._begin()
            if step is None:
                return self._coroutine.send(value)
        if step.waker is not None:
            step.waker = None
            return self._finish(step)
        if step.state is PASSING:
            return self._go(step, _switch, (value,))
        step.work = self._coroutine.send, value
        return self._go(step, _switch, ())

    def throw(self, *args: Any) -> Any:
        step = self._step
        if step is None:
            if self._is_plain is None:
                step = self._begin()
            if step is None:
                return self._coroutine.throw(*args)
        error = exception_of_throw(args)
        step.waker = None
        if step.outcome is not None:
            # The code has gone on, and this comes too late for it. What it awaits now is cancelled.
            task = step.task
            if isinstance(error, CancelledError) and step.outcome[1] is None and task is not None:
                task.cancel(*error.args[:1])
                if _HAS_UNCANCEL:
                    task.uncancel()  # it is the same request
            return self._finish(step)
        if step.thrown is not None:
            thrown, step.thrown = step.thrown, None
            if isinstance(error, CancelledError):
                if _HAS_UNCANCEL and step.task is not None:
                    step.task.uncancel()
                error = thrown
        if step.state is IDLE:
            step.work = self._coroutine.throw, error
            return self._go(step, _switch, ())
        step.state = IDLE
        return self._go(step, _throw, (error,))

    def _begin(self) -> Step | None:
        # The first step: which of the systems is this?
        loop = events._get_running_loop()
        current = getcurrent()
        if getattr(loop, "_runs_on_hub", False) or (
            type(current) is Step and current.task is _compat.current_task(loop)
        ):
            self._is_plain = True  # every step may block there, or it is part of one that may
            return None
        hub = get_hub_if_exists()
        if hub is None or getattr(hub.loop, "attached", None) is not loop:
            hub = _hub_carried_by(loop)
        self._is_plain = False
        self._step = step = _take(hub)
        step.loop = loop
        step.task = _compat.current_task(loop)
        return step

    def _go(self, step: Step, how: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        # To the step, and back when the coroutine has yielded or ended, or code of it blocks.
        step.driver = driver = getcurrent()
        context = driver.gr_context
        if step.own_context is None:
            step.gr_context = context
        how(step, *args)
        if step.is_hidden:
            # It has blocked, and may have gone on since.
            step.is_hidden = False
            set_running_loop(step.loop)
            if step.task is not None:
                _compat.enter_task(step.loop, step.task)
        own = step.gr_context
        # Another one while the code is below a Context.run().
        step.own_context = None if own is context else own
        return self._finish(step)

    def _finish(self, step: Step) -> Any:
        outcome = step.outcome
        if outcome is None:
            # It is blocked: the hub has switched here; see `gevent_loop`.
            loop: Any = step.loop
            step.waker = waker = loop.create_future()
            waker._asyncio_future_blocking = True  # as `await` has it
            return waker
        step.outcome = None
        value, error = outcome
        if error is None:
            return value
        self._step = None
        self._is_plain = True  # it has ended, and says so itself if it is used again
        outcome = None
        _put_back(step, _own_references())
        try:
            raise error
        finally:
            del error, step

    def close(self) -> None:
        step = self._step
        if step is None:
            self._coroutine.close()
            return
        try:
            self.throw(GeneratorExit())
        except (GeneratorExit, StopIteration):
            return
        raise RuntimeError("coroutine ignored GeneratorExit")

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def __getattr__(self, name: str) -> Any:
        # For those who describe the task: `__qualname__`, `cr_code`, `cr_frame` ...
        return getattr(self._coroutine, name)

    def __repr__(self) -> str:
        return f"<green {self._coroutine!r}>"


def _hub_carried_by(loop: Any) -> Any:
    import gevent

    hub = gevent.get_hub()
    if not hasattr(hub.loop, "attached"):
        raise BlockingCallError(
            f"a green task needs gevent's hub to be carried by {loop!r}, and this hub has a loop "
            "of its own: start the program with GEVENT_LOOP=asyncio_gevent.gevent_loop."
            "GeventLoop, or run it with `asyncio_gevent.run(main())`"
        )
    if hub.loop.attached is not loop:
        raise BlockingCallError(f"gevent's hub is carried by {hub.loop.attached!r}, not {loop!r}")
    return hub


def green_task_factory(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, _T], **options: Any
) -> asyncio.Task[_T]:
    """Make a task whose steps may block in gevent: ``loop.set_task_factory(green_task_factory)``.

    A blocking gevent call then suspends the task, not the event loop. The steps of the task run
    in a greenlet of its own, the same for all of them.

    Args:
        loop: the event loop, of any make.
        coro: the coroutine.
        options: what the event loop passes to ``asyncio.Task``.

    Raises:
        TypeError: not a coroutine.

    Does not block. When such a task takes its first step, and gevent's hub is not carried by the
    event loop, it ends with `BlockingCallError`, which says what to do.
    """
    if not isinstance(coro, GreenCoroutine) and asyncio.iscoroutine(coro):
        coro = GreenCoroutine(coro)
    return asyncio.Task(coro, loop=loop, **options)


def green(function: Callable[_P, Coroutine[Any, Any, _T]]) -> Callable[_P, Coroutine[Any, Any, _T]]:
    """Let a coroutine function block in gevent, in the task that awaits it.

        @asyncio_gevent.green
        async def handler(request):
            return legacy_function(request)  # may use gevent

    Below it every synchronous call may block in gevent, or wait for async code by `await_`: the
    task is suspended meanwhile, the event loop goes on. In other coroutines of the task, those
    that await this one, nothing changes.

    Args:
        function: an ``async def`` function, or another one that returns a coroutine.

    Returns:
        A function with the same arguments, that returns a coroutine.

    Raises:
        TypeError: not such a function.

    On `EventLoop`, where every step may block, it changes nothing.
    """
    if inspect.isasyncgenfunction(function):
        raise TypeError(
            f"{function!r} is an async generator function: use `green` for the coroutine that "
            "iterates over it, or `async_iter()` for a synchronous generator"
        )
    if not callable(function):
        raise TypeError(f"{function!r} is not a function: use `@green` above an `async def`")
    if not inspect.iscoroutinefunction(function) and inspect.isfunction(function):
        raise TypeError(
            f"{function!r} is no `async def` function: for a function that blocks use "
            "`sync_to_async`"
        )

    @functools.wraps(function)
    async def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await GreenCoroutine(function(*args, **kwargs))  # type: ignore[no-any-return]

    return call
