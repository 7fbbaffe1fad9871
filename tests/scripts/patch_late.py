"""Patching after the import of asyncio, of this package, or the making of a policy or loop."""

import asyncio
import sys
import threading
import warnings

# Python 3.12 and later warn of a fork with threads, those of the hub's pool.
warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork")

order = sys.argv[1]

if order != "asyncio":
    import asyncio_gevent
if order == "policy":
    policy = asyncio_gevent.EventLoopPolicy()
    asyncio.set_event_loop_policy(policy)
if order == "loop":
    loop = asyncio_gevent.EventLoop()
    loop.run_until_complete(asyncio.sleep(0))

from gevent import monkey

monkey.patch_all()

import gevent

import asyncio_gevent


async def everything() -> int:
    import socket
    import time

    ours, theirs = socket.socketpair()
    with ours, theirs:

        async def answer() -> None:
            await asyncio.sleep(0.001)
            theirs.send(b"1")

        task = asyncio.create_task(answer())
        assert ours.recv(1) == b"1"
        await task
    time.sleep(0.001)
    assert await asyncio.to_thread(lambda: 1) == 1
    process = await asyncio.create_subprocess_exec("true")
    assert await process.wait() == 0
    return 1


if order == "loop":
    assert loop.run_until_complete(everything()) == 1
    loop.close()
if order == "policy":
    results = []

    def run() -> None:
        results.append(asyncio.run(everything()))

    threads = [threading.Thread(target=run) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [1] * 5, results
greenlets = [gevent.spawn(asyncio_gevent.run, everything()) for _ in range(5)]
gevent.joinall(greenlets, raise_error=True)
print("ok")
