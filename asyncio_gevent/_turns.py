"""Turns: all that a gevent loop does while its host does not wait.

A `Turns` keeps everything that gevent waits for: queued callbacks, a heap of timers, descriptors,
signals, children. A handle of the host begins a turn, in which what is due is done, and before it
ends the host is told what to wait for next: one timer, and the descriptors that have changed.
"""

from __future__ import annotations

import errno
import sys
import traceback
from asyncio import events
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop
from math import inf, ldexp
from os import getpid
from time import monotonic
from typing import Any
from weakref import WeakValueDictionary

from gevent.exceptions import HubDestroyed

from asyncio_gevent._gevent_watchers import (
    EVENTS,
    READ,
    WRITE,
    Async,
    Callback,
    Check,
    Children,
    Descriptor,
    Fork,
    Idle,
    Io,
    Prepare,
    Timer,
    Watcher,
)
from asyncio_gevent._hosts import LONGEST_WAIT, PrivateHost, is_in_c, may_miss_loops
from asyncio_gevent._originals import get_ident

__all__ = ["CALLBACKS", "QUEUES", "READY", "TIMERS", "Turns", "left_to_parent"]

#: Callbacks after which a turn looks whether it has taken too long, as gevent's loops do.
CALLBACKS_BETWEEN_LOOKS = range(50)

#: Stopped timers that the heap may hold before it is looked through for them.
STOPPED_TIMERS = 64

#: Timers that it is worth while to sort for one that is due.
TIMERS_TO_SORT_FOR_ONE = 8

#: Turns, of timers and queues, that fed watchers may be put off: those before a check has polled.
PUT_OFF_FED = 4

_get_running_loop = events._get_running_loop

# Kinds of turns, besides descriptors; see `Turns._turn`.
READY = "ready"
TIMERS = "timers"
QUEUES = "queues"
CALLBACKS = "callbacks"

#: uvloops that a forked child must not touch, not even to close them.
left_to_parent: list[Any] = []


class Turns:
    """The part of a `GeventLoop` that waits for nothing."""

    # Not in a `__dict__`: CPython's short ways to attributes and methods are for objects with less
    # than 30 of them there (SHARED_KEYS_MAX_SIZE in Include/internal/pycore_dict.h).
    __slots__ = (
        "__weakref__", "_armed", "_armed_for", "_asks_who_runs", "_asyncs", "_attached", "_awake",
        "_blocked", "_callbacks", "_carrier", "_changed", "_checks", "_children", "_descriptors",
        "_destroyed", "_displaced", "_due", "_fed", "_fed_put_off", "_feeding", "_forks",
        "_has_done", "_hooks", "_host", "_idles", "_is_brief", "_is_broken", "_is_default",
        "_is_once", "_is_private_within", "_is_quiet", "_is_wake_sent", "_lets_wait", "_outer",
        "_prepares", "_private", "_process", "_ready", "_references", "_request", "_sent",
        "_stopped", "_stopped_timers", "_thread", "_timers", "_timers_started",
        "_timers_to_purge", "_waiting", "_watched", "error_handler",
    )  # fmt: skip

    def __init__(self, flags: Any = None, default: bool | None = None) -> None:
        self.error_handler: Any = None
        self._is_default = default is None or bool(default)
        self._destroyed = False
        self._thread = get_ident()
        self._process = getpid()
        self._references = 0
        self._callbacks: deque[Any] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._due: list[tuple[float, int, Timer]] = []
        self._timers_started = 0
        self._stopped_timers = 0
        self._timers_to_purge = STOPPED_TIMERS
        self._descriptors: WeakValueDictionary[int, Descriptor] = WeakValueDictionary()
        self._watched: set[Descriptor] = set()
        self._changed: set[Descriptor] = set()
        self._stopped: list[Descriptor] = []
        self._feeding: set[Descriptor] = set()
        self._fed: deque[tuple[Watcher, int]] = deque()
        self._fed_put_off = 0
        self._ready: list[tuple[Descriptor, int]] = []
        self._sent: deque[Async] = deque()
        self._asyncs: set[Async] = set()
        self._checks: list[Check] = []
        self._prepares: list[Prepare] = []
        self._idles: list[Idle] = []
        self._forks: list[Fork] = []
        self._is_quiet = False
        self._children = Children(self)
        self._awake = False
        self._asks_who_runs = may_miss_loops()
        self._is_broken = False
        self._is_once = False
        self._is_brief = False
        self._is_private_within = False
        self._lets_wait: dict[Any, tuple[Any, Any]] = {}
        self._has_done = False
        self._host: Any = None
        self._private: Any = None
        self._attached: Any = None
        self._carrier: Any = None
        self._outer: list[tuple[Any, Any]] = []
        self._displaced: list[tuple[Any, Any, Any]] = []
        self._request: tuple[Any, int] | None = None
        self._waiting: list[Any] = []
        self._blocked: list[Any] = []
        self._armed: Any = None
        self._armed_for = 0.0
        self._is_wake_sent = False
        self._hooks: Any = (None, None)

    # --- what is not known here -----------------------------------------------------------------

    def _leave_private(self, host: Any) -> None:
        raise NotImplementedError

    def _install_waker(self) -> None:
        raise NotImplementedError

    def _remove_waker(self) -> None:
        raise NotImplementedError

    def _wake(self) -> None:
        raise NotImplementedError

    def _wake_threadsafe(self) -> None:
        raise NotImplementedError

    def _carry(self, request: tuple[Any, int]) -> None:
        raise NotImplementedError

    def _hide_private(self) -> None:
        raise NotImplementedError

    # --- the watchers there are most of -------------------------------------------------------

    def timer(
        self,
        after: float = 0.0,
        repeat: float = 0.0,
        ref: bool = True,
        priority: int | None = None,
    ) -> Timer:
        """Return a watcher that fires after a time, in seconds, and then at intervals."""
        # What a constructor in Python would do; to call one takes half as long again.
        if type(after) is not float:
            after = ldexp(after, 0)  # as C does it: any number, but no string
        if repeat:
            repeat = ldexp(repeat, 0)
            if not repeat >= 0.0:
                raise ValueError(f"repeat must be positive or zero: {repeat!r}")
        if after != after:
            raise ValueError("after must be a number of seconds, not NaN")
        if self._destroyed:
            raise ValueError("operation on destroyed loop")
        timer: Timer = Timer()
        timer._after = after
        timer._repeat = repeat
        timer.loop = self
        timer._ref = True if ref is True else bool(ref)
        timer._priority = priority or 0
        timer._callback = timer._args = timer._entry = None
        timer.active = False
        return timer

    def io(self, fd: int, events: int, ref: bool = True, priority: int | None = None) -> Io:
        """Return a watcher that fires while a descriptor is ready."""
        return Io(self, fd, events, ref, priority)

    # --- callbacks ----------------------------------------------------------------------------

    def run_callback(self, func: Callable[..., Any], *args: Any) -> Callback:
        """Call this in the next turn, in the hub. Does not block. From the loop's OS thread."""
        pending = Callback()  # without arguments: a constructor in Python takes twice as long
        pending.callback = func
        pending.args = args
        self._callbacks.append(pending)
        if not self._awake or (self._asks_who_runs and _get_running_loop() is not None):
            self._wake()
        return pending

    def run_callback_threadsafe(self, func: Callable[..., Any], *args: Any) -> Callback:
        """The same, from any OS thread."""
        pending = Callback()
        pending.callback = func
        pending.args = args
        self._callbacks.append(pending)
        self._wake_threadsafe()
        return pending

    # --- turns --------------------------------------------------------------------------------

    def _on_wake(self, host: Any) -> None:
        if host is self._host:
            self._is_wake_sent = False
            self._begin_turn(host, QUEUES, 0)

    def _on_timer(self, host: Any) -> None:
        if host is self._host:
            self._armed = None
            self._begin_turn(host, TIMERS, 0)

    def _on_ready(self, host: Any, descriptor: Descriptor, revents: int) -> None:
        if host is self._host:
            self._begin_turn(host, descriptor, revents)

    def _note_ready(self, host: Any, descriptor: Descriptor, revents: int) -> None:
        # In the midst of libuv's poll, which keeps what it has found on the C stack, and looks at
        # it when a descriptor is given up. Another greenlet has other things there. So what uvloop
        # finds is dealt with when the poll is over.
        if host is self._host:
            if not self._ready:
                host.call_soon(self._on_noted, host)
            self._ready.append((descriptor, revents))

    def _on_noted(self, host: Any) -> None:
        if host is self._host:
            self._begin_turn(host, READY, 0)

    def _begin_turn(self, host: Any, kind: Any, revents: int) -> None:
        # A handle of the host.
        if host is self._attached:
            self._carry((kind, revents))
            return
        if _get_running_loop() is not None:
            self._hide_private()
        self._take_turn(kind, revents)
        if self._host is not host or self._blocked:
            self._leave_private(host)

    def _take_turn(self, kind: Any, revents: int) -> None:
        try:
            self._turn(kind, revents)
        except BaseException:
            # Of a handler that the interpreter has called for a signal, between any two
            # instructions of ours. It is for the main greenlet, as with gevent's loops; the turn
            # is over.
            self._report(None)
            self._end_turn(False)

    def _turn(self, kind: Any, revents: int) -> None:
        """Do what is due. In the hub.

        Args:
            kind: a descriptor that is ready, `READY` (some that are), `TIMERS`, `QUEUES` (of what
                watchers of other kinds are to fire) or `CALLBACKS`. Queued callbacks are called in
                all turns but those of a descriptor.
            revents: what the descriptor is ready for.
        """
        # Each by its own handle of the host (the private one has one for all that are ready), which
        # calls those of descriptors before those of timers. It is the order of libev, and gevent's
        # wait(timeout=0) relies on it.
        self._awake = True
        done = is_descriptor = type(kind) is Descriptor
        if self._checks:
            for check in [*self._checks]:
                check.hops += kind is QUEUES
                if check.active and check.has_polled():
                    self._fire(check, 0)
        if done:
            self._fire_descriptor(kind, revents)
        elif kind is READY:
            done = True
            ready = [*self._ready]
            self._ready.clear()
            for each, happened in ready:
                # Not one that the host polls no more, since the callback of another has closed it,
                # nor one that waits anew, whose number may be another file's by now.
                if not (each.is_renewed and each in self._changed):
                    self._fire_descriptor(each, happened & each.registered)
        elif kind is TIMERS:
            now = monotonic()
            # What was queued before goes first: a timer that was started after it may be due.
            if self._callbacks:
                self._run_callbacks()
            timers = self._timers
            if timers and timers[0][0] <= now and (not self._fed or self._fire_fed()):
                done = True
                self._fire_timers(now)
        elif kind is QUEUES:
            if self._fed and self._fire_fed():
                done = True
            if self._sent:
                done = True
                self._fire_sent()
            if self._feeding:
                done = True
                for each in [*self._feeding]:
                    self._fire_descriptor(each, READ | WRITE)
        self._has_done = done or bool(self._callbacks)
        if self._idles:
            self._fire_idles(self._has_done)
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
        ends = monotonic() + sys.getswitchinterval()
        while callbacks:
            for _ in CALLBACKS_BETWEEN_LOOKS:
                pending = callbacks.popleft()
                function = pending.callback
                if function is not None:
                    pending.callback = None
                    try:
                        function(*pending.args)
                    except BaseException:
                        self._report(pending)
                    # gevent looks at this: the function has returned.
                    pending.args = None
                if not callbacks:
                    return
            if monotonic() >= ends:
                return

    def _fire_timers(self, now: float) -> None:
        self._take_due(now)
        due = self._due
        while due:
            entry = due.pop()
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

    def _take_due(self, now: float) -> None:
        # The first is the last in the list. One by one off a heap costs twice as much as to sort
        # it, if most are due; and what is sorted is a heap.
        timers = self._timers
        one_by_one = len(timers) // TIMERS_TO_SORT_FOR_ONE
        while timers and timers[0][0] <= now:
            if one_by_one < 0:
                timers.sort()
                number = bisect_right(timers, (now, inf))
                self._due += timers[:number]
                del timers[:number]
                break
            one_by_one -= 1
            self._due.append(heappop(timers))
        self._due.reverse()

    def _purge_timers(self) -> None:
        # More than half of them are stopped: socket timeouts that were not needed, say.
        timers = [entry for entry in self._timers if entry[2]._entry is entry]
        heapify(timers)
        self._stopped_timers -= len(self._timers) - len(timers)
        self._timers[:] = timers
        self._timers_to_purge = max(STOPPED_TIMERS, len(timers))

    def _fire_descriptor(self, descriptor: Descriptor, revents: int) -> None:
        for watcher in [*descriptor.watchers]:
            happened = watcher._events & revents
            if happened and watcher.active:
                args = watcher._args
                if not args or args[0] is EVENTS:
                    self._fire(watcher, happened)
                    continue
                # The same, without a call: this is how each wait of a socket ends.
                try:
                    watcher._callback(*args)
                except BaseException:
                    self._report(watcher)
                    watcher.stop()

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

    def _fire_fed(self) -> bool:
        """Fire them, if this is the time.

        gevent closes a descriptor in a `Check` after it has fed those who wait for it. They are to
        hear of it when it is closed, but not to wait for checks that others start meanwhile.
        """
        if self._checks and not self._checks[-1].has_polled() and self._fed_put_off < PUT_OFF_FED:
            self._fed_put_off += 1
            return False
        self._fed_put_off = 0
        fed = self._fed
        for _ in range(len(fed)):
            if not fed:
                break  # one of them has destroyed the loop
            watcher, revents = fed.popleft()
            callback = watcher._callback
            if callback is not None:  # it was not stopped meanwhile
                self._fire(watcher, revents)
                if not watcher.active and watcher._callback is callback:
                    watcher._callback = watcher._args = None
        return True

    def _fire_sent(self) -> None:
        sent = self._sent
        for _ in range(len(sent)):
            if not sent:
                break  # as above
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
        if not self._awake or (self._asks_who_runs and _get_running_loop() is not None):
            self._wake()

    # --- between turns ------------------------------------------------------------------------

    def _end_turn(self, goes_on: bool) -> None:
        host = self._host
        if self._changed and host is not None:
            if not goes_on:
                self._tell_host(host)
            elif host is self._attached:
                self._drop_stopped()
        self._stopped.clear()
        self._awake = False
        if host is None:
            return
        timers = self._timers
        if self._due:
            # A handler of a signal has raised an exception in the midst of them.
            timers += self._due
            heapify(timers)
            self._due.clear()
        while timers and timers[0][2]._entry is not timers[0]:
            heappop(timers)
            self._stopped_timers -= 1
        if host is self._private and (
            self._is_broken
            or (self._is_once and self._has_done)
            or not (self._references > 0 or self._is_needed() or self._blocked)
        ):
            host.stop()
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
            host.call_soon(self._on_wake, host)

    def _arm(self, host: Any, when: float) -> None:
        if self._armed is not None:
            self._armed.cancel()
            self._armed = None
        self._armed_for = when
        if isinstance(host, PrivateHost):
            self._armed = host.alarm
            self._armed.when = when
            return
        delay = min(when - monotonic(), LONGEST_WAIT)
        if is_in_c(host):
            if delay <= 0.0:
                # It would call it before it polls.
                self._armed = host.call_soon(self._arm_again, host)
                return
            # It counts milliseconds, to the nearest one: not to find that it is too early.
            delay = (int(delay * 1000.0) + 1) / 1000.0
        self._armed = host.call_later(max(delay, 0.0), self._on_timer, host)

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
                descriptor.registered = 0
                if isinstance(error, OSError) and error.errno in (errno.EBADF, errno.ENOENT):
                    # Somebody has closed it. Whoever waits finds out when he uses it.
                    for watcher in descriptor.watchers:
                        self._fed.append((watcher, watcher._events))
                    continue
                descriptor.is_feeding = True
                self._feeding.add(descriptor)
                if not isinstance(error, OSError) or error.errno not in (
                    errno.EPERM,
                    errno.EEXIST,
                ):
                    self._report(descriptor.watchers[0] if descriptor.watchers else None)

    def _drop_stopped(self) -> None:
        # Code of the attached event loop is next.
        while self._stopped:
            self._drop(self._stopped.pop())

    def _drop(self, descriptor: Descriptor) -> None:
        # Tell the host at once if nobody waits for it any more: it may be closed, and the attached
        # event loop, which runs outside of turns, use its number for another file.
        host = self._host
        if not descriptor.wanted and host is not None and get_ident() == self._thread:
            self._changed.discard(descriptor)
            if descriptor.registered:
                self._unregister(host, descriptor)

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
        if isinstance(host, PrivateHost):
            if wanted != registered:
                host.watch(descriptor, wanted)
                descriptor.registered = wanted
            return
        if registered & ~wanted & READ:
            host.remove_reader(fd)
        if registered & ~wanted & WRITE:
            host.remove_writer(fd)
        descriptor.registered = registered & wanted
        on_ready = self._note_ready if is_in_c(host) else self._on_ready
        if wanted & ~registered & READ:
            host.add_reader(fd, on_ready, host, descriptor, READ)
            descriptor.registered |= READ
        if wanted & ~registered & WRITE:
            host.add_writer(fd, on_ready, host, descriptor, WRITE)
            descriptor.registered |= WRITE

    @staticmethod
    def _unregister(host: Any, descriptor: Descriptor) -> None:
        # Both, whatever becomes of the first: somebody may have closed the descriptor.
        registered, descriptor.registered = descriptor.registered, 0
        if isinstance(host, PrivateHost):
            host.watch(descriptor, 0)
            return
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
