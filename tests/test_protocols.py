"""A protocol hears of one thing after the other, whichever of its methods is suspended."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pathlib
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.event
import pytest
from support import PATCHED, UNIT, os_close, run_script, until
from test_io import MEGABYTE, client_context, server_context

import asyncio_gevent
from asyncio_gevent import EventLoop
from asyncio_gevent._children import MAX_WAITING_CALLS

# See test_io.
pytestmark = (
    [pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]
    if sys.version_info < (3, 11)
    else []
)


class Journal(asyncio.BaseProtocol):
    """Notes what it hears, and blocks where it is told to.

    Attributes:
        heard: names of the methods that were called, and "..." where the one that blocks goes on.
        received: all data.
        entered: set while one blocks; clear it to wait for the next one.
    """

    def __init__(self, *blocks: str) -> None:
        self._blocks = blocks
        self._inside: str | None = None
        self.heard: list[str] = []
        self.received = b""
        self.entered = gevent.event.Event()
        self.release = gevent.event.Event()
        self.wait: Callable[[], Any] = self.release.wait
        self.transport: Any = None

    def hear(self, name: str) -> None:
        flow = {"pause_writing", "resume_writing"}
        assert self._inside is None or flow & {self._inside, name}, (self._inside, name)
        assert name != self._inside
        self.heard.append(name)
        if name in self._blocks:
            self._inside = name
            self.entered.set()
            try:
                self.wait()
                self.heard.append("...")
            finally:
                self._inside = None

    async def until_entered(self) -> None:
        await until(self.entered.is_set)
        # Whatever else is on its way gets a chance to come too early.
        await asyncio.sleep(UNIT / 2)

    async def until_heard(self, name: str) -> None:
        await until(lambda: name in self.heard)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.hear("made")

    def pause_writing(self) -> None:
        self.hear("pause_writing")

    def resume_writing(self) -> None:
        self.hear("resume_writing")

    def connection_lost(self, error: Any) -> None:
        self.hear("lost")


class StreamJournal(Journal, asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        self.received += data
        self.hear("data")

    def eof_received(self) -> None:
        self.hear("eof")


class BufferedJournal(Journal, asyncio.BufferedProtocol):
    def __init__(self, *blocks: str) -> None:
        super().__init__(*blocks)
        # Not a bytearray, whose slices are copies: asyncio's TLS loses data then.
        self._buffer = memoryview(bytearray(64))

    def get_buffer(self, size: int) -> memoryview:
        if "buffer" in self._blocks:
            self.hear("buffer")
        return self._buffer

    def buffer_updated(self, length: int) -> None:
        self.hear("data")
        self.received += self._buffer[:length]  # which nobody may have written to meanwhile

    def eof_received(self) -> None:
        self.hear("eof")


class DatagramJournal(Journal, asyncio.DatagramProtocol):
    def datagram_received(self, data: bytes, address: Any) -> None:
        self.received += data
        self.hear("data")

    def error_received(self, error: Exception) -> None:
        self.hear("error")


class ChildJournal(Journal, asyncio.SubprocessProtocol):
    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.received += data
        self.hear("data")

    def pipe_connection_lost(self, fd: int, error: Any) -> None:
        self.hear(f"end of {fd}")

    def process_exited(self) -> None:
        self.hear("exited")


class Peer:
    """The other end, by a greenlet's means."""

    def __init__(self, file: Any) -> None:
        self._file = self.socket = file

    def send(self, data: bytes) -> None:
        if hasattr(self._file, "sendall"):
            self._file.sendall(data)
        else:
            self._file.write(data)

    def close(self) -> None:
        self._file.close()

    abort = close


@contextlib.asynccontextmanager
async def connected(connecting: Any, theirs: Any) -> Any:
    task = asyncio.get_running_loop().create_task(connecting)
    try:
        yield task, Peer(theirs)
    finally:
        theirs.close()


def by_socket(journal: Any) -> Any:
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    return connected(loop.create_connection(lambda: journal, sock=ours), theirs)


def by_datagrams(journal: Any) -> Any:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    loop = asyncio.get_running_loop()
    return connected(loop.create_datagram_endpoint(lambda: journal, sock=ours), theirs)


def by_pipe(journal: Any) -> Any:
    ours, theirs = os.pipe()
    reader, writer = os.fdopen(ours, "rb", 0), os.fdopen(theirs, "wb", 0)
    loop = asyncio.get_running_loop()
    return connected(loop.connect_read_pipe(lambda: journal, reader), writer)


@contextlib.asynccontextmanager
async def by_tls(journal: Any) -> Any:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: journal, "127.0.0.1", 0, ssl=server_context())
    port = server.sockets[0].getsockname()[1]
    _, writer = await asyncio.open_connection("localhost", port, ssl=client_context())

    class Writer:
        def send(self, data: bytes) -> None:
            writer.write(data)

        def close(self) -> None:
            writer.close()

        def abort(self) -> None:
            writer.transport.abort()

    done = loop.create_future()
    done.set_result(None)
    try:
        yield done, Writer()
    finally:
        # Not close(): in 3.10 that waits for the peer, also where nothing is read any more.
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        server.close()
        await server.wait_closed()


STREAMS = {"socket": (StreamJournal, by_socket), "buffered socket": (BufferedJournal, by_socket),
           "pipe": (StreamJournal, by_pipe), "TLS": (StreamJournal, by_tls),
           "buffered TLS": (BufferedJournal, by_tls)}  # fmt: skip
KINDS = {**STREAMS, "datagrams": (DatagramJournal, by_datagrams)}


def has_eof(kind: str) -> bool:
    """Whether there is an eof_received()."""
    return kind != "datagrams" and not ("TLS" in kind and sys.version_info < (3, 11))


def run(kind: str, blocks: tuple[str, ...], test: Callable[..., Any]) -> Any:
    """Run ``test(journal, connecting, peer)`` with a connection of this kind."""
    make, connect = KINDS[kind]
    journal: Any = make(*blocks)

    async def main() -> None:
        async with connect(journal) as (connecting, peer):
            await test(journal, connecting, peer)

    asyncio_gevent.run(main())
    return journal


# --- the beginning --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_comes_before_connection_made_has_returned(kind: str) -> None:
    async def test(journal: Any, connecting: Any, peer: Any) -> None:
        peer.send(b"data")
        if kind != "datagrams":
            peer.close()
        await journal.until_entered()
        assert journal.heard == ["made"]
        if "TLS" not in kind:
            assert not connecting.done()
        journal.release.set()
        await connecting
        await journal.until_heard("data" if kind == "datagrams" else "lost")
        journal.transport.close()
        await journal.until_heard("lost")

    journal = run(kind, ("made",), test)
    eof = ["eof"] * has_eof(kind)
    assert journal.heard == ["made", "...", "data", *eof, "lost"]
    assert journal.received == b"data"


@pytest.mark.parametrize("how", ["close", "abort", "pause", "pause and resume"])
@pytest.mark.parametrize("kind", ["socket", "buffered socket", "pipe", "TLS", "datagrams"])
def test_what_others_do_with_the_transport_meanwhile(kind: str, how: str) -> None:
    if kind == "datagrams" and how.startswith("pause"):
        return  # of these there is no flow control
    if kind == "pipe" and how == "abort":
        return  # nor of these an abort()

    async def test(journal: Any, connecting: Any, peer: Any) -> None:
        await journal.until_entered()
        peer.send(b"data")
        await asyncio.sleep(UNIT / 2)
        transport = journal.transport
        if how in ("close", "abort"):
            getattr(transport, how)()
        else:
            transport.pause_reading()
            if "resume" in how:
                transport.resume_reading()
        await asyncio.sleep(UNIT / 2)
        assert journal.heard == ["made"]
        journal.release.set()
        if how == "pause":
            await connecting
            await asyncio.sleep(UNIT / 2)
            assert journal.heard == ["made", "..."]
            transport.resume_reading()
        if "pause" in how:
            await journal.until_heard("data")
            transport.close()
        await journal.until_heard("lost")

    journal = run(kind, ("made",), test)
    assert journal.heard[:2] == ["made", "..."]
    assert journal.heard.count("lost") == 1
    assert journal.heard[-1] == "lost"
    assert journal.received == (b"data" if "pause" in how else b"")


def test_a_connect_that_is_cancelled_while_connection_made_is_suspended() -> None:
    async def test(journal: Any, connecting: Any, peer: Any) -> None:
        await journal.until_entered()
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        assert journal.heard == ["made"]
        journal.release.set()
        await journal.until_heard("lost")

    assert run("socket", ("made",), test).heard == ["made", "...", "lost"]


def test_an_error_in_a_suspended_connection_made_is_reported(observed: Any) -> None:
    class Failing(StreamJournal):
        def hear(self, name: str) -> None:
            super().hear(name)
            if name == "made":
                raise ZeroDivisionError

    journal = Failing("made")

    async def main() -> None:
        async with by_socket(journal) as (connecting, peer):
            await journal.until_entered()
            journal.release.set()
            await connecting
            peer.send(b"data")
            await journal.until_heard("data")
            journal.transport.close()
            await journal.until_heard("lost")

    asyncio_gevent.run(main())
    (context,) = observed.handled
    assert isinstance(context["exception"], ZeroDivisionError)
    observed.handled.clear()
    observed.log.clear()


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["we", "the peer"])
@pytest.mark.parametrize("method", ["data", "buffer", "eof"])
@pytest.mark.parametrize("kind", KINDS)
def test_connection_lost_comes_after_what_is_suspended(kind: str, method: str, who: str) -> None:
    if method == "buffer" and "buffered" not in kind:
        return
    if (method == "eof" and not has_eof(kind)) or (kind == "datagrams" and who == "the peer"):
        return

    async def test(journal: Any, connecting: Any, peer: Any) -> None:
        await connecting
        peer.send(b"data")
        if method == "eof":
            await journal.until_heard("data")
            peer.close()
        await journal.until_entered()
        if who == "we":
            journal.transport.close()
        else:
            peer.close()
        await asyncio.sleep(UNIT / 2)
        assert journal.heard[-1] == method
        journal.release.set()
        await until(lambda: "..." in journal.heard)
        if kind != "buffered socket" or method != "buffer" or who == "the peer":
            await journal.until_heard("lost")
        await journal.until_heard("lost")

    heard = run(kind, (method,), test).heard
    assert heard[0] == "made"
    assert heard[heard.index(method) + 1] == "..."
    assert heard.index("lost") == len(heard) - 1


@pytest.mark.skipif(sys.version_info < (3, 11), reason="TLS there reads in data_received() only")
@pytest.mark.parametrize("kind", ["TLS", "buffered TLS"])
def test_tls_that_is_resumed_and_shut_down_while_it_is_suspended(kind: str) -> None:
    """asyncio reads on in callbacks of its own there, beside those of the descriptor."""

    async def test(journal: Any, connecting: Any, peer: Any) -> None:
        await journal.until_heard("made")
        transport = journal.transport
        transport.pause_reading()
        peer.send(b"1" * 100)
        await until(transport._ssl_protocol._get_read_buffer_size)
        transport.resume_reading()
        await journal.until_entered()
        # It is suspended in such a callback, so the descriptor is read meanwhile.
        peer.send(b"2" * 100)
        await asyncio.sleep(UNIT / 2)
        transport.pause_reading()
        transport.resume_reading()
        await asyncio.sleep(UNIT / 2)
        peer.send(b"3" * 100)
        peer.close()
        await asyncio.sleep(UNIT / 2)
        assert journal.heard == ["made", "data"]
        journal.release.set()
        await journal.until_heard("lost")

    journal = run(kind, ("data",), test)
    assert journal.received == b"1" * 100 + b"2" * 100 + b"3" * 100
    assert journal.heard[-1] == "lost"
    assert journal.heard.count("lost") == journal.heard.count("eof") == 1


@pytest.mark.parametrize("kind", ["TLS", "buffered TLS"])
def test_much_data_over_tls_with_a_protocol_that_always_blocks(kind: str) -> None:
    async def test(journal: Any, connecting: Any, peer: Any) -> None:
        journal.wait = lambda: gevent.sleep(0)
        peer.send(MEGABYTE[:100_000])
        await until(lambda: len(journal.received) == 100_000)
        journal.transport.close()
        await journal.until_heard("lost")

    assert run(kind, ("data",), test).received == MEGABYTE[:100_000]


@pytest.mark.parametrize("suspended", [False, True])
def test_start_tls_with_a_protocol_that_blocks(suspended: bool) -> None:
    journal = BufferedJournal(*["data"] * suspended)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        transport, _ = await loop.create_connection(lambda: journal, sock=ours)
        other = StreamJournal()
        plain, _ = await loop.create_connection(lambda: other, sock=theirs)
        peer, secure = await asyncio.gather(
            loop.start_tls(
                plain, other, client_context(), server_hostname="localhost"
            ),
            loop.start_tls(transport, journal, server_context(), server_side=True),
        )  # fmt: skip
        peer.write(bytes(range(200)))
        if suspended:
            await journal.until_entered()
            assert journal.heard == ["made", "data"]
            journal.release.set()
        await until(lambda: len(journal.received) == 200)
        secure.close()
        await journal.until_heard("lost")
        peer.close()
        await other.until_heard("lost")

    asyncio_gevent.run(main())
    assert journal.received == bytes(range(200))


def test_start_tls_says_what_is_wrong() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        transport, protocol = await loop.create_connection(asyncio.Protocol, sock=ours)
        with pytest.raises(TypeError, match="SSLContext"):
            await loop.start_tls(transport, protocol, None)
        with pytest.raises(TypeError, match="not supported"):
            await loop.start_tls(None, protocol, client_context())
        # And one that is cancelled.
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(loop.start_tls(transport, protocol, client_context()), UNIT / 2)
        assert transport.is_closing()
        theirs.close()
        await asyncio.sleep(UNIT / 2)

    asyncio_gevent.run(main())


# --- writing --------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def connected_writer(kind: str, journal: Any) -> Any:
    """A transport, and a function that takes what has been written; it returns how much."""
    loop = asyncio.get_running_loop()
    if kind == "pipe":
        theirs, ours = os.pipe()
        file = os.fdopen(ours, "wb", 0)
        transport, _ = await loop.connect_write_pipe(lambda: journal, file)
        os.set_blocking(theirs, False)

        def take() -> int:
            try:
                return len(os.read(theirs, 1 << 20))
            except BlockingIOError:
                return 0

        close = lambda: os_close(theirs)  # noqa: E731
    else:
        first, second = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_DGRAM if kind == "datagrams" else socket.SOCK_STREAM
        )
        second.setblocking(False)
        if kind == "datagrams":
            second.bind(f"\0{id(second)}")
            first.connect(second.getsockname())
            transport, _ = await loop.create_datagram_endpoint(lambda: journal, sock=first)
        else:
            transport, _ = await loop.create_connection(lambda: journal, sock=first)

        def take() -> int:
            try:
                return len(second.recv(1 << 20))
            except BlockingIOError:
                return 0

        close = second.close
    try:
        yield transport, take
    finally:
        close()


def write_much(kind: str, transport: Any) -> int:
    """Write until the protocol is told to pause; return how much."""
    if kind == "datagrams":
        for _ in range(200):
            transport.sendto(bytes(10_000))
        return 2_000_000
    transport.write(MEGABYTE)
    return len(MEGABYTE)


WRITERS = ["socket", "pipe", "datagrams"]


@pytest.mark.parametrize("how", ["close", "abort", "write and close"])
@pytest.mark.parametrize("kind", WRITERS)
def test_connection_lost_comes_after_a_suspended_resume_writing(kind: str, how: str) -> None:
    journal: Any = (DatagramJournal if kind == "datagrams" else StreamJournal)("resume_writing")

    async def main() -> None:
        async with connected_writer(kind, journal) as (transport, take):
            expected = write_much(kind, transport)
            assert journal.heard == ["made", "pause_writing"]
            taken = 0
            while not journal.entered.is_set():
                taken += take()
                await asyncio.sleep(0)
            assert journal.heard == ["made", "pause_writing", "resume_writing"]
            if how == "write and close":
                expected += write_much(kind, transport)
            if how == "abort":
                transport.abort()
            else:
                transport.close()
            for _ in range(20):
                taken += take()
                await asyncio.sleep(UNIT / 20)
            assert "lost" not in journal.heard
            assert "..." not in journal.heard
            journal.release.set()
            while "lost" not in journal.heard:
                taken += take()
                await asyncio.sleep(0)
            while more := take():
                taken += more
            if how != "abort":
                assert taken == expected

    asyncio_gevent.run(main())
    assert journal.heard.count("lost") == 1
    assert journal.heard[-1] == "lost"


@pytest.mark.parametrize("suspended", [False, True])
def test_what_resume_writing_writes_is_sent_before_the_end(suspended: bool) -> None:
    """TLS hands its transport the rest of what it has in there, also when that is closing."""

    class More(StreamJournal):
        more = 3

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.more:
                self.more -= 1
                self.transport.write(MEGABYTE)

    journal = More(*["resume_writing"] * suspended)

    async def main() -> int:
        async with connected_writer("socket", journal) as (transport, take):
            transport.set_write_buffer_limits(low=0, high=0)  # called when all has been sent
            transport.write(MEGABYTE)
            transport.close()
            taken = 0
            journal.release.set()
            while "lost" not in journal.heard:
                taken += take()
                await asyncio.sleep(0)
            while more := take():
                taken += more
            return taken

    assert asyncio_gevent.run(main()) == len(MEGABYTE) * 4


@pytest.mark.parametrize("method", ["made", "data"])
def test_all_is_sent_and_the_connection_closed_while_a_method_is_suspended(method: str) -> None:
    journal = StreamJournal(method)

    async def main() -> None:
        async with by_socket(journal) as (connecting, peer):
            peer.send(b"data")
            await journal.until_entered()
            journal.transport.write(MEGABYTE)
            journal.transport.close()
            peer.socket.setblocking(False)
            loop = asyncio.get_running_loop()
            received = 0
            while data := await loop.sock_recv(peer.socket, 1 << 20):
                received += len(data)
            assert received == len(MEGABYTE)
            assert "..." not in journal.heard
            journal.release.set()
            await journal.until_heard("lost")
            await connecting

    asyncio_gevent.run(main())


def test_resume_writing_that_is_due_again_while_it_is_suspended() -> None:
    journal = StreamJournal("resume_writing")

    async def main() -> None:
        async with connected_writer("socket", journal) as (transport, take):
            write_much("socket", transport)
            while not journal.entered.is_set():
                take()
                await asyncio.sleep(0)
            write_much("socket", transport)
            assert journal.heard == ["made", "pause_writing", "resume_writing", "pause_writing"]
            if hasattr(transport, "_write_sendmsg"):  # from 3.12 on it writes at once
                transport.writelines([b"1", b"2"])
            while take():
                await asyncio.sleep(UNIT / 20)
            journal.release.set()
            while journal.heard.count("...") < 2:
                take()
                await asyncio.sleep(0)
            transport.close()
            while "lost" not in journal.heard:
                take()
                await asyncio.sleep(0)

    asyncio_gevent.run(main())
    assert journal.heard == [
        "made", "pause_writing", "resume_writing", "pause_writing", "...", "resume_writing", "...",
        "lost",
    ]  # fmt: skip


def test_others_may_write_while_resume_writing_is_suspended() -> None:
    journal = StreamJournal("resume_writing")

    async def main() -> None:
        async with connected_writer("socket", journal) as (transport, take):
            for _ in range(2):
                taken = 0
                write_much("socket", transport)
                while taken < len(MEGABYTE):
                    taken += take()
                    await asyncio.sleep(0)
                await until(journal.entered.is_set)
            assert "..." not in journal.heard
            transport.abort()
            journal.release.set()
            await journal.until_heard("lost")

    asyncio_gevent.run(main())


def test_connection_lost_comes_after_a_suspended_pause_writing() -> None:
    journal = StreamJournal("pause_writing")

    async def main() -> None:
        async with connected_writer("socket", journal) as (transport, _):
            loop = asyncio.get_running_loop()
            loop.call_soon(transport.write, MEGABYTE)
            await journal.until_entered()
            transport.abort()
            await asyncio.sleep(UNIT / 2)
            assert journal.heard == ["made", "pause_writing", "resume_writing"]
            journal.release.set()
            await journal.until_heard("lost")

    asyncio_gevent.run(main())


def test_a_fatal_error_while_error_received_is_suspended() -> None:
    """asyncio calls that one amid its own work, which is not disturbed."""

    class Socket:
        def __init__(self, sock: Any) -> None:
            self._sock = sock
            # The transport tries twice before it waits.
            self._errors: list[type[OSError]] = [ConnectionRefusedError, *[BlockingIOError] * 2]

        def __getattr__(self, name: str) -> Any:
            return getattr(self._sock, name)

        def send(self, data: bytes) -> None:
            raise self._errors.pop()

    class Erring(DatagramJournal):
        def connection_lost(self, error: Any) -> None:
            self.hear("lost")
            reasons.append(error)

    journal = Erring("error")
    reasons: list[Any] = []

    async def main() -> None:
        async with connected_writer("datagrams", journal) as (transport, _):
            transport._sock = Socket(transport._sock)
            transport._send = transport._sock.send
            transport.sendto(b"1")
            await journal.until_entered()
            reason = OSError("the reason")
            transport._fatal_error(reason)
            await asyncio.sleep(UNIT / 2)
            assert journal.heard == ["made", "error"]
            journal.release.set()
            await journal.until_heard("lost")
            assert reasons == [reason]

    asyncio_gevent.run(main())


def test_a_loss_that_is_put_off_ends_sendfile() -> None:
    class Waiting(StreamJournal):
        def data_received(self, data: bytes) -> None:
            self.hear("data")
            self.release.wait()
            self.hear("...")

    journal = Waiting()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with by_socket(journal) as (connecting, peer):
            await connecting
            journal.transport.write(MEGABYTE)
            peer.send(b"data")
            await journal.until_heard("data")
            with open(__file__, "rb") as file:
                sending = loop.create_task(loop.sendfile(journal.transport, file))
                await until(lambda: journal.transport._empty_waiter)
                journal.transport.abort()
                with pytest.raises(ConnectionError):
                    await sending
            assert not {"...", "lost"} & {*journal.heard}
            journal.release.set()
            await journal.until_heard("lost")

    asyncio_gevent.run(main())


@pytest.mark.parametrize("how", ["the peer goes", "abort"])
@pytest.mark.parametrize("kind", ["socket", "TLS"])
def test_a_method_that_waits_until_it_may_write_hears_of_the_loss(kind: str, how: str) -> None:
    """By resume_writing(): it would wait for connection_lost(), and that for the method."""

    class Writer(StreamJournal):
        def __init__(self) -> None:
            super().__init__()
            self.may_write = gevent.event.Event()

        def data_received(self, data: bytes) -> None:
            self.transport.write(MEGABYTE * 8)
            self.transport.write(MEGABYTE * 8)  # TLS lets the first one through to the transport
            self.hear("data")
            self.entered.set()
            self.may_write.wait()
            self.transport.write(MEGABYTE)
            self.hear("...")

        def resume_writing(self) -> None:
            self.may_write.set()

    journal = Writer()

    async def main() -> None:
        async with KINDS[kind][1](journal) as (connecting, peer):
            await connecting
            peer.send(b"data")
            await journal.until_entered()
            if how == "abort":
                journal.transport.abort()
            else:
                peer.abort()
            await journal.until_heard("lost")

    asyncio_gevent.run(main())
    assert journal.heard == ["made", "data", "...", "lost"] or (
        journal.heard == ["made", "pause_writing", "data", "...", "lost"]
    )


@pytest.mark.parametrize("how", ["write", "writelines", "sendto"])
def test_what_is_written_after_the_loss_leaves_no_writer(how: str) -> None:
    """The number of the descriptor is soon another one's."""
    kind = "datagrams" if how == "sendto" else "socket"

    class Late(Journal, asyncio.Protocol, asyncio.DatagramProtocol):
        def resume_writing(self) -> None:
            super().resume_writing()
            if how == "sendto":
                for _ in range(500):
                    self.transport.sendto(bytes(10_000))
            elif how == "write":
                self.transport.write(MEGABYTE)
            else:
                self.transport.writelines([MEGABYTE, MEGABYTE])

    journal = Late("resume_writing")

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        async with connected_writer(kind, journal) as (transport, take):
            write_much(kind, transport)
            while not journal.entered.is_set():
                take()
                await asyncio.sleep(0)
            transport.close()
            await asyncio.sleep(UNIT / 2)
            journal.release.set()
            while "lost" not in journal.heard:
                take()
                await asyncio.sleep(0)
            assert not loop._writers

    asyncio_gevent.run(main())


# --- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "abort"])
def test_the_peer_need_not_wait_for_what_is_suspended(how: str) -> None:
    async def test(journal: Any, connecting: Any, peer: Any) -> None:
        await connecting
        peer.send(b"data")
        await journal.until_entered()
        getattr(journal.transport, how)()
        peer.socket.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(peer.socket, 1) == b""
        assert journal.heard == ["made", "data"]
        journal.release.set()
        await journal.until_heard("lost")

    run("socket", ("data",), test)


def test_a_method_may_pass_the_socket_on_and_close_the_transport() -> None:
    class Passing(StreamJournal):
        def data_received(self, data: bytes) -> None:
            self.copy = self.transport._sock.dup()
            self.transport.close()
            self.hear("data")

    journal = Passing("data")

    async def main() -> None:
        async with by_socket(journal) as (connecting, peer):
            await connecting
            peer.send(b"data")
            await journal.until_entered()
            assert journal.copy.send(b"by the copy") == 11
            assert peer.socket.recv(100) == b"by the copy"
            journal.copy.close()
            journal.release.set()
            await journal.until_heard("lost")

    asyncio_gevent.run(main())


def test_errors_are_reported_with_the_name_of_the_method(observed: Any) -> None:
    class Failing(ChildJournal):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            raise ZeroDivisionError

        process_exited = connection_made  # type: ignore[assignment]

    journal = Failing()

    async def main() -> None:
        nameless: Any = object
        ends = socket.socketpair()
        with pytest.raises(AttributeError, match="connection_made"):
            await asyncio.get_running_loop().create_connection(nameless, sock=ends[0])
        for end in ends:
            end.close()
        transport, _ = await asyncio.get_running_loop().subprocess_exec(
            lambda: journal, "true", stdin=None, stdout=None, stderr=None
        )
        await journal.until_heard("lost")
        transport.close()

    asyncio_gevent.run(main())
    messages = [context["message"] for context in observed.handled]
    assert len(messages) == 2
    assert all("Failing.connection_made" in message for message in messages)
    observed.handled.clear()
    observed.log.clear()


def test_a_suspended_connection_lost_is_not_called_again() -> None:
    async def test(journal: Any, connecting: Any, peer: Any) -> None:
        await connecting
        transport = journal.transport
        transport.close()
        await journal.until_entered()
        transport.abort()
        transport.close()
        transport.write(b"too late")
        peer.close()
        await asyncio.sleep(UNIT / 2)
        journal.release.set()
        await until(lambda: "..." in journal.heard)

    assert run("socket", ("lost",), test).heard == ["made", "lost", "..."]


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("method", ["made", "data"])
def test_a_loop_closed_while_a_method_is_suspended(method: str, debug: bool) -> None:
    """It ends with GreenletExit, which is nobody's mistake and not reported."""
    journal = StreamJournal(method)
    loop = EventLoop()
    loop.set_debug(debug)

    async def main() -> None:
        async with by_socket(journal) as (connecting, peer):
            peer.send(b"data")
            await journal.until_entered()
            connecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await connecting

    loop.run_until_complete(main())
    loop.close()
    assert "..." not in journal.heard
    assert ("lost" in journal.heard) == (method == "made")  # it was given up, and waited for that
    if journal.transport._sock is not None:
        journal.transport._sock.close()
        journal.transport._sock = None  # or its destructor warns, as it should


# --- children -------------------------------------------------------------------------------------


def test_a_childs_protocol_hears_nothing_before_connection_made_has_returned() -> None:
    journal = ChildJournal("made")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        starting = loop.create_task(
            loop.subprocess_exec(lambda: journal, "echo", "text", stdin=None, stderr=None)
        )
        await journal.until_entered()
        assert journal.heard == ["made"]
        assert not starting.done()
        journal.release.set()
        transport, protocol = await starting
        assert protocol is journal
        await journal.until_heard("lost")
        transport.close()

    asyncio_gevent.run(main())
    assert journal.received == b"text\n"
    assert journal.heard[:2] == ["made", "..."]
    assert sorted(journal.heard[2:-1]) == ["data", "end of 1", "exited"]
    assert journal.heard[-1] == "lost"


@pytest.mark.parametrize("method", ["made", "data"])
def test_a_protocol_that_is_slower_than_the_child(method: str) -> None:
    """What the child writes is left in the pipe then, not taken into memory."""
    journal = ChildJournal(method)
    size = 100 * (1 << 16)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        starting = loop.create_task(
            loop.subprocess_exec(
                lambda: journal, "head", "-c", str(size), "/dev/zero", stdin=None, stderr=None
            )
        )
        await until(lambda: journal.transport)
        transport = waiting = journal.transport
        await until(lambda: len(waiting._calls) > MAX_WAITING_CALLS)
        await asyncio.sleep(UNIT)
        assert len(waiting._calls) == MAX_WAITING_CALLS + 1
        assert "exited" not in journal.heard
        journal.release.set()
        await journal.until_heard("lost")
        await starting
        transport.close()

    asyncio_gevent.run(main())
    assert len(journal.received) == size


def test_a_method_that_waits_to_write_to_a_child_that_ends() -> None:
    class Writer(ChildJournal):
        def __init__(self) -> None:
            super().__init__()
            self.may_write = gevent.event.Event()

        def pipe_data_received(self, fd: int, data: bytes) -> None:
            self.transport.get_pipe_transport(0).write(MEGABYTE)
            self.entered.set()
            self.may_write.wait()
            self.hear("...")

        def resume_writing(self) -> None:
            self.may_write.set()

    journal = Writer()

    async def main() -> None:
        transport, _ = await asyncio.get_running_loop().subprocess_exec(
            lambda: journal, "sh", "-c", "echo text; exec sleep 100", stderr=None
        )
        await journal.until_entered()
        transport.kill()
        await journal.until_heard("lost")
        transport.close()

    asyncio_gevent.run(main())
    assert journal.heard[:2] == ["made", "pause_writing"]
    assert sorted(journal.heard[2:-1]) == ["...", "end of 0", "end of 1", "exited"]


@pytest.mark.parametrize("method", ["close", "kill", "terminate"])
def test_a_child_that_has_ended_before_it_is_told_to(method: str) -> None:
    """Popen.poll(), which is asked then, takes the status from the watcher."""

    async def main() -> int:
        process = await asyncio.create_subprocess_exec("sh", "-c", "exit 3")
        with contextlib.suppress(ChildProcessError):  # the hub was faster
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        if method == "close":
            process._transport.close()  # type: ignore[attr-defined]
        else:
            getattr(process, method)()
        return await process.wait()

    assert asyncio_gevent.run(main()) == 3


def test_a_child_that_was_waited_for_by_popen() -> None:
    run_script("waited_child", patched=False).check("3\n3")  # patched it is the hub that reaps


def test_a_start_returns_when_the_protocol_has_heard_of_what_came_first() -> None:
    journal = ChildJournal()

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        connect = loop.connect_read_pipe

        async def slow(*args: Any) -> Any:
            connected = await connect(*args)
            await until(lambda: connected[1].proc._calls)  # before the protocol is introduced
            return connected

        loop.connect_read_pipe = slow
        transport, _ = await loop.subprocess_exec(
            lambda: journal, "sh", "-c", "echo text; exec sleep 100", stdin=None, stderr=None
        )
        heard = list(journal.heard)
        transport.kill()
        await journal.until_heard("lost")
        transport.close()
        assert heard == ["made", "data"]

    asyncio_gevent.run(main())


def test_a_start_that_is_given_up_does_not_wait_for_connection_made() -> None:
    journal = ChildJournal("made")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        starting = loop.create_task(loop.subprocess_exec(lambda: journal, "sleep", "100"))
        await journal.until_entered()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert journal.heard == ["made"]
        journal.release.set()
        await journal.until_heard("lost")

    asyncio_gevent.run(main())
    assert journal.heard[-1] == "lost"


def _children() -> set[str]:
    return set(pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="looks at /proc")
@pytest.mark.parametrize("how", ["cancelled", "timed out by gevent"])
def test_a_start_that_is_given_up_leaves_no_child(how: str) -> None:
    before = _children()

    async def start() -> None:
        if how == "cancelled":
            await asyncio.create_subprocess_exec("sleep", "100", stdin=-1, stdout=-1)
        else:
            with gevent.Timeout(0, False):
                await asyncio.create_subprocess_exec("sleep", "100", stdin=-1, stdout=-1)
                raise AssertionError

    async def main() -> None:
        task = asyncio.create_task(start())
        await asyncio.sleep(0)
        if how == "cancelled":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await task
        await until(lambda: _children() == before)

    asyncio_gevent.run(main())


@pytest.fixture
def no_pipe_transports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(*args: Any) -> Any:
        raise OSError("no more")

    monkeypatch.setattr(EventLoop, "_make_read_pipe_transport", fail)
    yield


def test_a_child_whose_pipes_cannot_be_connected(no_pipe_transports: None) -> None:
    before = _children()

    async def main() -> None:
        with pytest.raises(OSError, match="no more"):
            await asyncio.create_subprocess_exec("sleep", "100", stdout=-1)
        await until(lambda: _children() == before)

    asyncio_gevent.run(main())
    gc.collect()


def test_data_and_then_a_reset() -> None:
    """libuv stops watching a descriptor that has an error, before anybody has read that."""
    journal = StreamJournal()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: journal, "127.0.0.1", 0)
        peer = socket.create_connection(server.sockets[0].getsockname())
        await journal.until_heard("made")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.send(b"data")
        peer.close()
        if PATCHED:
            await asyncio.sleep(UNIT / 2)
        await journal.until_heard("lost")
        server.close()
        await server.wait_closed()

    asyncio_gevent.run(main())
    assert journal.heard == ["made", "data", "lost"]


# --- datagrams in a row ---------------------------------------------------------------------------


class Letters(asyncio.DatagramProtocol):
    """Notes what it receives, and does something with each."""

    def __init__(self, do: Callable[[Any, bytes], None]) -> None:
        self.received: list[bytes] = []
        self.lost = False
        self._do = do

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        assert not self.lost
        self.received.append(data)
        self._do(self, data)

    def connection_lost(self, error: Any) -> None:
        self.lost = True


async def by_letters(letters: Letters, count: int) -> None:
    """Receive so many that are there already."""
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: letters, local_addr=("127.0.0.1", 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for number in range(count):
            sender.sendto(b"%d" % number, letters.transport.get_extra_info("sockname"))


def test_datagrams_that_came_together_are_received_in_order() -> None:
    async def main() -> None:
        letters = Letters(lambda letters, data: None)
        await by_letters(letters, 50)
        await until(lambda: len(letters.received) == 50)
        assert letters.received == [b"%d" % number for number in range(50)]
        letters.transport.close()
        await until(lambda: letters.lost)

    asyncio_gevent.run(main())


def test_whom_a_datagram_wakes_sees_it_before_the_next_one_is_there() -> None:
    """A future for each datagram, as protocols have it: none is lost."""
    seen: list[bytes] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[bytes] = loop.create_future()
        letters = Letters(lambda letters, data: arrived.set_result(data))
        await by_letters(letters, 5)
        while len(seen) < 5:
            seen.append(await arrived)
            arrived = loop.create_future()
        letters.transport.close()
        await until(lambda: letters.lost)

    asyncio_gevent.run(main())
    assert seen == [b"0", b"1", b"2", b"3", b"4"]


def test_a_protocol_may_replace_its_data_received() -> None:
    seen: list[tuple[str, bytes]] = []

    class Parser(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            seen.append(("head", data))
            self.data_received = self.body  # type: ignore[method-assign]

        def body(self, data: bytes) -> None:
            seen.append(("body", data))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        transport, _ = await loop.create_connection(Parser, sock=ours)
        with theirs:
            for number in range(3):
                theirs.send(b"%d" % number)
                await until(lambda: len(seen) > number)
        transport.close()

    asyncio_gevent.run(main())
    assert seen == [("head", b"0"), ("body", b"1"), ("body", b"2")]


def test_others_have_their_turn_while_many_datagrams_come() -> None:
    async def main() -> None:
        letters = Letters(lambda letters, data: None)
        await by_letters(letters, 100)
        counts = []
        while len(letters.received) < 100:
            counts.append(len(letters.received))
            await asyncio.sleep(0)
        assert len({*counts}) >= 5
        letters.transport.close()
        await until(lambda: letters.lost)

    asyncio_gevent.run(main())


@pytest.mark.parametrize("how", ["close", "abort"])
def test_nothing_is_received_after_datagram_received_has_closed(how: str) -> None:
    def close(letters: Letters, data: bytes) -> None:
        if data == b"1":
            getattr(letters.transport, how)()

    async def main() -> None:
        letters = Letters(close)
        await by_letters(letters, 5)
        await until(lambda: letters.lost)
        assert letters.received == [b"0", b"1"]

    asyncio_gevent.run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="it came with Python 3.11")
def test_nothing_is_received_after_datagram_received_has_paused() -> None:
    def pause(letters: Letters, data: bytes) -> None:
        if data == b"1":
            letters.transport.pause_reading()

    async def main() -> None:
        letters = Letters(pause)
        await by_letters(letters, 5)
        await until(lambda: len(letters.received) == 2)
        await asyncio.sleep(UNIT / 2)
        assert letters.received == [b"0", b"1"]
        letters.transport.resume_reading()
        await until(lambda: len(letters.received) == 5)
        letters.transport.close()
        await until(lambda: letters.lost)

    asyncio_gevent.run(main())


def test_one_of_many_datagrams_suspends() -> None:
    going_on = gevent.event.Event()

    def wait(letters: Letters, data: bytes) -> None:
        if data == b"1":
            going_on.wait()

    async def main() -> None:
        letters = Letters(wait)
        await by_letters(letters, 5)
        await until(lambda: len(letters.received) == 2)
        await asyncio.sleep(UNIT / 2)
        assert letters.received == [b"0", b"1"]
        going_on.set()
        await until(lambda: len(letters.received) == 5)
        assert letters.received == [b"0", b"1", b"2", b"3", b"4"]
        letters.transport.close()
        await until(lambda: letters.lost)

    asyncio_gevent.run(main())


def test_one_of_many_datagrams_fails(observed: Any) -> None:
    """The others are received all the same, as with asyncio."""

    def fail(letters: Letters, data: bytes) -> None:
        if data == b"1":
            raise ValueError(data)

    async def main() -> None:
        letters = Letters(fail)
        await by_letters(letters, 5)
        await until(lambda: len(letters.received) == 5)
        (context,) = observed.handled
        assert isinstance(context["exception"], ValueError)
        observed.handled.clear()
        observed.log.clear()
        letters.transport.close()
        await until(lambda: letters.lost)

    asyncio_gevent.run(main())
