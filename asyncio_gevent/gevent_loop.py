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

from time import monotonic
from typing import Any

from asyncio_gevent import _compat
from asyncio_gevent._carried import CarriedLoop
from asyncio_gevent._gevent_watchers import (
    EVENTS,
    READ,
    WRITE,
    Async,
    Callback,
    Check,
    Child,
    Fork,
    Idle,
    Prepare,
    Signal,
    Stat,
    Watcher,
)
from asyncio_gevent._hosts import watch_running_loops
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


def supported_backends() -> list[str]:
    """Return the names of the ways in which the loop can wait; gevent's tests ask for them."""
    return ["default"]


class GeventLoop(CarriedLoop):
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
        _due: those of it that the turn fires, the first one last.
        _watched: descriptors with active watchers.
        _changed: those whose registration may have to change.
        _stopped: those that nobody waits for since the turn began, if an event loop is attached.
        _feeding: those that are always ready.
        _fed: watchers that fire in the next turn, with events.
        _fed_put_off: turns in which those were not fired.
        _ready: descriptors that the private host or uvloop has found ready, with events.
        _sent: `Async` watchers that fire in the next turn.
        _awake: a turn is under way.
        _asks_who_runs: also then another event loop may run, and poll, without our knowledge.
        _host: the event loop in which descriptors are registered, or None.
        _private: the private host, or None.
        _attached: the event loop that runs in this thread and is not ours, or None.
        _carrier: the greenlet that runs it.
        _outer: event loops, with their carriers, that wait for the attached one to end.
        _displaced: event loops that have gone on before inner ones, with those and their carriers.
        _request: what the carrier, which waits in `_carry`, wants; arguments of `_turn`; or None.
        _lets_wait: carriers that were let through to wait in the hub, with their event loops and
            tasks.
        _waiting: carriers that wait in `_carry`, that one and those of outer event loops.
        _blocked: event loops and drivers of green tasks that have blocked, and do not know it.
        _armed: the host's timer, or None, and the time for which it was set.
        _is_wake_sent: the host will begin a turn.
        _waker: wakes hosts that signals do not wake, or None.
        _hooks: of asynchronous generators, outside of the private host.
    """

    #: It takes the status of no child that nobody watches; gevent's own loops take all.
    reaps_watched_only = True

    approx_timer_resolution = 0.001
    starting_timer_may_update_loop_time = False
    MINPRI = -2
    MAXPRI = 2

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

    # --- the rest of what gevent asks for -----------------------------------------------------

    #: The time it is, in seconds of the clock of timers; not that at which the turn began.
    now = staticmethod(monotonic)

    def update_now(self) -> None:
        """Do nothing: timers start from the time it is."""

    update = update_now

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
        self._children.reap_ended()
        self._children.after_fork()
        private, self._private = self._private, None
        if private is not None:
            if private.is_running():
                private.stop()  # this is called by one of its callbacks; `run` closes it
            else:
                private.close()
        for collection in (
            self._callbacks, self._timers, self._due, self._watched, self._changed, self._stopped,
            self._feeding, self._fed, self._sent, self._asyncs, self._checks, self._prepares,
            self._idles, self._forks,
        ):  # fmt: skip
            collection.clear()
        if self._waker is not None:
            self._waker.close()
            self._waker = None
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
        name = f"{type(host).__module__}.{type(host).__qualname__}"
        return (
            f"{'no host' if host is None else f'{kind} {name}'}"
            f"{' default' if self._is_default else ''} ref={self._references} "
            f"callbacks={len(self._callbacks)} timers={len(self._timers)} "
            f"descriptors={len(self._watched)}"
        )

    def __repr__(self) -> str:
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        return f"<{name} at {id(self):#x} {self._format()}>"


# Now, not with the first loop, so that it is before a module that takes asyncio's function for
# itself when it is imported, as uvloop does.
watch_running_loops()

#: By these names gevent's modules and tests look for them.
loop = GeventLoop
callback = Callback

_compat.declare_interfaces(GeventLoop, Callback, Watcher)
