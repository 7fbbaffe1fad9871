"""Event loops: callbacks, timers, threads, sockets.

A workload is a coroutine function that does `count` operations, with the clock around them, or
an async context manager that gives one: what that needs is then made once and kept between the
rounds. All run on one event loop for the life of the process. The loop stands still in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import pathlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from _clock import Clock
from _contest import Contestant, Group, Measure, Workload, register

CERTIFICATE = pathlib.Path(__file__).parent.parent / "tests" / "certificate.pem"
LOCALHOST = "127.0.0.1"
CONNECTIONS = 10  # that are busy at the same time
IDLE = 1_000  # connections that are not

Operate = Callable[[int, Clock], Awaitable[None]]

WORKLOADS: dict[str, Workload] = {}
workload = register(WORKLOADS)

# --- scheduling -----------------------------------------------------------------------------------


@workload()
async def call_soon_chain(count: int, clock: Clock) -> None:
    """call_soon, each callback schedules the next one"""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def step(left: int) -> None:
        if left:
            loop.call_soon(step, left - 1)
        else:
            done.set_result(None)

    with clock:
        loop.call_soon(step, count)
        await done


@workload(size=1_000)
async def call_soon_batch(count: int, clock: Clock) -> None:
    """call_soon, 1,000 at once"""
    loop = asyncio.get_running_loop()

    def nothing() -> None:
        pass

    with clock:
        for _ in range(count // 1_000):
            done = loop.create_future()
            for _ in range(1_000):
                loop.call_soon(nothing)
            loop.call_soon(done.set_result, None)
            await done


async def switch_tasks(count: int, clock: Clock, tasks: int) -> None:
    """Let so many tasks give way to each other, `count` times in all."""

    async def spin() -> None:
        for _ in range(1 + count // tasks):
            await asyncio.sleep(0)

    spinning = [asyncio.ensure_future(spin()) for _ in range(tasks)]
    await asyncio.sleep(0)  # now all have begun
    with clock:
        await asyncio.wait(spinning)


@workload(size=100)
async def task_switch(count: int, clock: Clock) -> None:
    """100 tasks give way to each other by sleep(0)"""
    await switch_tasks(count, clock, 100)


@workload()
async def future_ping_pong(count: int, clock: Clock) -> None:
    """two tasks wake each other by futures"""
    loop = asyncio.get_running_loop()
    balls = [loop.create_future(), loop.create_future()]

    async def play(mine: int) -> None:
        for _ in range(count):
            await balls[mine]
            balls[mine] = loop.create_future()
            balls[1 - mine].set_result(None)

    with clock:
        players = [asyncio.ensure_future(play(0)), asyncio.ensure_future(play(1))]
        balls[0].set_result(None)
        await asyncio.wait(players)


async def fire_timers(count: int, clock: Clock, size: int) -> None:
    """Let timers fire, so many at once, `count` times in all."""
    loop = asyncio.get_running_loop()
    left = 0

    def fire() -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set_result(None)

    with clock:
        for _ in range(count // size):
            done = loop.create_future()
            left = size
            for _ in range(size):
                loop.call_later(0.0, fire)
            await done


async def cancel_timers(count: int, clock: Clock) -> None:
    """Start and cancel timers, and let the loop poll now and then."""
    loop = asyncio.get_running_loop()
    with clock:
        for number in range(count):
            loop.call_later(60.0, int).cancel()
            if not number % 100:
                await asyncio.sleep(0)


@workload(size=1_000)
async def timers_fired(count: int, clock: Clock) -> None:
    """call_later, 1,000 timers that are due"""
    await fire_timers(count, clock, 1_000)


@workload(size=100)
async def timers_cancelled(count: int, clock: Clock) -> None:
    """call_later and cancel"""
    await cancel_timers(count, clock)


@workload(size=1_000)
async def sleepers(count: int, clock: Clock) -> None:
    """1,000 tasks sleep for a millisecond at the same time"""
    with clock:
        for _ in range(count // 1_000):
            await asyncio.gather(*[asyncio.sleep(0.001) for _ in range(1_000)])


@workload(size=10_000)
async def gather(count: int, clock: Clock) -> None:
    """gather of 10,000 coroutines"""

    async def nothing() -> None:
        pass

    with clock:
        for _ in range(count // 10_000):
            await asyncio.gather(*[nothing() for _ in range(10_000)])


# --- threads --------------------------------------------------------------------------------------


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Let this thread, and those that it starts, run on one core, always the same.

    Two threads that wake each other never run at the same time, for there is the GIL. On several
    cores they take turns at the pace at which the kernel wakes another core, which depends on
    how deeply that one sleeps and on where the scheduler puts the two: from process to process
    the same code takes up to four times as long. On one core it is a plain switch, and what the
    loops themselves cost shows.
    """
    if not hasattr(os, "sched_setaffinity"):  # macOS: as it comes
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _native(name: str) -> Any:
    """Return a function of _thread. After patching, `threading` makes greenlets."""
    try:
        from gevent.monkey import get_original
    except ImportError:
        import _thread

        return getattr(_thread, name)
    return get_original("_thread", name)


@contextlib.asynccontextmanager
async def _threadsafe(burst: int) -> AsyncIterator[Operate]:
    """Another thread calls so often, waits until the loop has done all of it, and so on."""
    start_thread = _native("start_new_thread")
    allocate_lock = _native("allocate_lock")
    loop = asyncio.get_running_loop()

    def nothing() -> None:
        pass

    async def operate(count: int, clock: Clock) -> None:
        done = loop.create_future()

        def call() -> None:
            lock = allocate_lock()
            lock.acquire()
            for _ in range(count // burst):
                for _ in range(burst - 1):
                    loop.call_soon_threadsafe(nothing)
                loop.call_soon_threadsafe(lock.release)
                lock.acquire()
            loop.call_soon_threadsafe(done.set_result, None)

        with clock:
            start_thread(call, ())
            await done

    with one_core():
        yield operate


@workload(size=1_000)
def threadsafe_burst() -> Any:
    """call_soon_threadsafe, 1,000 in a row"""
    return _threadsafe(1_000)


@workload()
def threadsafe_round_trip() -> Any:
    """call_soon_threadsafe, the thread waits for each"""
    return _threadsafe(1)


@workload()
@contextlib.asynccontextmanager
async def executor_round_trip() -> AsyncIterator[Operate]:
    """run_in_executor, one at a time"""
    loop = asyncio.get_running_loop()

    async def operate(count: int, clock: Clock) -> None:
        with clock:
            for _ in range(count):
                await loop.run_in_executor(None, int)

    with one_core():
        await loop.run_in_executor(None, int)  # starts the thread
        yield operate


# --- sockets --------------------------------------------------------------------------------------


class Echo(asyncio.Protocol):
    """Sends back what comes."""

    connections = 0  # made so far

    def connection_made(self, transport: Any) -> None:
        Echo.connections += 1
        self.write = transport.write

    def data_received(self, data: bytes) -> None:
        self.write(data)


class _Client(asyncio.Protocol):
    def __init__(self, size: int) -> None:
        self.message = b"x" * size
        self.size = size

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def begin(self, count: int) -> asyncio.Future[None]:
        self.left = count
        self.pending = self.size
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(self.message)
        return self.done

    def data_received(self, data: bytes) -> None:
        self.pending -= len(data)
        if self.pending == 0:
            self.left -= 1
            if self.left > 0:
                self.pending = self.size
                self.transport.write(self.message)
            else:
                self.done.set_result(None)


@contextlib.asynccontextmanager
async def echo_by_protocols(
    size: int, idle: int = 0, tls: bool = False
) -> AsyncIterator[tuple[Operate, asyncio.AbstractServer]]:
    """Give what exchanges messages, and the server."""
    loop = asyncio.get_running_loop()
    of_server = of_client = None
    if tls:
        of_server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        of_server.load_cert_chain(CERTIFICATE)
        of_client = ssl.create_default_context(cafile=str(CERTIFICATE))
        of_client.check_hostname = False
        of_client.verify_mode = ssl.CERT_NONE
    server = await loop.create_server(Echo, LOCALHOST, 0, ssl=of_server, backlog=4_096)
    port = server.sockets[0].getsockname()[1]
    clients = []
    for _ in range(CONNECTIONS + idle):
        _, client = await loop.create_connection(
            lambda: _Client(size), LOCALHOST, port, ssl=of_client
        )
        clients.append(client)

    async def operate(count: int, clock: Clock) -> None:
        with clock:
            await asyncio.gather(
                *[client.begin(count // CONNECTIONS) for client in clients[:CONNECTIONS]]
            )

    yield operate, server
    for client in clients:
        client.transport.abort()
    server.close()
    await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def _protocols(size: int, idle: int = 0, tls: bool = False) -> AsyncIterator[Operate]:
    async with echo_by_protocols(size, idle, tls) as (operate, _):
        yield operate


@workload(size=CONNECTIONS)
def protocol_1k() -> Any:
    """TCP echo of 1 KiB by protocols, 10 connections"""
    return _protocols(1024)


@workload(size=CONNECTIONS)
def protocol_10k() -> Any:
    """TCP echo of 10 KiB by protocols, 10 connections"""
    return _protocols(10 * 1024)


@workload(size=CONNECTIONS)
def protocol_100k() -> Any:
    """TCP echo of 100 KiB by protocols, 10 connections"""
    return _protocols(100 * 1024)


@workload(size=CONNECTIONS)
def protocol_idle() -> Any:
    """TCP echo of 1 KiB by protocols, 10 connections beside 1,000 idle ones"""
    return _protocols(1024, idle=IDLE)


@contextlib.asynccontextmanager
async def _streams(size: int) -> AsyncIterator[Operate]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    server = await asyncio.start_server(serve, LOCALHOST, 0)
    address = server.sockets[0].getsockname()[:2]
    pairs = [await asyncio.open_connection(*address) for _ in range(CONNECTIONS)]
    data = b"x" * size

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, times: int) -> None:
        for _ in range(times):
            writer.write(data)
            await reader.readexactly(size)

    async def operate(count: int, clock: Clock) -> None:
        with clock:
            await asyncio.gather(*[talk(*pair, count // CONNECTIONS) for pair in pairs])

    yield operate
    for _, writer in pairs:
        writer.close()
        await writer.wait_closed()
    server.close()
    await asyncio.sleep(0.01)


@workload(size=CONNECTIONS)
def streams_1k() -> Any:
    """TCP echo of 1 KiB by streams, 10 connections"""
    return _streams(1024)


@workload(size=CONNECTIONS)
def streams_10k() -> Any:
    """TCP echo of 10 KiB by streams, 10 connections"""
    return _streams(10 * 1024)


@workload(size=CONNECTIONS)
def streams_100k() -> Any:
    """TCP echo of 100 KiB by streams, 10 connections"""
    return _streams(100 * 1024)


@contextlib.asynccontextmanager
async def _socks(size: int) -> AsyncIterator[Operate]:
    loop = asyncio.get_running_loop()
    listener = socket.create_server((LOCALHOST, 0), backlog=100)
    listener.setblocking(False)

    async def serve(connection: socket.socket) -> None:
        with connection:
            while data := await loop.sock_recv(connection, 65536):
                await loop.sock_sendall(connection, data)

    servers, clients = [], []
    for _ in range(CONNECTIONS):
        client = socket.socket()
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(client, listener.getsockname())
        connection, _ = await loop.sock_accept(listener)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        servers.append(asyncio.ensure_future(serve(connection)))
        clients.append(client)
    data = b"x" * size

    async def talk(client: socket.socket, times: int) -> None:
        for _ in range(times):
            await loop.sock_sendall(client, data)
            left = size
            while left:
                left -= len(await loop.sock_recv(client, 65536))

    async def operate(count: int, clock: Clock) -> None:
        with clock:
            await asyncio.gather(*[talk(client, count // CONNECTIONS) for client in clients])

    yield operate
    for client in clients:
        client.close()
    await asyncio.gather(*servers)
    listener.close()


@workload(size=CONNECTIONS)
def sock_1k() -> Any:
    """TCP echo of 1 KiB by sock_recv and sock_sendall, 10 connections"""
    return _socks(1024)


@workload(size=CONNECTIONS)
def sock_10k() -> Any:
    """TCP echo of 10 KiB by sock_recv and sock_sendall, 10 connections"""
    return _socks(10 * 1024)


@workload(size=CONNECTIONS)
def sock_100k() -> Any:
    """TCP echo of 100 KiB by sock_recv and sock_sendall, 10 connections"""
    return _socks(100 * 1024)


@workload(size=CONNECTIONS)
def tls_1k() -> Any:
    """TLS echo of 1 KiB by protocols, 10 connections"""
    return _protocols(1024, tls=True)


class _UdpEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.transport.sendto(data, address)


class _UdpClient(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def begin(self, count: int) -> asyncio.Future[None]:
        self.left = count
        self.done = asyncio.get_running_loop().create_future()
        self.transport.sendto(b"x" * 512)
        return self.done

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.left -= 1
        if self.left > 0:
            self.transport.sendto(data)
        else:
            self.done.set_result(None)


@workload(size=CONNECTIONS)
@contextlib.asynccontextmanager
async def udp() -> AsyncIterator[Operate]:
    """UDP echo of 512 bytes, 10 sockets"""
    loop = asyncio.get_running_loop()
    server, _ = await loop.create_datagram_endpoint(_UdpEcho, local_addr=(LOCALHOST, 0))
    address = server.get_extra_info("sockname")
    clients = []
    for _ in range(CONNECTIONS):
        _, client = await loop.create_datagram_endpoint(_UdpClient, remote_addr=address)
        clients.append(client)

    async def operate(count: int, clock: Clock) -> None:
        with clock:
            await asyncio.gather(*[client.begin(count // CONNECTIONS) for client in clients])

    yield operate
    for client in clients:
        client.transport.close()
    server.close()
    await asyncio.sleep(0.01)


@workload(size=CONNECTIONS)
@contextlib.asynccontextmanager
async def http() -> AsyncIterator[Operate]:
    """HTTP GET through aiohttp, client and server, 10 at a time"""
    from aiohttp import ClientSession, TCPConnector, web

    async def hello(request: web.Request) -> web.Response:
        return web.Response(text="hello")

    application = web.Application()
    application.router.add_get("/", hello)
    # Connections last until the next round, however many contestants come first.
    runner = web.AppRunner(application, access_log=None, keepalive_timeout=3600.0)
    await runner.setup()
    site = web.TCPSite(runner, LOCALHOST, 0)
    await site.start()
    url = f"http://{LOCALHOST}:{runner.addresses[0][1]}/"
    connector = TCPConnector(limit=CONNECTIONS, keepalive_timeout=3600.0)
    async with ClientSession(connector=connector) as session:

        async def get(times: int) -> None:
            for _ in range(times):
                async with session.get(url) as response:
                    await response.read()

        async def operate(count: int, clock: Clock) -> None:
            with clock:
                await asyncio.gather(*[get(count // CONNECTIONS) for _ in range(CONNECTIONS)])

        await asyncio.gather(*[get(1) for _ in range(CONNECTIONS)])
        yield operate
    await runner.cleanup()


# --- contestants ----------------------------------------------------------------------------------


def _new_standard_64k() -> asyncio.AbstractEventLoop:
    # The standard loop's transports read 256 KiB at a time, uvloop's and ours 64 KiB: a buffer
    # that malloc need not map and unmap for each read. This one shows what that alone is worth.
    from asyncio import selector_events

    selector_events._SelectorTransport.max_size = 65536  # type: ignore[attr-defined]
    return asyncio.new_event_loop()


def _new_uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


def _new_ours() -> asyncio.AbstractEventLoop:
    import asyncio_gevent

    return asyncio_gevent.new_event_loop()


def _new_peer() -> asyncio.AbstractEventLoop:
    import asyncio_gevent

    asyncio.set_event_loop_policy(asyncio_gevent.EventLoopPolicy())
    return asyncio.new_event_loop()


NEW_LOOP: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "standard": asyncio.new_event_loop,
    "standard 64 KiB": _new_standard_64k,
    "uvloop": _new_uvloop,
    "ours": _new_ours,
    "ours patched": _new_ours,
    "0.2.5": _new_peer,
    "0.2.5 patched": _new_peer,
}


@contextlib.contextmanager
def opened_on_loop(contestant: str, function: Callable[..., Any]) -> Iterator[Measure]:
    """Give what lets a workload of this module's kind run on a new loop of that contestant."""
    loop = NEW_LOOP[contestant]()
    run = loop.run_until_complete
    if inspect.iscoroutinefunction(function):
        yield lambda count, clock: run(function(count, clock))
    else:
        manager = function()
        operate = run(manager.__aenter__())

        async def wait_and_operate(count: int, clock: Clock) -> None:
            # A loop that begins to run may have to tell the kernel anew, at its first poll, which
            # descriptors it waits for. That is not what is measured: elsewhere loops run for ever.
            await asyncio.sleep(0.001)
            await operate(count, clock)

        try:
            yield lambda count, clock: run(wait_and_operate(count, clock))
        finally:
            run(manager.__aexit__(None, None, None))
    run(loop.shutdown_default_executor())
    loop.close()


GROUP = Group(
    title="Event loops",
    reading="How many times faster than the standard library's event loop; 2.00 is twice as fast.",
    base="standard",
    contestants={
        "standard": Contestant(),
        "standard 64 KiB": Contestant(),
        "uvloop": Contestant(needs="uvloop"),
        "ours": Contestant(),
        "ours patched": Contestant(),
        "0.2.5": Contestant(python="peer"),
        "0.2.5 patched": Contestant(python="peer"),
    },
    workloads=WORKLOADS,
    opened=lambda contestant, name: opened_on_loop(contestant, WORKLOADS[name].function),
)
