"""A gevent program runs asyncio code: two greenlets, each with an event loop of its own, in one
thread."""

import asyncio
import time

import gevent

import asyncio_gevent


async def fetch(name: str) -> str:
    await asyncio.sleep(0.5)  # stands for whatever a coroutine waits for: an HTTP response, a query
    return f"{name} is done"


started = time.perf_counter()
first = gevent.spawn(asyncio_gevent.run, fetch("first"))
second = gevent.spawn(asyncio_gevent.run, fetch("second"))
gevent.joinall([first, second], raise_error=True)

print(first.value)
print(second.value)
print("both at the same time:", time.perf_counter() - started < 0.9)

# Expected output:
#
#     first is done
#     second is done
#     both at the same time: True
