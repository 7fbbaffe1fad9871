"""The bridges between greenlets and coroutines, against those of others.

    python benchmarks/bridges.py [--rounds 5] [--peer PATH_OF_A_PYTHON]
                                 [--others PATH_OF_A_PYTHON] [--nap SECONDS] [--only ROW]

Every measurement runs in a process of its own. A round runs each contestant once, in an order that
rotates from round to round, so that what else the machine does falls on all alike. A figure is
the median over the rounds of the ratio, within a round, of the contestant's seconds per call to
ours: 2.00 means that ours is twice as fast. Functions are wrapped once, before the clock starts,
except in the row that says otherwise.

`--peer` names the Python of an environment in which asyncio-gevent 0.2.5 is installed, `--others`
one that has asgiref and eventlet. Who has no Python is left out. "-": it has no such thing.
"fails": it ended with an error, or not within the limit; the reasons stand below the table.

What 0.2.5 needs in order to do some of the rows at all, and is given:

- A coroutine that a greenlet hands to its loop does not wake the loop. In those rows a task that
  sleeps 1 ms in a loop keeps it awake, and most of the figure is the wait for that millisecond.
  `--nap 0` lets that task not sleep but give way, at the price of a loop that is never idle: what
  then remains is what the bridge itself costs.
- Without monkey patching it joins the greenlet from another OS thread, which raises an error
  unless the greenlet ends first. Where that is a matter of luck, calls that raise are counted as
  if they had succeeded, and the share of them is stated; where it is certain, the row fails.
- Each level of a chain occupies a worker of the default executor, of which there may be fewer than
  the chain has levels. It gets 64. (So does the native thread.)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

SECONDS = 0.2  # that a measurement takes
LIMIT = 60  # seconds for a process
DEPTH = 10  # of the chain
WORKERS = 64

# --- the clock ----------------------------------------------------------------------------------


def _next_count(count: int, seconds: float) -> int:
    """Return the calls to make next, or 0 if it has taken long enough."""
    if seconds >= 0.75 * SECONDS:
        return 0
    return max(count + 1, int(count * min(10.0, SECONDS / max(seconds, 1e-9))))


def repeat(call: Callable[[], Any]) -> float:
    """Return the seconds of a call."""
    count = 1
    while True:
        started = time.perf_counter()
        for _ in range(count):
            call()
        seconds = time.perf_counter() - started
        following = _next_count(count, seconds)
        if not following:
            return seconds / count
        count = following


async def repeat_async(call: Callable[[], Awaitable[Any]]) -> float:
    """Return the seconds of an awaited call."""
    count = 1
    while True:
        started = time.perf_counter()
        for _ in range(count):
            await call()
        seconds = time.perf_counter() - started
        following = _next_count(count, seconds)
        if not following:
            return seconds / count
        count = following


def f() -> int:
    """Return at once."""
    return 1


async def c() -> int:
    """Return at once."""
    return 1


async def c_sleep0() -> int:
    """Give way once."""
    await asyncio.sleep(0)
    return 1


# --- the contestants: what each has for a row, or None ------------------------------------------


class Contestant:
    """What all have in common.

    Attributes:
        remark: what the table has to say about the measurement, if anything.
        nap: seconds that the task sleeps that keeps a loop awake, where one has to.
    """

    spawned: Any = None
    from_beside: Any = None
    from_beside_by_greenlet: Any = None
    remark: str | None = None
    nap = 0.001

    def forgiving(self, call: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
        """Return the call; one that goes on after errors, where errors are to be expected."""
        return call


class Ours(Contestant):
    """This library."""

    def __init__(self) -> None:
        import gevent

        import asyncio_gevent

        if not hasattr(asyncio_gevent, "await_"):
            raise RuntimeError("this is another asyncio_gevent")
        self.gevent = gevent
        self.bridge = asyncio_gevent
        self.sync_to_async = asyncio_gevent.sync_to_async
        self.async_to_sync = asyncio_gevent.async_to_sync

    def run(self, main: Coroutine[Any, Any, float], row: str) -> float:
        """Run the coroutine in an event loop."""
        return self.bridge.run(main)

    def spawned(self) -> Awaitable[Any]:
        """Return what to await for a greenlet."""
        return self.bridge.greenlet_to_future(self.gevent.spawn(f))

    async def beside(self, function: Callable[[], float]) -> float:
        """Call a function in another greenlet than the loop's, without a bridge."""
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def work() -> None:
            try:
                value = function()
            except BaseException as error:
                loop.call_soon_threadsafe(ended.set_exception, error)
            else:
                loop.call_soon_threadsafe(ended.set_result, value)

        self.gevent.spawn(work)
        return await ended

    def from_beside(self, loop: asyncio.AbstractEventLoop) -> None:
        """Call a coroutine from beside the loop."""
        self.bridge.await_(c(), loop=loop)

    def from_beside_by_greenlet(self, loop: asyncio.AbstractEventLoop) -> None:
        """Call a coroutine from beside the loop, in a greenlet of its own."""
        greenlet = self.bridge.future_to_greenlet(c(), loop=loop)
        greenlet.start()
        greenlet.get()

    async def below_task(self) -> float:
        """Call a coroutine from a function that a coroutine calls."""
        await_ = self.bridge.await_
        return repeat(lambda: await_(c()))

    async def below_wrapped(self) -> float:
        """Call a coroutine from a function that a coroutine runs by `sync_to_async`."""
        await_ = self.bridge.await_
        return await self.sync_to_async(lambda: repeat(lambda: await_(c())))()


class Peer(Ours):
    """asyncio-gevent 0.2.5."""

    # Those in which its loop has to be kept awake, or it hangs.
    SLEEPY = frozenset({"beside", "beside_by_greenlet", "chain", "below_task", "below_wrapped"})

    def __init__(self) -> None:
        import gevent

        import asyncio_gevent

        if hasattr(asyncio_gevent, "await_"):
            raise RuntimeError("this is not asyncio-gevent 0.2.5")
        asyncio.set_event_loop_policy(asyncio_gevent.EventLoopPolicy())
        self.gevent = gevent
        self.bridge = asyncio_gevent
        self.sync_to_async = asyncio_gevent.sync_to_async
        self.async_to_sync = asyncio_gevent.async_to_sync

    def forgiving(self, call: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
        from greenlet import error

        calls = errors = 0

        async def forgiving() -> None:
            nonlocal calls, errors
            calls += 1
            try:
                await call()
            except error:
                errors += 1
                self.remark = f"{errors / calls:.1%} of the calls raise greenlet.error"

        return forgiving

    def run(self, main: Coroutine[Any, Any, float], row: str) -> float:
        async def keep_awake() -> None:
            while True:
                await asyncio.sleep(self.nap)

        async def run() -> float:
            if row == "chain":
                asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(WORKERS))
            keeper = None
            if row in self.SLEEPY:
                keeper = asyncio.ensure_future(keep_awake())
                self.remark = (
                    f"the loop is kept awake by a task that calls sleep({self.nap:g}) in a loop"
                )
            try:
                return await main
            finally:
                if keeper is not None:
                    keeper.cancel()

        return asyncio.run(run())

    def from_beside(self, loop: asyncio.AbstractEventLoop) -> None:
        self.from_beside_by_greenlet(loop)  # there is no `await_`

    # Its nearest: `async_to_sync` in a function that is run by `sync_to_async`. In a function that
    # a coroutine calls directly it would wait for the loop that it blocks.

    async def below_task(self) -> float:
        return await self.below_wrapped()

    async def below_wrapped(self) -> float:
        return await self.sync_to_async(partial(repeat, self.async_to_sync(c)))()


class NativeThread(Contestant):
    """asyncio alone: functions in threads, coroutines by `run_coroutine_threadsafe`."""

    def __init__(self) -> None:
        self.loop: Any = None

    def run(self, main: Coroutine[Any, Any, float], row: str) -> float:
        """Run the coroutine in an event loop."""

        async def run() -> float:
            self.loop = asyncio.get_running_loop()
            self.loop.set_default_executor(ThreadPoolExecutor(WORKERS))
            return await main

        return asyncio.run(run())

    def spawned(self) -> Awaitable[Any]:
        """Return what to await for a thread's work."""
        return self.loop.run_in_executor(None, f)

    def sync_to_async(self, function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        """Return a function whose calls can be awaited."""
        return partial(asyncio.to_thread, function)

    def async_to_sync(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that waits for a coroutine in the loop of another thread."""
        if self.loop is None:
            self.loop = asyncio.new_event_loop()
            threading.Thread(target=self.loop.run_forever, daemon=True).start()

        def call(*args: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(function(*args), self.loop).result()

        return call

    async def beside(self, function: Callable[[], float]) -> float:
        """Call a function in another thread than the loop's."""
        return await self.loop.run_in_executor(None, function)

    def from_beside(self, loop: asyncio.AbstractEventLoop) -> None:
        """Call a coroutine from another thread."""
        asyncio.run_coroutine_threadsafe(c(), loop).result()

    from_beside_by_greenlet = from_beside

    async def below_wrapped(self) -> float:
        """Call a coroutine from a function that a coroutine runs in a thread."""
        return await self.sync_to_async(partial(repeat, self.async_to_sync(c)))()

    below_task = below_wrapped


class Asgiref(Contestant):
    """asgiref: threads too.

    It has no greenlets to await, and its `async_to_sync` reaches a running loop only from below
    it; elsewhere it makes one.
    """

    def __init__(self) -> None:
        from asgiref.sync import async_to_sync, sync_to_async

        self.sync_to_async = sync_to_async
        self.async_to_sync = async_to_sync

    def run(self, main: Coroutine[Any, Any, float], row: str) -> float:
        """Run the coroutine in an event loop."""
        return asyncio.run(main)

    async def below_wrapped(self) -> float:
        """Call a coroutine from a function that a coroutine runs by `sync_to_async`."""
        return await self.sync_to_async(partial(repeat, self.async_to_sync(c)))()

    below_task = below_wrapped


class Eventlet(Contestant):
    """eventlet with its hub on asyncio, whose loop runs wherever a greenthread waits."""

    def __init__(self) -> None:
        os.environ["EVENTLET_HUB"] = "asyncio"
        import eventlet
        from eventlet.asyncio import spawn_for_awaitable

        self.eventlet = eventlet
        self.of_awaitable = spawn_for_awaitable

    def run(self, main: Coroutine[Any, Any, float], row: str) -> float:
        """Run the coroutine in the hub's event loop."""
        return self.of_awaitable(main).wait()

    def spawned(self) -> Awaitable[Any]:
        """Return what to await for a greenthread."""
        return self.eventlet.spawn(f)

    def sync_to_async(self, function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        """Return a function whose calls can be awaited."""
        return partial(self.eventlet.spawn, function)

    def async_to_sync(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that waits for a coroutine."""
        return lambda *args: self.of_awaitable(function(*args)).wait()

    async def beside(self, function: Callable[[], float]) -> float:
        """Call a function in a greenthread."""
        return await self.eventlet.spawn(function)

    def from_beside(self, loop: asyncio.AbstractEventLoop) -> None:
        """Call a coroutine from a greenthread."""
        self.of_awaitable(c()).wait()

    from_beside_by_greenlet = from_beside

    async def below_wrapped(self) -> float:
        """Call a coroutine from a greenthread that a coroutine awaits."""
        return await self.sync_to_async(partial(repeat, self.async_to_sync(c)))()

    below_task = below_wrapped


CONTESTANTS: dict[str, Callable[[], Any]] = {
    "ours": Ours,
    "ours patched": Ours,
    "0.2.5": Peer,
    "0.2.5 patched": Peer,
    "native thread": NativeThread,
    "asgiref": Asgiref,
    "eventlet": Eventlet,
}
PEERS = ("0.2.5", "0.2.5 patched")

# --- the rows: each returns the seconds of a call, or None if the contestant has no such thing ---


def await_greenlet(who: Any) -> float | None:
    """`await` a greenlet"""
    if who.spawned is None:
        return None
    return who.run(repeat_async(who.forgiving(who.spawned)), "await_greenlet")


def sync_to_async(who: Any) -> float | None:
    """`sync_to_async`"""

    async def main() -> float:
        return await repeat_async(who.forgiving(who.sync_to_async(f)))

    return who.run(main(), "sync_to_async")


def sync_to_async_anew(who: Any) -> float | None:
    """`sync_to_async`, wrapped anew for each call"""

    async def main() -> float:
        return await repeat_async(who.forgiving(lambda: who.sync_to_async(f)()))

    return who.run(main(), "sync_to_async_anew")


def _from_beside(who: Any, call: Any, row: str) -> float | None:
    if call is None:
        return None

    async def main() -> float:
        loop = asyncio.get_running_loop()
        return await who.beside(lambda: repeat(lambda: call(loop)))

    return who.run(main(), row)


def beside(who: Any) -> float | None:
    """a coroutine from a greenlet, `await_`"""
    return _from_beside(who, who.from_beside, "beside")


def beside_by_greenlet(who: Any) -> float | None:
    """a coroutine from a greenlet, `future_to_greenlet`"""
    return _from_beside(who, who.from_beside_by_greenlet, "beside_by_greenlet")


def no_loop(who: Any) -> float | None:
    """`async_to_sync`, no running loop"""
    return repeat(who.async_to_sync(c))


def no_loop_sleep0(who: Any) -> float | None:
    """`async_to_sync`, no running loop, `sleep(0)`"""
    return repeat(who.async_to_sync(c_sleep0))


def chain(who: Any) -> float | None:
    """a chain of depth 10"""

    async def main() -> float:
        async def step(left: int) -> int:
            return await down(left) if left else 0

        up = who.async_to_sync(step)

        def step_down(left: int) -> int:
            return up(left - 1)

        down = who.sync_to_async(step_down)
        return await repeat_async(lambda: step(DEPTH))

    return who.run(main(), "chain")


def below_task(who: Any) -> float | None:
    """`await_`, not waiting, below a task"""
    return who.run(who.below_task(), "below_task")


def below_wrapped(who: Any) -> float | None:
    """`await_`, not waiting, below `sync_to_async`"""
    return who.run(who.below_wrapped(), "below_wrapped")


ROWS: dict[str, Callable[[Any], float | None]] = {
    row.__name__: row
    for row in (
        await_greenlet,
        sync_to_async,
        sync_to_async_anew,
        beside,
        beside_by_greenlet,
        no_loop,
        no_loop_sleep0,
        chain,
        below_task,
        below_wrapped,
    )
}
# What is to hold against 0.2.5.
BARS = {
    "await_greenlet": 15,
    "sync_to_async": 20,
    "beside": 8,
    "beside_by_greenlet": 8,
    "no_loop": 30,
    "chain": 25,
    "below_task": 50,
}


def _run_as(contestant: str, row: str, nap: float) -> tuple[float | None, str | None]:
    if contestant.endswith(" patched"):
        from gevent import monkey

        monkey.patch_all()
    who = CONTESTANTS[contestant]()
    who.nap = nap
    seconds = ROWS[row](who)
    return seconds, who.remark


# --- the driver ---------------------------------------------------------------------------------


class Failure(Exception):
    """A contestant does not get through a row."""


def _measure(python: str, contestant: str, row: str, nap: float) -> tuple[float | None, str | None]:
    command = [python, __file__, "--contestant", contestant, "--row", row, "--nap", str(nap)]
    environment = dict(os.environ)
    if not contestant.startswith("ours"):
        # It may name this library's directory, which would hide the other asyncio_gevent.
        environment.pop("PYTHONPATH", None)
    try:
        process = subprocess.run(
            command, capture_output=True, timeout=LIMIT, env=environment, text=True
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"not done after {LIMIT} s") from None
    if process.returncode:
        errors = [line for line in process.stderr.splitlines() if line[:1].strip()]
        raise Failure(f"exit code {process.returncode}: {errors[-1] if errors else ''}")
    seconds, remark = json.loads(process.stdout)
    return seconds, remark


def _measure_row(
    row: str, pythons: dict[str, str], rounds: int, nap: float
) -> tuple[dict[str, list[float]], dict[str, str], dict[str, list[str]]]:
    """Return by contestant: the seconds per call, the reason why there are none, remarks."""
    seconds: dict[str, list[float]] = {name: [] for name in pythons}
    reasons: dict[str, str] = {}
    remarks: dict[str, list[str]] = {}
    names = list(pythons)
    for round_number in range(rounds):
        shift = round_number % len(names)
        for name in names[shift:] + names[:shift]:
            if name in reasons:
                continue
            try:
                measured, remark = _measure(pythons[name], name, row, nap)
            except Failure as failure:
                reasons[name] = str(failure)
            else:
                if measured is None:
                    reasons[name] = "-"
                else:
                    seconds[name].append(measured)
                    if remark is not None and remark not in remarks.setdefault(name, []):
                        remarks[name].append(remark)
    return seconds, reasons, remarks


def main() -> None:
    """Print a table in Markdown, the failures, and the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", help="a Python that has asyncio-gevent 0.2.5")
    parser.add_argument("--others", help="a Python that has asgiref and eventlet")
    parser.add_argument("--nap", type=float, default=Contestant.nap, help="to keep 0.2.5 awake")
    parser.add_argument("--only", action="append", choices=list(ROWS))
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        print(json.dumps(_run_as(options.contestant, options.row, options.nap)), flush=True)
        return
    pythons = {"ours": sys.executable, "ours patched": sys.executable}
    if options.peer:
        pythons |= dict.fromkeys(PEERS, options.peer)
    pythons["native thread"] = sys.executable
    if options.others:
        pythons |= {"asgiref": options.others, "eventlet": options.others}
    others = [name for name in pythons if name != "ours"]
    rows = options.only or list(ROWS)
    medians: dict[tuple[str, str], float] = {}
    failures, notes = [], []
    print(f"Python {platform.python_version()}, {options.rounds} rounds\n")
    print("| how many times faster ours is than | ours, µs | " + " | ".join(others) + " |")
    print("|---|" + "---:|" * (1 + len(others)))
    for row in rows:
        title = ROWS[row].__doc__
        seconds, reasons, remarks = _measure_row(row, pythons, options.rounds, options.nap)
        failures += [
            f"- {title}, {name}: {reason}" for name, reason in reasons.items() if reason != "-"
        ]
        notes += [f"- {title}, {name}: {', '.join(said)}" for name, said in remarks.items()]
        if "ours" in reasons:
            cells = ["fails"] + ["?"] * len(others)
        else:
            cells = [f"{statistics.median(seconds['ours']) * 1e6:.2f}"]
            for name in others:
                if name in reasons:
                    cells.append("-" if reasons[name] == "-" else "fails")
                    continue
                pairs = zip(seconds[name], seconds["ours"], strict=True)
                ratios = [theirs / own for theirs, own in pairs]
                medians[row, name] = statistics.median(ratios)
                star = "\\*" if name in remarks else ""
                cells.append(
                    f"{medians[row, name]:.2f}{star} ({min(ratios):.2f}-{max(ratios):.2f})"
                )
        print(f"| {title} | " + " | ".join(cells) + " |", flush=True)
    if notes:
        print("\nRemarks (\\*):\n")
        print("\n".join(notes))
    if failures:
        print("\nFailures:\n")
        print("\n".join(failures))
    if options.peer:
        print("\n| bar | at least | 0.2.5 | holds | 0.2.5 patched | holds |")
        print("|---|---:|---:|---|---:|---|")
        for row in rows:
            if row not in BARS:
                continue
            cells = []
            for name in PEERS:
                ratio = medians.get((row, name))
                if ratio is None:
                    cells += ["not measured", "-"]
                else:
                    cells += [f"{ratio:.2f}", "yes" if ratio >= BARS[row] else "NO"]
            print(f"| {ROWS[row].__doc__} | {BARS[row]} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
