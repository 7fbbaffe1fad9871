"""What nest_asyncio promises: nested_run.py. Its own way does not work here, and is not needed."""

import asyncio
import warnings

import gevent

# nest_asyncio uses what is deprecated.
warnings.simplefilter("ignore", DeprecationWarning)

import nest_asyncio

import asyncio_gevent


async def answer(number: int) -> int:
    await asyncio.sleep(0.001)
    gevent.sleep(0.001)
    return number


def sync_face(depth: int) -> int:
    """A function that is not async, below a coroutine, over one."""
    return asyncio.run(nested(depth))


async def nested(depth: int) -> int:
    if depth == 0:
        return await answer(0)
    return 1 + sync_face(depth - 1)


async def main() -> None:
    nest_asyncio.apply()
    loop = asyncio.get_running_loop()
    assert asyncio.run(answer(1)) == loop.run_until_complete(answer(1)) == 1
    assert await asyncio.gather(*(nested(depth) for depth in range(6))) == [*range(6)]
    try:
        loop.run_until_complete(asyncio.wait_for(asyncio.sleep(10), 0.001))
    except asyncio.TimeoutError:
        pass
    # A cancel of the step that waits ends what it waits for.
    inner = loop.create_task(asyncio.sleep(10))

    async def wait() -> None:
        loop.run_until_complete(inner)

    outer = loop.create_task(wait())
    await asyncio.sleep(0.001)
    outer.cancel()
    try:
        await outer
    except asyncio.CancelledError:
        pass
    await asyncio.sleep(0)
    assert inner.cancelled()


async def later() -> int:
    return await answer(2)


asyncio_gevent.run(main())
assert asyncio_gevent.run(later()) == 2
print("ok")
