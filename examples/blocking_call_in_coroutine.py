"""Coroutines call blocking code that gevent has made cooperative: only the calling task waits."""

from gevent import monkey

monkey.patch_all()

import asyncio
import time

import asyncio_gevent


def legacy_lookup(order: str) -> str:
    """Code from before asyncio. It could as well use requests or a pure Python database driver."""
    time.sleep(0.2)  # patched by gevent: it waits in the hub
    return f"{order}: in stock"


async def handle(order: str) -> str:
    # No await and no thread: this task is suspended here until the answer is there; others go on.
    return legacy_lookup(order)


async def count_turns() -> int:
    """Count the turns that this task gets while the others are suspended in blocking calls."""
    turns = 0
    try:
        while True:
            await asyncio.sleep(0.01)
            turns += 1
    except asyncio.CancelledError:
        return turns


async def patient() -> None:
    try:
        time.sleep(3600)
    finally:
        print("the blocking call was cut short")


async def main() -> None:
    counter = asyncio.create_task(count_turns())
    started = time.perf_counter()
    answers = await asyncio.gather(*(handle(f"order {n}") for n in range(1, 21)))
    took = time.perf_counter() - started
    print(answers[0], "...", answers[-1])
    print("20 waits of 0.2 s took less than 1 s:", took < 1)

    counter.cancel()
    print("another task had its turns meanwhile:", await counter >= 5)

    # Cancellation and time limits reach into the blocking call, too.
    try:
        await asyncio.wait_for(patient(), timeout=0.1)
    except asyncio.TimeoutError:
        print("time is up")


asyncio_gevent.run(main())

# Expected output:
#
#     order 1: in stock ... order 20: in stock
#     20 waits of 0.2 s took less than 1 s: True
#     another task had its turns meanwhile: True
#     the blocking call was cut short
#     time is up
