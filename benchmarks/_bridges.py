"""Bridges between greenlets and coroutines: this library's adapters, and what others have.

What asyncio-gevent 0.2.5 needs in order to do some of the workloads at all, and is given:

- A coroutine that a greenlet hands to its loop does not wake the loop. In those workloads a task
  that sleeps 1 ms in a loop keeps it awake, and most of the figure is the wait for that
  millisecond. `--nap 0` lets that task not sleep but give way, at the price of a loop that is
  never idle: what then remains is what the bridge itself costs.
- Without monkey patching it joins the greenlet from another OS thread, which raises an error
  unless the greenlet ends first. Where that is a matter of luck, calls that raise are counted as
  if they had succeeded, and the share of them is stated; where it is certain, the workload fails.
- Each level of a chain occupies a worker of the default executor, of which there may be fewer than
  the chain has levels. It gets 64. (So does the native thread.)

Who has no iterators or context managers of its own does each step by what it has for functions.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from _clock import Clock, Sleepers, measure_sleepers
from _contest import Contestant, Group, Measure, Missing, Workload, register

DEPTH = 10  # of the chain
WORKERS = 64
AT_ONCE = 1_000
SLEEPING = 10_000
TAKING_TURNS = 10

_END = object()


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


class _Manager:
    """A context manager of either kind that does nothing."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc_info: object) -> None:
        pass

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *exc_info: object) -> None:
        pass


# --- the contestants: what each has, or Missing ---------------------------------------------------


class Bridge:
    """What a contestant has. Here: nothing but the standard library's event loop.

    Attributes:
        remark: what the table has to say about the measurement, if anything.
    """

    remark: str | None = None

    def close(self) -> None:
        """End what would stand in the way of another workload."""

    def run(
        self, main: Coroutine[Any, Any, Any], *, sleepy: bool = False, workers: int | None = None
    ) -> None:
        """Run a coroutine in an event loop.

        Args:
            main: the coroutine.
            sleepy: greenlets hand coroutines to the loop, which must hear of them.
            workers: that the loop's executor has to have if it is used.
        """

        async def run() -> None:
            if workers is not None:
                asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(workers))
            await main

        asyncio.run(run())

    def forgiving(self, call: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
        """Return the call; one that goes on after errors, where errors are to be expected."""
        return call

    # Greenlets, or what takes their place

    def spawned(self, function: Callable[[], Any]) -> Awaitable[Any]:
        """Start a greenlet, and return what to await for it."""
        raise Missing

    def spawned_to_be_awaited(self, function: Callable[[], Any]) -> Awaitable[Any]:
        """Start a greenlet of a kind that is made for that."""
        return self.spawned(function)

    def sleep(self, seconds: float) -> None:
        """Block what calls it, and nothing else."""
        raise Missing

    async def beside(self, function: Callable[[], None], times: int = 1) -> None:
        """Call a function in other greenlets than the loop's, without a bridge, all at once."""
        raise Missing

    def from_beside(self, coroutine: Any, loop: asyncio.AbstractEventLoop) -> None:
        """Call a coroutine from beside the loop."""
        raise Missing

    def from_beside_by_greenlet(self, coroutine: Any, loop: asyncio.AbstractEventLoop) -> None:
        """Call a coroutine from beside the loop, in a greenlet of its own."""
        self.from_beside(coroutine, loop)

    # Functions

    def sync_to_async(self, function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        """Return a function whose calls can be awaited."""
        raise Missing

    def sync_to_async_in_parallel(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return such a function, of which many calls go on at the same time."""
        return self.sync_to_async(function)

    def threads_for(self, calls: int) -> int | None:
        """Return the threads without which so many calls cannot go on at the same time."""
        return None

    #: Sleepers at the same time, at most.
    most_sleepers = sys.maxsize

    def async_to_sync(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that waits for a coroutine."""
        raise Missing

    def without_loop(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return such a function for where no loop is running."""
        return self.async_to_sync(function)

    def await_(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """Return such a function for where `below_task` calls it."""
        return self.async_to_sync(function)

    async def below_task(self, function: Callable[[], None]) -> None:
        """Call a function that calls coroutines of this loop, as directly as possible."""
        await self.below_wrapped(function)

    async def below_wrapped(self, function: Callable[[], None]) -> None:
        """Call a function that calls coroutines of this loop by `sync_to_async`."""
        await self.sync_to_async(function)()

    # Iterators and context managers: by hand

    async def async_iter(self, iterator: Iterator[int]) -> AsyncIterator[int]:
        """Iterate over a blocking iterator."""
        step = self.sync_to_async(partial(next, iterator, _END))
        while (item := await step()) is not _END:
            yield item

    def sync_iter(self, iterator: AsyncIterator[int]) -> Iterator[int]:
        """Iterate over an async iterator, where `below_task` calls it."""
        step = self.await_(iterator.__anext__)
        with contextlib.suppress(StopAsyncIteration):
            while True:
                yield step()

    def async_context(self, manager: _Manager) -> Any:
        """Return an async context manager of a blocking one."""
        return self._by_hand(manager)

    @contextlib.asynccontextmanager
    async def _by_hand(self, manager: _Manager) -> AsyncIterator[None]:
        await self.sync_to_async(manager.__enter__)()
        yield
        await self.sync_to_async(manager.__exit__)(None, None, None)

    @contextlib.contextmanager
    def sync_context(self, manager: _Manager) -> Any:
        """Give a context manager of an async one, where `below_task` calls it."""
        self.await_(manager.__aenter__)()
        yield
        self.await_(lambda: manager.__aexit__(None, None, None))()


class Ours(Bridge):
    """This library."""

    def __init__(self) -> None:
        import gevent

        import asyncio_gevent

        if not hasattr(asyncio_gevent, "await_"):
            raise RuntimeError("this is another asyncio_gevent")
        self.gevent = gevent
        self.bridge = asyncio_gevent
        self.sleep = gevent.sleep
        self.sync_to_async = asyncio_gevent.sync_to_async
        self.async_to_sync = asyncio_gevent.async_to_sync
        self.async_iter = asyncio_gevent.async_iter
        self.sync_iter = asyncio_gevent.sync_iter
        self.async_context = asyncio_gevent.async_context
        self.sync_context = asyncio_gevent.sync_context

    def run(
        self, main: Coroutine[Any, Any, Any], *, sleepy: bool = False, workers: int | None = None
    ) -> None:
        self.bridge.run(main)

    def spawned(self, function: Callable[[], Any]) -> Awaitable[Any]:
        return self.bridge.greenlet_to_future(self.gevent.spawn(function))

    def spawned_to_be_awaited(self, function: Callable[[], Any]) -> Awaitable[Any]:
        return self.bridge.spawn(function)

    async def beside(self, function: Callable[[], None], times: int = 1) -> None:
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        left = times

        def work() -> None:
            nonlocal left
            try:
                function()
            except BaseException as error:
                loop.call_soon_threadsafe(ended.set_exception, error)
                return
            left -= 1
            if not left:
                loop.call_soon_threadsafe(ended.set_result, None)

        for _ in range(times):
            self.gevent.spawn(work)
        await ended

    def from_beside(self, coroutine: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.bridge.await_(coroutine, loop=loop)

    def from_beside_by_greenlet(self, coroutine: Any, loop: asyncio.AbstractEventLoop) -> None:
        greenlet = self.bridge.future_to_greenlet(coroutine, loop=loop)
        greenlet.start()
        greenlet.get()

    def await_(self, function: Callable[[], Any]) -> Callable[[], Any]:
        await_ = self.bridge.await_
        return lambda: await_(function())

    async def below_task(self, function: Callable[[], None]) -> None:
        function()


class Peer(Ours):
    """asyncio-gevent 0.2.5."""

    def __init__(self) -> None:
        import gevent

        import asyncio_gevent

        if hasattr(asyncio_gevent, "await_"):
            raise RuntimeError("this is not asyncio-gevent 0.2.5")
        asyncio.set_event_loop_policy(asyncio_gevent.EventLoopPolicy())
        self.gevent = gevent
        self.bridge = asyncio_gevent
        self.sleep = gevent.sleep
        self.sync_to_async = asyncio_gevent.sync_to_async
        self.async_to_sync = asyncio_gevent.async_to_sync
        self.nap = float(os.environ.get("BENCH_NAP", "0.001"))

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

    def run(
        self, main: Coroutine[Any, Any, Any], *, sleepy: bool = False, workers: int | None = None
    ) -> None:
        async def keep_awake() -> None:
            while True:
                await asyncio.sleep(self.nap)

        async def run() -> None:
            keeper = None
            if sleepy:
                keeper = asyncio.ensure_future(keep_awake())
                self.remark = (
                    f"the loop is kept awake by a task that calls sleep({self.nap:g}) in a loop"
                )
            try:
                await main
            finally:
                if keeper is not None:
                    keeper.cancel()

        Bridge.run(self, run(), workers=workers)

    def spawned_to_be_awaited(self, function: Callable[[], Any]) -> Awaitable[Any]:
        return self.spawned(function)

    def from_beside(self, coroutine: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.from_beside_by_greenlet(coroutine, loop)  # there is no `await_`

    # Its nearest to `await_`: `async_to_sync` in a function that is run by `sync_to_async`. In one
    # that a coroutine calls directly it would wait for the loop that it blocks.
    await_ = Bridge.await_
    below_task = Bridge.below_task
    async_iter = Bridge.async_iter
    sync_iter = Bridge.sync_iter
    async_context = Bridge.async_context
    sync_context = Bridge.sync_context


class NativeThread(Bridge):
    """asyncio alone: functions in threads, coroutines by `run_coroutine_threadsafe`."""

    loop: Any = None

    def run(
        self, main: Coroutine[Any, Any, Any], *, sleepy: bool = False, workers: int | None = None
    ) -> None:
        async def run() -> None:
            self.loop = asyncio.get_running_loop()
            await main

        super().run(run(), workers=workers or WORKERS)
        self.loop = None

    def spawned(self, function: Callable[[], Any]) -> Awaitable[Any]:
        return self.loop.run_in_executor(None, function)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def beside(self, function: Callable[[], None], times: int = 1) -> None:
        await asyncio.gather(*[self.loop.run_in_executor(None, function) for _ in range(times)])

    def from_beside(self, coroutine: Any, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    # Ten thousand that wake at the same moment and fight for the GIL are not done in a minute.
    most_sleepers = 1_000

    def threads_for(self, calls: int) -> int | None:
        return calls

    def sync_to_async(self, function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        return partial(asyncio.to_thread, function)

    def async_to_sync(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if self.loop is None:  # one in another thread
            self.loop = asyncio.new_event_loop()
            threading.Thread(target=self.loop.run_forever, daemon=True).start()
        loop = self.loop
        return lambda *args: asyncio.run_coroutine_threadsafe(function(*args), loop).result()


class Asgiref(Bridge):
    """asgiref: threads too.

    It has no greenlets to await, and its `async_to_sync` reaches a running loop only from below
    it; elsewhere it makes one.
    """

    def __init__(self) -> None:
        from asgiref.sync import async_to_sync, sync_to_async

        self.sync_to_async = sync_to_async
        self.sync_to_async_in_parallel = partial(sync_to_async, thread_sensitive=False)
        self.async_to_sync = async_to_sync

    # Ten thousand that wake at the same moment and fight for the GIL are not done in a minute.
    most_sleepers = 1_000

    def threads_for(self, calls: int) -> int | None:
        return calls

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Greenletio(Bridge):
    """greenletio: greenlets without gevent. What a function waits for has to be a coroutine."""

    def __init__(self) -> None:
        from greenletio import async_, await_

        self.sync_to_async = async_
        self.async_to_sync = await_

    def close(self) -> None:
        # Where no loop is running it starts one in a greenlet of its own, and leaves it there.
        from greenletio.core import bridge

        bridge.stop()

    def sleep(self, seconds: float) -> None:
        self.async_to_sync(asyncio.sleep(seconds))


class Greenback(Bridge):
    """greenback: a portal for a task, below which functions may await. No gevent either."""

    def __init__(self) -> None:
        import greenback

        self.bridge = greenback
        self.async_to_sync = greenback.autoawait
        self.sync_iter = greenback.async_iter  # named after what it is made of
        self.sync_context = greenback.async_context

    def without_loop(self, function: Callable[..., Any]) -> Callable[..., Any]:
        raise Missing

    def sync_to_async(self, function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        return partial(self.bridge.with_portal_run_sync, function)

    def sleep(self, seconds: float) -> None:
        self.bridge.await_(asyncio.sleep(seconds))

    def await_(self, function: Callable[[], Any]) -> Callable[[], Any]:
        await_ = self.bridge.await_
        return lambda: await_(function())

    async def below_task(self, function: Callable[[], None]) -> None:
        await self.bridge.ensure_portal()
        function()


class Eventlet(Bridge):
    """eventlet with its hub on asyncio, whose loop runs wherever a greenthread waits."""

    def __init__(self) -> None:
        os.environ["EVENTLET_HUB"] = "asyncio"
        import eventlet
        from eventlet.asyncio import spawn_for_awaitable

        self.eventlet = eventlet
        self.sleep = eventlet.sleep
        self.of_awaitable = spawn_for_awaitable

    def run(
        self, main: Coroutine[Any, Any, Any], *, sleepy: bool = False, workers: int | None = None
    ) -> None:
        self.of_awaitable(main).wait()

    def spawned(self, function: Callable[[], Any]) -> Awaitable[Any]:
        return self.eventlet.spawn(function)

    async def beside(self, function: Callable[[], None], times: int = 1) -> None:
        for green in [self.eventlet.spawn(function) for _ in range(times)]:
            await green

    def from_beside(self, coroutine: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.of_awaitable(coroutine).wait()

    def sync_to_async(self, function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        return partial(self.eventlet.spawn, function)

    def async_to_sync(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: self.of_awaitable(function(*args)).wait()


class Gevent(Bridge):
    """gevent alone: what a greenlet costs that no coroutine waits for."""

    def __init__(self) -> None:
        import gevent

        self.gevent = gevent
        self.sleep = gevent.sleep

    def run(
        self, main: Coroutine[Any, Any, Any], *, sleepy: bool = False, workers: int | None = None
    ) -> None:
        main.close()
        raise Missing


BRIDGES: dict[str, Callable[[], Bridge]] = {
    "ours": Ours,
    "ours patched": Ours,
    "0.2.5": Peer,
    "0.2.5 patched": Peer,
    "native thread": NativeThread,
    "asgiref": Asgiref,
    "greenletio": Greenletio,
    "greenback": Greenback,
    "eventlet": Eventlet,
    "gevent alone": Gevent,
}

# --- the workloads: each does `count` calls -------------------------------------------------------

WORKLOADS: dict[str, Workload] = {}
workload = register(WORKLOADS)


def _repeat(call: Callable[[], Any], count: int, clock: Clock) -> None:
    with clock:
        for _ in range(count):
            call()


async def _repeat_async(call: Callable[[], Awaitable[Any]], count: int, clock: Clock) -> None:
    with clock:
        for _ in range(count):
            await call()


async def _repeat_at_once(call: Callable[[], Awaitable[Any]], count: int, clock: Clock) -> None:
    with clock:
        for _ in range(count // AT_ONCE):
            await asyncio.gather(*[call() for _ in range(AT_ONCE)])


def _greenlet_call(who: Any) -> Callable[[], Awaitable[Any]]:
    return who.forgiving(lambda: who.spawned(f))


def _wrapped_call(who: Any) -> Callable[[], Awaitable[Any]]:
    return who.forgiving(who.sync_to_async(f))


@workload()
def await_greenlet(who: Any, count: int, clock: Clock) -> None:
    """`await` a greenlet, `greenlet_to_future`"""
    if isinstance(who, Gevent):
        _repeat(lambda: who.gevent.spawn(f).get(), count, clock)
    else:
        who.run(_repeat_async(_greenlet_call(who), count, clock))


@workload()
def spawn(who: Any, count: int, clock: Clock) -> None:
    """`await spawn()`"""
    who.run(_repeat_async(who.forgiving(lambda: who.spawned_to_be_awaited(f)), count, clock))


async def _sync_to_async(repeat: Any, who: Any, count: int, clock: Clock) -> None:
    # Wrapped in the loop: the native thread has none before.
    await repeat(_wrapped_call(who), count, clock)


@workload()
def sync_to_async(who: Any, count: int, clock: Clock) -> None:
    """`sync_to_async`"""
    who.run(_sync_to_async(_repeat_async, who, count, clock))


@workload()
def sync_to_async_anew(who: Any, count: int, clock: Clock) -> None:
    """`sync_to_async`, wrapped anew for each call"""
    who.run(_repeat_async(who.forgiving(lambda: who.sync_to_async(f)()), count, clock))


def _from_beside(who: Any, call: Any, count: int, clock: Clock) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        await who.beside(lambda: _repeat(lambda: call(c(), loop), count, clock))

    who.run(main(), sleepy=True)


@workload()
def beside(who: Any, count: int, clock: Clock) -> None:
    """a coroutine from a greenlet, `await_`"""
    _from_beside(who, who.from_beside, count, clock)


@workload()
def beside_by_greenlet(who: Any, count: int, clock: Clock) -> None:
    """a coroutine from a greenlet, `future_to_greenlet`"""
    _from_beside(who, who.from_beside_by_greenlet, count, clock)


@workload()
def no_loop(who: Any, count: int, clock: Clock) -> None:
    """`async_to_sync`, no running loop"""
    _repeat(who.without_loop(c), count, clock)


@workload()
def no_loop_sleep0(who: Any, count: int, clock: Clock) -> None:
    """`async_to_sync`, no running loop, `sleep(0)`"""
    _repeat(who.without_loop(c_sleep0), count, clock)


@workload()
def chain(who: Any, count: int, clock: Clock) -> None:
    """a chain of depth 10"""

    async def main() -> None:
        async def step(left: int) -> int:
            return await down(left) if left else 0

        up = who.async_to_sync(step)

        def step_down(left: int) -> int:
            return up(left - 1)

        down = who.sync_to_async(step_down)
        await _repeat_async(lambda: step(DEPTH), count, clock)

    who.run(main(), sleepy=True, workers=WORKERS)


@workload()
def below_task(who: Any, count: int, clock: Clock) -> None:
    """`await_`, not waiting, below a task"""

    async def main() -> None:
        await who.below_task(partial(_repeat, who.await_(c), count, clock))

    who.run(main(), sleepy=True)


@workload()
def below_wrapped(who: Any, count: int, clock: Clock) -> None:
    """`await_`, not waiting, below `sync_to_async`"""

    async def main() -> None:
        await who.below_wrapped(partial(_repeat, who.await_(c), count, clock))

    who.run(main(), sleepy=True)


@workload()
def async_iter(who: Any, count: int, clock: Clock) -> None:
    """`async_iter`, an item"""

    async def main() -> None:
        iterator = who.async_iter(iter(range(count)))
        with clock:
            async for _ in iterator:
                pass

    who.run(main())


@workload()
def sync_iter(who: Any, count: int, clock: Clock) -> None:
    """`sync_iter` below a task, an item"""

    async def items() -> AsyncIterator[int]:
        for number in range(count):
            yield number

    def iterate() -> None:
        iterator = who.sync_iter(items())
        with clock:
            for _ in iterator:
                pass

    who.run(who.below_task(iterate), sleepy=True)


@workload()
def async_context(who: Any, count: int, clock: Clock) -> None:
    """`async_context`"""

    async def enter_and_leave() -> None:
        async with who.async_context(_Manager()):
            pass

    who.run(_repeat_async(enter_and_leave, count, clock))


@workload()
def sync_context(who: Any, count: int, clock: Clock) -> None:
    """`sync_context` below a task"""

    def enter_and_leave() -> None:
        with who.sync_context(_Manager()):
            pass

    who.run(who.below_task(partial(_repeat, enter_and_leave, count, clock)), sleepy=True)


@workload(size=AT_ONCE)
def await_greenlet_at_once(who: Any, count: int, clock: Clock) -> None:
    """`await` a greenlet, 1,000 at once"""
    if isinstance(who, Gevent):
        gevent = who.gevent
        with clock:
            for _ in range(count // AT_ONCE):
                for greenlet in [gevent.spawn(f) for _ in range(AT_ONCE)]:
                    greenlet.get()
    else:
        who.run(_repeat_at_once(_greenlet_call(who), count, clock))


@workload(size=AT_ONCE)
def sync_to_async_at_once(who: Any, count: int, clock: Clock) -> None:
    """`sync_to_async`, 1,000 at once"""
    who.run(_sync_to_async(_repeat_at_once, who, count, clock))


@workload(size=AT_ONCE)
def beside_at_once(who: Any, count: int, clock: Clock) -> None:
    """a coroutine from a greenlet, `await_`, 1,000 at once"""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with clock:
            for _ in range(count // AT_ONCE):
                await who.beside(lambda: who.from_beside(c_sleep0(), loop), AT_ONCE)

    who.run(main(), sleepy=True)


@workload(size=TAKING_TURNS)
def suspended_step(who: Any, count: int, clock: Clock) -> None:
    """`gevent.sleep(0)` in a task, 10 take turns"""
    times = count // TAKING_TURNS

    def block() -> None:
        sleep = who.gevent.sleep
        for _ in range(times):
            sleep(0)

    async def step() -> None:
        block()

    async def main() -> None:
        with clock:
            await asyncio.gather(*[step() for _ in range(TAKING_TURNS)])

    if isinstance(who, Gevent):
        with clock:
            for greenlet in [who.gevent.spawn(block) for _ in range(TAKING_TURNS)]:
                greenlet.get()
    elif type(who) is Ours:
        who.run(main())
    else:
        raise Missing  # it would block the loop


# --- sleepers: each lets all of them wait at the same time, once ----------------------------------


@workload(size=SLEEPING, heavy=True)
def sleep_in_functions(who: Any, sleepers: Sleepers, clock: Clock) -> None:
    """`sync_to_async`, 10,000 calls sleep at once"""

    async def main() -> None:
        call = who.sync_to_async_in_parallel(lambda: who.sleep(sleepers.delay()))
        with clock:
            await asyncio.gather(*[call() for _ in range(sleepers.count)])

    who.run(main(), workers=who.threads_for(sleepers.count))


@workload(size=SLEEPING, heavy=True)
def sleep_in_coroutines(who: Any, sleepers: Sleepers, clock: Clock) -> None:
    """10,000 greenlets in `await_`, whose coroutines sleep at once"""

    async def nap() -> None:
        await asyncio.sleep(sleepers.delay())

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with clock:
            await who.beside(lambda: who.from_beside(nap(), loop), sleepers.count)

    who.run(main(), sleepy=True, workers=who.threads_for(sleepers.count))


@workload(size=SLEEPING, heavy=True)
def sleep_in_greenlets(who: Any, sleepers: Sleepers, clock: Clock) -> None:
    """`await` greenlets, 10,000 sleep at once"""

    def nap() -> None:
        who.sleep(sleepers.delay())

    async def main() -> None:
        with clock:
            await asyncio.gather(*[who.spawned(nap) for _ in range(sleepers.count)])

    if isinstance(who, Gevent):
        with clock:
            for greenlet in [who.gevent.spawn(nap) for _ in range(sleepers.count)]:
                greenlet.get()
    else:
        who.run(main(), workers=who.threads_for(sleepers.count))


def measure_sleeping(contestant: str, function: Callable[..., None], size: int) -> Measure:
    """Return what measures one of these three with so many sleepers."""
    who = BRIDGES[contestant]()
    quick = int(os.environ.get("BENCH_SLEEPERS", size))
    at_once = min(size, quick, who.most_sleepers)
    if at_once < size:
        why = "as with --quick" if at_once == quick else "each in a thread of its own"
        who.remark = f"only {at_once:,} at once, {why}"
    measure_once = measure_sleepers(at_once, partial(function, who))

    def measure(count: int, clock: Clock) -> None:
        clock.count = count // size * at_once
        measure_once(clock.count, clock)
        clock.remark = who.remark

    return measure


@contextlib.contextmanager
def _opened(contestant: str, name: str) -> Iterator[Measure]:
    function, size = WORKLOADS[name].function, WORKLOADS[name].size
    if WORKLOADS[name].heavy:
        yield measure_sleeping(contestant, function, size)
        return
    who = BRIDGES[contestant]()

    def measure(count: int, clock: Clock) -> None:
        function(who, count, clock)
        clock.remark = who.remark

    yield measure
    who.close()


GROUP = Group(
    title="Bridges between greenlets and coroutines",
    reading=(
        "How many times longer than this library's adapter the others take; 2.00 means that ours "
        "is twice as fast. greenletio and greenback have no gevent: what a function waits for "
        "has to be a coroutine. gevent alone is a greenlet for which no coroutine waits."
    ),
    base="ours",
    longer=True,
    contestants={
        "ours": Contestant(),
        "ours patched": Contestant(),
        "0.2.5": Contestant(python="peer"),
        "0.2.5 patched": Contestant(python="peer"),
        "native thread": Contestant(),
        "asgiref": Contestant(python="others"),
        "greenletio": Contestant(python="others"),
        "greenback": Contestant(python="others"),
        "eventlet": Contestant(python="others"),
        "gevent alone": Contestant(),
    },
    workloads=WORKLOADS,
    opened=_opened,
)
