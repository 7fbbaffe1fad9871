"""What becomes of the cost when there are more and more of something, and the memory of each.

A workload is a kind and a number, ``tasks/1000``. All figures but the memory are seconds for one
operation beside or among so many.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import resource
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import _bridges
from _clock import Clock, Sleepers, measure_sleepers, private_memory
from _contest import Contestant, Group, Measure, Missing, Workload
from _loops import (
    CONNECTIONS,
    LOCALHOST,
    NEW_LOOP,
    Echo,
    Operate,
    cancel_timers,
    echo_by_protocols,
    fire_timers,
    opened_on_loop,
    switch_tasks,
)
from _worker import raise_limit_of_open_files

TIMERS = 10  # that are due at once
SIZES = (10, 100, 1_000, 10_000, 50_000)
#: Descriptors that a process needs for other things than idle connections.
RESERVED = 200
#: Ends of connections that one helper holds: fewer than there are ports for one address.
HELD = 10_000
IP_BIND_ADDRESS_NO_PORT = 24  # of Linux; the module `socket` knows it from Python 3.12 on


def greatest_number_of_connections() -> int:
    """Return of how many this process may hold one end. The other ends are held elsewhere."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return SIZES[-1] if most == resource.RLIM_INFINITY else min(SIZES[-1], most - RESERVED)


# --- the kinds: each takes the number -------------------------------------------------------------


def sleep_in_tasks(sleepers: Sleepers, clock: Clock, run: Callable[[Any], None]) -> None:
    """start and wake N sleeping tasks"""

    async def nap() -> None:
        await asyncio.sleep(sleepers.delay())

    async def main() -> None:
        with clock:
            await asyncio.gather(*[nap() for _ in range(sleepers.count)])

    run(main())


def switch(number: int) -> Any:
    """switch between N tasks"""

    async def operate(count: int, clock: Clock) -> None:
        await switch_tasks(count, clock, number)

    return operate


def _beside_timers(number: int, operate: Operate) -> Any:
    @contextlib.asynccontextmanager
    async def beside() -> AsyncIterator[Operate]:
        loop = asyncio.get_running_loop()
        loop.call_later(1.0, int).cancel()
        gc.collect()
        before = private_memory()
        # As different as those of connections: they are not all due at the same time.
        handles = [loop.call_later(3600.0 + index * 0.37 % 600.0, int) for index in range(number)]
        memory = (private_memory() - before) / number

        async def with_memory(count: int, clock: Clock) -> None:
            await operate(count, clock)
            clock.memory = memory

        yield with_memory
        for handle in handles:
            handle.cancel()

    return beside


def cancel(number: int) -> Any:
    """call_later and cancel beside N timers"""
    return _beside_timers(number, cancel_timers)


def fire(number: int) -> Any:
    """call_later, and fire, beside N timers"""
    return _beside_timers(number, partial(fire_timers, size=TIMERS))


def connections(number: int) -> Any:
    """TCP echo of 1 KiB on 10 connections beside N idle ones"""

    @contextlib.asynccontextmanager
    async def beside() -> AsyncIterator[Operate]:
        async with echo_by_protocols(1024) as (operate, server), _hold(number, server) as memory:

            async def with_memory(count: int, clock: Clock) -> None:
                await operate(count, clock)
                clock.memory = memory

            yield with_memory

    return beside


@contextlib.asynccontextmanager
async def _hold(number: int, server: Any) -> AsyncIterator[float]:
    """Let helpers hold connections to a server. Give the memory of one, in bytes."""
    port = server.sockets[0].getsockname()[1]
    gc.collect()
    before = private_memory()
    expected = Echo.connections + number
    helpers = []
    for index, held in enumerate(range(0, number, HELD)):
        # Each from an address of its own, with ports of its own.
        of_helper = [f"127.0.0.{index + 2}", str(port), str(min(HELD, number - held))]
        helpers.append(
            subprocess.Popen([sys.executable, __file__, *of_helper], stdin=subprocess.PIPE)
        )
    try:
        while Echo.connections < expected:
            if any(helper.poll() is not None for helper in helpers):
                raise RuntimeError("a helper could not open its connections")
            await asyncio.sleep(0.01)
        yield (private_memory() - before) / number
    finally:
        for helper in helpers:
            helper.kill()
            helper.communicate()
        await asyncio.sleep(0.1)


def hold_connections(address: str, port: int, number: int) -> None:
    """Open idle connections, and keep them until standard input ends. This is the helper."""
    raise_limit_of_open_files()
    connections = []
    for _ in range(number):
        connection = socket.socket()
        # To be closed by a reset, after which the port does not wait for stray packets.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if sys.platform == "linux":  # elsewhere there is only one such address
            # The port is for `connect` to find: `bind` would look, longer and longer, for one that
            # nobody uses for anything.
            connection.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            connection.bind((address, 0))
        connection.connect((LOCALHOST, port))
        connections.append(connection)
    sys.stdin.read()


# --- the group ------------------------------------------------------------------------------------


def _greatest(most: int) -> tuple[int, ...]:
    """Return the numbers of `SIZES`, with `most` for those that are greater."""
    return tuple(sorted({min(size, most) for size in SIZES}))


#: What makes a workload of a number, and which numbers. The last two are workloads of `_bridges`.
KINDS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "tasks": (sleep_in_tasks, SIZES),
    "task_switch": (switch, SIZES),
    "timers_cancelled": (cancel, SIZES),
    "timers_fired": (fire, SIZES),
    "connections": (connections, _greatest(greatest_number_of_connections())),
    "await_": (_bridges.sleep_in_coroutines, SIZES),
    "sync_to_async": (_bridges.sleep_in_functions, SIZES),
}
BRIDGES = ("await_", "sync_to_async")
#: Operations at once, where it is not the number itself.
AT_ONCE = {"timers_cancelled": 100, "timers_fired": TIMERS, "connections": CONNECTIONS}
TURNS = 10  # of each task at least, beside which its end does not count


def _make_workloads() -> dict[str, Workload]:
    workloads = {}
    for kind, (function, numbers) in KINDS.items():
        title = inspect.getdoc(function) or ""
        for number in numbers:
            size = AT_ONCE.get(kind, number * TURNS if kind == "task_switch" else number)
            workloads[f"{kind}/{number}"] = Workload(
                title.replace("10,000", "N"), function, size, heavy=True
            )
    return workloads


@contextlib.contextmanager
def _opened(contestant: str, name: str) -> Iterator[Measure]:
    kind, _, text = name.partition("/")
    function, number = KINDS[kind][0], int(text)
    if kind in BRIDGES:
        if contestant != "ours":
            raise Missing
        yield _bridges.measure_sleeping(contestant, function, number)
    elif kind == "tasks":
        loop = NEW_LOOP[contestant]()
        yield measure_sleepers(number, partial(function, run=loop.run_until_complete))
        loop.close()
    else:
        with opened_on_loop(contestant, function(number)) as measure:
            yield measure


GROUP = Group(
    title="Growth",
    reading=(
        "Microseconds for an operation, and bytes for one of N. The exponent is the slope of the "
        "logarithm of the cost over that of N, from 100 on: 0 does not depend on N, 1 is in "
        "proportion to N. Bytes of fewer than 1,000 would tell of the allocator."
    ),
    base="standard",
    contestants={
        "standard": Contestant(),
        "uvloop": Contestant(needs="uvloop"),
        "ours": Contestant(),
    },
    workloads=_make_workloads(),
    opened=_opened,
)

if __name__ == "__main__":
    hold_connections(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
