"""Patched threads, each with an event loop of its own. All of them are greenlets of one OS thread.

Shows the three ways to a loop: `asyncio_gevent.run`, `loop_factory` and, for code that is not yours
and calls `asyncio.run`, the policy.
"""

from gevent import monkey

monkey.patch_all()

import asyncio
import sys
import threading
import warnings

import asyncio_gevent

results: list[str] = []
os_threads: set[int] = set()


async def work(name: str) -> None:
    os_threads.add(threading.get_native_id())
    await asyncio.sleep(0.1)
    loop = asyncio.get_running_loop()
    results.append(f"{name}: {type(loop).__module__.partition('.')[0]}.{type(loop).__name__}")


def with_run() -> None:
    """The way for code of your own."""
    asyncio_gevent.run(work("run"))


def with_loop_factory() -> None:
    """The standard library's way, for more than one call on the same loop."""
    if sys.version_info >= (3, 11):
        with asyncio.Runner(loop_factory=asyncio_gevent.EventLoop) as runner:
            runner.run(work("loop_factory"))
    else:  # asyncio.Runner came with Python 3.11
        loop = asyncio_gevent.new_event_loop()
        try:
            loop.run_until_complete(work("loop_factory"))
        finally:
            loop.close()


def with_policy() -> None:
    """What a library does that knows nothing but asyncio: the policy below gives it our loop."""
    asyncio.run(work("policy"))


with warnings.catch_warnings():
    # Python 3.14 deprecates policies, and 3.16 will have none. Until then they are the only way
    # into code that calls asyncio.run() or asyncio.new_event_loop() itself.
    warnings.simplefilter("ignore", DeprecationWarning)
    asyncio.set_event_loop_policy(asyncio_gevent.EventLoopPolicy())

threads = [
    threading.Thread(target=target)
    for target in (with_run, with_loop_factory, with_policy)
    for _ in range(10)
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()

print(len(results), "loops ran in", len(os_threads), "OS thread")
print(*sorted(set(results)), sep="\n")

# Expected output:
#
#     30 loops ran in 1 OS thread
#     loop_factory: asyncio_gevent.EventLoop
#     policy: asyncio_gevent.EventLoop
#     run: asyncio_gevent.EventLoop
