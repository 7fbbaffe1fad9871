"""Runners: the greenlets in which the event loop runs its handles.

Rule 1: every greenlet switch of the event loop is in this file.
Rule 2: this file does not know what a task or a handle is. It calls methods of the event loop at
        the edge, in the hub: `_enter` before a switch to a runner, `_leave` right after it,
        `_settle` when the thread is the hub's again (after `start`, its caller does). A step that
        is suspended again and again has `_enter_again` and `_leave_again`, which leave what is
        noted of it as it is (`_forget_notes` if that is not true any more). `_restore` is for
        what a signal handler raises in one of them.

Theory. The hub switches to a parked runner, the runner calls `loop._run_batch(runner)`, and
parks: one switch there and one back for a whole batch of handles. When the code of a handle
makes a blocking gevent call, gevent switches to the hub as always, and whoever switched to the
runner finds itself in the hub: the runner is suspended. What gevent then does to go on with it,
`runner.switch(...)` or `runner.throw(...)`, comes through the methods below, so that the
thread-wide state of asyncio (running loop, current task, hooks) is there again before the code
goes on, and gone when the hub goes on. A greenlet that is not a runner never sees it.

    hub                                  runner
    start() ----------------------------> _run_batch() -> handle -> gevent.sleep()
    _leave(), _settle()  <--------------- switch_out(), hub.switch()      [suspended]
    ... other greenlets, other runners ...
    switch() from sleep's timer --------> handle goes on, ends
    _leave(), _settle()  <--------------- [parked]
"""

from __future__ import annotations

import gc
import sys
from types import FunctionType
from typing import TYPE_CHECKING, Any

from greenlet import GreenletExit, getcurrent, gettrace, greenlet, settrace

from asyncio_gevent._blocking import blocking_call
from asyncio_gevent._compat import exception_of_throw
from asyncio_gevent._originals import native_local

if TYPE_CHECKING:
    from asyncio_gevent._event_loop import EventLoop

__all__ = [
    "LIVE",
    "PARKED",
    "Runner",
    "check_tracer",
    "find_left",
    "find_owner",
    "is_killed",
    "note_stray",
]

# The states of a runner.
PARKED = "parked"  #: has nothing to do; only `Runner.start` and `Runner.retire` switch to it
LIVE = "live"  #: the state of the thread is its event loop's: it runs, or a greenlet it started
SUSPENDED = "suspended"  #: code in it called a blocking gevent function

# The unbound methods of the C type: the switches of `Runner` itself end here, and these can
# neither be overridden nor be found in the dictionary of an instance.
_switch = greenlet.switch
_throw = greenlet.throw

#: What there was before the edge, where a signal handler has raised before that could be told: no
#: event loop, and no hooks. It is so almost always.
_NOBODY = None, (None, None)


def _run(self: Runner) -> None:
    while True:
        loop = self.loop
        assert loop is not None
        loop._run_batch(self)
        # What a parked runner refers to lives as long as its stack, which the garbage collector
        # cannot look into: not the loop, then, or a forgotten loop would live for ever.
        del loop
        self.state = PARKED
        # To the hub; `start` comes back here. Not hub.switch(): nothing blocks.
        _switch(self.parent)
        if self.loop is None:
            return


class Runner(greenlet):  # type: ignore[misc]
    """A greenlet of the event loop, child of the hub.

    Attributes:
        state: one of the above; written here only.
        loop: the event loop whose handles it runs; None while it is parked.
        resumed: it was suspended since its last start, so other runners have taken over and it
            parks when its handle returns.
        handle: the handle it runs, or ran last; written by the event loop.
        task: the task whose step is suspended in it, or None; written by the event loop.
        entered: ids of the handle and the contexts that the suspended step has entered; written by
            the event loop.
        claims: id to weak reference of each task that has claimed it; written by the event loop.
        eager: weak references to eager tasks whose first step, in that of another task, has left
            something with this runner, and how much; written by the event loop.
        is_plain: what is suspended in it can be resumed the short way; written by the event loop.
        deferred: handles that wait until it is parked; written by the event loop.
        closing: `GreenletExit` was thrown into its step, since the event loop is being closed.
        discarded: it ends when it is put away; written by the event loop.
        suspended_at, suspended_seconds: since when, or None, and for how long it was suspended;
            kept in debug mode only.
    """

    # A greenlet has a dictionary as well, but slots are read and written faster.
    __slots__ = (
        "claims",
        "closing",
        "deferred",
        "discarded",
        "eager",
        "entered",
        "handle",
        "is_plain",
        "loop",
        "resumed",
        "state",
        "suspended_at",
        "suspended_seconds",
        "task",
    )

    def __init__(self, hub: Any) -> None:
        super().__init__(parent=hub)
        self.state = PARKED
        self.loop: EventLoop | None = None
        self.resumed = False
        self.claims: dict[int, Any] = {}
        self.eager: list[Any] = []
        self.deferred: list[Any] = []
        self.closing = False
        self.is_plain = False
        self.discarded = False
        self.suspended_at: float | None = None
        self.suspended_seconds = 0.0
        self.handle: Any = None
        self.task: Any = None
        self.entered: tuple[int, ...] = ()

    # aiohttp's AppKey goes up the stack to a frame of a module, and takes the end of the stack
    # for an error. In a greenlet the stack ends at the greenlet's first function, so that
    # function answers to the name that the outermost code of a thread has.
    run = FunctionType(_run.__code__.replace(co_name="<module>"), _run.__globals__, "<module>")

    def start(self, loop: Any) -> None:
        """Let this parked runner run a batch. In the hub; returns when it parks or suspends."""
        self.loop = loop
        self.resumed = False
        outer = _NOBODY
        try:
            outer = loop._enter(self)
            self.state = LIVE
            _switch(self)
        finally:
            try:
                loop._leave(self, outer)
            except BaseException:  # of a signal handler
                loop._restore(self, outer)
                raise

    def switch(self, *args: Any, **kwargs: Any) -> Any:
        """Resume the suspended step; this is what gevent calls, in the hub."""
        if self.state is SUSPENDED and getcurrent() is self.parent:
            loop: Any = self.loop
            if self.is_plain and not loop._frozen:
                # What `_resume` does, with less for a step that is suspended again and again.
                outer = _NOBODY
                try:
                    outer = loop._enter_again(self)
                except BaseException:  # of a signal handler
                    loop._restore(self, outer)
                    self._come_again(_switch, args, kwargs)
                    raise
                self.state = LIVE
                self.resumed = True
                resumed = loop._resumed
                try:
                    resumed.append(self)
                    return _switch(self, *args, **kwargs)
                finally:
                    resumed.pop()
                    try:
                        if self.state is not SUSPENDED or not loop._leave_again(self, outer):
                            loop._forget_notes(self)
                            loop._leave(self, outer)
                            loop._settle(self)
                    except BaseException:  # of a signal handler
                        loop._restore(self, outer)
                        raise
        if self._is_left():
            return self._resume(_switch, args, kwargs)
        if self.state is PARKED:
            return None  # a stale wake-up, for a step that is over
        # A raw greenlet that a step started switches to its parent: no edge between the two.
        return _switch(self, *args, **kwargs)

    def throw(self, *args: Any) -> Any:
        """Resume the suspended step with an exception; this is what gevent calls, in the hub."""
        if self._is_left():
            if len(self.claims) > 1 and self._throw_into_claimant(args):
                return None
            return self._resume(_throw, args, {})
        if self.state is PARKED:
            self._throw_into_claimant(args)
            return None
        return _throw(self, *args)

    def _throw_into_claimant(self, args: tuple[Any, ...]) -> bool:
        # A gevent.Timeout that a step has set, say, and whose task awaits. What throws it refers to
        # this runner, so that the task has claimed it.
        tasks = [task for claim in self.claims.values() if (task := claim()) is not None]
        if not tasks:
            return False
        loop = tasks[0].get_loop()
        return bool(loop._throw_into_claimant(self, tasks, exception_of_throw(args)))

    def _is_left(self) -> bool:
        # Suspended itself, or waiting for a raw greenlet that blocks; it is then the hub that
        # switches here, for a gevent.Timeout say.
        return self.state is SUSPENDED or (self.state is LIVE and getcurrent() is self.parent)

    def _resume(self, how: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        loop = self.loop
        assert loop is not None
        if loop._frozen and loop._forked_in is not self:
            return None  # in a forked child; the parent goes on with this step
        if getcurrent() is not self.parent:
            # gevent resumes from the hub only. Somebody else's switch is left to the hub, since
            # the edge on the way back would wait until that greenlet is switched to again.
            self._come_again(how, args, kwargs)
            return None
        if self.state is LIVE:
            strays = _strays()
            strays.waiting.pop(self, None)
            self.parent.loop.run_callback(strays.remove_if_idle)
        state = self.state
        self.state = LIVE
        self.resumed = True
        outer = _NOBODY
        try:
            outer = loop._enter(self)
        except BaseException:  # of a signal handler
            self.state = state
            loop._restore(self, outer)
            self._come_again(how, args, kwargs)
            raise
        try:
            loop._resumed.append(self)
            return how(self, *args, **kwargs)
        finally:
            loop._resumed.pop()
            try:
                loop._leave(self, outer)
            except BaseException:  # of a signal handler
                loop._restore(self, outer)
                raise
            finally:
                loop._settle(self)

    def _come_again(self, how: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.parent.loop.run_callback(
            lambda: self.switch(*args, **kwargs) if how is _switch else self.throw(*args)
        )

    def switch_out(self) -> None:
        """Note that the code in this runner blocks; gevent calls it before it goes to the hub.

        Raises:
            BlockingCallError: the event loop was made with ``suspend=False``.
        """
        loop = self.loop
        if loop is not None and not (loop._suspend or self.closing):
            raise blocking_call(
                sys._getframe(1),
                "and this event loop was made with suspend=False. Make the call in a thread: "
                "`await asyncio.to_thread(function, ...)`, or let blocking calls suspend the "
                "step: `EventLoop()`",
            )
        self.state = SUSPENDED

    def retire(self) -> None:
        """End this parked runner. From any greenlet of its OS thread; returns when it is dead."""
        if self and not sys.is_finalizing():
            self.loop = None
            # It returns to its parent when it ends: here, not to the hub.
            self.parent = getcurrent()  # type: ignore[misc]
            _switch(self)

    def kill_step(self) -> None:
        """Throw ``GreenletExit`` into the suspended step. In the hub."""
        self.closing = True
        self.throw_into_step(GreenletExit())

    def throw_into_step(self, exception: BaseException) -> None:
        """Throw into whatever greenlet of the suspended step it is that blocks. In the hub."""
        if self.state is SUSPENDED:
            self.throw(exception)
        elif self.state is LIVE:
            blocked = find_blocked(self)
            if blocked is not None:
                blocked.throw(exception)


def is_killed(error: BaseException | None) -> bool:
    """Whether `Runner.kill_step` threw this into the calling step: it is nobody's mistake."""
    return isinstance(error, GreenletExit) and getattr(getcurrent(), "closing", False)


# --- raw greenlets of a step --------------------------------------------------------------------


class _Strays:
    """Follows the raw greenlets of steps that block in gevent, in one OS thread.

    Code in a step may make greenlets of its own and switch to them (SQLAlchemy's greenlet_spawn,
    Playwright's sync API, greenback). They are part of the step. When it is such a greenlet that
    blocks, the hub gets control without the runner's `switch_out`, and resumes a greenlet that
    has no hook of ours. There is one: ``greenlet.settrace``. It costs every switch of the thread
    a microsecond or more, so it is set only while there is such a greenlet.

    Attributes:
        waiting: the runners of which some other greenlet blocks, and that greenlet if known.
        live: the runner whose state the thread has since the tracer entered it, or None.
    """

    def __init__(self) -> None:
        self.waiting: dict[Runner, Any] = {}
        self.live: Runner | None = None
        self._outer: Any = None
        self._previous: Any = None
        self._installed = False
        self._inside = False

    def add(self, runner: Runner) -> None:
        self.waiting[runner] = None
        self._install()

    def _install(self) -> None:
        # Others use the one tracer that a thread has as well: theirs is called by ours, and
        # where theirs has displaced ours, ours is set again around it.
        if gettrace() is not self:
            previous = settrace(self)
            if not self._installed or previous is not None:
                self._previous = previous
            self._installed = True

    def remove_if_idle(self) -> None:
        if self._installed and not self.waiting and self.live is None and gettrace() is self:
            settrace(self._previous)
            self._previous = None
            self._installed = False

    def __call__(self, event: str, args: tuple[Any, Any]) -> None:
        # In the context of the target, right after the switch. Must not switch, must not raise.
        if self._inside:
            return  # a tracer that displaced this one calls it, and is called by it
        self._inside = True
        try:
            if self._previous is not None:
                self._previous(event, args)
            origin, target = args
            runner = self.live
            if runner is None:
                if self.waiting and not isinstance(target, Runner):
                    runner = find_owner(target)
                    if runner is not None and runner in self.waiting:
                        self._adopt(runner)
            elif target is runner.parent:
                self._release(runner, origin)
        finally:
            self._inside = False

    def _adopt(self, runner: Runner) -> None:
        loop = runner.loop
        assert loop is not None
        del self.waiting[runner]
        runner.resumed = True
        self.live = runner
        self._outer = loop._enter(runner)

    def _release(self, runner: Runner, origin: Any) -> None:
        # The hub goes on: the runner parked, suspended, or again another greenlet blocks.
        loop = runner.loop
        assert loop is not None
        self.live = None
        loop._leave(runner, self._outer)
        if runner in self.waiting and not isinstance(origin, Runner):
            self.waiting[runner] = origin
        loop._settle(runner)
        runner.parent.loop.run_callback(self.remove_if_idle)


_by_thread = native_local()


def _strays() -> _Strays:
    try:
        return _by_thread.strays  # type: ignore[no-any-return]
    except AttributeError:
        _by_thread.strays = strays = _Strays()
        return strays


def check_tracer() -> None:
    """Set the tracer again if others have displaced or removed it while it is needed."""
    strays = _strays()
    if strays.waiting:
        strays._install()


def note_stray(runner: Runner) -> None:
    """Follow the greenlets of this runner: one of them, not the runner, went to the hub."""
    _strays().add(runner)


def find_owner(target: Any) -> Runner | None:
    """Return the runner in whose step a greenlet was started, by way of its parents, or None."""
    while target is not None:
        if isinstance(target, Runner):
            return target
        target = target.parent
    return None


def find_left(loop: Any) -> Runner | None:
    """Return the runner, of this event loop, in which a step has left by a switch of its own.

    To a greenlet that is none of its own: not the hub, and none that it started. If there are
    several, the last one that did.
    """
    strays = _strays()
    runners: list[Runner | None] = [*reversed(loop._resumed), loop._batch]
    for runner in runners:
        if runner is not None and runner.loop is loop and runner.state is LIVE:
            return runner
    for waiting in reversed(strays.waiting):
        if waiting.loop is loop and find_blocked(waiting) is None:
            return waiting
    return None


def find_blocked(runner: Runner) -> Any:
    """Return the raw greenlet of this runner's step that blocks in the hub, or None.

    The tracer knows it from the second time on. The first time it has to be searched among all
    objects: slow, and only needed when such a step is cancelled or its loop closed.
    """
    known = _strays().waiting.get(runner)
    if known is not None:
        return known
    candidates = [
        candidate
        for candidate in gc.get_objects()
        # Not isinstance(), which asks the object: there are proxies that raise.
        if issubclass(type(candidate), greenlet)
        and candidate is not runner
        and candidate  # started, and not dead
        and find_owner(candidate) is runner
    ]
    # A greenlet that waits for a child of its own does not block in the hub; of the others it
    # is the one whose innermost function is gevent's (or C code that gevent's C code called).
    parents = {id(candidate.parent) for candidate in candidates}
    leaves = [candidate for candidate in candidates if id(candidate) not in parents]
    leaves.sort(key=_is_in_gevent)
    return leaves[-1] if leaves else None


def _is_in_gevent(candidate: Any) -> bool:
    frame = candidate.gr_frame
    return frame is None or frame.f_globals.get("__name__", "").startswith("gevent")
