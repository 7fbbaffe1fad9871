"""gevent on asyncio: gevent's loop, made of any asyncio loop.

Use ``GEVENT_LOOP=asyncio_gevent.gevent_loop.GeventLoop``, or ``gevent.config.loop =
"asyncio_gevent.gevent_loop.GeventLoop"`` before the first hub. gevent imports this module while it
is being imported itself, before any monkey patching.

Theory. A `GeventLoop` keeps everything that gevent waits for: queued callbacks, a heap of timers,
descriptors, signals, children. It does not wait itself. That does its *host*, an asyncio loop,
which is told of one timer, the next one, and of the descriptors; its handles begin a *turn*, in
which everything that is due is done. A turn always runs in the hub greenlet, as gevent demands.

    nobody runs an asyncio loop     The hub runs a private host, in `run`. Turns are handles of it.
                                    When nothing is left to wait for, `run` returns, and gevent
                                    raises LoopExit.
    greenlet M runs an asyncio loop The loop is *attached* to it. Handles of it run in M, its
                                    *carrier*, which switches to the hub for a turn (`_carry`), and
                                    the hub back.

So M never waits in the hub: it is what the hub waits for. If it tries, gevent asks it first
(``switch_out``), and it gets `BlockingCallError`. Some of the standard library's own short waits
are let through: the one of ``Thread.start()`` for its thread, which is a greenlet after patching.
M is *stalled* then, and the hub runs the private host until M goes on.

While greenlets run, M's loop and task are hidden: they are not part of it, and may run other
event loops.

Rule 1: whoever adds something outside of a turn calls `_wake`; in a turn nobody has to.
Rule 2: `_host` is where the descriptors are registered and who is to be woken. `_move_to` alone
        changes it, and forgets what the former one had been asked for.
Rule 3: nothing escapes to the host: errors go to `handle_error`.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from asyncio import events
from collections import deque
from collections.abc import Callable
from functools import partial
from heapq import heapify, heappop
from itertools import count
from os import getpid
from time import monotonic
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from gevent.exceptions import HubDestroyed
from greenlet import getcurrent, greenlet

from asyncio_gevent import _compat
from asyncio_gevent._blocking import blocking_call, is_short_wait
from asyncio_gevent._compat import get_hub_if_exists
from asyncio_gevent._gevent_watchers import (
    EVENTS,
    READ,
    WRITE,
    Async,
    Callback,
    Check,
    Child,
    Children,
    Descriptor,
    Fork,
    Idle,
    Io,
    Prepare,
    Signal,
    Stat,
    Timer,
    Watcher,
)
from asyncio_gevent._hosts import (
    is_foreign,
    make_private_host,
    reset_in_child,
    set_running_loop,
    use_native_selector,
    watch_running_loops,
)
from asyncio_gevent._originals import get_ident

__all__ = [
    "EVENTS",
    "READ",
    "WRITE",
    "GeventLoop",
    "callback",
    "loop",
    "supported_backends",
]

#: Callbacks after which a turn looks whether it has taken too long, as gevent's loops do.
CALLBACKS_BETWEEN_LOOKS = 50

#: Stopped timers that the heap may hold before it is looked through for them.
STOPPED_TIMERS = 64

#: Seconds that a host is asked to wait at most: uvloop takes only so much.
LONGEST_WAIT = 24 * 3600.0

_get_running_loop = events._get_running_loop
_switch = greenlet.switch

_TIMERS = "timers"
_QUEUES = "queues"
_CALLBACKS = "callbacks"


def supported_backends() -> list[str]:
    """Return the names of the ways in which the loop can wait; gevent's tests ask for them."""
    return ["default"]


class GeventLoop:
    """A gevent loop that is carried by asyncio loops.

    gevent makes one for each OS thread that uses it.

    Args:
        flags: ignored; libev's.
        default: False for that of a native thread, True or None for that of the main one. Only
            that can wait for children.

    Attributes:
        error_handler: the hub, while it runs the loop.
        host_factory: what makes private hosts; None: see `asyncio_gevent._hosts`.
        _references: how many active watchers are reason enough not to end.
        _callbacks: functions to call in the next turn.
        _timers: heap of (time, number, timer); an entry that is not the timer's own is stopped.
        _watched: descriptors with active watchers.
        _changed: those whose registration may have to change.
        _feeding: those that are always ready.
        _fed: watchers that fire in the next turn, with events.
        _sent: `Async` watchers that fire in the next turn.
        _awake: a turn is under way.
        _host: the event loop in which descriptors are registered, or None.
        _private: the private host, or None.
        _attached: the event loop that runs in this thread and is not ours, or None.
        _carrier: the greenlet that runs it.
        _outer: event loops, with their carriers, that wait for the attached one to end.
        _request: what the carrier, which waits in `_carry`, wants; arguments of `_turn`; or None.
        _waiting: that carrier, or None.
        _blocked: the step of a green task that has blocked, and whose task does not know; or None.
        _armed: the host's timer, or None, and the time for which it was set.
        _is_wake_sent: the host will begin a turn.
        _hooks: of asynchronous generators, outside of the private host.
    """

    host_factory: Callable[[], Any] | None = None

    #: It takes the status of no child that nobody watches; gevent's own loops take all.
    reaps_watched_only = True

    approx_timer_resolution = 0.001
    starting_timer_may_update_loop_time = False
    MINPRI = -2
    MAXPRI = 2

    def __init__(self, flags: Any = None, default: bool | None = None) -> None:
        self.error_handler: Any = None
        self._is_default = default is None or bool(default)
        self._destroyed = False
        self._thread = get_ident()
        self._process = getpid()
        _loops.add(self)
        self._references = 0
        self._callbacks: deque[Any] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._next_number = count().__next__
        self._stopped_timers = 0
        self._timers_to_purge = STOPPED_TIMERS
        self._descriptors: WeakValueDictionary[int, Descriptor] = WeakValueDictionary()
        self._watched: set[Descriptor] = set()
        self._changed: set[Descriptor] = set()
        self._feeding: set[Descriptor] = set()
        self._fed: deque[tuple[Watcher, int]] = deque()
        self._sent: deque[Async] = deque()
        self._asyncs: set[Async] = set()
        self._checks: list[Check] = []
        self._prepares: list[Prepare] = []
        self._idles: list[Idle] = []
        self._forks: list[Fork] = []
        self._is_quiet = False
        self._children = Children(self)
        self._now = monotonic()
        self._awake = False
        self._is_broken = False
        self._is_once = False
        self._host: Any = None
        self._private: Any = None
        self._attached: Any = None
        self._carrier: Any = None
        self._outer: list[tuple[Any, Any]] = []
        self._request: tuple[Any, int] | None = None
        self._waiting: Any = None
        self._blocked: Any = None
        self._armed: Any = None
        self._armed_for = 0.0
        self._is_wake_sent = False
        self._hooks: Any = (None, None)
        # Each is asked for by every sleep, socket or call: what they would add is a call.
        self.timer: Callable[..., Timer] = partial(Timer, self)
        self.io: Callable[..., Io] = partial(Io, self)
        running = _get_running_loop()
        if running is not None and is_foreign(running):
            self._attach(running)
        else:
            # Now: its descriptors would otherwise get numbers that a program may have closed and
            # still use.
            self._private = make_private_host(type(self).host_factory)

    # --- watchers -----------------------------------------------------------------------------

    def signal(self, signum: int, ref: bool = True, priority: int | None = None) -> Signal:
        """Return a watcher of a signal."""
        return Signal(self, signum, ref, priority)

    def idle(self, ref: bool = True, priority: int | None = None) -> Idle:
        """Return a watcher that fires when nothing else does."""
        return Idle(self, ref, priority)

    def prepare(self, ref: bool = True, priority: int | None = None) -> Prepare:
        """Return a watcher that fires before the loop polls."""
        return Prepare(self, ref, priority)

    def check(self, ref: bool = True, priority: int | None = None) -> Check:
        """Return a watcher that fires after the loop has polled."""
        return Check(self, ref, priority)

    def fork(self, ref: bool = True, priority: int | None = None) -> Fork:
        """Return a watcher that fires in a forked child."""
        return Fork(self, ref, priority)

    def async_(self, ref: bool = True, priority: int | None = None) -> Async:
        """Return a watcher that other OS threads have fire."""
        return Async(self, ref, priority)

    locals()["async"] = async_  # by this name, too, which has become a keyword

    def child(self, pid: int, trace: int = 0, ref: bool = True) -> Child:
        """Return a watcher of a child process."""
        return Child(self, pid, trace, ref)

    def stat(
        self, path: Any, interval: float = 0.0, ref: bool = True, priority: int | None = None
    ) -> Stat:
        """Return a watcher of a path."""
        return Stat(self, path, interval, ref, priority)

    def install_sigchld(self) -> None:
        """Do nothing: children are watched without SIGCHLD."""

    def reset_sigchld(self) -> None:
        """Do nothing: children are watched without SIGCHLD."""

    # --- callbacks ----------------------------------------------------------------------------

    def run_callback(self, func: Callable[..., Any], *args: Any) -> Callback:
        """Call this in the next turn, in the hub. Does not block. From the loop's OS thread."""
        pending = Callback(func, args)
        self._callbacks.append(pending)
        if not self._awake or _get_running_loop() is not None:
            self._wake()
        return pending

    def run_callback_threadsafe(self, func: Callable[..., Any], *args: Any) -> Callback:
        """The same, from any OS thread."""
        pending = Callback(func, args)
        self._callbacks.append(pending)
        self._wake_threadsafe()
        return pending

    # --- waking -------------------------------------------------------------------------------

    def _wake(self) -> None:
        # Something was added, outside of a turn or in code that an event loop runs.
        if self._destroyed:
            return
        if get_ident() != self._thread:
            self._wake_threadsafe()
            return
        running = _get_running_loop()
        attached = self._attached
        if attached is None:
            if running is not None and is_foreign(running) and running is not self._private:
                self._attach(running)
                return
        elif running is not attached:
            if running is not None and is_foreign(running) and running is not self._private:
                self._attach(running)
                return
            if running is None and not attached.is_running():
                self._detach()
        else:
            self._watch_for_blocking(getcurrent())
            if not self._is_wake_sent and self._host is attached:
                self._is_wake_sent = True
                if _compat.is_polling(attached, sys._getframe(1)):
                    attached.call_soon_threadsafe(self._on_wake, attached)
                else:
                    self._call_soon(attached, self._on_wake, attached)
                return
        if not self._awake:
            self._wake_threadsafe()

    @staticmethod
    def _call_soon(host: Any, function: Callable[..., Any], *args: Any) -> None:
        try:
            host.call_soon(function, *args)
        except RuntimeError:
            # In debug mode asyncio compares identifiers of threads, which are greenlets' after
            # patching.
            host.call_soon_threadsafe(function, *args)

    def _wake_threadsafe(self) -> None:
        # What was added has been added before this; see `_move_to`.
        if self._is_wake_sent:
            return
        self._is_wake_sent = True
        while True:
            host = self._host
            if host is None:
                return  # whoever makes the hub run looks for it first
            try:
                host.call_soon_threadsafe(self._on_wake, host)
            except RuntimeError:
                if host is not self._host:
                    continue  # there is another one by now
                # It is closed, or about to be: the next one looks for it first.
            return

    # --- turns --------------------------------------------------------------------------------

    def _on_wake(self, host: Any) -> None:
        if host is self._host:
            self._is_wake_sent = False
            self._begin_turn(host, _QUEUES, 0)

    def _on_timer(self, host: Any) -> None:
        if host is self._host:
            self._armed = None
            self._begin_turn(host, _TIMERS, 0)

    def _on_ready(self, host: Any, descriptor: Descriptor, revents: int) -> None:
        if host is self._host:
            self._begin_turn(host, descriptor, revents)

    def _begin_turn(self, host: Any, kind: Any, revents: int) -> None:
        # A handle of the host.
        if host is self._attached:
            self._carry((kind, revents))
            return
        if _get_running_loop() is not None:
            self._hide_private()
        self._turn(kind, revents)
        if host in _left_to_parent:
            # A greenlet has forked, and this is the child, in which the parent's uvloop must do
            # nothing any more.
            if not self._is_broken:
                self.run()
            host.stop()

    def _turn(self, kind: Any, revents: int) -> None:
        """Do what is due. In the hub.

        Args:
            kind: a descriptor that is ready, `_TIMERS`, `_QUEUES` (of what watchers of other
                kinds are to fire) or `_CALLBACKS`. Queued callbacks are called in all turns but
                those of a descriptor.
            revents: what the descriptor is ready for.
        """
        # Each by its own handle of the host, which calls those of descriptors before those of
        # timers. It is the order of libev, and gevent's wait(timeout=0) relies on it.
        self._awake = True
        done = is_descriptor = type(kind) is Descriptor
        self._now = now = monotonic()
        if self._checks:
            for check in [*self._checks]:
                check.hops += kind is _QUEUES
                if check.active and check.has_polled():
                    self._fire(check, 0)
        if done:
            self._fire_descriptor(kind, revents)
        if kind is _TIMERS:
            timers = self._timers
            if timers and timers[0][0] <= now:
                done = True
                self._fire_timers(now)
        elif kind is _QUEUES:
            if self._fed:
                done = True
                self._fire_fed()
            if self._sent:
                done = True
                self._fire_sent()
            if self._feeding:
                done = True
                for each in [*self._feeding]:
                    self._fire_descriptor(each, READ | WRITE)
        if self._idles:
            self._fire_idles(done or bool(self._callbacks))
        if self._prepares:
            for prepare in [*self._prepares]:
                if prepare.active:
                    self._fire(prepare, 0)
        # After all the descriptors that one poll has found: select() is to return all of them.
        if self._callbacks and not is_descriptor:
            self._run_callbacks()
        # One of the callbacks may close a descriptor: no host is told of it before.
        self._end_turn(is_descriptor and bool(self._callbacks))

    def _run_callbacks(self) -> None:
        # Those that they add as well, for as long as a thread may keep the interpreter: chains of
        # them are how greenlets talk, and a poll between any two would cost more than they do.
        callbacks = self._callbacks
        popleft = callbacks.popleft
        ends = monotonic() + sys.getswitchinterval()
        left = CALLBACKS_BETWEEN_LOOKS
        while callbacks:
            pending = popleft()
            function = pending.callback
            if function is None:
                continue
            pending.callback = None
            try:
                function(*pending.args)
            except BaseException:
                self._report(pending)
            # gevent looks at this: the function has returned.
            pending.args = None
            left -= 1
            if not left:
                if monotonic() >= ends:
                    break
                left = CALLBACKS_BETWEEN_LOOKS

    def _fire_timers(self, now: float) -> None:
        timers = self._timers
        while timers and timers[0][0] <= now:
            entry = heappop(timers)
            timer = entry[2]
            if timer._entry is not entry:
                self._stopped_timers -= 1
                continue
            if timer._repeat:
                timer._repeat_from(now)
            else:
                # It is over before its callback, which may start it again.
                timer.active = False
                timer._entry = None
                if timer._ref:
                    self._references -= 1
            try:
                timer._callback(*(timer._args or ()))
            except BaseException:
                self._report(timer)
            if not timer.active:
                timer._callback = timer._args = None

    def _purge_timers(self) -> None:
        # More than half of them are stopped: socket timeouts that were not needed, say.
        timers = [entry for entry in self._timers if entry[2]._entry is entry]
        heapify(timers)
        self._timers[:] = timers
        self._stopped_timers = 0
        self._timers_to_purge = max(STOPPED_TIMERS, len(timers))

    def _fire_descriptor(self, descriptor: Descriptor, revents: int) -> None:
        watchers = descriptor.watchers
        for watcher in [*watchers] if len(watchers) > 1 else watchers[:1]:
            happened = watcher._events & revents
            if happened and watcher.active:
                self._fire(watcher, happened)

    def _fire_idles(self, done: bool) -> None:
        # When there was nothing else to do between two turns: what a host has found by polling
        # comes after the turn that was to follow.
        if done or self._changed:
            self._is_quiet = False
        elif not self._is_quiet:
            self._is_quiet = True
        else:
            for idle in [*self._idles]:
                if idle.active:
                    self._fire(idle, 0)

    def _fire_fed(self) -> None:
        fed = self._fed
        for _ in range(len(fed)):
            watcher, revents = fed.popleft()
            if watcher.active:
                self._fire(watcher, revents)

    def _fire_sent(self) -> None:
        sent = self._sent
        for _ in range(len(sent)):
            watcher = sent.popleft()
            watcher._is_pending = False
            if watcher.active:
                self._fire(watcher, 0)

    def _fire(self, watcher: Any, revents: int) -> None:
        args = watcher._args or ()
        if args and args[0] is EVENTS:
            args = (revents, *args[1:])
        try:
            watcher._callback(*args)
        except BaseException:
            self._report(watcher)
            if type(watcher) is Io:
                watcher.stop()

    def _feed(self, watcher: Watcher, revents: int) -> None:
        self._fed.append((watcher, revents))
        if not self._awake or _get_running_loop() is not None:
            self._wake()

    # --- between turns ------------------------------------------------------------------------

    def _end_turn(self, goes_on: bool) -> None:
        host = self._host
        if self._changed and host is not None and not goes_on:
            self._tell_host(host)
        self._awake = False
        if host is None:
            return
        timers = self._timers
        while timers and timers[0][2]._entry is not timers[0]:
            heappop(timers)
            self._stopped_timers -= 1
        private = self._private
        if host is not private:
            # The hub is in the private host if somebody has begun to run another one in this turn.
            if private is not None and private.is_running():
                private.stop()
        elif (
            self._is_broken or self._is_once or self._blocked is not None or not self._is_needed()
        ):
            private.stop()
            return
        if self._callbacks or self._idles or self._fed or self._sent or self._feeding:
            self._go_on(host)
        elif self._checks and not self._checks[-1].has_polled():
            self._go_on(host)
        if timers:
            when = timers[0][0]
            if self._armed is None or when < self._armed_for:
                self._arm(host, when)
        elif self._armed is not None:
            self._armed.cancel()
            self._armed = None

    def _is_needed(self) -> bool:
        return bool(self._references > 0 or self._callbacks or self._fed)

    def _go_on(self, host: Any) -> None:
        # Another turn, once the host has polled.
        if not self._is_wake_sent:
            self._is_wake_sent = True
            self._call_soon(host, self._on_wake, host)

    def _arm(self, host: Any, when: float) -> None:
        if self._armed is not None:
            self._armed.cancel()
            self._armed = None
        self._armed_for = when
        delay = when - monotonic()
        if type(host).__module__ == "uvloop":
            if delay <= 0.0:
                # It would call it before it polls.
                self._armed = host.call_soon(self._arm_again, host)
                return
            # It counts milliseconds, to the nearest one: not to find that it is too early.
            delay = (int(delay * 1000.0) + 1) / 1000.0
        self._armed = host.call_later(min(max(delay, 0.0), LONGEST_WAIT), self._on_timer, host)

    def _arm_again(self, host: Any) -> None:
        if host is self._host:
            self._armed = host.call_soon(self._on_timer, host)

    def _tell_host(self, host: Any) -> None:
        changed = self._changed
        while changed:
            descriptor = changed.pop()
            try:
                self._register(host, descriptor)
            except BaseException as error:
                # Whoever waits finds out what is wrong with it when he uses it.
                descriptor.registered = 0
                descriptor.is_feeding = True
                self._feeding.add(descriptor)
                if not isinstance(error, OSError) or error.errno not in (
                    errno.EPERM,
                    errno.EBADF,
                    errno.ENOENT,
                    errno.EEXIST,
                ):
                    self._report(descriptor.watchers[0] if descriptor.watchers else None)

    def _register(self, host: Any, descriptor: Descriptor) -> None:
        wanted = descriptor.wanted
        if descriptor.is_feeding:
            if wanted and not descriptor.is_renewed:
                self._feeding.add(descriptor)
                return
            self._feeding.discard(descriptor)
            descriptor.is_feeding = False
        registered = descriptor.registered
        fd = descriptor.fd
        if descriptor.is_renewed:
            descriptor.is_renewed = False
            if registered:
                self._unregister(host, descriptor)
                registered = 0
        if registered & ~wanted & READ:
            host.remove_reader(fd)
        if registered & ~wanted & WRITE:
            host.remove_writer(fd)
        descriptor.registered = registered & wanted
        if wanted & ~registered & READ:
            host.add_reader(fd, self._on_ready, host, descriptor, READ)
            descriptor.registered |= READ
        if wanted & ~registered & WRITE:
            host.add_writer(fd, self._on_ready, host, descriptor, WRITE)
            descriptor.registered |= WRITE

    @staticmethod
    def _unregister(host: Any, descriptor: Descriptor) -> None:
        # Both, whatever becomes of the first: somebody may have closed the descriptor.
        registered, descriptor.registered = descriptor.registered, 0
        for bit, remove in ((READ, host.remove_reader), (WRITE, host.remove_writer)):
            if registered & bit:
                try:
                    remove(descriptor.fd)
                except (OSError, ValueError, RuntimeError):
                    pass

    def _find_descriptor(self, fd: int) -> Descriptor:
        # For a new watcher. It may be another file than the last time.
        descriptor = self._descriptors.get(fd)
        if descriptor is None:
            self._descriptors[fd] = descriptor = Descriptor(fd)
        elif descriptor.registered or descriptor.is_feeding:
            descriptor.is_renewed = True
        return descriptor

    def _let_go(self, fd: int) -> None:
        # It is about to be closed.
        descriptor = self._descriptors.get(fd)
        if descriptor is not None:
            if self._host is not None and descriptor.registered:
                self._unregister(self._host, descriptor)
            self._feeding.discard(descriptor)
            self._changed.discard(descriptor)

    def closing_fd(self, fd: int) -> bool:
        """Have all active watchers of a descriptor fire soon, which is about to be closed.

        Returns:
            Whether there are any.
        """
        descriptor = self._descriptors.get(fd)
        if descriptor is None:
            return False
        self._let_go(fd)
        watchers = [*descriptor.watchers]
        for watcher in watchers:
            self._feed(watcher, watcher._events)
        return bool(watchers)

    # --- hosts --------------------------------------------------------------------------------

    def _move_to(self, host: Any) -> None:
        # The order matters to `_wake_threadsafe`: first the new host, then the flag, and the new
        # host's first turn looks at everything.
        old = self._host
        if old is host:
            self._is_wake_sent = False
            return
        if self._armed is not None:
            self._armed.cancel()
            self._armed = None
        for descriptor in {*self._watched, *self._changed}:
            if descriptor.registered:
                if old is None or old.is_closed():
                    descriptor.registered = 0
                else:
                    self._unregister(old, descriptor)
            self._changed.add(descriptor)
        self._host = host
        self._is_wake_sent = False

    def _note_running_loop(self, previous: Any, running: Any) -> None:
        # The running event loop of this thread has changed.
        if running is not None:
            if running is not self._attached and running is not self._private:
                if is_foreign(running) and not self._destroyed:
                    self._attach(running)
        elif previous is not None and previous is self._attached:
            self._detach()

    def _attach(self, host: Any) -> None:
        # In the greenlet that runs it, or in something that it has switched to.
        current = getcurrent()
        hub = get_hub_if_exists()
        if current is hub:
            return  # somebody runs an event loop in a callback of the hub, which stands still
        attached = self._attached
        if attached is not None:
            self._release_carrier()
            if attached.is_running():
                self._outer.append((attached, self._carrier))
        use_native_selector(host)
        self._attached = host
        self._carrier = None
        self._watch_for_blocking(current)
        self._move_to(host)
        self._awake = False
        self._is_wake_sent = True
        self._call_soon(host, self._on_wake, host)

    def _detach(self) -> None:
        # It does not run any more.
        host = self._attached
        self._release_carrier()
        self._attached = self._carrier = None
        while self._outer:
            outer, carrier = self._outer.pop()
            if outer.is_running():
                self._attached = outer
                self._carrier = carrier
                self._hold(carrier)
                break
        if self._host is host:
            self._move_to(self._attached)
        if self._attached is not None:
            self._is_wake_sent = True
            self._attached.call_soon_threadsafe(self._on_wake, self._attached)

    @property
    def attached(self) -> Any:
        """The asyncio loop that runs in this OS thread and carries the hub, or None."""
        attached = self._attached
        if attached is None:
            running = _get_running_loop()
            if running is not None:
                self._wake()
                attached = self._attached
        return attached

    # --- the carrier --------------------------------------------------------------------------

    def _watch_for_blocking(self, current: Any) -> None:
        # Whoever runs in the event loop now cannot wait in the hub. gevent calls `switch_out` of
        # a greenlet that is about to, if it has one.
        if getattr(current, "switch_out", None) is None:
            self._hold(current)
            if self._carrier is None:
                self._carrier = current

    def _hold(self, carrier: Any) -> None:
        carrier.switch_out = self._on_block

    def _release_carrier(self) -> None:
        carrier = self._carrier
        if carrier is not None:
            carrier.__dict__.pop("switch_out", None)

    def _carry(self, request: tuple[Any, int]) -> None:
        # A handle of the attached event loop, in the greenlet that runs it: have the hub do this,
        # and whatever else is due.
        host = self._attached
        current = getcurrent()
        if current is not self._carrier:
            self._release_carrier()
            self._carrier = current
            self._hold(current)
        hub = get_hub_if_exists()
        if hub is None or hub.loop is not self or hub is current:
            return
        self._request = request
        self._waiting = current
        self._awake = True
        set_running_loop(None)
        try:
            _switch(hub)
        finally:
            set_running_loop(host)
            if self._waiting is current:
                # Something was thrown into it, and the turn is not over.
                self._waiting = None
                self._awake = False
                self._go_on(host)

    def _on_block(self) -> None:
        # A greenlet that the attached event loop runs is about to wait in the hub; in it.
        host = self._attached
        current = getcurrent()
        if host is None or _get_running_loop() is not host:
            # It does not run any more, and we have not heard of it.
            current.__dict__.pop("switch_out", None)
            self._wake()
            return
        frame = sys._getframe(1)
        if not is_short_wait(frame):
            raise blocking_call(
                frame,
                "in a coroutine or callback of an event loop, which carries gevent's hub and could "
                "not go on meanwhile. Call it in a greenlet, `await asyncio_gevent.sync_to_async("
                "function)(...)`, or make the coroutine one that may block: `@asyncio_gevent."
                "green`, or `loop.set_task_factory(asyncio_gevent.green_task_factory)` for all",
            )
        task = _compat.current_task(host)
        if task is not None:
            _compat.leave_task(host, task)
        set_running_loop(None)
        try:
            # Until it is switched to with what it waits for...
            value = _switch(get_hub_if_exists())
        finally:
            set_running_loop(host)
            if task is not None:
                _compat.enter_task(host, task)
            self._move_to(host)
            self._is_wake_sent = True
            self._call_soon(host, self._on_wake, host)
        # ... which the hub, to which gevent is going to switch now, gives back.
        self._callbacks.appendleft(Callback(current.switch, (value,)))

    # --- running ------------------------------------------------------------------------------

    def run(self, nowait: bool = False, once: bool = False) -> None:
        """Run until no callback is queued and no referenced watcher is active. In the hub.

        Args:
            nowait: do what is due, and do not wait.
            once: wait for one event at most.
        """
        self._thread = get_ident()
        self._is_broken = False
        while not (self._is_broken or self._destroyed):
            if self._blocked is not None:
                step, self._blocked = self._blocked, None
                _switch(step.driver)
            elif self._request is not None:
                request, self._request = self._request, None
                try:
                    self._turn(*request)
                    carrier, self._waiting = self._waiting, None
                    # None if it has left, or if this is a child in which it must not go on.
                    if carrier is not None:
                        _switch(carrier)
                except BaseException:
                    # Thrown into the hub while it was waiting for the carrier.
                    self._awake = False
                    self._report(None)
            elif self._attached is not None and self._host is self._attached and self._is_needed():
                # Its carrier waits. Perhaps only for something that is queued.
                self._turn(_CALLBACKS, 0)
                if self._request is None and self._blocked is None:
                    self._run_private(nowait, once)
            elif not self._is_needed() and not self._changed:
                return
            else:
                self._run_private(nowait, once)
                if nowait or once:
                    return
        self._is_broken = False

    def _run_private(self, nowait: bool, once: bool) -> None:
        host = self._private
        if host is None or host.is_closed():
            host = self._private = make_private_host(type(self).host_factory)
        stalled = self._attached
        if stalled is not None:
            # When its carrier goes on, so does it.
            stalled.call_soon_threadsafe(self._on_return, stalled)
        self._move_to(host)
        self._hooks = sys.get_asyncgen_hooks()
        self._is_wake_sent = True
        host.call_soon(self._on_start, host, nowait, once)
        outside = _get_running_loop()
        if outside is not None:
            set_running_loop(None)
        try:
            host.run_forever()
        except BaseException:
            # Of a signal handler, KeyboardInterrupt say, or thrown into the hub.
            self._awake = False
            self._is_wake_sent = False
            self._report(None)
        finally:
            self._is_once = False
            if outside is not None:
                set_running_loop(outside)

    def _hide_private(self) -> None:
        # The greenlets are not part of the private host: they may run other event loops.
        set_running_loop(None)
        sys.set_asyncgen_hooks(*self._hooks)

    def _on_start(self, host: Any, nowait: bool, once: bool) -> None:
        self._hide_private()
        # What is queued is called before the first poll, and all else after it.
        self._is_wake_sent = False
        self._turn(_CALLBACKS, 0)
        if nowait:
            host.call_soon(host.stop)  # after a poll, and what it has found
        self._is_once = once  # the next turn is the last

    def _on_return(self, host: Any) -> None:
        # The carrier, which was stalled, runs its event loop again.
        if host is self._attached:
            self._move_to(host)
            self._carry((_QUEUES, 0))

    # --- errors -------------------------------------------------------------------------------

    def _report(self, context: Any) -> None:
        # Nothing escapes, whatever the handler does.
        try:
            self.handle_error(context, *sys.exc_info())
        except BaseException:
            try:
                print("Exception while handling another error", file=sys.stderr)
                traceback.print_exc()
            except BaseException:
                pass
        self._awake = True

    def handle_error(self, context: Any, type: Any, value: Any, tb: Any) -> None:
        """Give an exception to the hub."""
        if type is HubDestroyed:
            self._callbacks.clear()
            self.break_()
            return
        handler = self.error_handler
        if handler is None:
            # As gevent's loops do, which end then.
            traceback.print_exception(type, value, tb)
            self.break_()
        else:
            # Looked up each time: programs replace it.
            getattr(handler, "handle_error", handler)(context, type, value, tb)

    def break_(self, how: Any = None) -> None:
        """Have `run` return."""
        self._is_broken = True
        if self._private is not None and self._private.is_running():
            self._private.stop()

    # --- the rest of what gevent asks for -----------------------------------------------------

    def now(self) -> float:
        """Return the time in seconds, of the clock of timers, when the turn began."""
        return self._now

    def update_now(self) -> None:
        """Let `now` be the time it is."""
        self._now = monotonic()

    update = update_now

    def reinit(self) -> None:
        """Go on in a forked child, without a trace in the parent's selector.

        It happens by itself, whoever forks.
        """
        if self._destroyed or self._process == getpid():
            return  # of gevent.os.fork(), after `_after_in_child`
        self._process = getpid()
        self._thread = get_ident()
        self._children.after_fork()
        self._outer = [outer for outer in self._outer if reset_in_child(outer[0])]
        if self._attached is not None and not reset_in_child(self._attached):
            self._leave_to_parent(self._attached)
            self._release_carrier()
            self._attached = self._carrier = self._waiting = None
        if self._private is not None and not reset_in_child(self._private):
            self._leave_to_parent(self._private)
            self._private = None
        for watcher in [*self._forks]:
            self._fed.append((watcher, 0))
        self._is_wake_sent = False
        self._wake()

    def _leave_to_parent(self, host: Any) -> None:
        # In the child. To close it, or anything of it, would change what the parent polls.
        _left_to_parent.append(host)
        if self._host is host:
            self._host = self._armed = None
            self._changed |= self._watched
            for descriptor in self._changed:
                descriptor.registered = 0

    def destroy(self) -> bool | None:
        """Close what the loop has opened. It cannot be used any more."""
        if self._destroyed:
            return None
        self._destroyed = True
        if self._attached is not None:
            self._release_carrier()
        host = self._host
        if host is not None and not host.is_closed() and get_ident() == self._thread:
            for descriptor in {*self._watched, *self._changed}:
                self._unregister(host, descriptor)
        if self._armed is not None and host is not None and get_ident() == self._thread:
            self._armed.cancel()
        self._armed = None
        self._host = self._attached = self._carrier = None
        self._outer.clear()
        self._children.after_fork()
        private, self._private = self._private, None
        if private is not None and not private.is_running():
            private.close()
        for collection in (
            self._callbacks, self._timers, self._watched, self._changed, self._feeding,
            self._fed, self._sent, self._asyncs, self._checks, self._prepares, self._idles,
            self._forks,
        ):  # fmt: skip
            collection.clear()
        # They refer to this.
        self.timer = partial(Timer, self)
        return True

    @property
    def default(self) -> bool:
        """Whether it is the main thread's."""
        return self._is_default and not self._destroyed

    @property
    def ptr(self) -> int:
        """A number of its own, or 0 when it is destroyed."""
        return 0 if self._destroyed else id(self)

    @property
    def backend(self) -> str:
        """How it waits; gevent's tests know the names of libev's ways."""
        return "default"

    @property
    def backend_int(self) -> int:
        """The same as a number: none of libev's."""
        return 0

    @property
    def activecnt(self) -> int:
        """How many active watchers are reason enough not to end."""
        if self._destroyed:
            raise ValueError("operation on destroyed loop")
        return self._references

    @property
    def pendingcnt(self) -> int:
        """How many watchers are about to fire."""
        return len(self._fed) + len(self._sent)

    @property
    def iteration(self) -> int:
        """Not counted."""
        return -1

    @property
    def depth(self) -> int:
        """Not counted."""
        return -1

    @property
    def WatcherType(self) -> type[Watcher]:  # gevent's name
        """The base class of its watchers."""
        return Watcher

    def ref(self) -> None:
        """Keep it from ending."""
        self._references += 1

    def unref(self) -> None:
        """Take back a `ref`."""
        self._references -= 1

    def verify(self) -> None:
        """Do nothing."""

    def fileno(self) -> None:
        """Return None: what it waits for is not one descriptor."""
        return None

    def _format(self) -> str:
        if self._destroyed:
            return "destroyed"
        host = self._attached or self._private
        kind = "attached to" if self._attached is not None else "private host"
        return (
            f"{kind} {type(host).__module__}.{type(host).__qualname__}"
            f"{' default' if self._is_default else ''} ref={self._references} "
            f"callbacks={len(self._callbacks)} timers={len(self._timers)} "
            f"descriptors={len(self._watched)}"
        )

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__qualname__} at {id(self):#x} {self._format()}>"


#: All of this process, for its forked children.
_loops: WeakSet[GeventLoop] = WeakSet()


def _after_in_child() -> None:
    # Also for those who fork without gevent's knowledge, as multiprocessing does. libev finds out
    # by itself (EVFLAG_FORKCHECK).
    for each in [*_loops]:
        if each._thread == get_ident():
            each.reinit()


os.register_at_fork(after_in_child=_after_in_child)

#: uvloops that a forked child must not touch, not even to close them.
_left_to_parent: list[Any] = []

# Now, not with the first loop, so that it is before a module that takes asyncio's function for
# itself when it is imported, as uvloop does.
watch_running_loops()

#: By these names gevent's modules and tests look for them.
loop = GeventLoop
callback = Callback

_compat.declare_interfaces(GeventLoop, Callback, Watcher)
