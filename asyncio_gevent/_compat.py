"""The one place for private names of asyncio and gevent, and for differences of versions.

What is asyncio's is used by its own event loops or documented for those who write one
("Extending asyncio" in the documentation of Python).
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from asyncio import constants, events, futures, selector_events, sslproto, tasks
from asyncio import unix_events as _unix_events
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import gevent
import gevent._hub_local
import gevent._interfaces
import gevent.hub
import gevent.os
import gevent.timeout
import greenlet
import zope.interface

from asyncio_gevent._originals import NativeRLock, get_ident

__all__ = [
    "DEBUG_STACK_DEPTH",
    "FUTURES_GROW_TRACEBACKS",
    "LIBRARY_VERSION_CHECKS_FDS",
    "MAXIMUM_TIMEOUT",
    "MIN_CANCELLED_TIMERS_FRACTION",
    "MIN_SCHEDULED_TIMERS",
    "SSL_AGAIN",
    "SSL_READABLE",
    "SSL_SHUTDOWN",
    "SSL_WRAPPED",
    "UNCANCEL_FORGETS",
    "DefaultEventLoopPolicy",
    "SSLProtocol",
    "SelectorDatagramTransport",
    "SelectorSocketTransport",
    "UnixReadPipeTransport",
    "UnixSubprocessTransport",
    "UnixWritePipeTransport",
    "active_threads",
    "all_tasks",
    "base_events",
    "call_in_hub",
    "cancel_all_tasks",
    "check_as_before",
    "check_native_thread",
    "check_ssl_socket",
    "chosen_child_watcher",
    "convert_future_exception",
    "current_task",
    "declare_interfaces",
    "enter_task",
    "exception_of_throw",
    "find_main_hub",
    "find_only_descendant",
    "forget_pending",
    "format_callback",
    "format_handle",
    "get_hub_if_exists",
    "get_running_loop",
    "has_callbacks",
    "has_deferred_closes",
    "install_self_pipe",
    "installed_policy",
    "is_cffi",
    "is_closed_timeout",
    "is_libuv",
    "is_polling",
    "leave_task",
    "note_children",
    "note_end",
    "pool_is_full",
    "renew_self_pipe",
    "replace_selector",
    "replace_set_running_loop",
    "reset_in_child",
    "running_loop_in_python",
    "socket_write_ready",
    "tell_main_thread",
    "unix_events",
]

# --- asyncio: who runs in this thread -----------------------------------------------------------

# Looked up at each call, as asyncio does: there are tests, and libraries, that replace them. On
# hot paths `events._get_running_loop()` and `events._set_running_loop()`, which are in `__all__`
# there, are called without a wrapper.


def get_running_loop() -> Any:
    """Return the running loop of the OS thread, or None."""
    return events._get_running_loop()


#: What ``events._get_running_loop`` is where asyncio does without its C part.
running_loop_in_python: Any = events._py__get_running_loop  # type: ignore[attr-defined]

# Up to 3.13 the current task is kept per loop, from 3.14 on per thread, and the last two raise
# there unless the loop is the running one: set the loop, then enter; leave, then clear the loop.


# Not by functions of our own: they are called at every edge of a suspended step.

#: Returns the task of an event loop whose step runs, or None.
current_task: Callable[[Any], Any] = tasks.current_task

#: Makes a task of an event loop the current one; there must be none.
enter_task: Callable[[Any, Any], None] = tasks._enter_task

#: Lets there be no current task of an event loop; it must be this one.
leave_task: Callable[[Any, Any], None] = tasks._leave_task


#: The tasks of an event loop that are not done.
all_tasks: Callable[[Any], Any] = asyncio.all_tasks


#: asyncio's modules, for the names in them that its tests and some libraries replace: its logger,
#: and its references to the modules ``socket`` and ``signal``.
base_events: Any = asyncio.base_events
unix_events: Any = _unix_events

#: Raises ``TypeError`` for a TLS socket.
check_ssl_socket: Callable[[Any], None] = asyncio.base_events._check_ssl_socket  # type: ignore[attr-defined]

#: What asyncio.run() cancels in the end; for 3.10, which has no asyncio.Runner.
cancel_all_tasks: Callable[[Any], None] = asyncio.runners._cancel_all_tasks  # type: ignore[attr-defined]

#: Identifier to Thread, of those that threading.current_thread() knows.
active_threads: dict[int, Any] = threading._active  # type: ignore[attr-defined]

# --- asyncio: parts of the standard loop that ours is made of -----------------------------------

SelectorSocketTransport: Any = selector_events._SelectorSocketTransport  # type: ignore[attr-defined]
#: What sends more of what was written, a method of that.
socket_write_ready: Callable[[Any], None]
if sys.version_info < (3, 12):
    socket_write_ready = SelectorSocketTransport._write_ready
elif selector_events._HAS_SENDMSG:  # type: ignore[attr-defined]
    socket_write_ready = SelectorSocketTransport._write_sendmsg
else:
    socket_write_ready = SelectorSocketTransport._write_send
SelectorDatagramTransport: Any = (
    selector_events._SelectorDatagramTransport  # type: ignore[attr-defined]
)
UnixReadPipeTransport: Any = _unix_events._UnixReadPipeTransport  # type: ignore[attr-defined]
UnixWritePipeTransport: Any = _unix_events._UnixWritePipeTransport  # type: ignore[attr-defined]
UnixSubprocessTransport: Any = _unix_events._UnixSubprocessTransport  # type: ignore[attr-defined]
SSLProtocol: Any = sslproto.SSLProtocol
_ssl_states: Any = getattr(sslproto, "SSLProtocolState", None)
#: Its states: of an open connection, those in which it reads, and that after it has flushed what it
#: had read; 3.11 and later.
SSL_WRAPPED: Any = getattr(_ssl_states, "WRAPPED", None)
SSL_READABLE: tuple[Any, ...] = (SSL_WRAPPED, getattr(_ssl_states, "FLUSHING", None))
SSL_SHUTDOWN: Any = getattr(_ssl_states, "SHUTDOWN", None)
#: What TLS objects raise when they need more data, or room.
SSL_AGAIN: Any = getattr(sslproto, "SSLAgainErrors", ())

#: asyncio's exception for one of concurrent.futures.
convert_future_exception: Callable[[BaseException], BaseException] = futures._convert_future_exc  # type: ignore[attr-defined]


def format_callback(handle: Any) -> str:
    """Describe the callback of a handle, as asyncio does in its messages."""
    return str(
        asyncio.format_helpers._format_callback_source(  # type: ignore[attr-defined]
            handle._callback, handle._args
        )
    )


format_handle: Callable[[Any], str] = asyncio.base_events._format_handle  # type: ignore[attr-defined]

#: Of Lib/asyncio/base_events.py: when cancelled timers are thrown out of the heap, and the
#: longest wait, in seconds.
MIN_SCHEDULED_TIMERS = 100
MIN_CANCELLED_TIMERS_FRACTION = 0.5
MAXIMUM_TIMEOUT = 24 * 3600.0

#: Frames kept of where a coroutine was made, in debug mode.
DEBUG_STACK_DEPTH: int = constants.DEBUG_STACK_DEPTH

#: From 3.12 on making a transport checks that no other one uses the descriptor (gh-88863).
LIBRARY_VERSION_CHECKS_FDS = sys.version_info >= (3, 12)

#: From 3.13 on Task.uncancel() also takes back a cancel that the next ``await`` was to raise, when
#: no request remains (gh-117407). Before, nothing does.
UNCANCEL_FORGETS = sys.version_info >= (3, 13)

#: Up to 3.10 each result() of a failed future makes the traceback longer (bpo-45924).
FUTURES_GROW_TRACEBACKS = sys.version_info < (3, 11)

# Policies are deprecated from 3.14 on: the public name warns there, the private one does not.
if sys.version_info >= (3, 14):
    DefaultEventLoopPolicy: Any = _unix_events._DefaultEventLoopPolicy  # type: ignore[attr-defined]
else:
    DefaultEventLoopPolicy = asyncio.DefaultEventLoopPolicy


def chosen_child_watcher() -> Any:
    """Return the child watcher that somebody set with ``asyncio.set_child_watcher()``, or None.

    Not one that asyncio makes by itself, which the hub replaces. They are gone in 3.14.
    """
    if sys.version_info >= (3, 14):
        return None
    watcher = getattr(asyncio.get_event_loop_policy(), "_watcher", None)
    defaults = (asyncio.ThreadedChildWatcher, getattr(asyncio, "PidfdChildWatcher", ()))
    return None if isinstance(watcher, defaults) else watcher


# --- asyncio: loops that carry a hub -------------------------------------------------------------


def replace_set_running_loop(function: Callable[[Any], None]) -> None:
    """Put this in the place of asyncio's function."""
    events._set_running_loop = function
    asyncio._set_running_loop = function


def installed_policy() -> Any:
    """Return the policy that somebody has set, or None."""
    # asyncio.get_event_loop_policy() makes one, and warns from 3.14 on; policies go in 3.16.
    return getattr(events, "_event_loop_policy", None)


def is_polling(loop: Any, frame: Any) -> bool:
    """Whether an event loop may be asleep below this frame, in which a signal handler runs.

    A function that was called soon would not wake it then. uvloop calls signal handlers when it
    is awake.
    """
    if getattr(loop, "_selector", None) is None:
        return not type(loop).__module__.startswith("uvloop")
    while frame is not None:
        if frame.f_code.co_name == "select" and frame.f_globals.get("__name__") == "selectors":
            return True
        frame = frame.f_back
    return False


def install_self_pipe(loop: Any, pair: tuple[Any, Any]) -> None:
    """Give a standard event loop the sockets by which other threads wake it."""
    loop._ssock, loop._csock = pair
    loop._ssock.setblocking(False)
    loop._csock.setblocking(False)
    loop._internal_fds += 1
    loop._add_reader(loop._ssock.fileno(), loop._read_from_self)


def forget_pending(task: Any) -> None:
    """Let it be destroyed without a message, although it is pending."""
    if isinstance(task, asyncio.Task):
        task._log_destroy_pending = False  # type: ignore[attr-defined]


def renew_self_pipe(loop: Any) -> None:
    """Give it others."""
    loop._close_self_pipe()
    loop._make_self_pipe()


def replace_selector(loop: Any, selector: Any) -> None:
    """Have a standard event loop wait by this selector for what it waits for."""
    for key in [*loop._selector.get_map().values()]:
        try:
            selector.register(key.fileobj, key.events, key.data)
        except (OSError, ValueError):
            pass  # somebody has closed it
    loop._selector = selector


def check_native_thread(loop: Any) -> None:
    """Have a standard event loop in debug mode compare OS threads.

    It compares what ``threading.get_ident()`` gives, which is another number in each greenlet
    after patching, so that it would refuse every call from greenlets of its own thread.
    """
    if hasattr(loop, "_check_thread"):
        thread = get_ident()

        def check_thread() -> None:
            if get_ident() != thread and loop.is_running():
                raise RuntimeError(
                    "Non-thread-safe operation invoked on an event loop other than the current one"
                )

        loop._check_thread = check_thread


def check_as_before(loop: Any) -> None:
    """Undo `check_native_thread`."""
    getattr(loop, "__dict__", {}).pop("_check_thread", None)


def tell_main_thread(make_loop: Callable[[], Any]) -> None:
    """Let uvloop find out which is the main thread.

    It asks once, when it first needs to know. After patching it would get a greenlet's number,
    take no thread for the main one, and refuse to handle signals.
    """
    main: Any = threading.main_thread()
    ident, main._ident = main._ident, gevent.hub.MAIN_THREAD_IDENT
    try:
        make_loop().close()
    finally:
        main._ident = ident


def exception_of_throw(args: tuple[Any, ...]) -> BaseException:
    """Return what ``greenlet.throw()`` of these arguments raises: they are as those of generators.

    Nothing, an exception, or type, value and traceback.
    """
    kind, value = (*args, None, None)[:2]
    exception: BaseException
    if kind is None:
        exception = greenlet.GreenletExit()
    elif isinstance(kind, BaseException):
        exception = kind
    elif isinstance(value, BaseException):
        exception = value
    else:
        exception = kind() if value is None else kind(value)
    return exception


# --- gevent --------------------------------------------------------------------------------------

# gevent/os.py, from 25.8.1 on: descriptors that the patched os.close() is to close in a check
# watcher, that is after the hub's next poll.
_deferred_closes: dict[int, Any] = getattr(gevent.os, "_closing_fd_to_event", {})
has_deferred_closes: Callable[[], int] = _deferred_closes.__len__


# gevent/timeout.py: what a ``Timeout`` has for a timer once it is closed.
_no_timer = gevent.timeout._FakeTimer


_ending_hubs: WeakSet[Any] = WeakSet()
# Reentrant: signal handlers and destructors call as well.
_ending = NativeRLock()


def call_in_hub(hub: Any, function: Callable[..., Any], *args: Any) -> None:
    """Have a hub call this, from any OS thread. If it was destroyed, nobody does."""
    with _ending:
        if hub not in _ending_hubs:
            try:
                hub.loop.run_callback_threadsafe(function, *args)
            except (AttributeError, ValueError):
                # Somebody has destroyed it, and left None for the loop, or for what that needs;
                # libev says ValueError.
                pass


def note_end(hub: Any) -> None:
    """Let no other OS thread call in this hub any more, before it is destroyed."""
    # gevent's loops with cffi do not hold the GIL in what they call: one that is being destroyed
    # would be used.
    with _ending:
        _ending_hubs.add(hub)


def reset_in_child() -> None:
    """Forget in a forked child what other threads of the parent were doing."""
    global _ending
    _ending = NativeRLock()


def pool_is_full(pool: Any) -> bool:
    """Whether ``spawn()`` of this ``gevent.threadpool.ThreadPool`` would block now."""
    return bool(pool._available_worker_threads_greenlet_sem.locked())


def is_closed_timeout(error: BaseException) -> bool:
    """Whether this is a ``gevent.Timeout`` whose ``with`` block or function has ended."""
    return isinstance(error, gevent.Timeout) and error.timer is _no_timer


def declare_interfaces(loop: type, callback: type, watcher: type) -> None:
    """Say of classes that they are what gevent asks for."""
    zope.interface.classImplements(loop, gevent._interfaces.ILoop)
    zope.interface.classImplements(callback, gevent._interfaces.ICallback)
    zope.interface.classImplements(watcher, gevent._interfaces.IWatcher)


def is_libuv(hub_loop: Any) -> bool:
    """Whether the loop of a hub is gevent's libuv loop, not libev's."""
    return "libuv" in type(hub_loop).__module__


class _AllChildren(defaultdict[int, list[Any]]):
    """The child watchers of gevent's libuv loop, of which one of any pid hears of all children.

    Those that `loop.child(0)` makes hear of the first one only (gevent/libuv/loop.py), and one for
    a pid comes too late if another OS thread has started the child.
    """

    def __init__(self, watchers: Any, note: Callable[[int, int], None]) -> None:
        super().__init__(list, watchers)
        self._set_waitpid_status = note  # as a watcher's

    def get(self, pid: int, default: Any = None) -> Any:
        watchers = super().get(pid, default)
        return watchers if pid else [*watchers, self]


def note_children(hub_loop: Any, note: Callable[[int, int], None]) -> None:
    """Call this with pid and status of each child that gevent's libuv loop reaps. In its hub."""
    if not isinstance(hub_loop._child_watchers, _AllChildren):
        hub_loop._child_watchers = _AllChildren(hub_loop._child_watchers, note)


def is_cffi(hub_loop: Any) -> bool:
    """Whether the loop of a hub is one of those that gevent makes with cffi."""
    return "corecext" not in type(hub_loop).__module__


def has_callbacks(hub_loop: Any) -> bool:
    """Whether the hub has callbacks to call before it polls."""
    return bool(hub_loop._callbacks)


def find_only_descendant(ancestor: Any) -> Any:
    """Return the only active greenlet below this one; None if there is none, or more. Slow."""
    found = []
    for each in gc.get_objects():
        if issubclass(type(each), greenlet.greenlet) and greenlet.greenlet.__bool__(each):
            above = each.parent
            while above is not None and above is not ancestor:
                above = None if isinstance(above, gevent.hub.Hub) else above.parent
            if above is not None and not isinstance(each, gevent.hub.Hub):
                found.append(each)
    return found[0] if len(found) == 1 else None


def find_main_hub() -> Any:
    """Return the hub of the main OS thread, from any thread, or None. Slow."""
    for each in gc.get_objects():
        # Not isinstance(), which asks the object: there are proxies that raise.
        if issubclass(type(each), gevent.hub.Hub):
            if each.loop is not None and each.loop.default:
                return each
    return None


#: The hub of this OS thread, or None; does not make one.
get_hub_if_exists: Callable[[], Any] = gevent._hub_local.get_hub_if_exists
