"""The watchers of `GeventLoop`: what gevent starts, stops and closes to hear of an event.

Rule 1: what a watcher waits for is kept in the loop (its heap of timers, its descriptors), so that
        it outlives the asyncio loop that carries it at the moment.
Rule 2: starting and stopping only note what is wanted. The loop tells its host before it sleeps,
        as libev does, so that a watcher that is stopped and started again in one turn, as those
        of a socket are with each ``recv()``, costs no system call.

What they do in detail is what gevent's own do (src/gevent/libev/corecext.pyx and
src/gevent/_ffi/watcher.py), down to the types of errors: gevent's modules rely on it.
"""

from __future__ import annotations

import operator
import os
import signal
from asyncio import events
from collections.abc import Callable
from heapq import heappush
from time import monotonic
from typing import TYPE_CHECKING, Any

from asyncio_gevent._hosts import is_in_c
from asyncio_gevent._originals import (
    fstat,
    native_getsignal,
    native_signal,
    os_close,
    os_waitpid,
)

if TYPE_CHECKING:
    from asyncio_gevent._turns import Turns

__all__ = [
    "EVENTS",
    "READ",
    "WRITE",
    "Async",
    "Callback",
    "Check",
    "Child",
    "Descriptor",
    "Fork",
    "Idle",
    "Io",
    "Prepare",
    "Signal",
    "Stat",
    "Timer",
    "Watcher",
]

#: Bits of the events of an `Io` watcher.
READ = 1
WRITE = 2

_get_running_loop = events._get_running_loop


class _Events:
    def __repr__(self) -> str:
        return "gevent.core.EVENTS"


#: As the first of the arguments of a callback it stands for the events that have happened.
EVENTS = _Events()

#: Seconds between two looks of a `Stat` watcher at its path if it was told no interval.
STAT_INTERVAL = 0.5
#: The shortest such interval, which is libev's (``MIN_STAT_INTERVAL`` in ev.c).
STAT_MINIMUM = 0.1074891


class Callback:
    """A function that the loop calls in its next turn.

    Attributes:
        callback: the function; None once it is called or stopped.
        args: its arguments, the very tuple that was given until the function has returned: gevent
            appends to what is in it meanwhile. Then None.
    """

    __slots__ = ("args", "callback")

    args: Any
    callback: Any

    def stop(self) -> None:
        """Do not call it."""
        self.callback = self.args = None

    close = stop

    def __bool__(self) -> bool:
        # Pending or being called; `pending` is False already while it is being called.
        return self.args is not None

    @property
    def pending(self) -> bool:
        """Whether it is still to be called."""
        return self.callback is not None

    def __repr__(self) -> str:
        state = "pending" if self.pending else "called or stopped"
        return f"<{type(self).__name__} {state} callback={self.callback!r} args={self.args!r}>"


class Watcher:
    """What all watchers have in common.

    Attributes:
        loop: the loop.
        active: it was started, and neither stopped nor, if it fires once, has it fired.
    """

    __slots__ = ("__weakref__", "_args", "_callback", "_priority", "_ref", "active", "loop")

    def __init__(self, loop: Turns, ref: bool = True, priority: int | None = None) -> None:
        if loop._destroyed:
            raise ValueError("operation on destroyed loop")
        self.loop = loop
        self._ref = bool(ref)
        self._priority = priority or 0
        self._callback: Any = None
        self._args: Any = None
        self.active = False

    # --- what a kind of watcher has to say ----------------------------------------------------

    def _arm(self) -> None:
        """Begin to wait."""
        raise NotImplementedError

    def _disarm(self) -> None:
        """Wait no more."""
        raise NotImplementedError

    # --- what gevent uses ---------------------------------------------------------------------

    def start(self, callback: Callable[..., Any], *args: Any) -> None:
        """Call this whenever the event happens, in the hub. Does not block.

        Raises:
            TypeError: the callback is not callable.
            ValueError: the loop was destroyed.
        """
        self._begin(callback, args)

    def _begin(self, callback: Any, args: Any) -> None:
        if not callable(callback):
            raise TypeError(f"Expected callable, not {callback!r}")
        loop = self.loop
        if loop._destroyed:
            raise ValueError("operation on destroyed loop")
        self._callback = callback
        self._args = args
        if not self.active:
            self._arm()
            self.active = True
            if self._ref:
                loop._references += 1
            if not loop._awake or (loop._asks_who_runs and _get_running_loop() is not None):
                loop._wake()

    def stop(self) -> None:
        """Call it no more. Does nothing if it was not started."""
        if self.active:
            self.active = False
            if self._ref:
                self.loop._references -= 1
            self._disarm()
        self._callback = self._args = None

    def close(self) -> None:
        """Stop it for good."""
        self.stop()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self.close()

    def feed(self, revents: int, callback: Callable[..., Any], *args: Any) -> None:
        """Call this in the next turn, once, as if the event had happened. Does not start it."""
        if not callable(callback):
            raise TypeError(f"Expected callable, not {callback!r}")
        if self.loop._destroyed:
            raise ValueError("operation on destroyed loop")
        self._callback = callback
        self._args = args
        self.loop._feed(self, revents)

    @property
    def ref(self) -> bool:
        """Whether the loop goes on as long as this is active."""
        return self._ref

    @ref.setter
    def ref(self, value: bool) -> None:
        value = bool(value)
        if value is not self._ref:
            self._ref = value
            if self.active:
                self.loop._references += 1 if value else -1
                self.loop._wake()

    @property
    def priority(self) -> int:
        """Of those that fire in the same turn, the higher goes first."""
        return self._priority

    @priority.setter
    def priority(self, value: int) -> None:
        if self.active:
            raise ValueError("Cannot set priority of an active watcher")
        self._priority = value

    def _set_callback(self, value: Any) -> None:
        if value is not None and not callable(value):
            raise TypeError(f"Expected callable, not {value!r}")
        self._callback = value

    # Read without a function in Python: a socket asks before each wait.
    callback = property(
        operator.attrgetter("_callback"), _set_callback, doc="The function that it calls, or None."
    )

    @property
    def args(self) -> Any:
        """The arguments of that function, a tuple or None."""
        return self._args

    @args.setter
    def args(self, value: Any) -> None:
        if value is not None and not isinstance(value, tuple):
            raise TypeError("args must be a tuple or None")
        self._args = value

    @property
    def pending(self) -> bool:
        """Whether the event has happened and the callback was not called yet."""
        return any(watcher is self for watcher, _ in self.loop._fed)

    def _describe(self) -> str:
        return ""

    def __repr__(self) -> str:
        state = "active" if self.active else "stopped"
        return (
            f"<{type(self).__name__} at {id(self):#x}{self._describe()} {state} ref={self._ref} "
            f"callback={self._callback!r}>"
        )


class Timer(Watcher):
    """Fires after a time, in seconds, and then at intervals if it repeats."""

    # Made by `Turns.timer`. Its methods are written out instead of calling those of the base class:
    # each gevent.sleep(), each gevent.Timeout and each wait with a time limit makes one, starts it
    # and closes it.

    __slots__ = ("_after", "_entry", "_repeat")

    _after: float
    _entry: Any
    _repeat: float

    __init__ = object.__init__

    def start(self, callback: Callable[..., Any], *args: Any, update: bool | None = None) -> None:
        """Call this once the time has passed, which begins now. Does not block.

        Args:
            callback: the function.
            args: its arguments.
            update: ignored: the time that has passed is always known.
        """
        if not callable(callback):
            raise TypeError(f"Expected callable, not {callback!r}")
        self._callback = callback
        self._args = args
        if not self.active:
            loop = self.loop
            if loop._destroyed:
                raise ValueError("operation on destroyed loop")
            self.active = True
            loop._timers_started = number = loop._timers_started + 1
            self._entry = entry = (monotonic() + self._after, number, self)
            heappush(loop._timers, entry)
            if self._ref:
                loop._references += 1
            if not loop._awake or (loop._asks_who_runs and _get_running_loop() is not None):
                loop._wake()

    def again(self, callback: Callable[..., Any], *args: Any, update: bool | None = None) -> None:
        """Start it, or start it anew, to fire after its interval; without one, stop it."""
        if not callable(callback):
            raise TypeError(f"Expected callable, not {callback!r}")
        if not self._repeat:
            self.stop()
            return
        self.stop()
        after, self._after = self._after, self._repeat
        try:
            self.start(callback, *args)
        finally:
            self._after = after

    def stop(self) -> None:
        """Call it no more. Does nothing if it was not started."""
        if self.active:
            self.active = False
            self._entry = None
            loop = self.loop
            if self._ref:
                loop._references -= 1
            loop._stopped_timers += 1
            if loop._stopped_timers > loop._timers_to_purge:
                loop._purge_timers()
        self._callback = self._args = None

    close = stop

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if self.active:
            self.stop()

    def _repeat_from(self, now: float) -> None:
        # Before its callback: it goes on by its interval, or from now if it is late.
        when = self._entry[0] + self._repeat
        if when < now:
            when = now
        loop = self.loop
        loop._timers_started = number = loop._timers_started + 1
        self._entry = entry = (when, number, self)
        heappush(loop._timers, entry)

    def _describe(self) -> str:
        return f" after={self._after} repeat={self._repeat}"


class Descriptor:
    """A file descriptor, for all the watchers of it.

    Attributes:
        watchers: the active ones.
        wanted: the events they wait for.
        registered: those that the host was told of.
        is_renewed: a watcher was made since, perhaps since the number stands for another file.
        is_feeding: it is always ready, as libev has it for regular files, or it is no open
            descriptor: each turn feeds it, and the host is not asked.
    """

    __slots__ = (
        "__weakref__",
        "fd",
        "is_feeding",
        "is_renewed",
        "registered",
        "wanted",
        "watchers",
    )

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.watchers: list[Io] = []
        self.wanted = self.registered = 0
        self.is_renewed = False
        self.is_feeding = False


def _check_fd(fd: int) -> None:
    if fd < 0:
        raise ValueError(f"fd must be non-negative: {fd!r}")


def _check_events(events: int) -> None:
    if events & ~(READ | WRITE) or not events:
        raise ValueError(f"illegal event mask: {events!r}")


class Io(Watcher):
    """Fires while a descriptor is ready."""

    __slots__ = ("_descriptor", "_events")

    def __init__(
        self,
        loop: Turns,
        fd: int,
        events: int,
        ref: bool = True,
        priority: int | None = None,
    ) -> None:
        _check_fd(fd)
        _check_events(events)
        fstat(fd)  # OSError, EBADF
        super().__init__(loop, ref, priority)
        self._events = events
        self._descriptor = loop._find_descriptor(fd)

    def start(self, callback: Callable[..., Any], *args: Any, pass_events: bool = False) -> None:
        """Call this while the descriptor is ready. Does not block.

        Args:
            callback: the function.
            args: its arguments.
            pass_events: give it the events first, `READ` or `WRITE` or both.
        """
        if pass_events:
            args = (EVENTS, *args)
        if not callable(callback):
            raise TypeError(f"Expected callable, not {callback!r}")
        loop = self.loop
        if loop._destroyed:
            raise ValueError("operation on destroyed loop")
        self._callback = callback
        self._args = args
        if not self.active:
            self.active = True
            if self._ref:
                loop._references += 1
            descriptor = self._descriptor
            watchers = descriptor.watchers
            if not watchers:
                loop._watched.add(descriptor)
            watchers.append(self)
            descriptor.wanted |= self._events
            # Also one that seems to be registered: its number may have been closed meanwhile.
            if descriptor.wanted != descriptor.registered or descriptor.is_renewed:
                loop._changed.add(descriptor)
            else:
                loop._changed.discard(descriptor)
            if not loop._awake or (loop._asks_who_runs and _get_running_loop() is not None):
                loop._wake()

    def stop(self) -> None:
        """Call it no more. Does nothing if it was not started."""
        if self.active:
            self.active = False
            loop = self.loop
            if self._ref:
                loop._references -= 1
            descriptor = self._descriptor
            watchers = descriptor.watchers
            watchers.remove(self)
            if watchers:
                wanted = 0
                for each in watchers:
                    wanted |= each._events
                descriptor.wanted = wanted
            else:
                descriptor.wanted = 0
                loop._watched.discard(descriptor)
                loop._feeding.discard(descriptor)
            if descriptor.wanted != descriptor.registered:
                loop._changed.add(descriptor)
                if not loop._awake or (loop._asks_who_runs and _get_running_loop() is not None):
                    loop._drop(descriptor)
                    loop._wake()
                elif not watchers and loop._attached is not None:
                    loop._stopped.append(descriptor)
        self._callback = self._args = None

    def close(self) -> None:
        """Stop it for good. The descriptor may be closed next."""
        self.stop()
        descriptor = self._descriptor
        if descriptor.registered and not descriptor.wanted:
            self.loop._drop(descriptor)

    @property
    def fd(self) -> int:
        """The descriptor. It can be set while the watcher is stopped."""
        return self._descriptor.fd

    @fd.setter
    def fd(self, value: int) -> None:
        self._check_stopped("fd")
        _check_fd(value)
        self._descriptor = self.loop._find_descriptor(value)

    @property
    def events(self) -> int:
        """What it waits for. It can be set while the watcher is stopped."""
        return self._events

    @events.setter
    def events(self, value: int) -> None:
        self._check_stopped("events")
        _check_events(value)
        self._events = value

    @property
    def events_str(self) -> str:
        """The same, to read."""
        names = [name for bit, name in ((READ, "READ"), (WRITE, "WRITE")) if self._events & bit]
        return "|".join(names)

    def _check_stopped(self, name: str) -> None:
        if self.active:
            raise AttributeError(f"'io' watcher attribute {name!r} is read-only while it is active")

    def _describe(self) -> str:
        return f" fd={self.fd} events={self.events_str}"


class _Listed(Watcher):
    """A watcher that the loop keeps in a list of its kind."""

    __slots__ = ()
    _list = ""

    def _arm(self) -> None:
        getattr(self.loop, self._list).append(self)

    def _disarm(self) -> None:
        getattr(self.loop, self._list).remove(self)


class Idle(_Listed):
    """Fires in each turn in which nothing else does, and keeps the loop from sleeping."""

    __slots__ = ()
    _list = "_idles"


class Prepare(_Listed):
    """Fires before the loop sleeps."""

    __slots__ = ()
    _list = "_prepares"


class Check(_Listed):
    """Fires after the loop has polled, and before everything else.

    gevent closes descriptors in one of these, once nobody can be waiting for them any more. So the
    loop is to poll soon, and to tell whether it has: a function that is called soon by asyncio is
    called after a poll, by uvloop before one. Of two, one after the other, the second is called
    after a poll by both.
    """

    __slots__ = ("hops",)
    _list = "_checks"

    def _arm(self) -> None:
        super()._arm()
        self.hops = 0

    def has_polled(self) -> bool:
        """Whether the loop has polled since this was started."""
        return self.hops >= 2


class Fork(_Listed):
    """Fires in a forked child, after `GeventLoop.reinit`."""

    __slots__ = ()
    _list = "_forks"


class Async(Watcher):
    """Fires when `send` was called, in any OS thread."""

    __slots__ = ("_is_pending",)

    def __init__(self, loop: Turns, ref: bool = True, priority: int | None = None) -> None:
        super().__init__(loop, ref, priority)
        self._is_pending = False

    def _arm(self) -> None:
        self.loop._asyncs.add(self)

    def _disarm(self) -> None:
        self.loop._asyncs.discard(self)

    def send(self) -> None:
        """Have it fire, once for all calls until it does. From any OS thread."""
        if not self._is_pending:
            self._is_pending = True
            self.loop._sent.append(self)
        self.loop._wake_threadsafe()

    def send_ignoring_arg(self, ignored: object) -> None:
        """The same, as a link or a callback that is given something."""
        self.send()

    @property
    def pending(self) -> bool:
        """Whether `send` was called and the callback was not."""
        return self._is_pending


class Signal(Watcher):
    """Fires when the process has got a signal."""

    __slots__ = ("signum",)

    def __init__(
        self, loop: Turns, signum: int, ref: bool = True, priority: int | None = None
    ) -> None:
        if signum < 1 or signum >= signal.NSIG:
            raise ValueError(f"illegal signal number: {signum!r}")
        super().__init__(loop, ref, priority)
        self.signum = signum

    def _arm(self) -> None:
        watchers = _signal_watchers.setdefault(self.signum, [])
        if not watchers:
            try:
                _former_handlers[self.signum] = native_signal(self.signum, _on_signal)
            except BaseException:  # ValueError: not in the main thread
                del _signal_watchers[self.signum]
                raise
        watchers.append(self)
        self.loop._install_waker()

    def _disarm(self) -> None:
        watchers = _signal_watchers[self.signum]
        watchers.remove(self)
        if not watchers:
            del _signal_watchers[self.signum]
            if not _signal_watchers:
                self.loop._remove_waker()
            former = _former_handlers.pop(self.signum)
            if native_getsignal(self.signum) is _on_signal:
                native_signal(self.signum, signal.SIG_DFL if former is None else former)

    def _describe(self) -> str:
        return f" signalnum={self.signum}"


_signal_watchers: dict[int, list[Signal]] = {}
_former_handlers: dict[int, Any] = {}


def _on_signal(signum: int, frame: Any) -> None:
    # A handler of the interpreter: in the main thread, in the midst of anything.
    for watcher in [*_signal_watchers.get(signum, ())]:
        loop = watcher.loop
        loop._fed.append((watcher, 0))
        loop._wake_threadsafe()


class Child(Watcher):
    """Fires when a child process has ended, or, with pid 0, any.

    Attributes:
        pid: what it waits for.
        rpid: the child that has ended, or None.
        rstatus: its wait status (``os.WEXITSTATUS`` and so on), or 0.
    """

    __slots__ = ("pid", "rpid", "rstatus")

    def __init__(self, loop: Turns, pid: int, trace: int = 0, ref: bool = True) -> None:
        if not loop._is_default:
            raise TypeError("child watchers are only available on the default loop")
        super().__init__(loop, ref)
        self.pid = operator.index(pid)  # TypeError if it is no integer
        self.rpid: int | None = None
        self.rstatus = 0

    def _arm(self) -> None:
        self.loop._children.add(self)

    def _disarm(self) -> None:
        self.loop._children.remove(self)

    def _describe(self) -> str:
        return f" pid={self.pid} rstatus={self.rstatus}"


class Children:
    """The children that a loop waits for: only these are reaped, the others are somebody else's.

    A child is watched by a descriptor of its own (``os.pidfd_open``), which needs neither SIGCHLD
    nor the main thread, and does not mind what else handles that signal. Where there is none, and
    for those who wait for any child, SIGCHLD says when to look.
    """

    def __init__(self, loop: Turns) -> None:
        self._loop = loop
        self._by_pid: dict[int, list[Child]] = {}
        self._pidfds: dict[int, Io] = {}
        self._sigchld: Signal | None = None
        self._ended: list[int] = []
        self._check: Check | None = None

    def add(self, watcher: Child) -> None:
        """Wait for one, whether it has ended or not."""
        pid = watcher.pid
        watchers = self._by_pid.setdefault(pid, [])
        watchers.append(watcher)
        if len(watchers) > 1:
            return
        if pid > 0 and self._watch_by_pidfd(pid):
            return
        if self._sigchld is None:
            self._sigchld = Signal(self._loop, signal.SIGCHLD, ref=False)
            self._sigchld.start(self._look)
        # It may have ended before.
        self._loop.run_callback(self._look)

    def _watch_by_pidfd(self, pid: int) -> bool:
        if not hasattr(os, "pidfd_open"):
            return False
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return True  # somebody else has reaped it
        except OSError:
            return False  # the system, or a sandbox, does not let us
        watcher = self._pidfds[pid] = Io(self._loop, pidfd, READ, ref=False)
        watcher.start(self._reap, pid)
        return True

    def remove(self, watcher: Child) -> None:
        """Wait no more for one."""
        watchers = self._by_pid[watcher.pid]
        watchers.remove(watcher)
        if not watchers:
            del self._by_pid[watcher.pid]
            self._forget_pidfd(watcher.pid)
            if not self._by_pid and self._sigchld is not None:
                self._sigchld.close()
                self._sigchld = None

    def _forget_pidfd(self, pid: int) -> None:
        watcher = self._pidfds.pop(pid, None)
        if watcher is not None:
            fd = watcher.fd
            watcher.close()
            self._loop._let_go(fd)
            os_close(fd)

    def _look(self) -> None:
        for pid in [*self._by_pid]:
            if pid > 0 and pid not in self._pidfds:
                self._reap(pid)
        while 0 in self._by_pid or -1 in self._by_pid:
            try:
                pid, status = os_waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            self._note_end(pid, status)

    def _reap(self, pid: int) -> None:
        try:
            reaped, status = (self._look_at if self._must_leave() else os_waitpid)(pid, os.WNOHANG)
        except ChildProcessError:
            # Somebody else has reaped it, or it is nobody's child. libev never hears of it.
            self._forget_pidfd(pid)
            return
        if reaped:
            self._note_end(reaped, status)

    def _note_end(self, pid: int, status: int) -> None:
        # All of them know before the first is called: gevent's os.waitpid() reads another one.
        self._forget_pidfd(pid)
        watchers = [watcher for key in (pid, 0, -1) for watcher in self._by_pid.get(key, ())]
        for watcher in watchers:
            watcher.rpid = pid
            watcher.rstatus = status
        for watcher in watchers:
            # Now, before any other callback: who asks for this child later would never hear of it.
            if watcher.active:
                self._loop._fire(watcher, 0)

    # While asyncio starts a child, by gevent's ``Popen`` after patching, gevent waits until it has
    # begun. It may have ended by then, and must not be reaped before asyncio has opened a
    # descriptor of it (Lib/asyncio/unix_events.py, PidfdChildWatcher), which it then does at once.

    def _must_leave(self) -> bool:
        attached = self._loop._attached
        return attached is not None and not is_in_c(attached)

    def _look_at(self, pid: int, options: int) -> tuple[int, int]:
        # As os.waitpid(), but it is reaped only when the loop has polled.
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | options)
        if result is None:
            return 0, 0
        self._ended.append(pid)
        if self._check is None:
            self._check = Check(self._loop, ref=False)
            self._check.start(self.reap_ended)
        if result.si_code == os.CLD_EXITED:
            return pid, result.si_status << 8
        return pid, result.si_status | (0x80 if result.si_code == os.CLD_DUMPED else 0)

    def reap_ended(self) -> None:
        """Leave no zombies of those that have ended."""
        if self._check is not None:
            self._check.close()
            self._check = None
        ended, self._ended = self._ended, []
        for pid in ended:
            try:
                os_waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass  # somebody else has done it

    def after_fork(self) -> None:
        """Forget the parent's children, in the child, which cannot wait for them."""
        self._ended.clear()
        for pid in [*self._pidfds]:
            self._forget_pidfd(pid)


class Stat(Watcher):
    """Fires when what is known of a path has changed. It looks at intervals.

    Attributes:
        attr: the ``os.stat_result``, or None if there is no such file.
        prev: the one before.
    """

    __slots__ = ("_attr", "_interval", "_path", "_paths", "_prev", "_timer")

    def __init__(
        self,
        loop: Turns,
        path: Any,
        interval: float = 0.0,
        ref: bool = True,
        priority: int | None = None,
    ) -> None:
        super().__init__(loop, ref, priority)
        self._path = path
        self._paths = os.fsencode(path)
        self._interval = interval
        self._attr: Any = None
        self._prev: Any = None
        self._timer: Timer | None = None

    def _arm(self) -> None:
        if self._interval <= 0.0:
            self._interval = STAT_INTERVAL
        self._interval = max(self._interval, STAT_MINIMUM)
        self._attr = self._look()
        self._timer = self.loop.timer(self._interval, self._interval, ref=False)
        self._timer.start(self._on_timer)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def _look(self) -> Any:
        try:
            return os.stat(self._paths)
        except OSError:
            return None

    def _on_timer(self) -> None:
        now = self._look()
        if _identify(now) != _identify(self._attr):
            self._prev, self._attr = self._attr, now
            self.loop._feed(self, 0)

    @property
    def path(self) -> Any:
        """The path, as it was given."""
        return self._path

    @property
    def interval(self) -> float:
        """Seconds between two looks."""
        return self._interval

    @property
    def attr(self) -> Any:
        """What is known of it now."""
        return self._attr

    @property
    def prev(self) -> Any:
        """What was known of it before the last change."""
        return self._prev

    def _describe(self) -> str:
        return f" path={self._path!r}"


def _identify(result: os.stat_result | None) -> Any:
    # Reading a file changes its access time only, which nobody means.
    if result is None:
        return None
    return (
        result.st_dev, result.st_ino, result.st_mode, result.st_nlink, result.st_uid,
        result.st_gid, result.st_size, result.st_mtime_ns, result.st_ctime_ns,
    )  # fmt: skip
