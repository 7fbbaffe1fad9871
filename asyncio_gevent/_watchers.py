"""What the hub watches for the event loop: descriptors and signals.

Rule 1: a watcher of a descriptor is started once for its registration, not for every wait, and is
        level-triggered: it fires at every poll of the hub while the descriptor is ready.
Rule 2: a handle that waits to be run, or is suspended, is not queued a second time.
Rule 3: watchers of descriptors are active only while the event loop runs, and belong to the hub
        that runs it; that of signals with a handler lasts until it is closed.
"""

from __future__ import annotations

import os
import selectors
import signal
from asyncio import Handle
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from asyncio_gevent import _compat
from asyncio_gevent._originals import native_local, os_close

if TYPE_CHECKING:
    from asyncio_gevent._event_loop import EventLoop

__all__ = [
    "READ",
    "WRITE",
    "IOHandle",
    "Registry",
    "close",
    "file_of",
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
        loop = self._loop
        self.watcher = loop._hub_loop.io(self.fd, self.events)
        if loop._is_libuv:
            self.watcher.start(self.fire_in_libuv, pass_events=True)
        else:
            self.watcher.start(self.fire)
        loop._fresh.append(self)

    def restart(self) -> None:
        """Start watching again, unless the descriptor was closed; that ends no registration."""
        file = file_of(self.fd)
        # libev would abort the process; epoll forgets it.
        if file is not None and self.file in (None, file):
            try:
                self.start()
            except OSError:  # the patched os.close() is about to close it
                self.close_watcher()

    def before_poll(self) -> None:
        """Stop watching a descriptor that was closed, before the hub polls.

        One whose watchers have changed since it did, in both directions: libev tells the kernel
        of both.
        """
        fd = self.fd
        loop = self._loop
        reader, writer = loop._readers.get(fd), loop._writers.get(fd)
        if (self.watcher or reader or writer) and file_of(fd) is None:
            for handle in (self, reader, writer):
                if handle is not None:
                    handle.close_watcher()

    def note_to_check(self) -> None:
        """Stop watching a descriptor that was closed, now or until the hub polls.

        The other direction of it is not watched any more, of which the hub will tell the kernel.
        """
        if self.watcher is None:
            return
        if file_of(self.fd) is None:
            self.close_watcher()
        else:
            self._loop._fresh.append(self)

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

    def fire_in_libuv(self, events: int) -> None:
        """The same with libuv, which stops watching a descriptor that has an error."""
        self.fire()
        if events < 0:
            # Not now: the other direction's watcher, which shares libuv's, is called next.
            self._loop._run_callback(self.renew)

    def renew(self) -> None:
        """Watch with a new watcher, at once or when the callback has returned."""
        if self.watcher is not None:
            self.close_watcher()
            if self.queued:
                self.held = True
            else:
                self.release()

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
    """The same for the loops of gevent that use cffi: libuv's, and those that are not gevent's own.

    There it is a callback of the hub that lets all others go first, and empties the list. A
    descriptor that is closed by them may be missed if they are so many that the hub polls in
    between.

    No watcher of the kinds prepare, check and idle will do: while libuv calls those of a kind, the
    head of its list of them is on the C stack of the hub (``uv__run_check`` in
    src/unix/loop-watcher.c). To stop one in a greenlet that the hub has switched to meanwhile
    writes to where that greenlet has its own stack, and the hub goes on with memory that was freed.
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
            self.clear()


def _stop_closed(handles: list[IOHandle]) -> None:
    for handle in handles:
        handle.before_poll()


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
