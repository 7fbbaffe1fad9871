"""A handler that Python calls for a signal wakes the hub, also after an inner event loop."""

import asyncio
import os
import signal
import sys
import time

import gevent
import gevent.event
from gevent.monkey import get_original

from asyncio_gevent import spawn

HOST = os.environ.get("ASYNCIO_GEVENT_HOST")
event = gevent.event.Event()
native_sleep = get_original("time", "sleep")


def use_inner_loop():
    async def use_signals():
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, int)
        loop.remove_signal_handler(signal.SIGUSR1)

    loop = asyncio.SelectorEventLoop()
    loop.run_until_complete(use_signals())
    loop.close()


def kill():
    native_sleep(0.02)  # it polls by then; if not, it is easier
    os.kill(os.getpid(), signal.SIGUSR2)


def wait():
    get_original("_thread", "start_new_thread")(kill, ())
    began = time.monotonic()
    assert event.wait(20)
    assert time.monotonic() - began < 10


async def main():
    await spawn(use_inner_loop)
    await spawn(wait)


signal.signal(signal.SIGUSR2, lambda *_: event.set())
if sys.argv[1] == "private":
    gevent.spawn(use_inner_loop).get()
    wait()
elif HOST == "uvloop":
    import uvloop

    uvloop.run(main())
else:
    asyncio.run(main())
print("ok")
