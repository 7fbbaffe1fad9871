"""Host loops: the asyncio loops that carry a `GeventLoop`.

A hub needs a host wherever it waits. If an asyncio loop runs in the thread, that is the host;
otherwise it is a private one, which nobody sees: `make_private_host`.

asyncio tells nobody when a loop begins or ends to run, and a gevent program that calls
``asyncio.run()`` expects its greenlets to go on. So the module `gevent_loop`, which gevent imports
if it was told to, puts `_set_running_loop` in the place of asyncio's function, which every event
loop calls for exactly that (documented under "Extending asyncio"). A loop whose class had taken
asyncio's function before, as uvloop's has if it was imported earlier, is noticed when something in
it first uses gevent.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import os
import signal
from asyncio import events
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any

from gevent.hub import MAIN_THREAD_IDENT

from asyncio_gevent import _compat
from asyncio_gevent._compat import get_hub_if_exists
from asyncio_gevent._originals import NativeSelector, get_ident, native_socketpair

__all__ = [
    "HOST_VARIABLE",
    "LONGEST_WAIT",
    "PrivateHost",
    "SignalWaker",
    "find_factory",
    "is_foreign",
    "is_in_c",
    "make_private_host",
    "may_miss_loops",
    "needs_waker",
    "reset_in_child",
    "set_running_loop",
    "use_native_selector",
    "watch_running_loops",
]

#: Environment variable: what makes the private host, ``asyncio`` (the default), ``uvloop`` or
#: ``module.function``.
HOST_VARIABLE = "ASYNCIO_GEVENT_HOST"

#: asyncio's own, whatever is in its place.
set_running_loop: Callable[[Any], None] = events._set_running_loop

#: Seconds that an event loop is asked to wait at most: uvloop takes only so much.
LONGEST_WAIT = 24 * 3600.0

_may_miss_loops = False


# --- the private host ----------------------------------------------------------------------------


class Alarm:
    """The timer of a `PrivateHost`, which has only one.

    Attributes:
        when: a time of the monotonic clock.
    """

    __slots__ = ("when",)

    def __init__(self) -> None:
        self.when = inf

    def cancel(self) -> None:
        """Do not go off."""
        self.when = inf


class PrivateHost(asyncio.SelectorEventLoop):
    """The standard event loop, made of parts that no monkey patching has replaced.

    It serves the gevent loop that runs it, and nobody else. So it does less than the standard one
    between two polls, and begins one turn for all that a poll has found. It has `watch` instead of
    ``add_reader()`` and ``add_writer()``, and an alarm instead of ``call_later()``.

    Attributes:
        turns: the gevent loop that runs it, or None.
        alarm: goes off when the next timer is due.
    """

    def __init__(self) -> None:
        super().__init__(NativeSelector())
        # It would compare threads by identifiers that are greenlets' after patching.
        self.set_debug(False)
        self.turns: Any = None
        self.alarm = Alarm()

    def watch(self, descriptor: Any, wanted: int) -> None:
        """Poll a descriptor for these events from now on, or for none: 0."""
        selector: Any = self._selector  # type: ignore[attr-defined]
        fd = descriptor.fd
        if selector is None or fd not in selector.get_map():
            if wanted:
                selector.register(fd, wanted, descriptor)
        elif wanted:
            selector.modify(fd, wanted, descriptor)
        else:
            selector.unregister(fd)

    def _run_once(self) -> None:
        # In the place of that of Lib/asyncio/base_events.py, and in its order: what was to be
        # called soon before the poll, what the poll has found, what is to be called by the time it
        # is. What it calls raises nothing. A handler of the interpreter, for a signal, may do so
        # anywhere; it ends `run_forever()`, and the gevent loop looks at everything again.
        turns = self.turns
        soon = self._ready  # type: ignore[attr-defined]
        alarm = self.alarm
        timeout = 0.0
        if not soon and not self._stopping:  # type: ignore[attr-defined]
            timeout = alarm.when - monotonic()
            if timeout < 0.0:
                timeout = 0.0
            elif timeout > LONGEST_WAIT:
                timeout = LONGEST_WAIT
        found = turns._ready
        if _poll(self._selector, timeout, found):  # type: ignore[attr-defined]
            self._read_from_self()  # type: ignore[attr-defined]
        # Of what these ask for, nothing happens before the next poll.
        is_due = alarm.when < inf and alarm.when <= monotonic()
        for _ in range(len(soon)):
            handle = soon.popleft()
            handle._callback(*handle._args)
        if found:
            turns._on_noted(self)
        if is_due and alarm.when < inf:
            alarm.when = inf
            turns._on_timer(self)

    def _make_self_pipe(self) -> None:
        # Of Lib/asyncio/selector_events.py, with sockets that know nothing of gevent.
        _compat.install_self_pipe(self, native_socketpair())

    def __del__(self, *args: Any) -> None:
        # It lives as long as its hub, often to the end of the process: nobody's mistake.
        if not self.is_closed() and not self.is_running():
            try:
                self.close()
            except ValueError:
                pass  # of a cycle: the collector has closed its sockets first


# Both add to a list what was found, and return whether another thread wakes the host: what its
# self-pipe was registered with is a tuple.


def _poll_by_select(selector: Any, timeout: float, found: list[tuple[Any, int]]) -> bool:
    is_woken = False
    for key, happened in selector.select(timeout):
        if type(key.data) is tuple:
            is_woken = True
        else:
            found.append((key.data, happened))
    return is_woken


def _poll_by_epoll(selector: Any, timeout: float, found: list[tuple[Any, int]]) -> bool:
    # What EpollSelector.select() of Lib/selectors.py does, without what epoll does as well.
    is_woken = False
    keys = selector._fd_to_key
    for fd, happened in selector._selector.poll(timeout, len(keys) or 1):
        if fd in keys:
            descriptor = keys[fd][3]  # the name, `data`, takes three times as long
            if type(descriptor) is tuple:
                is_woken = True
            else:
                found.append((descriptor, _EPOLL_EVENTS.get(happened, 3)))
    return is_woken


#: Of what epoll says, in bits of ``selectors``, which are those of gevent. All else is an error or
#: an end, for readers and writers.
_EPOLL_EVENTS = {0x001: 1, 0x004: 2}  # EPOLLIN, EPOLLOUT

_poll = _poll_by_epoll if NativeSelector.__name__ == "EpollSelector" else _poll_by_select


def make_private_host(factory: Callable[[], Any]) -> Any:
    """Make an event loop that nobody else runs, by this."""
    host = factory()
    if host.get_debug():
        host.set_debug(False)  # as above
    use_native_selector(host)
    host._carries_gevent_only = True
    return host


def find_factory() -> Callable[[], Any]:
    """Return what makes private hosts if nobody says otherwise.

    What the environment variable names, or uvloop if its policy was installed, or else the
    standard event loop.

    It may import it, which the hub must not: it would wait for locks of greenlets. And not before
    patching, after which a module that was imported before has half of ``threading``.

    Raises:
        ValueError: the environment variable names nothing that makes an event loop.
    """
    name = os.environ.get(HOST_VARIABLE, "")
    if name:
        return _import_factory(name)
    policy = _compat.installed_policy()
    if policy is None or isinstance(policy, _compat.DefaultEventLoopPolicy):
        # Also for those derived from it, such as the one that makes loops on the hub.
        return PrivateHost
    return policy.new_event_loop  # type: ignore[no-any-return]


@functools.cache
def _import_factory(name: str) -> Callable[[], Any]:
    if name == "asyncio":
        return PrivateHost
    module, _, attribute = name.rpartition(".")
    if not module:
        module, attribute = name, "new_event_loop"
    try:
        factory = getattr(importlib.import_module(module), attribute)
        if callable(factory):
            if module == "uvloop":
                _compat.tell_main_thread(factory)
            return factory  # type: ignore[no-any-return]
    except (ImportError, AttributeError):
        pass
    except RuntimeError as error:
        # concurrent.futures, which it imports, cannot be imported any more: the main thread has
        # ended, and this is for what gevent is used for after that.
        if "after shutdown" not in str(error):
            raise
        return PrivateHost
    raise ValueError(
        f"{HOST_VARIABLE}={name!r} names nothing that makes an event loop: set it to 'asyncio', to "
        "'uvloop' if that is installed, or to 'module.function'"
    )


def use_native_selector(host: Any) -> None:
    """Give a standard event loop that was made after patching a selector that is not gevent's.

    With gevent's it would wait for the hub, which waits for its host.
    """
    selector = getattr(host, "_selector", None)
    if selector is not None and type(selector).__module__.startswith("gevent."):
        _compat.replace_selector(host, NativeSelector())
        selector.close()


class SignalWaker:
    """Wakes a host that sleeps in C when the process has got a signal.

    Python calls its handlers when it next runs Python code; to sleep in C it takes a descriptor to
    which the C handler writes (``signal.set_wakeup_fd``). The poll of
    the standard loop is interrupted, but not by a signal that comes just before it. uvloop has a
    descriptor of its own, but not after patching, when it takes no thread for the main one.
    """

    def __init__(self) -> None:
        self._receiver, self._sender = native_socketpair()
        for each in (self._receiver, self._sender):
            each.setblocking(False)
        self.fd: int = self._receiver.fileno()

    def install(self) -> None:
        """Have it written to. In the main thread."""
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)

    def drain(self) -> None:
        """Read what was written. That Python code runs is all that it was about."""
        try:
            while len(self._receiver.recv(4096)) == 4096:
                pass
        except BlockingIOError:
            pass

    def remove(self) -> None:
        """Have it written to no more. From any thread."""
        if get_ident() == MAIN_THREAD_IDENT:
            current = signal.set_wakeup_fd(-1)
            if current not in (-1, self._sender.fileno()):
                signal.set_wakeup_fd(current, warn_on_full_buffer=False)

    def close(self) -> None:
        """Take it back. From any thread."""
        self.remove()
        self._receiver.close()
        self._sender.close()


def is_in_c(host: Any) -> bool:
    """Whether this is no standard event loop but, as far as we know, uvloop."""
    return getattr(host, "_selector", None) is None


def needs_waker() -> bool:
    """Whether this is the main thread and nobody has a descriptor for signals."""
    if get_ident() != MAIN_THREAD_IDENT:
        return False
    current = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(current, warn_on_full_buffer=False)
    return current == -1


def reset_in_child(host: Any) -> bool:
    """Make a host that was copied by ``os.fork()`` independent of the parent's.

    Returns:
        Whether that is possible. It is not with uvloop, which must not do anything in the child.
    """
    if is_in_c(host):
        return False
    if host.is_closed():
        return True
    selector = host._selector
    # Closing the old one only closes this process's descriptor of it. Anything less (epoll_ctl)
    # would change what the parent polls.
    _compat.replace_selector(host, NativeSelector())
    selector.close()
    _compat.renew_self_pipe(host)
    return True


# --- who runs in this thread ---------------------------------------------------------------------


def is_foreign(loop: Any) -> bool:
    """Whether this running event loop can carry a hub.

    Not one that runs on the hub itself, and not the private host of some gevent loop.
    """
    return not (
        getattr(loop, "_runs_on_hub", False) or getattr(loop, "_carries_gevent_only", False)
    )


def _set_running_loop(loop: Any) -> None:
    """Set the running event loop of this OS thread, and let its hub know."""
    previous = events._get_running_loop()
    set_running_loop(loop)
    if loop is not previous:
        hub = get_hub_if_exists()
        if hub is not None:
            note = getattr(hub.loop, "_note_running_loop", None)
            if note is not None:
                note(previous, loop)


def watch_running_loops() -> None:
    """Hear from now on which event loops begin and end to run, in all threads."""
    global set_running_loop, _may_miss_loops
    if events._set_running_loop is not _set_running_loop:
        _may_miss_loops = _has_strange_kind(asyncio.AbstractEventLoop)
        set_running_loop = events._set_running_loop
        _compat.replace_set_running_loop(_set_running_loop)


def may_miss_loops() -> bool:
    """Whether there are event loops of which `watch_running_loops` may not hear."""
    return _may_miss_loops


def _has_strange_kind(base: type) -> bool:
    # asyncio's own, and ours, look for the function when they call it.
    kinds: list[type] = base.__subclasses__()
    return any(
        kind.__module__.partition(".")[0] not in ("asyncio", "asyncio_gevent")
        or _has_strange_kind(kind)
        for kind in kinds
    )
