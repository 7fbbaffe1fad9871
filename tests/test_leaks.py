"""Nothing is left: after one loop, after ten thousand, after suspensions, errors and cancels."""

from __future__ import annotations

import asyncio
import gc
import resource
import socket
import weakref
from typing import Any

import gevent
import gevent.event
import greenlet
import pytest
from support import run_script, until
from test_suspension import in_raw_greenlet

import asyncio_gevent
from asyncio_gevent import (
    EventLoop,
    _portals,
    async_context,
    await_,
    greenlet_to_future,
    sync_context,
    sync_to_async,
)
from asyncio_gevent._runners import Runner


@pytest.mark.timeout(120)
@pytest.mark.soft_limit(100)
def test_ten_thousand_loops_leave_nothing() -> None:
    run_script("many_loops").check("ok")


def test_a_closed_loop_is_forgotten_without_the_garbage_collector() -> None:
    """No cycle keeps it, so that its end does not wait for a collection."""

    def use() -> weakref.ref[Any]:
        loop = EventLoop()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        return weakref.ref(loop)

    use()
    gc.collect()
    gc.disable()
    try:
        reference = use()
        gevent.sleep(0)
        # The asyncgen hooks are methods of the loop that it keeps itself: one cycle is granted.
        gc.collect()
        assert reference() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("what", ["nothing", "suspension", "raw greenlet", "reader", "cancel"])
def test_what_a_loop_has_run_is_forgotten(what: str) -> None:
    class Payload:
        pass

    async def use(payload: Any) -> None:
        if what == "suspension":
            gevent.sleep(0)
        elif what == "raw greenlet":
            await in_raw_greenlet(lambda: (payload, gevent.sleep(0)))
        elif what == "reader":
            ours, theirs = socket.socketpair()
            seen: list[Any] = []
            loop = asyncio.get_running_loop()

            def readable() -> None:
                ours.recv(1)
                gevent.sleep(0)
                seen.append(payload)

            loop.add_reader(ours, readable)
            theirs.send(b"1")
            await until(lambda: seen)
            loop.remove_reader(ours)
            ours.close()
            theirs.close()
        elif what == "cancel":

            async def block() -> None:
                assert payload
                gevent.event.Event().wait()

            task = asyncio.create_task(block())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    async def main() -> None:
        payload = Payload()
        reference = weakref.ref(payload)
        await asyncio.create_task(use(payload))
        del payload
        await asyncio.sleep(0.001)
        gc.collect()
        assert reference() is None

    asyncio_gevent.run(main())


def test_a_loop_that_runs_on_forgets_its_tasks_at_once() -> None:
    """Not only with the next ones that take their place in a parked runner."""

    class Payload:
        pass

    async def use(payload: Any) -> None:
        await asyncio.sleep(0)

    async def main() -> None:
        payload = Payload()
        reference = weakref.ref(payload)
        task = asyncio.create_task(use(payload))
        await task
        del task, payload
        await asyncio.sleep(0.001)
        assert reference() is None

    asyncio_gevent.run(main())


def test_runners_of_a_loop_end_with_it() -> None:
    before = _living()

    async def main() -> None:
        async def block() -> None:
            gevent.sleep(0.001)

        await asyncio.gather(*(block() for _ in range(100)))
        assert len(_living() - before) > 1

    asyncio_gevent.run(main())
    gevent.sleep(0)
    assert _living() - before == set()


def _living() -> set[int]:
    return {id(each) for each in gc.get_objects() if isinstance(each, Runner) and not each.dead}


def test_exceptions_that_are_kept_keep_no_runner() -> None:
    """Their tracebacks end in the frame of the batch."""
    loop = EventLoop()
    kept: list[Any] = []
    greenlets = set()
    loop.set_exception_handler(lambda loop, context: kept.append(context["exception"]))

    async def main() -> None:
        for number in range(10):
            loop.call_soon(lambda: 1 / 0)
            await asyncio.sleep(0.001)  # a callback that is no task's, and a batch of its own
            assert len(kept) == number + 1
            greenlets.add(id(greenlet.getcurrent()))

    loop.run_until_complete(main())
    loop.close()
    assert len(greenlets) == 1


def test_an_unclosed_loop_warns_and_leaves_nothing() -> None:
    loop = EventLoop()
    loop.run_until_complete(asyncio.sleep(0))
    reference = weakref.ref(loop)
    with pytest.warns(ResourceWarning, match="unclosed event loop"):
        del loop
        gc.collect()
        gevent.sleep(0)
        gc.collect()
    assert reference() is None


def test_an_unclosed_loop_that_never_ran_warns() -> None:
    with pytest.warns(ResourceWarning, match="unclosed event loop"):
        EventLoop()
        gc.collect()


def test_memory_does_not_grow_with_suspended_steps() -> None:
    async def block() -> None:
        gevent.sleep(0)

    async def main(count: int) -> None:
        for _ in range(count):
            await asyncio.gather(*(block() for _ in range(20)))

    async def measured() -> None:
        await main(50)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        await main(200)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # In KiB: a leak of 1 KiB a step would be 4 MiB.
        assert after - before < 3000

    asyncio_gevent.run(measured())


# --- calls over the bridge ----------------------------------------------------------------------


@pytest.mark.parametrize("what", ["await_", "sync_to_async", "greenlet"])
def test_memory_of_ten_thousand_waiting_calls(what: str) -> None:
    """At most 12 KiB each, greenlet and task included."""
    finished = run_script("adapter_memory", what, "10000")
    assert finished.status == 0, finished
    assert int(finished.out) <= 12 * 1024


async def give(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


def call_from_greenlets(count: int) -> None:
    for n in range(count):
        assert await_(give(n)) == n


def call_from_tasks(count: int) -> None:
    def below(value: Any) -> Any:
        return await_(give(value))

    async def main() -> None:
        for n in range(count // 4):
            assert await sync_to_async(below)(n) == n
            assert await greenlet_to_future(gevent.spawn(int, n)) == n
            assert below(n) == n
            with sync_context(Manager()):
                pass
            async with async_context(Manager()):
                pass

    asyncio_gevent.run(main())


def call_with_errors(count: int) -> None:
    def fail() -> None:
        raise KeyError

    async def fail_async() -> None:
        raise KeyError

    async def main() -> None:
        for _ in range(count // 4):
            with pytest.raises(KeyError):
                await sync_to_async(fail)()
            task = asyncio.ensure_future(sync_to_async(gevent.event.Event().wait)())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio_gevent.run(main())
    for _ in range(count // 4):
        with pytest.raises(KeyError):
            await_(fail_async())
        greenlet = gevent.spawn(await_, asyncio.sleep(3600))
        gevent.sleep(0)
        greenlet.kill()


class Manager:
    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        pass


@pytest.mark.soft_limit(50)
@pytest.mark.parametrize("calls", [call_from_greenlets, call_from_tasks, call_with_errors])
def test_fifty_thousand_calls_leave_nothing(calls: Any) -> None:
    """No object more than after some hundred."""

    def counted(count: int) -> int:
        calls(count)
        asyncio_gevent.shutdown()
        gevent.sleep(0)
        gc.collect()
        return len(gc.get_objects())

    total = 50_000 if calls is not call_with_errors else 8_000
    counted(400)
    before = counted(400)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    after = counted(total)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert after - before < 200
    assert grown < 4096  # KiB, of more than 50,000 calls
    assert _portals._pool.workers == [] or len(_portals._pool.workers) <= _portals.MAX_WORKERS
