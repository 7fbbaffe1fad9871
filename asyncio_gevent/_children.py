"""Children of the process: their pipes and protocols, and how the event loop hears of their end.

Rule 1: a child is reaped by whoever would do so anyway: by the event loop, unless gevent takes the
        status of every child of the process.
Rule 2: to start a child does not switch to the hub: it is watched before anything else runs.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections import deque
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event
from gevent.hub import get_hub

from asyncio_gevent import _compat
from asyncio_gevent._originals import NativeRLock, find_popen, os_close, os_waitpid
from asyncio_gevent._transports import Introducing, Introduction, named_as
from asyncio_gevent._watchers import READ, close

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncio_gevent._event_loop import EventLoop

__all__ = ["ChildWatcher", "SubprocessTransport", "reaped"]

#: Calls of a subprocess protocol that wait for one that is suspended, before the pipes are no
#: longer read.
MAX_WAITING_CALLS = 16


# --- their end ---------------------------------------------------------------------------------


class _Reaped:
    """The statuses of children that the main thread's hub has reaped, for other OS threads.

    Once gevent watches a child, its handler of SIGCHLD takes the status of every child of the
    process. A watcher of any pid is told of all of them, also of one that ends at once.
    """

    #: Statuses that are kept, for those who hear of the end of their child later.
    KEPT = 1000

    def __init__(self) -> None:
        self.main_hub: Any = None
        self._watcher: Any = None
        # Of more than one OS thread. Reentrant: the garbage collector may close a watcher.
        self._lock = NativeRLock()
        self._count = 0
        self._statuses: dict[int, tuple[int, int]] = {}
        self._waiting: dict[int, ChildWatcher] = {}

    def begin(self) -> int:
        """Keep statuses from now on, if gevent takes them. From any OS thread, before a child.

        Returns:
            What `claim` is to be told: an older status was of another child of that number.
        """
        count = self._count
        if _gevent_reaps():
            if self.main_hub is None or self.main_hub.loop is None:
                self.main_hub = _compat.find_main_hub()
            if self.main_hub is not None:
                _compat.call_in_hub(self.main_hub, self._begin)
        return count

    def _begin(self) -> None:
        loop = self.main_hub.loop
        if _compat.is_libuv(loop):
            _compat.note_children(loop, self._note)
        elif self._watcher is None or self._watcher.loop is not loop:
            # ref=False: it is no reason for that hub to go on.
            self._watcher = watcher = loop.child(0, ref=False)
            watcher.start(lambda *_: self._note(watcher.rpid, watcher.rstatus))

    def _note(self, pid: int, status: int) -> None:
        with self._lock:
            self._count += 1
            waiting = self._waiting.pop(pid, None)
            if waiting is None:
                self._statuses.pop(pid, None)  # of another child; the new one goes to the end
                self._statuses[pid] = self._count, status
                if len(self._statuses) > self.KEPT:
                    del self._statuses[next(iter(self._statuses))]
        if waiting is not None:
            _compat.call_in_hub(waiting.hub, waiting.ended, status)

    def claim(self, watcher: ChildWatcher, pid: int, begun: int) -> int | None:
        """Return the status of a child that has ended, or None: then ``ended`` will be called."""
        with self._lock:
            count, status = self._statuses.pop(pid, (0, 0))
            if count > begun:
                return status
            self._waiting[pid] = watcher
        return None

    def forget(self, pid: int) -> None:
        """Do not call ``ended`` for this child any more."""
        with self._lock:
            self._waiting.pop(pid, None)


reaped = _Reaped()


def _gevent_reaps() -> bool:
    # Whether its handler of SIGCHLD takes, or may soon take, the status of every child: the module
    # sets it when it starts one, as do gevent.os.fork() and loop.install_sigchld().
    if getattr(gevent.config.loop, "reaps_watched_only", False):
        return False
    if "gevent.subprocess" in sys.modules:
        return True
    if callable(signal.getsignal(signal.SIGCHLD)):
        return False
    # A handler in C, which the signal module does not know of. Elsewhere than on Linux there are
    # no pidfds, and it is the hub in any case.
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            (mask,) = [line.split()[1] for line in file if line.startswith("SigCgt:")]
    except (OSError, ValueError):
        return False
    return bool(int(mask, 16) >> (signal.SIGCHLD - 1) & 1)


class ChildWatcher:
    """Calls ``callback(returncode)`` in the hub when a child of this process has ended.

    By a pidfd where the system has them: only this child is reaped, in any OS thread, and no
    SIGCHLD handler is installed. Where gevent reaps every child of the process already, the hub's
    child watcher, which exists in the main thread only, is asked for the status as well, by
    `reaped` from other threads. Without pidfds it is the child watcher alone.

    Args:
        loop: the event loop; `close` is called when it is closed.
        hub: its hub.
        process: the child, a ``subprocess.Popen``, whose ``wait()`` may be called.
        callback: called once, unless `close` comes first.
        begun: what `_Reaped.begin` has returned before the child was started.

    Raises:
        RuntimeError: the system has no pidfds, and this is not the main thread.
        OSError: no descriptor is left for one.
    """

    def __init__(
        self,
        loop: EventLoop,
        hub: Any,
        process: Any,
        callback: Callable[[int], None],
        begun: int,
    ) -> None:
        self._process = process
        self._begun = begun
        self._loop = loop
        self.hub = hub
        self._pid = pid = process.pid
        self._callback: Callable[[int], None] | None = callback
        self._pidfd = -1
        self._watchers: list[Any] = []
        gevent_reaps = _gevent_reaps()
        self._reaps = not (gevent_reaps and hub.loop.default)  # this watcher, not the hub
        if hasattr(os, "pidfd_open"):
            try:
                self._pidfd = os.pidfd_open(pid)
            except ProcessLookupError:  # it has ended, and the main hub has reaped it
                self._wait_for_status()
                loop._child_watchers.add(self)
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES and not hub.loop.default:
                    raise
                # An old kernel, or a sandbox; in the main thread there is another way.
        if self._pidfd >= 0:
            watcher = hub.loop.io(self._pidfd, READ)
            watcher.start(self._on_pidfd)
            self._watchers.append(watcher)
        if self._pidfd < 0 or not self._reaps:
            self._watch_child(hub)
        loop._child_watchers.add(self)

    def close(self) -> None:
        """Stop watching. In the OS thread of the hub."""
        self._loop._child_watchers.discard(self)
        self._callback = None
        reaped.forget(self._pid)
        while self._watchers:
            close(self._watchers.pop())
        if self._pidfd >= 0:
            os_close(self._pidfd)
            self._pidfd = -1

    def _watch_child(self, hub: Any) -> None:
        try:
            watcher = hub.loop.child(self._pid)
        except TypeError as error:
            raise RuntimeError(
                "on this system a subprocess can be watched in the main OS thread only: run the "
                "event loop there"
            ) from error
        watcher.start(lambda *_: self.ended(watcher.rstatus))
        self._watchers.append(watcher)
        # gevent's first child watcher sets the handler of SIGCHLD, and of a child that has ended
        # before that, nobody would ever hear.
        try:
            pid, status = os_waitpid(self._pid, os.WNOHANG)
        except ChildProcessError:
            return  # the hub has reaped it, and knows
        if pid:
            hub.loop.run_callback(self.ended, status)

    def _on_pidfd(self) -> None:
        close(self._watchers.pop(0))
        if self._reaps:
            try:
                _, status = os_waitpid(self._pid, os.WNOHANG)
            except ChildProcessError:
                if self._process.returncode is not None:
                    self._ended(self._process.returncode)
                    return
            else:
                self.ended(status)
                return
        self._wait_for_status()

    def _wait_for_status(self) -> None:
        # Somebody else reaps it, or has done so. A hub that does tells us in a moment.
        if not self.hub.loop.default:
            status = reaped.claim(self, self._pid, self._begun)
            if status is not None:
                self.hub.loop.run_callback(self.ended, status)
                return
        timer = self.hub.loop.timer(STATUS_DELAY)
        timer.start(self._lost)
        self._watchers.append(timer)

    def _lost(self) -> None:
        if self._process.returncode is not None:  # somebody has called its wait()
            self._ended(self._process.returncode)
            return
        # As asyncio's child watchers do:
        _compat.base_events.logger.warning(
            "Unknown child process pid %d, will report returncode 255", self._pid
        )
        self._ended(255)

    def ended(self, status: int) -> None:
        """Note the wait status of the child. In the hub."""
        self._ended(_exit_code(status))

    def _ended(self, code: int) -> None:
        callback = self._callback
        if callback is not None:
            self.close()
            callback(code)


_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

#: Seconds to wait for the status of a child that another hub has reaped.
STATUS_DELAY = 0.5


def _exit_code(status: int) -> int:
    try:
        return os.waitstatus_to_exitcode(status)
    except ValueError:
        return status


# --- their transport ---------------------------------------------------------------------------


class SubprocessTransport(Introducing, _compat.UnixSubprocessTransport):  # type: ignore[misc]
    """A child process.

    It is started by the interpreter's own Popen, patched or not. gevent's waits in the hub until
    the child has started; whoever is cancelled or times out there leaves a child that nobody
    knows of.

    Attributes:
        _calls: calls of the protocol that are due, oldest first.
        _calling: one is under way, perhaps suspended: the next one waits.
        _caught_up: set when few calls are due, if a pipe waits for that.
        _is_broken: the pipes could not be connected, and the protocol will not hear of anything.
    """

    _is_broken = False

    if TYPE_CHECKING:
        _protocol: Any
        _exit_waiters: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._calls: deque[tuple[Any, tuple[Any, ...]]] = deque()
        self._calling = False
        self._caught_up: Event | None = None
        super().__init__(*args, **kwargs)

    async def _connect_pipes(self, waiter: Any) -> None:
        protocol = self._protocol
        self._protocol = Introduction(protocol)
        connected = self._loop.create_future()
        await super()._connect_pipes(connected)
        if isinstance(self._protocol, Introduction):
            self._protocol = protocol
        error = connected.exception()
        if error is None:
            self._waiter = waiter
            if self._closed:  # meanwhile, and before there were these
                for pipe in self._pipes.values():
                    pipe.pipe.close()
            return
        process = self._proc
        for number, file in enumerate((process.stdin, process.stdout, process.stderr)):
            if file is not None and self._pipes[number] is None:
                file.close()
        self._is_broken = True
        self._wake_exit_waiters()
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)

    def _introduce(self, connection_made: Callable[[Any], None]) -> None:
        self._calling = True
        super()._introduce(connection_made)

    def _begin(self) -> None:
        self._calling = False
        for callback, data in self._calls:
            self._call_soon(callback, data)

    def is_calling(self) -> bool:
        """Whether a call of the protocol is suspended, asked by another step."""
        return self._calling

    def _call(self, callback: Any, *data: Any) -> None:
        self._calls.append((callback, data))
        self._call_soon(callback, data)

    def _call_soon(self, callback: Any, data: tuple[Any, ...]) -> None:
        # For the oldest one, which is this one unless something is suspended.
        def call_next(*data: Any) -> None:
            self._call_next()

        self._loop.call_soon(named_as(callback, call_next), *data)

    def _call_next(self) -> None:
        if self._calling or not (self._calls and self._introduced):
            return
        callback, data = self._calls.popleft()
        self._calling = True
        try:
            callback(*data)
        finally:
            self._calling = False
            if self._caught_up is not None and len(self._calls) <= MAX_WAITING_CALLS:
                self._caught_up.set()
                self._caught_up = None
            if self._calls:  # they came while this one was suspended
                self._call_soon(*self._calls[0])

    def _pipe_data_received(self, fd: int, data: bytes) -> None:
        super()._pipe_data_received(fd, data)
        if len(self._calls) > MAX_WAITING_CALLS and self._calling:
            # This step of the pipe's is suspended as well, so that it reads no more.
            if self._caught_up is None:
                self._caught_up = Event()
            self._caught_up.wait()

    def _pipe_connection_lost(self, fd: int, exc: BaseException | None) -> None:
        if fd == 0 and self._calling:
            # As in `_Writing._put_off_loss`: what is suspended may wait until it may write.
            self._pipes[0].pipe._maybe_resume_protocol()
        super()._pipe_connection_lost(fd, exc)

    def _process_exited(self, returncode: int) -> None:
        super()._process_exited(returncode)
        self._wake_exit_waiters()

    def _wake_exit_waiters(self) -> None:
        # Else connection_lost() wakes them, which in 3.10 to 3.13 does not come if it is broken.
        if self._is_broken and self._returncode is not None:
            for waiter in self._exit_waiters or ():
                if not waiter.done():
                    waiter.set_result(self._returncode)
            self._exit_waiters = []

    def _start(self, args: Any, shell: bool, stdin: Any, stdout: Any, stderr: Any,
               bufsize: int, **kwargs: Any) -> None:  # fmt: skip
        hub = get_hub()
        begun = 0 if hub.loop.default else reaped.begin()
        popen = find_popen()
        if popen is not None:
            kwargs.update(shell=shell, stdin=stdin, stdout=stdout, stderr=stderr)
            kwargs.update(universal_newlines=False, bufsize=bufsize)
            self._proc = popen(args, **kwargs)
        else:
            super()._start(args, shell, stdin, stdout, stderr, bufsize, **kwargs)
        process = self._proc
        try:
            ChildWatcher(self._loop, hub, process, self._exited, begun)
        except BaseException:
            # Nothing would tell that it has ended.
            process.kill()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
            process.wait()
            raise

    def _exited(self, returncode: int) -> None:
        # In the hub. The kernel closes the pipes of a process before it tells that it has ended,
        # but the hub may hear of both in one poll. Who waits for the exit only may then close
        # the event loop: so the pipes first, and that is after the next poll.
        timer = get_hub().loop.timer(0)

        def report() -> None:
            close(timer)
            loop = self._loop
            if loop is not None and not loop.is_closed():
                loop.call_soon_threadsafe(loop.call_soon, self._process_exited, returncode)

        timer.start(report)
