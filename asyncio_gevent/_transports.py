"""The standard library's transports, with what the hub makes better.

They read at most `READ_SIZE` bytes at a time. The standard library's 256 KiB are above the
size from which malloc maps memory, so every read costs an mmap and its page faults.

A method of a protocol may block in gevent, and is suspended then, while the event loop goes on.
Rule 1: a protocol hears of one thing after the other all the same: connection_made(), what was
        read, connection_lost(). Only pause_writing(), resume_writing() and error_received() of a
        sendto() may come in between: what is suspended may wait for the second, and the others
        are part of what somebody else writes.
Rule 2: what waits for connection_made(), ``create_connection()`` say, waits until it returns.
Rule 3: nothing of asyncio's is suspended amid its own work on a transport, but for calls of
        error_received(), after which asyncio does no more.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

import gevent.socket
from greenlet import getcurrent

from asyncio_gevent import _compat
from asyncio_gevent._runners import is_killed

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "DatagramTransport",
    "Introducing",
    "Introduction",
    "ReadPipeTransport",
    "SSLProtocol",
    "SocketTransport",
    "WritePipeTransport",
    "named_as",
]

#: Bytes that a transport reads at a time, at most.
READ_SIZE = 64 * 1024

#: Datagrams that are received in a row by a socket that is not connected, at most. Those of many
#: peers tend to come together, and a poll for each of them takes longer than all else. One that is
#: connected hears from a peer that tends to wait for the answer.
MAX_DATAGRAMS = 16

#: Bytes of data that a TLS record has, at most. No read gives more than one record.
MAX_RECORD = 16 * 1024


def _socket_methods(sock: Any) -> Any:
    # gevent's socket wraps the C one in Python, to wait where that would block. A transport's
    # never blocks, so the wrapper only costs time.
    return sock._sock if type(sock) is gevent.socket.socket else sock


class Introduction:
    """Stands for a protocol while its transport is made, which schedules ``connection_made()``.

    So that it is the transport that calls it, in `_introduce`.
    """

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        made = protocol.connection_made

        def connection_made(transport: Any) -> None:
            transport._introduce(made)

        self.connection_made = named_as(made, connection_made)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)


def named_as(method: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    # In debug mode, and where an exception is reported, a handle is described by its callback.
    return functools.update_wrapper(function, method, updated=())


class Introducing:
    """The beginning of a transport: nothing comes before connection_made() has returned.

    Attributes:
        _introduced: it has.
        _waiter: a future to be done then, or None.
    """

    if TYPE_CHECKING:
        _loop: Any

    _introduced = False
    _waiter: asyncio.Future[None] | None = None

    def _introduce(self, connection_made: Callable[[Any], None]) -> None:
        loop = self._loop
        try:
            connection_made(self)
        finally:
            self._introduced = True
            waiter, self._waiter = self._waiter, None
            if not loop.is_closed():
                try:
                    self._begin()
                finally:
                    if waiter is not None and not waiter.done():
                        waiter.set_result(None)

    def _begin(self) -> None:
        """Go on with what has waited for the introduction."""
        raise NotImplementedError


class _Reading(Introducing):
    """Rule 1 for a transport of one descriptor.

    Attributes:
        _reading: the protocol is being told of something that was read; it may be suspended.
        _read_due: the descriptor was ready to read before the protocol was.
        _lost: with what the connection was lost meanwhile, or None.
        _is_lost: connection_lost() was called.
    """

    if TYPE_CHECKING:
        _closing: bool
        _read_ready: Any

    _reading = False
    _read_due = False
    _lost: tuple[BaseException | None] | None = None
    _is_lost = False

    def _descriptor(self) -> int:
        raise NotImplementedError

    def _begin(self) -> None:
        if self._read_due and not (self._closing or getattr(self, "_paused", False)):
            self._loop._add_reader(self._descriptor(), self._read_ready)
        self._go_on()

    def _read_later(self) -> None:
        # Before the introduction: stop watching, or it would be called again and again.
        self._read_due = True
        self._loop._remove_reader(self._descriptor())

    def _call_reading(self, call: Callable[..., Any], *args: Any) -> None:
        """Make a call of the protocol, or one that ends with such a call."""
        self._reading = True
        try:
            call(*args)
        finally:
            self._reading = False
            self._go_on()

    def _go_on(self) -> None:
        # A call of the protocol has returned.
        if self._lost is not None:
            self._call_connection_lost(self._lost[0])

    def _is_calling(self) -> bool:
        return self._reading or not self._introduced

    def _call_connection_lost(self, exc: BaseException | None) -> None:
        if self._is_calling():
            if self._lost is None:
                self._lost = (exc,)
                self._put_off_loss()
        elif not self._is_lost:  # asyncio calls it once, but not knowing of a call that waits
            self._is_lost = True
            self._lost = None
            super()._call_connection_lost(exc)  # type: ignore[misc]

    def _put_off_loss(self) -> None:
        """Do of what the loss means what need not wait for the protocol."""


class _Writing(_Reading):
    """The same for a transport that writes.

    Attributes:
        _is_amid: asyncio's code is writing.
        _resuming: resume_writing() is to be called when that has ended, or is suspended.
        _resume_again: and then once more.
        _pausing: how many writes may be suspended in pause_writing().
        _is_flushed: all was written before the connection is closed, unless more is meanwhile.
    """

    if TYPE_CHECKING:
        _buffer: Any
        _conn_lost: int
        _protocol_paused: bool

    _is_amid = False
    _resuming = False
    _resume_again = False
    _pausing = 0
    _is_flushed = False

    def _call_writing(self, write_ready: Callable[[], None]) -> None:
        """Make a call of asyncio's that writes."""
        self._is_amid = True
        try:
            write_ready()
        finally:
            self._is_amid = False
            self._go_on()

    def _maybe_resume_protocol(self) -> None:
        # What calls it goes on with the transport afterwards, and if this were suspended there,
        # nothing would be written meanwhile: so as a step of its own.
        if self._resuming:
            self._resume_again = True
        elif not self._is_amid:
            super()._maybe_resume_protocol()  # type: ignore[misc]
        elif self._protocol_paused:
            self._resuming = True
            self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        try:
            super()._maybe_resume_protocol()  # type: ignore[misc]
        finally:
            self._resuming = self._resume_again
            if self._resume_again:
                self._resume_again = False
                self._loop.call_soon(self._resume)
            self._go_on()

    def _maybe_pause_protocol(self) -> None:
        self._pausing += 1
        try:
            super()._maybe_pause_protocol()  # type: ignore[misc]
        finally:
            self._pausing -= 1
            self._go_on()

    def _go_on(self) -> None:
        if self._lost is not None or not self._is_flushed:
            super()._go_on()
        elif not (self._is_amid or self._resuming):
            self._is_flushed = False
            if not self._buffer:
                self._call_connection_lost(None)

    def _is_calling(self) -> bool:
        # While asyncio's code is writing, it may be in error_received().
        return super()._is_calling() or self._is_amid or self._resuming or self._pausing > 0

    def _put_off_loss(self) -> None:
        # Nothing is written any more, and who waits for that, in a suspended method say, is not to
        # wait for connection_lost(), which waits for the method.
        self._conn_lost += 1
        self._buffer.clear()
        self._maybe_resume_protocol()

    def _call_connection_lost(self, exc: BaseException | None) -> None:
        if self._is_amid and exc is None:
            # It was closed, and all is written; but resume_writing() may write more.
            self._is_flushed = True
            return
        if not (self._is_calling() or self._is_lost or self._loop.is_closed()):
            # What was suspended may have written something after the loss.
            self._loop._remove_writer(self._descriptor())
        super()._call_connection_lost(exc)


class _SocketEnd(_Writing):
    """What the transports of sockets have in common."""

    if TYPE_CHECKING:
        _sock_fd: int

    def _descriptor(self) -> int:
        return self._sock_fd


class SocketTransport(_SocketEnd, _compat.SelectorSocketTransport):  # type: ignore[misc]
    """A stream socket, with a short way for what it does most.

    The short ways do what the standard library's methods do, with fewer calls: reading for a
    protocol that is not buffered, and a write that the socket takes as a whole.

    Attributes:
        _receiver: the protocol, if it takes its data by the short way, or None.
        _recv, _send: those of the socket.
        _closer: id of the greenlet that has closed it.
    """

    # What every read and write looks at: faster than the dictionary, which has so many others.
    __slots__ = ("_lost", "_reading", "_receiver", "_recv", "_send")

    max_size = READ_SIZE
    _closer = 0
    if TYPE_CHECKING:
        _receiver: asyncio.Protocol | None
        _empty_waiter: Any
        _lost: tuple[BaseException | None] | None
        _reading: bool
        _read_ready_cb: Callable[[], None]

    def __init__(
        self,
        loop: Any,
        sock: Any,
        protocol: Any,
        waiter: Any = None,
        extra: Any = None,
        server: Any = None,
        **kwargs: Any,
    ) -> None:
        methods = _socket_methods(sock)
        self._recv = methods.recv
        self._send = methods.send
        self._lost = self._receiver = None
        self._reading = False
        super().__init__(loop, sock, Introduction(protocol), None, extra, server, **kwargs)
        self._restore_write_ready()
        self._waiter = waiter
        self.set_protocol(protocol)

    def set_protocol(self, protocol: Any) -> None:
        """Set the protocol that gets the events from now on."""
        super().set_protocol(_adopt(protocol))
        self._choose_way()

    def _choose_way(self) -> None:
        protocol = self._protocol
        is_plain = self._introduced and (
            isinstance(protocol, SSLProtocol) or not isinstance(protocol, asyncio.BufferedProtocol)
        )
        self._receiver = protocol if is_plain else None

    def _begin(self) -> None:
        self._choose_way()
        super()._begin()

    def _call_connection_lost(self, exc: BaseException | None) -> None:
        super()._call_connection_lost(exc)
        if self._is_lost:
            self._receiver = None  # as asyncio forgets the protocol

    def _read_ready(self) -> None:
        receiver = self._receiver
        if receiver is None:
            if self._introduced:
                self._call_reading(self._read_ready_cb)
            else:
                self._read_later()
            return
        if self._conn_lost:
            return
        # To call what is stored in an object takes less by way of a local name: it is no method.
        recv = self._recv
        try:
            data = recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, "Fatal read error on socket transport")
            return
        if not data:
            self._call_reading(self._read_ready__on_eof)
            return
        # What `_call_reading` does, without the call.
        self._reading = True
        try:
            receiver.data_received(data)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, "Fatal error: protocol.data_received() call failed.")
        finally:
            self._reading = False
            if self._lost is not None:
                self._call_connection_lost(self._lost[0])

    def _fatal_error(self, exc: BaseException, *message: str) -> None:
        if is_killed(exc):
            self._force_close(exc)
        else:
            super()._fatal_error(exc, *message)

    def _force_close(self, exc: BaseException | None) -> None:
        self._closer = id(getcurrent())
        super()._force_close(exc)

    def _put_off_loss(self) -> None:
        super()._put_off_loss()
        waiter, self._empty_waiter = self._empty_waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(ConnectionError("Connection is closed by peer"))
        # The peer is not to wait either. Unless it was closed by what is suspended now, which may
        # have passed the socket on.
        if self._closer not in map(id, self._loop._suspended):
            try:
                self._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the peer has gone

    # asyncio's, which from 3.12 on is stored in the instance, and forgotten by close(), though
    # there may be more to write.
    _write_more = _compat.socket_write_ready

    def _write_ready(self) -> None:
        self._call_writing(self._write_more)

    def close(self) -> None:
        """Close the connection, when all is sent that was written."""
        self._closer = id(getcurrent())
        super().close()
        self._restore_write_ready()

    def _restore_write_ready(self) -> None:
        # Not by way of __dict__, which would make all attributes slower.
        try:
            del self._write_ready
        except AttributeError:  # up to 3.11
            pass

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
            send = self._send
            try:
                sent = send(data)
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


class DatagramTransport(_SocketEnd, _compat.SelectorDatagramTransport):  # type: ignore[misc]
    """A datagram socket, with a short way for what it does most.

    Attributes:
        _is_connected: it sends to one peer.
        _recvfrom, _send, _sendto: those of the socket.
    """

    # As in `SocketTransport`.
    __slots__ = ("_lost", "_reading", "_recvfrom", "_send", "_sendto")

    _paused = False  # up to 3.10 it cannot be
    if TYPE_CHECKING:
        _lost: tuple[BaseException | None] | None
        _reading: bool

    def __init__(
        self,
        loop: Any,
        sock: Any,
        protocol: Any,
        address: Any = None,
        waiter: Any = None,
        extra: Any = None,
        **kwargs: Any,
    ) -> None:
        methods = _socket_methods(sock)
        self._recvfrom = methods.recvfrom
        self._send = methods.send
        self._sendto = methods.sendto
        self._lost = None
        self._reading = False
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            self.max_size = READ_SIZE  # no datagram of theirs is larger; of others it would be cut
        super().__init__(loop, sock, Introduction(protocol), address, None, extra, **kwargs)
        self._is_connected = bool(self._extra["peername"])
        self._waiter = waiter
        self.set_protocol(protocol)

    def _read_ready(self) -> None:
        if not self._introduced:
            self._read_later()
            return
        if self._conn_lost:
            return
        recvfrom = self._recvfrom
        left = 1 if self._is_connected else MAX_DATAGRAMS
        ready = self._loop._ready
        queued = len(ready)
        while True:
            try:
                data, address = recvfrom(self.max_size)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._call_reading(self._protocol.error_received, error)
                return
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self._fatal_error(error, "Fatal read error on datagram transport")
                return
            # What `_call_reading` does, without the call.
            self._reading = True
            try:
                self._protocol.datagram_received(data, address)
            finally:
                self._reading = False
                if self._lost is not None:
                    self._call_connection_lost(self._lost[0])
            left -= 1
            # Whom a datagram wakes is to see it before the next one is there, as in asyncio.
            if not left or len(ready) != queued or self._closing or self._paused:
                return

    def _put_off_loss(self) -> None:
        self._buffer_size = 0  # asyncio forgets that
        super()._put_off_loss()

    def _sendto_ready(self) -> None:
        self._call_writing(super()._sendto_ready)

    def sendto(self, data: Any, addr: Any = None) -> None:
        """Send a datagram, at once where the socket takes it."""
        if self._loop is not None:
            self._loop._io_done = True
        if (
            data.__class__ is bytes
            and data
            and not (self._buffer or self._conn_lost)
            and (addr is None if self._is_connected else addr is not None and not self._address)
        ):
            try:
                if addr is None:
                    send = self._send
                    send(data)
                else:
                    sendto = self._sendto
                    sendto(data, addr)
                return
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as error:
                self._protocol.error_received(error)
                return
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self._fatal_error(error, "Fatal write error on datagram transport")
                return
        super().sendto(data, addr)


class _PipeEnd(_Reading):
    """What both ends of a pipe have in common."""

    if TYPE_CHECKING:
        _fileno: int
        _protocol: Any

    def __init__(
        self, loop: Any, pipe: Any, protocol: Any, waiter: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(  # type: ignore[call-arg]
            loop, pipe, Introduction(protocol), None, *args, **kwargs
        )
        self._waiter = waiter
        self._protocol = protocol

    def _descriptor(self) -> int:
        return self._fileno


class ReadPipeTransport(_PipeEnd, _compat.UnixReadPipeTransport):  # type: ignore[misc]
    """The end of a pipe that is read."""

    max_size = READ_SIZE

    def _read_ready(self) -> None:
        if not self._introduced:
            self._read_later()
            return
        # As in asyncio, but that eof_received() is a call like the others.
        try:
            data = os.read(self._fileno, READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._fatal_error(error, "Fatal read error on pipe transport")
            return
        if data:
            self._call_reading(self._protocol.data_received, data)
            return
        loop = self._loop
        if loop.get_debug():
            _compat.base_events.logger.info("%r was closed by peer", self)
        self._closing = True
        loop._remove_reader(self._fileno)
        received = self._protocol.eof_received

        def eof_received() -> None:
            self._call_reading(received)

        loop.call_soon(named_as(received, eof_received))
        loop.call_soon(self._call_connection_lost, None)


class WritePipeTransport(_PipeEnd, _Writing, _compat.UnixWritePipeTransport):  # type: ignore[misc]
    """The end of a pipe that is written to."""

    def _write_ready(self) -> None:
        self._call_writing(super()._write_ready)

    def write(self, data: Any) -> None:
        """Write the data, at once where the pipe takes it."""
        if self._loop is not None:
            self._loop._io_done = True
        super().write(data)


# --- TLS ----------------------------------------------------------------------------------------

if sys.version_info < (3, 11):
    # There it feeds its protocol in data_received() only, which waits for its turn already.
    SSLProtocol: Any = _compat.SSLProtocol
else:

    class SSLProtocol(_compat.SSLProtocol):  # type: ignore[misc]
        """TLS between a transport and a protocol, which rule 1 is for as well.

        With a short way for what it does most: reading for a protocol that is not buffered, and a
        write that is taken as a whole.

        Attributes:
            _busy: the greenlet in which the protocol is being told of something, perhaps
                suspended, or None.
            _again: something happened meanwhile.
            _lost: with what the connection was lost meanwhile, or None.
        """

        max_size = READ_SIZE
        _busy: Any = None
        _again = False
        _lost: tuple[BaseException | None] | None = None

        def connection_made(self, transport: Any) -> None:
            """Called by the transport."""
            # In the instance, since every read looks at them.
            self._busy = self._lost = None
            self._again = False
            super().connection_made(transport)

        def data_received(self, data: bytes) -> None:
            """Called by the transport, if it is one of ours."""
            self._incoming.write(data)
            if self._state is _compat.SSL_WRAPPED:
                self._do_read()
            else:
                self.buffer_updated(0)  # does what the state asks for

        def _set_app_protocol(self, app_protocol: Any) -> None:
            super()._set_app_protocol(_adopt(app_protocol))

        def _in_turn(self, method: Callable[[], None]) -> None:
            current = getcurrent()
            if self._busy is current:  # in a call of the protocol's, as always in asyncio
                method()
                return
            if self._busy is not None:
                self._again = True
                self._control_ssl_reading()
                return
            self._busy = current
            try:
                method()
                while self._again:
                    self._again = False
                    super().buffer_updated(0)  # does what the state asks for
            finally:
                self._busy = None
                self._end_turn()

        def _end_turn(self) -> None:
            if self._again:
                self._again = False
                self._loop.call_soon(self.buffer_updated, 0)
            if self._lost is not None:
                (exc,), self._lost = self._lost, None
                super().connection_lost(exc)

        def _do_handshake(self) -> None:
            self._in_turn(super()._do_handshake)

        def _do_read(self) -> None:
            if self._busy is not None or self._app_protocol_is_buffer:
                self._in_turn(super()._do_read)
                return
            # What that does, with fewer calls.
            if self._state not in _compat.SSL_READABLE:
                return
            self._busy = getcurrent()
            try:
                try:
                    if not self._app_reading_paused:
                        self._do_read__copied()
                        if self._write_backlog:
                            self._do_write()
                        elif self._outgoing.pending or self._app_writing_paused:
                            self._process_outgoing()
                    if (
                        self._ssl_reading_paused
                        or self._incoming.pending >= self._incoming_high_water
                    ):
                        self._control_ssl_reading()
                except Exception as error:
                    self._fatal_error(error, "Fatal error on SSL protocol")
                while self._again:
                    self._again = False
                    super().buffer_updated(0)
            finally:
                self._busy = None
                if self._again or self._lost is not None:
                    self._end_turn()

        def _do_read__copied(self) -> None:
            # As in asyncio, but with a buffer of the size of what it can get, and without the
            # exception in the end, where nothing is left to read.
            incoming = self._incoming
            ssl_object = self._sslobj
            chunks = []
            chunk = b"1"
            try:
                while chunk := ssl_object.read(MAX_RECORD):
                    chunks.append(chunk)
                    if not incoming.pending:  # it was all of a record
                        break
            except _compat.SSL_AGAIN:
                pass
            if chunks:
                self._app_protocol.data_received(
                    chunks[0] if len(chunks) == 1 else b"".join(chunks)
                )
            if not chunk:
                # close_notify
                self._call_eof_received()
                self._start_shutdown()

        def _write_appdata(self, list_of_data: Any) -> None:
            if (
                self._write_backlog
                or self._state is not _compat.SSL_WRAPPED
                or list_of_data.__class__ is not tuple  # as write() gives it
                or len(list_of_data) != 1
            ):
                super()._write_appdata(list_of_data)
                return
            (data,) = list_of_data
            outgoing = self._outgoing
            try:
                try:
                    sent = self._sslobj.write(data)
                except _compat.SSL_AGAIN:
                    sent = 0
                if sent < len(data):
                    self._write_backlog.append(data[sent:])
                    self._write_buffer_size += len(data) - sent
                    self._do_write()
                    return
                if not self._ssl_writing_paused:
                    encrypted = outgoing.read()
                    if encrypted:
                        self._transport.write(encrypted)
                if (
                    self._app_writing_paused
                    or outgoing.pending + self._write_buffer_size >= self._outgoing_high_water
                ):
                    self._control_app_writing()
            except Exception as error:
                self._fatal_error(error, "Fatal error on SSL protocol")

        def _do_flush(self) -> None:
            self._in_turn(self._flush)

        def _flush(self) -> None:
            # As in asyncio, unless what is read has suspended it, and the connection has gone.
            state = self._state
            self._do_read()
            if self._state is state:
                self._set_state(_compat.SSL_SHUTDOWN)
                self._do_shutdown()

        def _do_shutdown(self) -> None:
            self._in_turn(super()._do_shutdown)

        def connection_lost(self, exc: BaseException | None) -> None:
            """Called by the transport."""
            if self._busy is None:
                super().connection_lost(exc)
                return
            self._lost = (exc,)
            # As in `_Writing._put_off_loss`.
            self._write_backlog.clear()
            self._write_buffer_size = 0
            self._outgoing.read()
            self._control_app_writing()


def _adopt(protocol: Any) -> Any:
    # asyncio's start_tls() makes its own kind. They differ in their methods only.
    if type(protocol) is _compat.SSLProtocol:
        protocol.__class__ = SSLProtocol
    return protocol
