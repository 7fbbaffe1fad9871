"""What gevent does on this package's loop, against gevent on libev and eventlet's asyncio hub.

    python benchmarks/gevent_loops.py [--rounds 7] [--eventlet PYTHON]

Each round runs every contestant once, in a process of its own, one after the other, so that what
else the machine does hits all of them. Printed are the medians over the rounds of the ratio to
gevent on libev: 1 is as fast, 0.5 takes twice as long. eventlet is run by the interpreter that
``--eventlet`` names, which has it installed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

OURS = "asyncio_gevent.gevent_loop.GeventLoop"
ROWS = {
    "sleep(0)": "switch between 10 greenlets",
    "spawn, join": "spawn 100 greenlets, and join each",
    "timers": "100 greenlets that sleep for 10 us",
    "events": "two greenlets that set each other's event",
    "echo": "1 KiB over 4 TCP connections, there and back",
}


# --- the contestants -----------------------------------------------------------------------------


def measure_gevent():
    import gevent
    from gevent import socket
    from gevent.event import Event
    from gevent.server import StreamServer

    def switches(count=20000):
        def loop():
            for _ in range(count // 10):
                gevent.sleep(0)

        gevent.joinall([gevent.spawn(loop) for _ in range(10)])

    def spawns(count=5000):
        # One by one, as eventlet has it. gevent.joinall() is a third slower, on every loop.
        for _ in range(count // 100):
            for greenlet in [gevent.spawn(nothing) for _ in range(100)]:
                greenlet.join()

    def timers(count=5000):
        def loop():
            for _ in range(count // 100):
                gevent.sleep(0.00001)

        gevent.joinall([gevent.spawn(loop) for _ in range(100)])

    def events(count=8000):
        one, other = Event(), Event()

        def ping():
            for _ in range(count):
                one.wait()
                one.clear()
                other.set()

        def pong():
            for _ in range(count):
                one.set()
                other.wait()
                other.clear()

        gevent.joinall([gevent.spawn(ping), gevent.spawn(pong)])

    def echo(count=2000):
        def serve(connection, _):
            while data := connection.recv(65536):
                connection.sendall(data)

        server = StreamServer(("127.0.0.1", 0), serve)
        server.start()

        def client():
            connection = socket.create_connection(("127.0.0.1", server.server_port))
            data = b"x" * 1024
            for _ in range(count // 4):
                connection.sendall(data)
                left = 1024
                while left:
                    left -= len(connection.recv(65536))
            connection.close()

        gevent.joinall([gevent.spawn(client) for _ in range(4)])
        server.stop()

    return run_rows(switches, spawns, timers, events, echo)


def measure_eventlet():
    from eventlet import hubs

    hubs.use_hub("eventlet.hubs.asyncio")
    import eventlet
    from eventlet.event import Event
    from eventlet.green import socket

    def join(greens):
        for green in greens:
            green.wait()

    def switches(count=20000):
        def loop():
            for _ in range(count // 10):
                eventlet.sleep(0)

        join([eventlet.spawn(loop) for _ in range(10)])

    def spawns(count=5000):
        for _ in range(count // 100):
            join([eventlet.spawn(nothing) for _ in range(100)])

    def timers(count=5000):
        def loop():
            for _ in range(count // 100):
                eventlet.sleep(0.00001)

        join([eventlet.spawn(loop) for _ in range(100)])

    def events(count=8000):
        state = {"one": Event(), "other": Event()}

        def ping():
            for _ in range(count):
                state["one"].wait()
                state["one"] = Event()
                state["other"].send()

        def pong():
            for _ in range(count):
                state["one"].send()
                state["other"].wait()
                state["other"] = Event()

        join([eventlet.spawn(ping), eventlet.spawn(pong)])

    def echo(count=2000):
        listener = eventlet.listen(("127.0.0.1", 0))

        def serve(connection):
            while data := connection.recv(65536):
                connection.sendall(data)

        def accept():
            while True:
                eventlet.spawn(serve, listener.accept()[0])

        acceptor = eventlet.spawn(accept)

        def client():
            connection = socket.create_connection(listener.getsockname())
            data = b"x" * 1024
            for _ in range(count // 4):
                connection.sendall(data)
                left = 1024
                while left:
                    left -= len(connection.recv(65536))
            connection.close()

        join([eventlet.spawn(client) for _ in range(4)])
        acceptor.kill()

    return run_rows(switches, spawns, timers, events, echo)


def nothing():
    pass


def run_rows(*functions):
    seconds = []
    for function in functions:
        function()  # what is made once
        best = min(timed(function) for _ in range(9))
        seconds.append(best)
    return dict(zip(ROWS, seconds, strict=True))


def timed(function):
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


# --- the runs ------------------------------------------------------------------------------------


def run(python, kind, **variables):
    environment = {key: value for key, value in os.environ.items() if key != "GEVENT_LOOP"}
    out = subprocess.run(
        [python, os.path.abspath(__file__), "--measure", kind],
        env={**environment, "PYTHONWARNINGS": "ignore", **variables},
        stdout=subprocess.PIPE, timeout=120, check=True,
    ).stdout  # fmt: skip
    return json.loads(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--eventlet", metavar="PYTHON", help="an interpreter that has eventlet")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure = measure_eventlet if options.measure == "eventlet" else measure_gevent
        print(json.dumps(measure()))
        return
    contestants = {
        "libev": lambda: run(sys.executable, "gevent", GEVENT_LOOP="libev-cext"),
        "standard host": lambda: run(
            sys.executable, "gevent", GEVENT_LOOP=OURS, ASYNCIO_GEVENT_HOST="asyncio"
        ),
    }
    try:
        import uvloop  # noqa: F401
    except ImportError:
        print("uvloop is not installed: without it")
    else:
        contestants["uvloop host"] = lambda: run(
            sys.executable, "gevent", GEVENT_LOOP=OURS, ASYNCIO_GEVENT_HOST="uvloop"
        )
    if options.eventlet:
        contestants["eventlet"] = lambda: run(options.eventlet, "eventlet")
    ratios = {name: {row: [] for row in ROWS} for name in contestants if name != "libev"}
    for _ in range(options.rounds):
        results = {name: measure() for name, measure in contestants.items()}
        for name, rows in ratios.items():
            for row, values in rows.items():
                values.append(results["libev"][row] / results[name][row])
    print(f"ratio to libev, medians of {options.rounds} rounds; higher is faster")
    print(f"{'':14}" + "".join(f"{name:>15}" for name in ratios))
    for row, what in ROWS.items():
        line = "".join(f"{statistics.median(rows[row]):15.2f}" for rows in ratios.values())
        print(f"{row:14}{line}   {what}")


if __name__ == "__main__":
    main()
