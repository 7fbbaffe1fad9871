"""The standard library's transports, with what the hub makes better.

They read at most `READ_SIZE` bytes at a time. The standard library's 256 KiB are above the
size from which malloc maps memory, so every read costs an mmap and its page faults.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

import gevent.socket
from gevent.hub import get_hub
from greenlet import getcurrent

from asyncio_gevent import _compat
from asyncio_gevent._originals import is_module_patched, native_popen
from asyncio_gevent._runners import Runner
from asyncio_gevent._watchers import ChildWatcher, close, reaped

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DatagramTransport", "ReadPipeTransport", "SocketTransport", "SubprocessTransport"]

#: Bytes that a transport reads at a time, at most.
READ_SIZE = 64 * 1024


def _socket_methods(sock: Any) -> Any:
    # gevent's socket wraps the C one in Python, to wait where that would block. A transport's
    # never blocks, so the wrapper only costs time.
    return sock._sock if type(sock) is gevent.socket.socket else sock


class SocketTransport(_compat.SelectorSocketTransport):  # type: ignore[misc]
    """A stream socket, with a short way for what it does most.

    The short ways do what the standard library's methods do, with fewer calls: reading for a
    protocol that is not buffered, and a write that the socket takes as a whole.

    Attributes:
        _calling: the protocol is being told of something that was read; it may be suspended.
        _lost: with what the connection was lost meanwhile, or None.
    """

    max_size = READ_SIZE

    def __init__(
        self,
        loop: Any,
        sock: Any,
        protocol: Any,
        waiter: Any = None,
        extra: Any = None,
        server: Any = None,
    ) -> None:
        self._calling = False
        self._lost: tuple[BaseException | None] | None = None
        methods = _socket_methods(sock)
        self._recv = methods.recv
        self._send = methods.send
        super().__init__(loop, sock, protocol, waiter, extra, server)

    def set_protocol(self, protocol: Any) -> None:
        """Set the protocol that gets the events from now on."""
        super().set_protocol(protocol)
        self._is_buffered = isinstance(protocol, asyncio.BufferedProtocol)

    def _read_ready(self) -> None:
        if self._is_buffered:
            self._call_protocol(super()._read_ready)
            return
        if self._conn_lost:
            return
        try:
            data = self._recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, "Fatal read error on socket transport")
            return
        if not data:
            self._call_protocol(self._read_ready__on_eof)
            return
        # What `_call_protocol` does, without the call.
        self._calling = True
        try:
            self._protocol.data_received(data)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, "Fatal error: protocol.data_received() call failed.")
        finally:
            self._calling = False
            if self._lost is not None:
                self._report_lost()

    def _call_protocol(self, call: Callable[[], None]) -> None:
        self._calling = True
        try:
            call()
        finally:
            self._calling = False
            if self._lost is not None:
                self._report_lost()

    def _report_lost(self) -> None:
        assert self._lost is not None
        (exc,), self._lost = self._lost, None
        super()._call_connection_lost(exc)

    def _call_connection_lost(self, exc: BaseException | None) -> None:
        # While data_received() is suspended, the connection may be lost. The protocol hears of it
        # afterwards, as always.
        if self._calling:
            self._lost = (exc,)
        else:
            super()._call_connection_lost(exc)

    def write_eof(self) -> None:
        """Send what is written, and then the end of the stream."""
        if self._loop is not None:
            self._loop._io_done = True
        super().write_eof()

    def write(self, data: Any) -> None:
        """Send the data, at once where the socket takes it."""
        if (
            type(data) is bytes
            and data
            and not (self._buffer or self._eof or self._conn_lost)
            and self._empty_waiter is None
        ):
            try:
                sent = self._send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self._fatal_error(error, "Fatal write error on socket transport")
                return
            self._loop._io_done = True
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        super().write(data)


class DatagramTransport(_compat.SelectorDatagramTransport):  # type: ignore[misc]
    """A datagram socket."""

    def __init__(self, loop: Any, sock: Any, *args: Any) -> None:
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            self.max_size = READ_SIZE  # no datagram of theirs is larger; of others it would be cut
        super().__init__(loop, sock, *args)

    def sendto(self, data: Any, addr: Any = None) -> None:
        """Send a datagram, at once where the socket takes it."""
        if self._loop is not None:
            self._loop._io_done = True
        super().sendto(data, addr)


class ReadPipeTransport(_compat.UnixReadPipeTransport):  # type: ignore[misc]
    """The end of a pipe that is read."""

    max_size = READ_SIZE


class SubprocessTransport(_compat.UnixSubprocessTransport):  # type: ignore[misc]
    """A child process, of ``subprocess.Popen``, patched or not.

    Attributes:
        _calls: calls of the protocol that are due, oldest first.
        _calling: one is under way, perhaps suspended: the next one waits.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._calls: deque[tuple[Any, tuple[Any, ...]]] = deque()
        self._calling = False
        super().__init__(*args, **kwargs)

    def _call(self, callback: Any, *data: Any) -> None:
        if self._pending_calls is not None:  # the pipes are not connected yet
            super()._call(callback, *data)
            return
        self._calls.append((callback, data))
        self._loop.call_soon(self._call_next)

    def _call_next(self) -> None:
        if self._calling or not self._calls:
            return
        callback, data = self._calls.popleft()
        loop = self._loop
        self._calling = True
        try:
            callback(*data)
        finally:
            self._calling = False
            if self._calls:  # they came while this one was suspended
                loop.call_soon(self._call_next)

    def _start(self, args: Any, shell: bool, stdin: Any, stdout: Any, stderr: Any,
               bufsize: int, **kwargs: Any) -> None:  # fmt: skip
        # gevent's Popen waits in the hub for the child to have started. That takes as long as
        # the fork that any Popen blocks for, and is not what suspend=False is to forbid.
        current = getcurrent()
        if isinstance(current, Runner):
            current.may_block = True
        try:
            hub = get_hub()
            if not hub.loop.default:
                reaped.begin()
            if hub.loop.default or not is_module_patched("subprocess"):
                super()._start(args, shell, stdin, stdout, stderr, bufsize, **kwargs)
            else:
                # gevent's Popen is for the main OS thread. A native one closes its pipes with
                # the patched os.close(), which is at once in a thread that has no hub.
                kwargs.update(shell=shell, stdin=stdin, stdout=stdout, stderr=stderr)
                kwargs.update(universal_newlines=False, bufsize=bufsize)
                self._proc = hub.threadpool.apply(native_popen(), (args,), kwargs)
        finally:
            if isinstance(current, Runner):
                current.may_block = False

    def watch_exit(self) -> None:
        """Tell the protocol when the child has ended."""
        process = self._proc
        if hasattr(process, "rawlink"):  # gevent's Popen has a child watcher itself
            process.rawlink(lambda process: self._exited(process.returncode))
        else:
            ChildWatcher(self._loop, get_hub(), process.pid, self._exited)

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
