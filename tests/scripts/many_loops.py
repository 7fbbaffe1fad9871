"""Ten thousand loops are made, run and closed, in various ways; nothing of them is left."""

import asyncio
import gc
import os
import resource

import gevent
import greenlet

import asyncio_gevent


async def plain() -> None:
    await asyncio.sleep(0)


async def suspended() -> None:
    gevent.sleep(0)
    await asyncio.sleep(0)


async def left_behind() -> None:
    async def block() -> None:
        gevent.sleep(3600)

    task = asyncio.create_task(block())
    await asyncio.sleep(0)
    del task


def run_by_hand() -> None:
    loop = asyncio_gevent.EventLoop()
    loop.call_later(3600, int)
    loop.run_until_complete(suspended())
    loop.close()


def use(count: int) -> None:
    for number in range(count):
        kind = number % 4
        if kind == 0:
            asyncio_gevent.run(plain())
        elif kind == 1:
            asyncio_gevent.run(suspended())
        elif kind == 2:
            run_by_hand()
        else:
            asyncio_gevent.run(left_behind())
        if number % 100 == 0:
            gevent.joinall([gevent.spawn(asyncio_gevent.run, suspended()) for _ in range(3)])


def counted() -> tuple[dict[str, int], int]:
    gevent.sleep(0.001)
    gc.collect()
    objects = gc.get_objects()
    loop = gevent.get_hub().loop
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "greenlets": sum(isinstance(each, greenlet.greenlet) for each in objects),
        "loops": sum(isinstance(each, asyncio_gevent.EventLoop) for each in objects),
        "watchers": loop.activecnt if not hasattr(loop, "debug") else len(loop.debug()),
    }, len(objects)


use(400)
before, objects_before = counted()
memory_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
use(10_000)
after, objects_after = counted()
memory_after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert before == after, (before, after)
# Not to the last one: caches of the interpreter grow and shrink.
assert objects_after - objects_before < 1000, (objects_before, objects_after)
# In KiB. A loop that stayed would be some 5 KiB, a greenlet 10.
assert memory_after - memory_before < 5000, (memory_before, memory_after)
print("ok")
