"""First numbers: the event loop against the standard one, uvloop and asyncio-gevent 0.2.5.

    python benchmarks/first_numbers.py [--rounds 7] [--peer PATH_OF_A_PYTHON] [--only NAME]

Every contestant runs in a process of its own. A round runs each of them once, in an order that
rotates from round to round, so that what else the machine does falls on all alike. A figure is
the median over the rounds of the ratio, within a round, of the standard loop's time to the
contestant's: 2.00 means twice as fast as the standard loop. `--peer` names the Python of an
environment in which asyncio-gevent 0.2.5 is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from typing import Any

CONTESTANTS = ["standard", "standard-64k", "ours", "ours-patched", "uvloop", "peer", "peer-patched"]

# --- workloads: each returns the seconds it took ------------------------------------------------


async def call_soon_chain(count: int = 100_000) -> float:
    """Callbacks of which each schedules the next one."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def step(left: int) -> None:
        if left:
            loop.call_soon(step, left - 1)
        else:
            done.set_result(None)

    started = time.perf_counter()
    loop.call_soon(step, count)
    await done
    return time.perf_counter() - started


async def call_soon_batch(count: int = 100_000) -> float:
    """Callbacks that are all scheduled at once."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def nothing() -> None:
        pass

    started = time.perf_counter()
    for _ in range(count):
        loop.call_soon(nothing)
    loop.call_soon(done.set_result, None)
    await done
    return time.perf_counter() - started


async def task_switch(tasks: int = 100, switches: int = 500) -> float:
    """A hundred tasks that give way to each other."""

    async def spin() -> None:
        for _ in range(switches):
            await asyncio.sleep(0)

    started = time.perf_counter()
    await asyncio.gather(*[spin() for _ in range(tasks)])
    return time.perf_counter() - started


async def future_ping_pong(count: int = 20_000) -> float:
    """Two tasks that wake each other by futures."""
    loop = asyncio.get_running_loop()
    balls = [loop.create_future(), loop.create_future()]

    async def play(mine: int) -> None:
        for _ in range(count):
            await balls[mine]
            balls[mine] = loop.create_future()
            balls[1 - mine].set_result(None)

    started = time.perf_counter()
    players = [asyncio.ensure_future(play(0)), asyncio.ensure_future(play(1))]
    balls[0].set_result(None)
    await asyncio.wait(players)
    return time.perf_counter() - started


class _Echo(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.write = transport.write

    def data_received(self, data: bytes) -> None:
        self.write(data)


class _Client(asyncio.Protocol):
    def __init__(self, message: bytes, count: int, done: asyncio.Future[None]) -> None:
        self.message, self.left, self.done, self.pending = message, count, done, len(message)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self.message)

    def data_received(self, data: bytes) -> None:
        self.pending -= len(data)
        if self.pending == 0:
            self.left -= 1
            if self.left:
                self.pending = len(self.message)
                self.transport.write(self.message)
            else:
                self.transport.close()
                self.done.set_result(None)


async def _echo(size: int, count: int, connections: int) -> float:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Echo, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    started = time.perf_counter()
    finished = []
    for _ in range(connections):
        done = loop.create_future()
        finished.append(done)
        await loop.create_connection(lambda done=done: _Client(b"x" * size, count, done), *address)
    await asyncio.wait(finished)
    elapsed = time.perf_counter() - started
    server.close()
    await server.wait_closed()
    return elapsed


async def protocol_echo_1k() -> float:
    """TCP echo of 1 KiB through a protocol, ten connections, client and server in one loop."""
    return await _echo(1024, 1_000, 10)


async def protocol_echo_100k() -> float:
    """TCP echo of 100 KiB through a protocol, ten connections."""
    return await _echo(100 * 1024, 60, 10)


async def streams_echo_1k(count: int = 4_000) -> float:
    """TCP echo of 1 KiB through streams, one connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    started = time.perf_counter()
    for _ in range(count):
        writer.write(b"x" * 1024)
        await reader.readexactly(1024)
    elapsed = time.perf_counter() - started
    writer.close()
    await writer.wait_closed()
    server.close()
    return elapsed


async def executor_round_trip(count: int = 1_500) -> float:
    """A call in a thread, awaited, one at a time."""
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    for _ in range(count):
        await loop.run_in_executor(None, int)
    return time.perf_counter() - started


async def timers(count: int = 20_000) -> float:
    """Timers, half of which are cancelled, that are due at once."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    started = time.perf_counter()
    handles = [loop.call_later(0.001, int) for _ in range(count)]
    for handle in handles[::2]:
        handle.cancel()
    loop.call_later(0.002, done.set_result, None)
    await done
    return time.perf_counter() - started


WORKLOADS = {
    workload.__name__: workload
    for workload in (
        call_soon_chain,
        call_soon_batch,
        task_switch,
        future_ping_pong,
        protocol_echo_1k,
        protocol_echo_100k,
        streams_echo_1k,
        executor_round_trip,
        timers,
    )
}

# --- a contestant, in a process of its own ------------------------------------------------------


def _run_as(contestant: str, workload: str) -> float:
    if contestant.endswith("-patched"):
        from gevent import monkey

        monkey.patch_all()
    coroutine = WORKLOADS[workload]()
    if contestant.startswith("ours"):
        import asyncio_gevent

        return asyncio_gevent.run(coroutine)
    if contestant.startswith("peer"):
        import asyncio_gevent

        asyncio.set_event_loop_policy(asyncio_gevent.EventLoopPolicy())
    elif contestant == "uvloop":
        import uvloop

        uvloop.install()
    elif contestant == "standard-64k":
        from asyncio import selector_events

        selector_events._SelectorTransport.max_size = 65536  # type: ignore[attr-defined]
    return asyncio.run(coroutine)


# --- the driver ---------------------------------------------------------------------------------


def _measure(python: str, contestant: str, workload: str) -> float | None:
    command = [python, __file__, "--contestant", contestant, "--workload", workload]
    try:
        output = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None  # it cannot do this workload, and the table says so
    return float(json.loads(output))


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peer", help="a Python that has asyncio-gevent 0.2.5")
    parser.add_argument("--only", action="append", choices=sorted(WORKLOADS))
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--workload", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        print(json.dumps(_run_as(options.contestant, options.workload)))
        return
    contestants = [
        name
        for name in CONTESTANTS
        if not (name.startswith("peer") and not options.peer)
        and not (name == "uvloop" and importlib.util.find_spec("uvloop") is None)
    ]
    print("| workload | " + " | ".join(contestants) + " |")
    print("|---|" + "---:|" * len(contestants))
    for workload in options.only or WORKLOADS:
        seconds: dict[str, list[float | None]] = {name: [] for name in contestants}
        for round_number in range(options.rounds):
            shift = round_number % len(contestants)
            for name in contestants[shift:] + contestants[:shift]:
                python = options.peer if name.startswith("peer") else sys.executable
                seconds[name].append(_measure(python, name, workload))
        cells = []
        for name in contestants:
            ratios = [
                base / own
                for base, own in zip(seconds["standard"], seconds[name], strict=True)
                if base is not None and own is not None
            ]
            cells.append(
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
                if len(ratios) == options.rounds
                else "fails"
            )
        print(f"| {workload} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
