"""The ambient loop: serves greenlets that call async code while no event loop is running.

One per OS thread, made on first use and shared by all greenlets of the thread, so that an
``aiohttp.ClientSession`` or a pool of connections made in one of them can be used in all. It runs
in a greenlet of its own until `shutdown` is called or the thread or the process ends: then its
tasks are cancelled, its async generators and its executor shut down, and it is closed, as
``asyncio.run()`` does with its event loop.

It is as discreet as a library must be. It leaves the handling of SIGINT alone, and while nobody
waits for it, it is no reason for ``gevent.wait()`` to go on or for gevent's ``LoopExit`` not to
come. It has one handler of a signal: that of SIGTERM, in a program that has none, because the
system ends such a program on the spot, and with it every task's clean-up.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from functools import partial
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event
from gevent.hub import MAIN_THREAD_IDENT
from greenlet import getcurrent

from asyncio_gevent import _compat
from asyncio_gevent._compat import cancel_all_tasks, get_hub_if_exists
from asyncio_gevent._event_loop import EventLoop
from asyncio_gevent._originals import get_ident, native_local
from asyncio_gevent._portals import Portal, find_portal, portals
from asyncio_gevent._runners import find_owner
from asyncio_gevent._threads import at_thread_end, make_hub
from asyncio_gevent._waiting import find_carrying_loop
from asyncio_gevent.exceptions import BlockingCallError

__all__ = ["AmbientEventLoop", "find_serving_loop", "get_ambient_loop", "shutdown"]

#: Seconds that the clean-up of greenlets may take at the end of the process. They may call async
#: code then, but one that tries again for ever does not keep the process.
CLEAN_UP_SECONDS = 5.0

#: Seconds that SIGTERM waits for all of it: as long as those who send it wait before they send
#: SIGKILL (``docker stop`` does for 10).
TERM_SECONDS = 10.0


class AmbientEventLoop(EventLoop):
    """The event loop that serves the greenlets of an OS thread.

    Attributes:
        _ended: set when it is closed.
        _is_ending: it is being shut down, and new calls get another one.
        _greenlet: the one that runs it.
        _served: the hub whose greenlets it serves.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ended = Event()
        self._is_ending = False
        self._greenlet: Any = None
        self._served: Any = None

    # Ctrl-C and the descriptor of signals are the program's business, not that of a loop in the
    # background.

    def _catch_sigint(self, hub: Any) -> Any:
        return None

    def _catch_signals(self, hub: Any) -> None:
        pass

    def _check_running(self) -> None:
        # It runs in a greenlet of its own, which is below no event loop, though asyncio's own is
        # seen everywhere in the thread after patching.
        if self.is_running():
            super()._check_running()

    def _attach(self) -> None:
        super()._attach()
        self._async.ref = self._is_ending or bool(self._guests)

    def _will_run(self) -> bool:
        return not (self._closed or self._greenlet.dead)

    def _add_guest(self, guest: Any) -> None:
        guests = self._guests
        if not guests and self._async is not None:
            self._async.ref = True
        guests.add(guest)

    def _remove_guest(self, guest: Any) -> None:
        guests = self._guests
        guests.discard(guest)
        if not guests and self._async is not None and not self._is_ending:
            self._async.ref = False

    def start(self, hub: Any) -> None:
        """Have the hub run it. Does not block."""
        self._greenlet = gevent.Greenlet(self._serve)
        self._greenlet.name = "asyncio_gevent-ambient-loop"
        self._greenlet.rawlink(self._note_death)
        self._greenlet.start()
        self._served = hub

    def _note_death(self, greenlet: Any) -> None:
        # In the hub. Somebody has killed all greenlets there are, and this before it could begin.
        if not (self._ended.is_set() or self.is_closed()):
            _abandon(self)
            self._ended.set()

    def _serve(self) -> None:
        # In a greenlet of its own, until `shutdown` stops the loop.
        try:
            while not self._is_ending:
                try:
                    self.run_forever()
                except (KeyboardInterrupt, SystemExit) as error:
                    # Of a task: it ends the program, in the main greenlet, as one of any other
                    # greenlet does. The loop goes on until the program ends it.
                    _hand_to_main(error)
                except gevent.GreenletExit:
                    break  # somebody kills all greenlets there are
        finally:
            if not self.is_closed():  # it is, if its hub was destroyed
                _forget(self)
                self._is_ending = True
                _of_thread.ending = self
                try:
                    self._shut_down()
                finally:
                    if _of_thread.ending is self:
                        _of_thread.ending = None
                    self._ended.set()

    def _shut_down(self) -> None:
        # As asyncio.Runner.close().
        try:
            cancel_all_tasks(self)
            self.run_until_complete(self.shutdown_asyncgens())
            self.run_until_complete(self.shutdown_default_executor())
            # Of what these have called, or of greenlets that were still calling.
            cancel_all_tasks(self)
        finally:
            self.close()
            if get_ident() == MAIN_THREAD_IDENT and signal.getsignal(signal.SIGTERM) is _on_sigterm:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _hand_to_main(error: BaseException) -> None:
    hub = get_hub_if_exists()
    hub.loop.run_callback(hub.handle_system_error, type(error), error, error.__traceback__)


class _OfThread(native_local):  # type: ignore[misc]
    """The ambient loop of an OS thread, and the one before it, while that is being shut down."""

    loop: AmbientEventLoop | None = None
    ending: AmbientEventLoop | None = None


_of_thread = _OfThread()
_hooks_registered = False
_ending_by_sigterm: Any = None


def find_serving_loop(portal: Portal | None) -> Any:
    """Return the event loop that serves a greenlet which is part of none. Does not block.

    Args:
        portal: of that greenlet (`find_portal`), or None.
    """
    if portal is not None:
        loop = portal.live_loop()
        if loop is not None:
            return loop
    # Where gevent runs on asyncio, the loop that the program runs itself.
    return find_carrying_loop() or get_ambient_loop()


def get_ambient_loop() -> AmbientEventLoop:
    """Return the ambient loop of this OS thread; make it if there is none. Does not block."""
    loop = _of_thread.loop
    if loop is not None and loop._served.loop is not None and not loop._greenlet.dead:
        return loop
    hub = get_hub_if_exists() or make_hub()
    if loop is not None:
        _abandon(loop)  # somebody has destroyed the hub below it, or killed it before it began
    _register_hooks()
    loop = _of_thread.loop = AmbientEventLoop()
    loop.start(hub)
    at_thread_end(partial(_end, loop))  # not by `_of_thread`, which may be gone by then
    return loop


def shutdown() -> None:
    """Shut down the ambient loop of this OS thread, if there is one, and wait until it is closed.

    Its tasks are cancelled and waited for, then its async generators and its executor are shut
    down. At the end of the thread and of the program this happens by itself. Greenlets that wait
    for the loop get ``asyncio.CancelledError``; whoever calls async code later gets a new loop.

    Raises:
        BlockingCallError: called in the hub.
        RuntimeError: called in a coroutine or callback of that loop, which would wait for itself.

    Blocks the greenlet. From any greenlet but the hub; each OS thread shuts down its own.
    """
    loop = _of_thread.loop or _of_thread.ending
    if loop is None:
        return
    if getcurrent() is get_hub_if_exists():
        raise BlockingCallError(
            "asyncio_gevent.shutdown() cannot be called in the hub, which all greenlets wait "
            "for: use `gevent.spawn(asyncio_gevent.shutdown)`"
        )
    if loop._is_ending:
        portal = find_portal()
        if portal is not None and portal.loop is loop and portals.get(getcurrent()) is not portal:
            return  # part of a task's clean-up, which the loop waits for
    if _compat.get_running_loop() is loop:
        raise RuntimeError(
            "asyncio_gevent.shutdown() was called in a coroutine or callback of the loop that it "
            "shuts down, and would wait for itself: call it in a greenlet, "
            "`gevent.spawn(asyncio_gevent.shutdown)`"
        )
    _end(loop)


def _end(loop: AmbientEventLoop) -> None:
    if loop.is_closed():
        return
    if loop._served.loop is None or (loop._greenlet.dead and not loop._ended.is_set()):
        _abandon(loop)
        return
    _forget(loop)
    portal = portals.get(getcurrent())
    if portal is not None and portal.loop is loop:
        portal.release()  # this greenlet cannot end the block in which it is
    if not loop._is_ending:
        loop._is_ending = True
        _of_thread.ending = loop
        if loop.is_running():
            loop._async.ref = True  # somebody waits for it now
            loop.stop()
        # else it is about to be started, and finds that it is to end
    loop._ended.wait()


def _forget(loop: AmbientEventLoop) -> None:
    if _of_thread.loop is loop:
        _of_thread.loop = None


def _release_waiting(loop: AmbientEventLoop) -> None:
    # Greenlets that wait for it, or are in a block of its context managers, hear no more of it.
    for guest in loop._guests:
        guest.done = True
    for portal in [*portals.values()]:
        if portal.loop is loop:
            portal.release()


def _abandon(loop: AmbientEventLoop) -> None:
    # Its hub is gone, and with it everything that its tasks waited for.
    _forget(loop)
    if _of_thread.ending is loop:
        _of_thread.ending = None
    for task in _compat.all_tasks(loop):
        task._log_destroy_pending = False
    loop._thread_id = None
    loop._awake = True
    loop.close()


def _register_hooks() -> None:
    global _hooks_registered
    if not _hooks_registered:
        _hooks_registered = True
        os.register_at_fork(after_in_child=_after_in_child)
    if get_ident() == MAIN_THREAD_IDENT and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        try:
            signal.signal(signal.SIGTERM, _on_sigterm)
        except ValueError:  # the main thread of a sub-interpreter
            pass


def _at_exit() -> None:
    is_first = True
    while (loop := _of_thread.loop or _of_thread.ending) is not None:
        if not (is_first or loop._is_ending):
            # Of the clean-up of greenlets that waited for the first one: let it end.
            ends = monotonic() + CLEAN_UP_SECONDS
            while loop._guests and monotonic() < ends:
                gevent.sleep(0.001)
            _release_waiting(loop)
        is_first = False
        _end(loop)
    if _ending_by_sigterm is not None and getcurrent() is not _ending_by_sigterm:
        _ending_by_sigterm.join()


# Now, so that it comes after what programs register once they have imported this.
atexit.register(_at_exit)


def _on_sigterm(signum: int, frame: Any) -> None:
    global _ending_by_sigterm
    # From now on the system does what it does: a second one ends the process at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    hub = get_hub_if_exists()
    if hub is None or hub.loop is None:
        os.kill(os.getpid(), signal.SIGTERM)
        return
    _ending_by_sigterm = gevent.spawn(_end_by_sigterm)
    if getcurrent() is not hub:
        _ending_by_sigterm.join()  # or a program that computes, and never waits, would not end


def _end_by_sigterm() -> None:
    for loop in (_of_thread.loop, _of_thread.ending):
        if loop is not None:
            # They end with the process, as they do without a handler. The main greenlet would
            # print that it was cancelled, and end the process before this does.
            _release_waiting(loop)
    try:
        with gevent.Timeout(TERM_SECONDS, False):
            _at_exit()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(128 + signal.SIGTERM)  # the first process of a container is not ended by that


def _after_in_child() -> None:
    global _ending_by_sigterm
    _ending_by_sigterm = None
    for loop in (_of_thread.loop, _of_thread.ending):
        if loop is not None:
            _leave_to_parent(loop)


def _leave_to_parent(loop: AmbientEventLoop) -> None:
    # The child gets its own. The parent's stands still here; it is not unclosed, though, and what
    # it would close is the parent's. Only a step of its own that forked may go on with it.
    _forget(loop)
    if _of_thread.ending is loop:
        _of_thread.ending = None
    owner = find_owner(getcurrent())
    if owner is None or owner.loop is not loop:
        for task in _compat.all_tasks(loop):
            task._log_destroy_pending = False
        loop._closed = True
        for greenlet, portal in [*portals.items()]:
            if portal.loop is loop:
                portal.ended = True
                del portals[greenlet]
