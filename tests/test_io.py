"""Sockets, TLS, pipes, files and children, from everywhere, plain and patched, beside gevent's."""

from __future__ import annotations

import asyncio
import errno
import os
import pathlib
import socket
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import gevent
import gevent.event
import gevent.queue
import gevent.server
import gevent.socket
import gevent.subprocess
import pytest
from support import (
    PATCHED,
    PLACES,
    UNIT,
    in_native_thread,
    native_sleep,
    os_close,
    run_script,
    until,
)

import asyncio_gevent
from asyncio_gevent._children import _Reaped

CERTIFICATE = pathlib.Path(__file__).parent / "certificate.pem"
MEGABYTE = bytes(range(256)) * 4096

# In 3.10 a TLS transport that is closed by its peer warns in its destructor all the same.
pytestmark = (
    [pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]
    if sys.version_info < (3, 11)
    else []
)


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


def client_context() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=CERTIFICATE)


# --- every kind, everywhere -----------------------------------------------------------------------


async def _echo(reader: Any, writer: Any) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
        await writer.wait_closed()


async def _exchange(reader: Any, writer: Any, data: bytes = MEGABYTE) -> None:
    async def send() -> None:
        writer.write(data)
        await writer.drain()

    sending = asyncio.create_task(send())
    assert await reader.readexactly(len(data)) == data
    await sending
    writer.close()
    await writer.wait_closed()


async def _close(server: Any) -> None:
    # Its connections have gone, too, before it counts as closed.
    me = asyncio.current_task()
    await until(lambda: asyncio.all_tasks() == {me})
    server.close()
    await server.wait_closed()


async def tcp() -> None:
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await _exchange(*await asyncio.open_connection("127.0.0.1", port))
    await _exchange(*await asyncio.open_connection("localhost", port, family=socket.AF_INET))
    await _close(server)


async def tls() -> None:
    server = await asyncio.start_server(_echo, "127.0.0.1", 0, ssl=server_context())
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("localhost", port, ssl=client_context())
    assert writer.get_extra_info("ssl_object").version().startswith("TLS")
    await _exchange(reader, writer)
    await _close(server)


async def start_tls() -> None:
    class Upgrading(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            if data == b"STARTTLS":
                self.transport.write(b"go")
                upgrades.append(asyncio.create_task(self.upgrade()))
            else:
                self.transport.write(data)

        async def upgrade(self) -> None:
            self.transport = await loop.start_tls(
                self.transport, self, server_context(), server_side=True
            )

    class Client(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            received.put_nowait(data)

    received: asyncio.Queue[bytes] = asyncio.Queue()
    upgrades: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Upgrading, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    plain, protocol = await loop.create_connection(Client, "127.0.0.1", port)
    plain.write(b"STARTTLS")
    assert await received.get() == b"go"
    transport: Any = await loop.start_tls(
        plain, protocol, client_context(), server_hostname="localhost"
    )
    await asyncio.gather(*upgrades)  # the server does not write to the old transport any more
    transport.write(b"secret")
    assert await received.get() == b"secret"
    transport.close()
    await asyncio.sleep(0.001)
    await _close(server)


async def unix() -> None:
    path = f"/tmp/asyncio-gevent-{os.getpid()}-{id(asyncio.current_task())}"
    server = await asyncio.start_unix_server(_echo, path)
    try:
        await _exchange(*await asyncio.open_unix_connection(path))
        await _close(server)
    finally:
        if os.path.exists(path):  # Python 3.13 removes it itself
            os.unlink(path)


async def udp() -> None:
    received: asyncio.Queue[Any] = asyncio.Queue()

    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, address: Any) -> None:
            self.transport.sendto(data, address)

    class Client(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, address: Any) -> None:
            received.put_nowait(data)

    loop = asyncio.get_running_loop()
    server, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    client, _ = await loop.create_datagram_endpoint(
        Client, remote_addr=server.get_extra_info("sockname")
    )
    for size in (1, 60000):
        client.sendto(b"x" * size)
        assert await received.get() == b"x" * size
    server.close()
    client.close()
    await asyncio.sleep(0)


async def sock_methods() -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as listener:
        listener.setblocking(False)
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        async def serve() -> None:
            connection, _ = await loop.sock_accept(listener)
            with connection:
                while data := await loop.sock_recv(connection, 1 << 16):
                    await loop.sock_sendall(connection, data)

        serving = asyncio.create_task(serve())
        with socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, listener.getsockname())
            sending = asyncio.create_task(loop.sock_sendall(client, MEGABYTE))
            buffer = bytearray(len(MEGABYTE))
            received = 0
            while received < len(buffer):
                received += await loop.sock_recv_into(client, memoryview(buffer)[received:])
            assert buffer == MEGABYTE
            await sending
        await serving


async def sock_datagrams() -> None:
    loop = asyncio.get_running_loop()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as theirs,
    ):
        for each in (ours, theirs):
            each.setblocking(False)
            each.bind(("127.0.0.1", 0))
        if sys.version_info >= (3, 11):
            waiting = asyncio.create_task(loop.sock_recvfrom(theirs, 100))
            await asyncio.sleep(0)
            await loop.sock_sendto(ours, b"datagram", theirs.getsockname())
            assert await waiting == (b"datagram", ours.getsockname())
        else:
            ours.sendto(b"datagram", theirs.getsockname())
            assert await loop.sock_recv(theirs, 100) == b"datagram"


async def sendfile() -> None:
    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with open(__file__, "rb") as file:
        text = file.read()
        file.seek(0)
        assert await loop.sendfile(writer.transport, file) == len(text)
    assert await reader.readexactly(len(text)) == text
    writer.close()
    await writer.wait_closed()
    with socket.socket() as client, open(__file__, "rb") as file:
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", port))
        assert await loop.sock_sendfile(client, file) == len(text)
        received = b""
        while len(received) < len(text):
            received += await loop.sock_recv(client, 1 << 16)
        assert received == text
    await _close(server)


async def pipes() -> None:
    loop = asyncio.get_running_loop()
    read_end, write_end = os.pipe()
    reader = asyncio.StreamReader()
    read_transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", 0)
    )
    write_transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.streams.FlowControlMixin(), os.fdopen(write_end, "wb", 0)
    )
    writer = asyncio.StreamWriter(write_transport, protocol, None, loop)
    writer.write(MEGABYTE)
    reading = asyncio.create_task(reader.readexactly(len(MEGABYTE)))
    await writer.drain()
    assert await reading == MEGABYTE
    write_transport.close()
    assert await reader.read() == b""
    read_transport.close()
    await asyncio.sleep(0)


async def names() -> None:
    loop = asyncio.get_running_loop()
    (info, *_) = await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
    assert info[0] == socket.AF_INET
    assert info[4] == ("127.0.0.1", 80)
    assert await loop.getaddrinfo("localhost", "http", family=socket.AF_INET)
    with pytest.raises(socket.gaierror):
        await loop.getaddrinfo("127.0.0.1", "no-such-service")
    host, port = await loop.getnameinfo(
        ("127.0.0.1", 80), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
    )
    assert (host, port) == ("127.0.0.1", "80")


def test_a_bad_name_is_the_callers_business(capfd: pytest.CaptureFixture[str]) -> None:
    """The hub's resolver prints such errors, which are raised where the name was looked up."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(UnicodeError):
            await loop.getaddrinfo("x" * 70, 80)
        with pytest.raises(TypeError):
            await loop.getnameinfo("no tuple")  # type: ignore[arg-type]
        with pytest.raises(socket.gaierror):
            await loop.getaddrinfo("localhost", "no such service")

    asyncio_gevent.run(main())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_another_resolver_of_the_hub(is_cancelled: bool) -> None:
    """It waits in a greenlet, which is not left waiting."""
    asked: list[Any] = []
    answer = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))
    ended = gevent.event.Event()

    class Resolver:
        def getaddrinfo(self, *args: Any) -> Any:
            asked.append(args)
            try:
                gevent.sleep(100 if is_cancelled else 0)
            finally:
                ended.set()
            if args[0] == "bad":
                raise socket.gaierror
            return [answer]

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        if is_cancelled:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(loop.getaddrinfo("name", 80), 0.001)
            await until(ended.is_set)
        else:
            assert await loop.getaddrinfo("name", 80) == [answer]
            assert asked[0][:2] == ("name", 80)
            with pytest.raises(socket.gaierror):
                await loop.getaddrinfo("bad", 80)

    hub = gevent.get_hub()
    previous, hub.resolver = hub.resolver, Resolver()
    try:
        asyncio_gevent.run(main())
    finally:
        hub.resolver = previous


async def processes() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "print(input()[::-1]); exit(3)",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate(b"text\n")
    assert (out, process.returncode) == (b"txet\n", 3)
    shell = await asyncio.create_subprocess_shell("read line; kill -TERM $$", stdin=-1)
    shell.stdin.write(b"\n")
    assert await shell.wait() == -15


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="it is the hub's watcher without pidfds")
@pytest.mark.skipif(
    getattr(gevent.config.loop, "reaps_watched_only", False), reason="the main hub would not"
)
def test_the_main_hub_has_reaped_a_child_of_another_thread(monkeypatch: Any) -> None:
    """Before that thread says which one it was."""
    original = os.pidfd_open

    def pidfd_open(pid: int, flags: int = 0) -> int:
        pidfd = original(pid, flags)
        while True:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return pidfd
            native_sleep(0.001)

    async def main() -> int:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", "exit(3)")
        return await process.wait()

    gevent.subprocess.call(["true"])  # gevent reaps all children from now on
    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    assert in_native_thread(lambda: asyncio_gevent.run(main())) == 3


KINDS: list[Callable[[], Awaitable[None]]] = [
    tcp, tls, start_tls, unix, udp, sock_methods, sock_datagrams, sendfile, pipes, names, processes,
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_everywhere(kind: Any, place: str) -> None:
    PLACES[place](lambda: asyncio_gevent.run(kind()))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_in_debug_mode(kind: Any) -> None:
    async def main() -> None:
        asyncio.get_running_loop().slow_callback_duration = 60
        await kind()

    asyncio_gevent.run(main(), debug=True)


def test_a_child_that_has_ended_before_it_is_watched() -> None:
    run_script("no_pidfd").check("3\n3\n3")


def test_all_kinds_at_the_same_time() -> None:
    kinds: list[Any] = [tcp, tls, unix, udp, pipes, sendfile, sock_methods, processes]
    greenlets = [gevent.spawn(asyncio_gevent.run, kind()) for kind in kinds * 2]
    gevent.joinall(greenlets, raise_error=True)


# --- together with gevent's sockets ---------------------------------------------------------------


def test_an_asyncio_client_of_a_gevent_server() -> None:
    def serve(connection: Any, address: Any) -> None:
        while data := connection.recv(1 << 16):
            connection.sendall(data)
        connection.close()

    server = gevent.server.StreamServer(("127.0.0.1", 0), serve)
    server.start()

    async def main() -> None:
        await asyncio.gather(
            *(
                _client(server.server_port)
                for _ in range(10)
            )
        )  # fmt: skip

    async def _client(port: int) -> None:
        await _exchange(*await asyncio.open_connection("127.0.0.1", port))

    asyncio_gevent.run(main())
    server.stop()


def test_gevent_clients_of_an_asyncio_server() -> None:
    def client(port: int) -> int:
        with gevent.socket.create_connection(("127.0.0.1", port)) as connection:
            gevent.spawn(connection.sendall, MEGABYTE)
            received = 0
            while received < len(MEGABYTE):
                received += len(connection.recv(1 << 16))
            return received

    async def main() -> None:
        server = await asyncio.start_server(_echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        clients = [gevent.spawn(client, port) for _ in range(10)]
        await until(lambda: all(each.ready() for each in clients))
        assert [each.get() for each in clients] == [len(MEGABYTE)] * 10
        await _close(server)

    asyncio_gevent.run(main())


@pytest.mark.parametrize("module", [socket, gevent.socket], ids=["socket", "gevent.socket"])
def test_sockets_that_were_made_elsewhere(module: Any) -> None:
    """asyncio's methods and transports take gevent's sockets as well."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = module.socketpair()
        for each in (ours, theirs):
            each.setblocking(False)
        await loop.sock_sendall(ours, b"1")
        assert await loop.sock_recv(theirs, 1) == b"1"
        reader, writer = await asyncio.open_connection(sock=ours)
        echo = asyncio.create_task(_echo(*await asyncio.open_connection(sock=theirs)))
        await _exchange(reader, writer)
        await echo

    asyncio_gevent.run(main())


def test_a_reader_and_a_gevent_socket_on_one_descriptor() -> None:
    """The event loop's watcher and the socket's own live side by side."""
    seen: list[bytes] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = gevent.socket.socketpair()
        loop.add_writer(ours, lambda: (seen.append(b"writable"), loop.remove_writer(ours)))
        receiving = gevent.spawn(ours.recv, 1)
        await until(lambda: seen)
        theirs.send(b"1")
        await until(receiving.ready)
        assert receiving.get() == b"1"
        ours.close()
        theirs.close()

    asyncio_gevent.run(main())


# --- transports -----------------------------------------------------------------------------------


def test_blocking_in_data_received_over_tls_keeps_the_order() -> None:
    received: list[bytes] = []
    inside = 0

    class Server(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            nonlocal inside
            inside += 1
            assert inside == 1
            gevent.sleep(0.0001)
            received.append(data)
            inside -= 1

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Server, "127.0.0.1", 0, ssl=server_context())
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("localhost", port, ssl=client_context())
        for number in range(50):
            writer.write(number.to_bytes(2, "big") * 100)
            await asyncio.sleep(0)
        await until(lambda: sum(map(len, received)) == 50 * 200)
        assert b"".join(received) == b"".join(n.to_bytes(2, "big") * 100 for n in range(50))
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.001)
        server.close()
        await server.wait_closed()

    asyncio_gevent.run(main())


def test_flow_control_pauses_and_resumes_a_writer() -> None:
    events: list[str] = []

    class Writer(asyncio.Protocol):
        def pause_writing(self) -> None:
            events.append("pause")

        def resume_writing(self) -> None:
            events.append("resume")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        transport, _ = await loop.create_connection(Writer, sock=ours)
        transport.write(MEGABYTE * 4)
        assert events == ["pause"]
        theirs.setblocking(False)
        received = 0
        while received < len(MEGABYTE) * 4:
            received += len(await loop.sock_recv(theirs, 1 << 16))
        await until(lambda: len(events) == 2)
        assert events == ["pause", "resume"]
        transport.close()
        await asyncio.sleep(0)
        theirs.close()

    asyncio_gevent.run(main())


def test_pause_reading_while_data_received_is_suspended() -> None:
    received: list[bytes] = []
    release = gevent.event.Event()

    class Reader(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            received.append(data)
            release.wait()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        transport, _ = await loop.create_connection(Reader, sock=ours)
        theirs.send(b"1")
        await until(lambda: received)
        transport.pause_reading()
        theirs.send(b"2")
        release.set()
        await asyncio.sleep(0.001)
        assert received == [b"1"]
        transport.resume_reading()
        await until(lambda: len(received) == 2)
        # And twice while it is suspended.
        release.clear()
        theirs.send(b"3")
        await until(lambda: len(received) == 3)
        transport.pause_reading()
        transport.resume_reading()
        theirs.send(b"4")
        await asyncio.sleep(0.001)
        assert received == [b"1", b"2", b"3"]
        release.set()
        await until(lambda: len(received) == 4)
        transport.close()
        theirs.close()
        await asyncio.sleep(0)

    asyncio_gevent.run(main())


def test_an_error_in_a_suspended_data_received_whose_connection_is_lost(observed: Any) -> None:
    """It is reported like any other error, though the transport has gone meanwhile."""
    entered: list[None] = []
    release = gevent.event.Event()

    class Reader(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.abort()
            entered.append(None)
            release.wait()
            raise ZeroDivisionError

    async def main() -> None:
        contexts: list[Any] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: contexts.append(context))
        ours, theirs = socket.socketpair()
        await loop.create_connection(Reader, sock=ours)
        theirs.send(b"1")
        await until(lambda: entered)
        await asyncio.sleep(0.001)
        theirs.close()
        release.set()
        await until(lambda: contexts)
        assert isinstance(contexts[0]["exception"], ZeroDivisionError)

    asyncio_gevent.run(main())


def test_a_connection_reads_at_most_64_kib_at_a_time() -> None:
    """More is above malloc's threshold for mapping memory, and much slower."""
    sizes: list[int] = []

    class Reader(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            sizes.append(len(data))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        transport, _ = await loop.create_connection(Reader, sock=ours)
        await loop.sock_sendall(theirs, MEGABYTE)
        await until(lambda: sum(sizes) == len(MEGABYTE))
        assert max(sizes) <= 64 * 1024
        transport.close()
        theirs.close()
        await asyncio.sleep(0)

    asyncio_gevent.run(main())


def test_a_refused_connection() -> None:
    async def main() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            with socket.socket() as client:
                client.setblocking(False)
                with pytest.raises(ConnectionRefusedError):
                    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))

    asyncio_gevent.run(main())


def test_a_certificate_that_nobody_trusts(observed: Any) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        server = await asyncio.start_server(_echo, "127.0.0.1", 0, ssl=server_context())
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("localhost", port, ssl=ssl.create_default_context())
        await asyncio.sleep(0.001)
        await _close(server)

    asyncio_gevent.run(main())


def test_a_loop_that_is_closed_with_open_transports_forgets_their_watchers() -> None:
    """asyncio warns of the transports, and nothing of them stays in the hub."""
    loop = asyncio_gevent.EventLoop()
    ours, theirs = socket.socketpair()

    async def connect() -> Any:
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        return transport

    transport = loop.run_until_complete(connect())
    loop.close()
    with pytest.warns(ResourceWarning, match="unclosed transport"):
        del transport
        import gc

        gc.collect()
    ours.close()
    theirs.close()


def test_a_descriptor_that_is_watched_again_after_it_was_closed() -> None:
    """The number goes to another file while the loop does not run, and while it does."""

    async def wait_for(sock: Any) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(sock, readable.set)
        await readable.wait()
        loop.remove_reader(sock)

    async def main() -> None:
        for _ in range(5):
            ours, theirs = socket.socketpair()
            theirs.send(b"1")
            await wait_for(ours)
            ours.close()
            theirs.close()
            if PATCHED:
                await asyncio.sleep(0)

    asyncio_gevent.run(main())
    loop = asyncio_gevent.EventLoop()
    for _ in range(5):
        ours, theirs = socket.socketpair()
        theirs.send(b"1")
        loop.run_until_complete(wait_for(ours))
        ours.close()
        theirs.close()
    loop.close()


def test_many_connections_at_once() -> None:
    async def main() -> None:
        server = await asyncio.start_server(_echo, "127.0.0.1", 0, backlog=200)
        port = server.sockets[0].getsockname()[1]

        async def client(number: int) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await _exchange(reader, writer, str(number).encode() * 100)

        await asyncio.gather(*(client(number) for number in range(100)))
        await _close(server)

    asyncio_gevent.run(main())


# --- pipes and the deferred close -----------------------------------------------------------------


def test_the_end_of_a_pipe_arrives_though_os_close_is_deferred() -> None:
    """The patched one closes after the hub's next poll, and does not end that poll."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for close in (os.close, os.close, os_close):
            read_end, write_end = os.pipe()
            reader = asyncio.StreamReader()
            transport, _ = await loop.connect_read_pipe(
                lambda reader=reader: asyncio.StreamReaderProtocol(reader),
                os.fdopen(read_end, "rb"),
            )
            reading = asyncio.create_task(reader.read())
            await asyncio.sleep(0)
            os.write(write_end, b"text")
            close(write_end)
            assert await reading == b"text"
            transport.close()
        await asyncio.sleep(0)

    asyncio_gevent.run(main())


def test_the_end_of_a_pipe_that_a_suspended_step_closes() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        read_end, write_end = os.pipe()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb")
        )

        async def close() -> None:
            gevent.sleep(0.001)
            os.close(write_end)

        closing = asyncio.create_task(close())
        assert await reader.read() == b""
        await closing
        transport.close()
        await asyncio.sleep(0)

    asyncio_gevent.run(main())


def test_many_pipes_closed_in_turn() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(50):
            read_end, write_end = os.pipe()
            ended = loop.create_future()
            loop.add_reader(read_end, lambda ended=ended: ended.done() or ended.set_result(None))
            os.close(write_end)
            await ended
            loop.remove_reader(read_end)
            os.close(read_end)

    asyncio_gevent.run(main())


# --- children -------------------------------------------------------------------------------------


def test_both_kinds_of_subprocesses_side_by_side() -> None:
    ends: list[Any] = []

    def by_gevent(number: int) -> None:
        process = gevent.subprocess.Popen(
            ["sh", "-c", f"exit {number}"], stdout=gevent.subprocess.PIPE
        )
        with process:
            assert process.communicate()[0] == b""
        ends.append(("gevent", process.returncode))

    async def by_asyncio(number: int) -> None:
        process = await asyncio.create_subprocess_exec("sh", "-c", f"exit {number}")
        ends.append(("asyncio", await process.wait()))

    async def main() -> None:
        greenlets = [gevent.spawn(by_gevent, number) for number in range(5)]
        await asyncio.gather(*(by_asyncio(number) for number in range(5)))
        await until(lambda: all(each.ready() for each in greenlets))
        gevent.joinall(greenlets, raise_error=True)
        # And within one step.
        by_gevent(5)
        await by_asyncio(5)

    asyncio_gevent.run(main())
    assert sorted(ends) == sorted((kind, n) for kind in ("asyncio", "gevent") for n in range(6))


def test_children_of_two_loops() -> None:
    async def main(number: int) -> int:
        process = await asyncio.create_subprocess_exec("sh", "-c", f"exit {number}")
        return await process.wait()

    greenlets = [gevent.spawn(asyncio_gevent.run, main(number)) for number in range(5)]
    gevent.joinall(greenlets, raise_error=True)
    assert [each.value for each in greenlets] == list(range(5))


def test_a_child_that_somebody_else_waits_for(observed: Any) -> None:
    """Its status is lost then; asyncio says 255 of it, or what the other one found."""

    async def main() -> None:
        process = await asyncio.create_subprocess_exec("sh", "-c", "exit 0")
        if not PATCHED:
            try:
                os.waitpid(process.pid, 0)
            except ChildProcessError:
                pass  # the hub was faster
        assert await process.wait() in (0, 255)

    asyncio_gevent.run(main())
    observed.log.clear()


def test_a_child_that_cannot_be_started() -> None:
    async def main() -> None:
        with pytest.raises(FileNotFoundError):
            await asyncio.create_subprocess_exec("/nonexistent/program")
        await asyncio.sleep(0)

    asyncio_gevent.run(main())


def test_errors_of_a_child_are_those_that_everybody_catches() -> None:
    """After patching it is another Popen that raises them than the one of the module."""

    def fail() -> None:
        raise ZeroDivisionError

    async def main() -> None:
        with pytest.raises(subprocess.SubprocessError):
            await asyncio.create_subprocess_exec("true", preexec_fn=fail)

    asyncio_gevent.run(main())


def test_a_popen_that_somebody_has_replaced_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(Exception):
        pass

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise Refused

    async def main() -> None:
        with pytest.raises(Refused):
            await asyncio.create_subprocess_exec("true")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    asyncio_gevent.run(main())


def test_a_popen_that_was_replaced_before_is_used() -> None:
    run_script("replaced_popen", patched=False).check("called\n0")


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="there are no pidfds")
def test_a_child_for_which_there_is_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the main thread there is another way; elsewhere it is not left alone."""
    started: list[int] = []

    def pidfd_open(pid: int, flags: int = 0) -> int:
        started.append(pid)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main() -> int:
        process = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE)
        process.terminate()
        return await process.wait()

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    assert asyncio_gevent.run(main()) == -15
    started.clear()
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        PLACES["native"](lambda: asyncio_gevent.run(main()))
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


def test_a_child_that_is_killed_and_one_that_is_cancelled() -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE)
        process.kill()
        assert await process.wait() == -9
        process = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), 0.001)
        process.terminate()
        assert await process.wait() == -15

    asyncio_gevent.run(main())


def test_a_large_exchange_with_a_child() -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec(
            "cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate(MEGABYTE)
        assert out == MEGABYTE

    asyncio_gevent.run(main())


def test_the_plain_subprocess_module_in_a_step() -> None:
    """Patched it suspends the step, plain it blocks the thread; it works both ways."""

    async def main() -> None:
        assert subprocess.run(["echo", "text"], capture_output=True).stdout == b"text\n"
        await asyncio.sleep(0)
        assert subprocess.check_output(["echo", "text"]) == b"text\n"

    asyncio_gevent.run(main())


def test_a_subprocess_protocol_that_blocks_is_called_in_order() -> None:
    """asyncio queues its callbacks one by one: none may overtake one that is suspended."""
    seen: list[str] = []

    class Protocol(asyncio.SubprocessProtocol):
        def pipe_data_received(self, fd: int, data: bytes) -> None:
            text = data.decode().strip()
            seen.append(f"enter {text}")
            gevent.sleep(0.001)
            seen.append(f"leave {text}")

        def pipe_connection_lost(self, fd: int, error: Any) -> None:
            seen.append("end of file")

        def process_exited(self) -> None:
            seen.append("exited")

        def connection_lost(self, error: Any) -> None:
            seen.append("lost")

    async def main() -> None:
        transport, _ = await asyncio.get_running_loop().subprocess_exec(
            Protocol, "sh", "-c", "echo 1; read line; echo 2", stderr=None
        )
        stdin: Any = transport.get_pipe_transport(0)
        await until(lambda: seen)
        stdin.write(b"\n")
        await until(lambda: "lost" in seen)
        transport.close()
        await asyncio.sleep(0.002)

    asyncio_gevent.run(main())
    received = [each for each in seen if each[-1].isdigit()]
    assert received == ["enter 1", "leave 1", "enter 2", "leave 2"]
    assert seen[-1] == "lost"


# --- descriptors that are closed without a word ---------------------------------------------------


@pytest.mark.parametrize("closes", ["a greenlet", "a resumed step"])
def test_a_descriptor_that_is_closed_right_after_it_was_registered(closes: str) -> None:
    """Before the hub has told the kernel of it. libev would abort the process."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ends = socket.socketpair()

        def close() -> None:
            for end in ends:
                end.close()

        if closes == "a greenlet":
            gevent.spawn(close)
        else:
            gevent.sleep(0)
        loop.add_reader(ends[0], int)
        if closes == "a resumed step":
            close()
        await asyncio.sleep(UNIT)
        loop.remove_reader(ends[0])

    asyncio_gevent.run(main())


@pytest.mark.parametrize("when", ["before the loop runs", "after its callback was suspended"])
def test_a_descriptor_that_is_closed_right_after_it_is_watched_again(when: str) -> None:
    loop = asyncio_gevent.new_event_loop()
    reader, writer = os.pipe()
    called: list[None] = []

    def callback() -> None:
        gevent.sleep(UNIT / 4)  # meanwhile the watcher fires again, and is stopped
        if not called:
            gevent.spawn(os_close, reader)
        called.append(None)

    async def main() -> None:
        if when != "before the loop runs":
            os.write(writer, b"data")
            await until(lambda: called)
        await asyncio.sleep(UNIT)

    loop.add_reader(reader, callback)
    if when == "before the loop runs":
        gevent.spawn(os_close, reader)
    loop.run_until_complete(main())
    loop.remove_reader(reader)
    loop.close()
    os_close(writer)


def test_a_file_object_that_is_closed_right_after_it_was_registered() -> None:
    """Patching does not know of its close()."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        reader, writer = os.pipe()
        file = open(reader, "rb", buffering=0)
        loop.add_reader(file, int)
        file.close()
        os_close(writer)
        await asyncio.sleep(UNIT)
        loop.remove_reader(reader)

    asyncio_gevent.run(main())


def test_a_registration_that_fails_is_none() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        ends = socket.socketpair()
        number = ends[0].fileno()
        for end in ends:
            os_close(end.detach())
        try:
            loop._add_reader(number, int)
        except (OSError, ValueError):
            assert not loop._selector.get_map()
        else:
            # Older versions of gevent do not look at it. The event loop does, before the hub polls.
            await asyncio.sleep(UNIT / 2)
            assert loop._remove_reader(number)

    asyncio_gevent.run(main())


def test_datagrams_of_unix_sockets_are_not_cut() -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        here.setblocking(False)
        received = loop.create_future()

        class Protocol(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, address: Any) -> None:
                received.set_result(len(data))

        transport, _ = await loop.create_datagram_endpoint(Protocol, sock=here)
        there.send(bytes(150_000))
        length: int = await received
        transport.close()
        there.close()
        return length

    assert asyncio_gevent.run(main()) == 150_000


def test_sendto_after_close_is_ignored() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=("127.0.0.1", 9)
        )
        transport.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        transport.sendto(b"too late")

    asyncio_gevent.run(main())


def test_the_status_of_a_child_that_the_hub_reaps() -> None:
    run_script("reaped_child").check("7")


def test_a_status_that_is_older_than_the_child_is_of_another_one() -> None:
    """The system gives numbers of processes again."""
    kept = _Reaped()
    nobody: Any = None
    kept._note(7, 256)
    assert kept.claim(nobody, 7, begun=1) is None
    kept.forget(7)
    kept._note(7, 512)
    assert kept.claim(nobody, 7, begun=1) == 512
