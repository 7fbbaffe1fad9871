"""The main greenlet ends while an event loop runs in another one, with a suspended step."""

import asyncio

import gevent
import gevent.event

import asyncio_gevent


async def main() -> None:
    async def blocked() -> None:
        gevent.event.Event().wait()

    task = asyncio.create_task(blocked())
    await asyncio.sleep(3600)
    await task


running = gevent.spawn(asyncio_gevent.run, main())
gevent.sleep(0.01)
assert not running.ready()
print("end")
