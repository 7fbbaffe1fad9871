"""What threads and forks mean for runners and event loops.

After patching, ``threading.current_thread()`` goes by the greenlet: in a runner it would be a
stranger, and another one in each runner of an event loop (anyio compares them). So a runner
answers with the ``Thread`` of the greenlet that runs the event loop.

After ``os.fork()`` the child has a copy of every greenlet, and of the hub, which would go on
with the parent's tasks, on the parent's sockets. So there the event loops stand still, but for
the one whose own step forked and then returned: that child goes on with the event loop.

A native thread that runs an event loop gets a hub, which ends with the thread.

A busy event loop gives the GIL up when the hub polls, for a moment and often. That is worse for
other native threads than never: who waits for the GIL asks for it after 5 ms without a change of
hands (Python/ceval_gil.c, take_gil), and each such moment starts these anew, while it is over
before a waiting thread is awake. So a thread that is busy gives way for a longer moment at times.
"""

from __future__ import annotations

import os
import sys
import threading
from time import monotonic, thread_time
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from gevent.hub import MAIN_THREAD_IDENT, get_hub, set_hub

from asyncio_gevent._compat import active_threads, get_hub_if_exists, note_end, reset_in_child
from asyncio_gevent._originals import get_ident, is_module_patched, native_local, native_sleep
from asyncio_gevent._watchers import wake_on_signals

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncio_gevent._event_loop import EventLoop
    from asyncio_gevent._runners import Runner

__all__ = ["alias", "current_thread", "give_way", "make_hub", "note_running", "unalias"]

#: Seconds of processor time after which a busy thread gives way: the interpreter's own interval,
#: ``sys.getswitchinterval()`` if nobody has changed it.
TURN = 0.005

#: Seconds for which it gives way. The system makes at least some 50 µs of it, which is what a
#: waiting thread needs to wake up; more would be lost where none waits.
PAUSE = 1e-6

_aliases: dict[int, Any] = {}
_running: WeakSet[EventLoop] = WeakSet()
_hooks_registered = False
_alias_hooks_registered = False


def current_thread() -> Any:
    """Return the ``Thread`` of the calling greenlet where threads are greenlets, else None."""
    return threading.current_thread() if is_module_patched("threading") else None


def alias(runner: Runner, thread: Any) -> None:
    """Let ``threading.current_thread()`` be this thread in the runner; None does nothing."""
    global _alias_hooks_registered
    if thread is not None:
        if not _alias_hooks_registered:
            # After patching, so that they come before gevent's own hooks for a fork.
            _alias_hooks_registered = True
            os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent)
        active_threads[id(runner)] = _aliases[id(runner)] = thread


def unalias(runner: Runner) -> None:
    """Undo `alias`."""
    if _aliases.pop(id(runner), None) is not None:
        active_threads.pop(id(runner), None)


class _Turn(native_local):  # type: ignore[misc]
    """When this OS thread last gave way to others: by the clock, and by its own time."""

    looked_at = 0.0
    used = 0.0


_turn = _Turn()


def give_way() -> None:
    """Let other native threads run, if this one has been busy for `TURN` since they could."""
    now = monotonic()
    if now - _turn.looked_at < TURN:
        return
    _turn.looked_at = now
    used = thread_time()
    if used - _turn.used >= TURN:
        _turn.used = used
        if len(sys._current_frames()) > 1:
            native_sleep(PAUSE)


class _End:
    """Does what is to be done when a native thread ends.

    It destroys the hub, with its descriptors. Not before: greenlets of the thread may wait in the
    hub, also when no event loop runs. The reference in a ``threading.local`` of the thread is
    dropped as the last thing it does, in that thread, where greenlets can still be switched to
    (CPython, PyThreadState_Clear).

    Attributes:
        hub: the hub to destroy, or None if it is somebody else's.
        function: called before, or None; it may block in the hub, `function_hub`.
    """

    def __init__(self) -> None:
        self.hub: Any = None
        self.function: Callable[[], None] | None = None
        self.function_hub: Any = None
        self._thread = get_ident()

    def __del__(self) -> None:
        # In a forked child it is another thread that forgets those that are not there any more.
        if self._thread != get_ident():
            return
        try:
            if self.function is not None:
                if get_hub_if_exists() is None and self.function_hub.loop is not None:
                    # gevent's threading.local was dropped before ours. What blocks in the
                    # function would make itself another hub, in which nothing ever happens.
                    set_hub(self.function_hub)
                self.function()
        finally:
            hub = self.hub
            if hub is not None and hub.loop is not None:
                note_end(hub)
                hub.destroy(destroy_loop=True)


_of_thread = native_local()


def _end_of_thread() -> _End:
    try:
        return _of_thread.end  # type: ignore[no-any-return]
    except AttributeError:
        _of_thread.end = end = _End()
        return end


def make_hub() -> Any:
    """Make a hub for this OS thread, which has none, and which it lasts no longer than."""
    hub = get_hub()
    if get_ident() != MAIN_THREAD_IDENT:
        _end_of_thread().hub = hub
    return hub


def at_thread_end(function: Callable[[], None]) -> None:
    """Call this at the end of this OS thread, before its hub goes; not in the main thread."""
    if get_ident() != MAIN_THREAD_IDENT:
        end = _end_of_thread()
        end.function = function
        end.function_hub = get_hub()


def note_running(loop: EventLoop) -> None:
    """Let this event loop stand still in forked children."""
    global _hooks_registered
    _running.add(loop)
    if not _hooks_registered:
        _hooks_registered = True
        os.register_at_fork(after_in_child=_after_in_child)


def _before_fork() -> None:
    # threading's own hook wants a thread to have one identifier.
    for key in list(_aliases):  # other OS threads have some as well
        active_threads.pop(key, None)


def _after_in_parent() -> None:
    active_threads.update(_aliases)


def _after_in_child() -> None:
    _aliases.clear()
    reset_in_child()
    hub = get_hub_if_exists()
    if hub is not None and hub.loop is not None:
        # Now, not after these hooks, as gevent does: libuv would take descriptors out of the
        # parent's epoll set when it stops watching them here.
        hub.loop.reinit()
    wake_on_signals.reset_in_child()
    for loop in list(_running):
        loop._freeze()
