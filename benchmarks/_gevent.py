"""What gevent does on this package's loop, on its own loops, and what eventlet does on asyncio."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from _clock import Clock
from _contest import Contestant, Group, Measure, Workload, register

OURS = "asyncio_gevent.gevent_loop.GeventLoop"
CONNECTIONS = 4
SWITCHING = 10
SPAWNED = 100
MESSAGE = b"x" * 1024


class Gevent:
    """gevent, on the loop that the environment names."""

    def __init__(self) -> None:
        import gevent
        from gevent import socket
        from gevent.event import Event
        from gevent.server import StreamServer

        self.spawn = gevent.spawn
        self.sleep = gevent.sleep
        self.socket = socket
        self._event = Event
        self._server = StreamServer

    def join(self, greenlet: Any) -> None:
        greenlet.join()

    def ping_pong(self) -> tuple[Callable[[int], None], Callable[[int], None]]:
        """Return what two greenlets have to call that set each other's event."""
        one, other = self._event(), self._event()

        def ping(times: int) -> None:
            for _ in range(times):
                one.wait()
                one.clear()
                other.set()

        def pong(times: int) -> None:
            for _ in range(times):
                one.set()
                other.wait()
                other.clear()

        return ping, pong

    def serve(self, serve: Callable[[Any], None]) -> tuple[str, int]:
        """Start a server, and return its address."""
        server = self._server(("127.0.0.1", 0), lambda connection, _: serve(connection))
        server.start()
        return server.address


class Eventlet:
    """eventlet with its hub on asyncio, which the environment names."""

    def __init__(self) -> None:
        import eventlet
        from eventlet.event import Event
        from eventlet.green import socket

        self.spawn = eventlet.spawn
        self.sleep = eventlet.sleep
        self.socket = socket
        self._eventlet = eventlet
        self._event = Event

    def join(self, greenlet: Any) -> None:
        greenlet.wait()

    def ping_pong(self) -> tuple[Callable[[int], None], Callable[[int], None]]:
        """Return what two greenlets have to call that send each other an event.

        An event of eventlet can be sent once.
        """
        one, other = self._event(), self._event()

        def ping(times: int) -> None:
            nonlocal one
            for _ in range(times):
                one.wait()
                one = self._event()
                other.send()

        def pong(times: int) -> None:
            nonlocal other
            for _ in range(times):
                one.send()
                other.wait()
                other = self._event()

        return ping, pong

    def serve(self, serve: Callable[[Any], None]) -> tuple[str, int]:
        """Start a server, and return its address."""
        listener = self._eventlet.listen(("127.0.0.1", 0))

        def accept() -> None:
            while True:
                self.spawn(serve, listener.accept()[0])

        self.spawn(accept)
        return listener.getsockname()


# --- the workloads --------------------------------------------------------------------------------

WORKLOADS: dict[str, Workload] = {}
workload = register(WORKLOADS)


def nothing() -> None:
    """Return at once. A Python function, as what greenlets run usually is."""


def _in_greenlets(who: Any, greenlets: int, function: Callable[[], None]) -> None:
    # Joined one by one, as eventlet has it. gevent.joinall() is a third slower, on every loop.
    for greenlet in [who.spawn(function) for _ in range(greenlets)]:
        who.join(greenlet)


@workload(size=SWITCHING)
def switch(who: Any, count: int, clock: Clock) -> None:
    """`sleep(0)`, 10 greenlets take turns"""
    sleep = who.sleep

    def give_way() -> None:
        for _ in range(count // SWITCHING):
            sleep(0)

    with clock:
        _in_greenlets(who, SWITCHING, give_way)


@workload(size=SPAWNED)
def spawn_and_join(who: Any, count: int, clock: Clock) -> None:
    """spawn 100 greenlets, and join each"""
    with clock:
        for _ in range(count // SPAWNED):
            _in_greenlets(who, SPAWNED, nothing)


@workload(size=SPAWNED)
def timers(who: Any, count: int, clock: Clock) -> None:
    """100 greenlets sleep for 10 µs"""
    sleep = who.sleep

    def nap() -> None:
        for _ in range(count // SPAWNED):
            sleep(0.00001)

    with clock:
        _in_greenlets(who, SPAWNED, nap)


@workload()
def events(who: Any, count: int, clock: Clock) -> None:
    """two greenlets set each other's event"""
    ping, pong = who.ping_pong()
    with clock:
        players = [who.spawn(ping, count), who.spawn(pong, count)]
        for player in players:
            who.join(player)


@workload(size=CONNECTIONS)
@contextlib.contextmanager
def echo(who: Any) -> Iterator[Measure]:
    """TCP echo of 1 KiB, 4 connections"""

    def serve(connection: Any) -> None:
        while data := connection.recv(65536):
            connection.sendall(data)

    address = who.serve(serve)
    clients = [who.socket.create_connection(address) for _ in range(CONNECTIONS)]

    def talk(client: Any, times: int) -> None:
        for _ in range(times):
            client.sendall(MESSAGE)
            left = len(MESSAGE)
            while left:
                left -= len(client.recv(65536))

    def measure(count: int, clock: Clock) -> None:
        with clock:
            talkers = [who.spawn(talk, client, count // CONNECTIONS) for client in clients]
            for talker in talkers:
                who.join(talker)

    yield measure
    for client in clients:
        client.close()


@contextlib.contextmanager
def _opened(contestant: str, name: str) -> Iterator[Measure]:
    who = Eventlet() if contestant == "eventlet" else Gevent()
    if contestant.startswith("ours"):
        import gevent

        if f"{gevent.config.loop.__module__}.{gevent.config.loop.__name__}" != OURS:
            raise RuntimeError("gevent runs on another loop")
    function = WORKLOADS[name].function
    if name == "echo":
        with function(who) as measure:
            yield measure
    else:
        yield lambda count, clock: function(who, count, clock)


GROUP = Group(
    title="gevent on asyncio",
    reading="How many times faster than gevent on libev; 0.50 takes twice as long.",
    base="libev",
    contestants={
        "libev": Contestant(environment={"GEVENT_LOOP": "libev-cext"}),
        "libuv": Contestant(needs="cffi", environment={"GEVENT_LOOP": "libuv-cffi"}),
        "ours, standard host": Contestant(
            environment={"GEVENT_LOOP": OURS, "ASYNCIO_GEVENT_HOST": "asyncio"}
        ),
        "ours, uvloop host": Contestant(
            needs="uvloop", environment={"GEVENT_LOOP": OURS, "ASYNCIO_GEVENT_HOST": "uvloop"}
        ),
        "eventlet": Contestant(python="others", environment={"EVENTLET_HUB": "asyncio"}),
    },
    workloads=WORKLOADS,
    opened=_opened,
)
