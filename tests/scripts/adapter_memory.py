"""How much memory calls over the bridge take that wait at the same time.

Arguments: what waits, and how many of them. Prints bytes for each, all that it needs included.
"""

import asyncio
import gc
import sys

import gevent
import gevent.event
from memory import anonymous_memory

import asyncio_gevent
from asyncio_gevent import await_, greenlet_to_future, sync_to_async

what, count = sys.argv[1], int(sys.argv[2])


async def new_event():
    return asyncio.Event()


def waiting_greenlets(count):
    """Start greenlets that wait for a coroutine."""
    event = await_(new_event())
    waiting = 0

    async def wait():
        nonlocal waiting
        waiting += 1
        await event.wait()

    greenlets = [gevent.spawn(lambda: await_(wait())) for _ in range(count)]
    while waiting < count:
        gevent.sleep(0)
    return event.set, lambda: gevent.joinall(greenlets, raise_error=True)


async def waiting_tasks(count, call):
    """Start tasks that wait for a greenlet."""
    event = gevent.event.Event()
    waiting = 0

    def wait():
        nonlocal waiting
        waiting += 1
        event.wait()

    tasks = [asyncio.ensure_future(call(wait)) for _ in range(count)]
    while waiting < count:
        await asyncio.sleep(0)
    return event.set, tasks


async def call_in_greenlet(function):
    await sync_to_async(function)()


async def await_greenlet(function):
    await greenlet_to_future(gevent.spawn(function))


async def measure_tasks(call):
    for number in (100, count):  # at first what is made once
        gc.collect()
        before = anonymous_memory()
        release, tasks = await waiting_tasks(number, call)
        gc.collect()
        used = anonymous_memory() - before
        release()
        await asyncio.gather(*tasks)
    return used


def measure_greenlets():
    for number in (100, count):
        gc.collect()
        before = anonymous_memory()
        release, join = waiting_greenlets(number)
        gc.collect()
        used = anonymous_memory() - before
        release()
        join()
    return used


if what == "await_":
    used = measure_greenlets()
else:
    used = asyncio_gevent.run(
        measure_tasks({"sync_to_async": call_in_greenlet, "greenlet": await_greenlet}[what])
    )
print(used // count)
