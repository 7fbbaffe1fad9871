"""Threads that run event loops with executors and threads of their own, and wait for each other.

Without patching they are native ones, each with a hub of its own.
"""

import asyncio
import random
import sys
import threading
import time

import gevent
from gevent.monkey import is_module_patched

choose = random.Random(1)
done = []


async def main():
    for _ in range(5):
        kind = choose.randrange(3)
        if kind == 0:
            await asyncio.sleep(choose.random() * 0.002)
        elif kind == 1:
            await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.001)
        else:
            threading.Thread(target=time.sleep, args=(0.001,)).start()
    done.append(1)


def run():
    time.sleep(choose.random() * 0.003)
    # Not in greenlets of one OS thread: uvloops restore each other's descriptor for signals, which
    # must be in the order in which they began.
    if sys.argv[1] == "uvloop" and not is_module_patched("threading") and choose.random() < 0.5:
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())


for _ in range(25):
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    run()
    for thread in threads:
        thread.join()
assert len(done) == 125
gevent.sleep(0)
print("ok")
