"""A day's work in small: connections are opened and closed, timers come and go.

    export GEVENT_LOOP=asyncio_gevent.gevent_loop.GeventLoop
    python tests/scripts/gevent_loop_endurance.py private 100000 1000000

Arguments: "private" or "attached", how many connections, how many timers. What there is after a
tenth of it must be all there is at its end. Prints what has grown, and exits with 1 if that is too
much.
"""

import gc
import os
import sys
import time

import gevent
from gevent import socket
from gevent.server import StreamServer
from memory import anonymous_memory

from asyncio_gevent import spawn

place, connections, timers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
CLIENTS = 20
SLEEPERS = 100


def connect(count):
    """Open and close connections, over which something is said."""

    def serve(connection, _):
        connection.sendall(connection.recv(100).upper())

    def client():
        for _ in range(count // CLIENTS):
            with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
                connection.sendall(b"hello")
                connection.settimeout(10)  # a timer, which is stopped each time
                assert connection.recv(100) == b"HELLO"
                assert connection.recv(100) == b""

    server = StreamServer(("127.0.0.1", 0), serve)
    server.start()
    gevent.joinall([gevent.spawn(client) for _ in range(CLIENTS)], raise_error=True)
    server.stop()


def sleep(count):
    """Start timers: a third fires, a third is stopped, a third starts a greenlet."""

    def sleeper():
        for _ in range(count // SLEEPERS // 3):
            with gevent.Timeout(100):
                gevent.sleep(0.0001)
            gevent.spawn_later(0.0001, int)

    gevent.joinall([gevent.spawn(sleeper) for _ in range(SLEEPERS)], raise_error=True)
    gevent.sleep(0.01)  # the last of the started ones


def inventory():
    """Return how much there is of what could grow."""
    gc.collect()
    loop = gevent.get_hub().loop
    loop._purge_timers()  # stopped ones, of which there may be as many as there were active ones
    sizes = {
        "objects": len(gc.get_objects()),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "KiB": anonymous_memory() // 1024,
        "references": loop._references,
    }
    for kind in type(loop).__mro__:
        for name in getattr(kind, "__slots__", ()):
            value = getattr(loop, name)
            if hasattr(value, "__len__"):
                sizes[name] = len(value)
    return sizes


def work():
    """Return what has grown, and by how much."""
    for share in (10, 1):
        connect(connections // share)
        sleep(timers // share)
        if share == 10:
            before = inventory()
    after = inventory()
    return {name: after[name] - before[name] for name in after if after[name] > before[name]}


async def attached():
    return await spawn(work)


if os.environ.get("ASYNCIO_GEVENT_HOST") == "uvloop":
    from uvloop import run
else:
    from asyncio import run

started = time.perf_counter()
grown = work() if place == "private" else run(attached())
seconds = time.perf_counter() - started
told = f"{connections} connections, {timers} timers: {seconds:.0f} s, grown: {grown}"
print(told, file=sys.stderr)
allowed = {"objects": 100, "KiB": 1024}
too_much = {name: more for name, more in grown.items() if more > allowed.get(name, 0)}
print(f"grown: {too_much}" if too_much else "ok")
sys.exit(bool(too_much))
