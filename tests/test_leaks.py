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
from asyncio_gevent import EventLoop
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
