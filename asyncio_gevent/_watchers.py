"""What the hub watches for the event loop: descriptors, signals, children.

Rule 1: a watcher of a descriptor is started once for its registration, not for every wait, and is
        level-triggered: it fires at every poll of the hub while the descriptor is ready.
Rule 2: a handle that waits to be run, or is suspended, is not queued a second time.
Rule 3: watchers of descriptors are active only while the event loop runs, and belong to the hub
        that runs it; those of children and of signals with a handler last until it is closed.
"""

from __future__ import annotations

import errno
import os
import selectors
import signal
import sys
from asyncio import Handle
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from asyncio_gevent import _compat
from asyncio_gevent._originals import NativeRLock, native_local, os_close, os_waitpid

if TYPE_CHECKING:
    from asyncio_gevent._event_loop import EventLoop

__all__ = [
    "READ",
    "WRITE",
    "ChildWatcher",
    "IOHandle",
    "Registry",
    "close",
    "file_of",
    "reaped",
    "unpolled",
    "wake_on_signals",
]

#: Event masks of gevent's ``loop.io()``, the same for libev and libuv.
READ = 1
WRITE = 2


class IOHandle(Handle):
    """The callback of a descriptor that is ready to read or to write, with its watcher.

    Attributes:
        queued: in the ready queue, being run, or suspended. Set by `fire`, cleared when the
            callback returns. While it is set the watcher must not queue the handle again.
        held: there is no watcher, since it fired while `queued` was set, or the callback of its
            predecessor is suspended; it is started when that callback returns.
        fileobj: what `add_reader` or `add_writer` was given: the number, or an object that has it.
        file: the file, since the callback is suspended or the event loop does not run.
        successor: the handle that replaced this one while its callback was suspended. It is
            held until that callback returns, or data would be delivered out of order.
    """

    __slots__ = ("events", "fd", "file", "fileobj", "held", "queued", "successor", "watcher")

    if TYPE_CHECKING:
        _loop: EventLoop
        _cancelled: bool

    def __init__(
        self,
        fd: int,
        events: int,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        loop: Any,
        context: Any = None,
    ) -> None:
        super().__init__(callback, args, loop, context)
        self.fd = fd
        self.events = events
        self.fileobj: Any = fd
        self.file: tuple[int, int] | None = None
        self.queued = False
        self.held = False
        self.successor: IOHandle | None = None
        self.watcher: Any = None

    def start(self) -> None:
        """Start watching, with a new watcher of the hub that runs the event loop.

        A new one even where one is left from before: only a watcher that was never started
        makes libev tell the kernel of the descriptor again, and the number may since have been
        closed and given to another file.

        Raises:
            OSError: the descriptor is closed.
        """
        self.close_watcher()
        self.watcher = self._loop._hub_loop.io(self.fd, self.events)
        self.watcher.start(self.fire)
        self._loop._fresh.append(self)

    def restart(self) -> None:
        """Start watching again, unless the descriptor was closed; that ends no registration."""
        file = file_of(self.fd)
        # libev would abort the process; epoll forgets it.
        if file is not None and self.file in (None, file):
            self.start()

    def stop_if_closed(self) -> None:
        """Stop watching a descriptor that was closed."""
        if self.watcher is not None and file_of(self.fd) is None:
            self.close_watcher()

    def close_watcher(self) -> None:
        """Stop watching."""
        watcher = self.watcher
        if watcher is not None:
            self.watcher = None
            close(watcher)

    def fire(self) -> None:
        """Queue the callback; called in the hub when the descriptor is ready."""
        if self.queued:
            self.held = True
            self.watcher.stop()
            return
        self.queued = True
        loop = self._loop
        loop._ready.append(self)
        if not loop._awake:
            # `_wake`, which also serves other threads.
            loop._awake = True
            loop._run_callback(loop._dispatch)

    def cancel(self) -> None:
        """Stop watching and forget the callback."""
        super().cancel()
        self.close_watcher()

    def returned(self) -> None:
        """Note that the callback has returned: the next event may queue the handle again."""
        self.queued = False
        if self.held:
            self.release()
        if self._loop._busy_io:
            if self._loop._busy_io.get((self.fd, self.events)) is self:
                del self._loop._busy_io[self.fd, self.events]
            if self.successor is not None:
                self.successor.release()
                self.successor = None

    def release(self) -> None:
        """Watch again after `held`."""
        self.held = False
        if not self._cancelled and self._loop._async is not None:
            self.restart()


def file_of(fd: int) -> tuple[int, int] | None:
    """Return what tells the file behind a descriptor from others, None if it is closed."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def close(watcher: Any) -> None:
    """Stop and close a watcher, also one whose hub was destroyed meanwhile."""
    try:
        watcher.stop()
        watcher.close()
    except ValueError:  # libev: "operation on destroyed loop"
        pass


class _Unpolled(native_local):  # type: ignore[misc]
    """The handles of this OS thread that the hub watches since its last poll.

    Of a descriptor that was closed meanwhile and not removed, selectors never hear again, while
    libev and libuv abort the process when they tell the kernel of it. A prepare watcher of low
    priority is what the hub calls last before it polls.
    """

    def __init__(self) -> None:
        self._handles: list[IOHandle] = []
        self._users = 0
        self._hub_loop: Any = None
        self._watcher: Any = None

    def acquire(self, hub_loop: Any) -> list[IOHandle]:
        """Return the list to append to, which is checked until `release`."""
        self._users += 1
        if self._hub_loop is not hub_loop:
            self._close()
            self._hub_loop = hub_loop
            if _compat.is_cffi(hub_loop):
                self._handles = _CheckedList(hub_loop)
                self._watcher = hub_loop.check(ref=False)
                self._watcher.start(self._handles.clear)
            else:
                self._handles = []
                # After gevent's own, which runs the callbacks of the hub. If it is started in that
                # phase, it is not called any more.
                self._watcher = hub_loop.prepare(ref=False, priority=-2)
                self._watcher.start(self._check)
                hub_loop.run_callback(self._check_first)
        return self._handles

    def _check_first(self) -> None:
        _stop_closed(self._handles)
        if self._handles and self._hub_loop and _compat.has_callbacks(self._hub_loop):
            self._hub_loop.run_callback(self._check_first)

    def _check(self) -> None:
        if self._handles:
            _stop_closed(self._handles)
            self._handles.clear()

    def release(self) -> None:
        """Take back `acquire`."""
        self._users -= 1
        if self._users <= 0:
            self._users = 0
            self._handles.clear()
            self._close()

    def _close(self) -> None:
        watcher, self._watcher, self._hub_loop = self._watcher, None, None
        if watcher is not None:
            close(watcher)


class _CheckedList(list[IOHandle]):
    """The same for the loops of gevent that use cffi, where there is no such watcher: libuv's.

    There it is a callback of the hub that lets all others go first. One that is closed by them may
    be missed if they are so many that the hub polls in between. It is emptied after each poll.
    """

    def __init__(self, hub_loop: Any) -> None:
        super().__init__()
        self._hub_loop = hub_loop
        self._is_scheduled = False

    def append(self, handle: IOHandle) -> None:
        super().append(handle)
        if not self._is_scheduled:
            self._is_scheduled = True
            self._hub_loop.run_callback(self._check)

    def _check(self) -> None:
        _stop_closed(self)
        if self and _compat.has_callbacks(self._hub_loop):
            self._hub_loop.run_callback(self._check)
        else:
            self._is_scheduled = False


def _stop_closed(handles: list[IOHandle]) -> None:
    for handle in handles:
        handle.stop_if_closed()


unpolled = _Unpolled()


class Registry(selectors.BaseSelector):
    """Says which descriptors the event loop watches, in the words of ``selectors``.

    The standard library's transports look at their loop's selector to describe themselves, and
    so do people. It cannot be polled: the hub does that.
    """

    def __init__(self, readers: dict[int, IOHandle], writers: dict[int, IOHandle]) -> None:
        self._readers = readers
        self._writers = writers

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Return a new mapping of the descriptors to their keys."""
        return {fd: self.get_key(fd) for fd in {**self._readers, **self._writers}}

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """Return the key of a descriptor, or raise ``KeyError``."""
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        reader, writer = self._readers.get(fd), self._writers.get(fd)
        if reader is None and writer is None:
            raise KeyError(f"{fileobj!r} is not registered")
        events = (reader is not None and selectors.EVENT_READ) | (
            writer is not None and selectors.EVENT_WRITE
        )
        return selectors.SelectorKey(fileobj, fd, int(events), (reader, writer))

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Refuse: use ``loop.add_reader()`` or ``loop.add_writer()``."""
        raise NotImplementedError("use loop.add_reader() or loop.add_writer()")

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Refuse: use ``loop.remove_reader()`` or ``loop.remove_writer()``."""
        raise NotImplementedError("use loop.remove_reader() or loop.remove_writer()")

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Refuse: this event loop has no poll of its own."""
        raise NotImplementedError("the gevent hub polls for this event loop")

    def close(self) -> None:
        """Do nothing: there is nothing of its own."""


# --- signals ------------------------------------------------------------------------------------


class _SignalWakeup:
    """Tells event loops of the signals they handle, in the main thread's hub.

    The interpreter writes the number of a signal to the descriptor that was given to
    ``signal.set_wakeup_fd()``; the hub watches the other end. There is one such descriptor in a
    process, so all event loops share this.

    Every event loop that runs in the main thread uses it: without, a signal that comes after the
    hub has looked for signals and before it polls would be seen after the poll only, and Ctrl-C
    that much later.
    """

    def __init__(self) -> None:
        self._users: set[Any] = set()
        self._watcher: Any = None
        self._hub_loop: Any = None
        self._previous = -1
        self._pipe: tuple[int, int] | None = None

    def acquire(self, user: Any, hub: Any) -> None:
        """Wake this hub for signals, until `release` has been called by every user.

        Raises ``ValueError`` outside the main OS thread.
        """
        pipe = self._pipe or _pipe()
        # Each time: it is what raises in other threads, and others may have set theirs meanwhile.
        try:
            previous = _compat.unix_events.signal.set_wakeup_fd(pipe[1])
        except (ValueError, OSError):
            if pipe is not self._pipe:
                os_close(pipe[0])
                os_close(pipe[1])
            raise
        if previous != pipe[1]:
            self._previous = previous  # not ours: it is what to give back
        self._users.add(user)  # first: `release` is called in other OS threads, too
        self._pipe = pipe
        if self._watcher is None or self._hub_loop is not hub.loop:
            if self._watcher is not None:
                close(self._watcher)
            self._hub_loop = hub.loop
            # ref=False: waiting for a signal is no reason for the hub to go on.
            self._watcher = hub.loop.io(pipe[0], READ, ref=False)
            self._watcher.start(self._deliver)

    def release(self, user: Any) -> None:
        """Take back `acquire`; no error where there was none."""
        if user not in self._users:
            return
        self._users.discard(user)
        if self._users or self._pipe is None:
            return
        # Others may have set theirs meanwhile, which then stays, or have closed it: then there is
        # none. Ours must not, since its number may be that of another file soon.
        set_wakeup_fd = _compat.unix_events.signal.set_wakeup_fd
        try:
            current = set_wakeup_fd(-1)
            set_wakeup_fd(self._previous if current in (-1, self._pipe[1]) else current)
        except (ValueError, OSError) as error:
            _compat.base_events.logger.info("set_wakeup_fd() failed: %s", error)
        self._previous = -1
        self.reset()

    def reset_in_child(self) -> None:
        """Forget everything in a forked child, whose pipe is the parent's."""
        if self._pipe is not None:
            try:
                signal.set_wakeup_fd(-1)  # asyncio does so from 3.12 on
            except ValueError:  # another thread has forked
                pass
        self.reset()

    def reset(self) -> None:
        """Forget everything, and close the pipe."""
        self._users.clear()
        if self._pipe is not None:
            reader, writer = self._pipe
            self._pipe = None
            close(self._watcher)
            self._watcher = self._hub_loop = None
            os_close(reader)
            os_close(writer)

    def _deliver(self) -> None:
        # As asyncio, by the bytes: they come whoever's handler Python calls for the signal.
        assert self._pipe is not None
        try:
            signals = os.read(self._pipe[0], 4096)
        except BlockingIOError:
            return
        for signum in signals:
            for loop in list(self._users):
                loop._handle_signal(signum)


def _pipe() -> tuple[int, int]:
    pipe = os.pipe()  # not inherited by programs that are executed
    for fd in pipe:
        os.set_blocking(fd, False)
    return pipe


wake_on_signals = _SignalWakeup()


# --- children -----------------------------------------------------------------------------------


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
        if not _compat.is_libuv(loop) and (self._watcher is None or self._watcher.loop is not loop):
            # ref=False: it is no reason for that hub to go on.
            self._watcher = watcher = loop.child(0, ref=False)
            watcher.start(lambda *_: self._note(watcher.rpid, watcher.rstatus))

    def watch(self, pid: int) -> None:
        """Keep the status of this child. From any OS thread, after `begin`."""
        # gevent's libuv loop tells a watcher of any pid of the first child only, so there is one
        # for each, which is too late for a child that ends at once.
        hub_loop = self.main_hub and self.main_hub.loop
        if hub_loop is not None and _compat.is_libuv(hub_loop):
            _compat.call_in_hub(self.main_hub, self._watch, pid)

    def _watch(self, pid: int) -> None:
        watcher = self.main_hub.loop.child(pid, ref=False)

        def ended(*_: Any) -> None:
            close(watcher)
            self._note(pid, watcher.rstatus)

        watcher.start(ended)

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
        begun: int = 0,
    ) -> None:
        self._process = process
        self._begun = begun
        pid = process.pid
        self._loop = loop
        self.hub = hub
        self._pid = pid
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
        elif gevent_reaps and not hub.loop.default:
            reaped.watch(pid)
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
