"""How the ambient loop ends with its process. Prints what its tasks do at the end.

The argument says how the process ends.
"""

import asyncio
import faulthandler
import os
import signal
import sys
import time

import gevent

import asyncio_gevent
from asyncio_gevent import await_


async def generate():
    try:
        yield 1
    finally:
        await asyncio.sleep(0)
        print("generator closed")


async def background(begun):
    iterator = generate()
    await iterator.__anext__()
    begun.set()
    try:
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(0)
        print("task cleaned up")


def in_executor():
    time.sleep(0.05)
    sys.stdout.write("thread done\n")  # in one piece


async def start():
    loop = asyncio.get_running_loop()
    begun = asyncio.Event()
    loop.task = asyncio.ensure_future(background(begun))
    await begun.wait()
    loop.run_in_executor(None, in_executor)
    return loop


def view():
    return await_(start())


how = sys.argv[1]

if how == "no leftovers":
    # Nobody waits for it: it keeps neither gevent.wait() nor the process.
    await_(asyncio.sleep(0))
    gevent.wait()
    try:
        gevent.event.Event().wait()
    except gevent.exceptions.LoopExit:
        print("LoopExit")
    sys.exit()

loop = view() if how == "main greenlet" else gevent.spawn(view).get()

if how == "exception":
    sys.excepthook = lambda kind, *rest: print("uncaught", kind.__name__)
    raise ValueError
elif how == "sys.exit":
    sys.exit(3)
elif how == "sys.exit in a greenlet":
    gevent.spawn(sys.exit, 3).join()
    gevent.sleep(3600)
elif how == "sys.exit in a task":

    async def leave():
        sys.exit(3)

    asyncio_gevent.spawn(await_, leave())
    gevent.sleep(3600)
elif how == "sys.exit in a background task":

    async def leave():
        async def task():
            sys.exit(3)

        loop.leaving = asyncio.ensure_future(task())

    await_(leave())
    gevent.sleep(3600)
elif how == "sigterm":
    os.kill(os.getpid(), signal.SIGTERM)
    gevent.sleep(3600)
elif how == "sigterm of a busy process":
    os.kill(os.getpid(), signal.SIGTERM)
    while True:
        pass
elif how == "sigterm in a greenlet":
    gevent.spawn(os.kill, os.getpid(), signal.SIGTERM)
    gevent.sleep(3600)
elif how == "sigterm in a task":

    async def terminate():
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000000):
            pass

    await_(terminate())
    gevent.sleep(3600)
elif how == "own handler of sigterm":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
    os.kill(os.getpid(), signal.SIGTERM)
    gevent.sleep(3600)
elif how == "ctrl-c":
    sys.excepthook = lambda kind, *rest: print("uncaught", kind.__name__)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGINT)
    gevent.sleep(3600)
elif how == "shutdown":
    asyncio_gevent.shutdown()
    assert loop.is_closed()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    print("shut down")
    asyncio_gevent.shutdown()
    assert await_(asyncio.sleep(0, 5)) == 5
elif how == "killall":
    # What some programs do in the end.
    import gc

    gevent.killall([each for each in gc.get_objects() if isinstance(each, gevent.Greenlet)])
    assert loop.is_closed()
    assert await_(asyncio.sleep(0, 5)) == 5
elif how == "fork":
    # Its thread is not there in the child, which would wait for it when it ends.
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        assert not hasattr(await_(start()), "leaving")
        sys.exit()
    gevent.os.waitpid(pid, 0) if hasattr(gevent.os, "waitpid") else os.waitpid(pid, 0)
    print("child ended")
elif how == "fork in a view":

    def view_that_forks():
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            try:
                await_(asyncio.sleep(0.01))
                print("child", await_(asyncio.sleep(0, 7)))
                sys.stdout.flush()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

    gevent.spawn(view_that_forks).get()
elif how == "clean-up that calls":

    async def clean_up():
        try:
            await asyncio.sleep(3600)
        finally:
            print("sync in async:", asyncio_gevent.async_to_sync(answer)())
            print("greenlet:", await asyncio_gevent.spawn(view_of_answer))

    async def answer():
        await asyncio.sleep(0)
        return 42

    def view_of_answer():
        return await_(answer())

    async def begin():
        loop.more = asyncio.ensure_future(clean_up())
        await asyncio.sleep(0)

    await_(begin())
elif how == "waiting greenlet":
    waiting = gevent.spawn(lambda: await_(asyncio.sleep(3600)))
    waiting.link(lambda greenlet: print("waiting greenlet:", type(greenlet.value).__name__))
    gevent.sleep(0)
elif how == "shutdown under way":
    gevent.spawn(asyncio_gevent.shutdown)
    gevent.sleep(0)
elif how == "shutdown in a clean-up":

    async def clean_up_and_shut_down():
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio_gevent.sync_to_async(asyncio_gevent.shutdown)()
            sys.stdout.write("shut down\n")

    async def begin():
        loop.more = asyncio.ensure_future(clean_up_and_shut_down())
        await asyncio.sleep(0)

    await_(begin())
elif how == "sigterm in a block":

    class Manager:
        async def __aenter__(self):
            pass

        async def __aexit__(self, kind, *_):
            sys.stdout.write(f"left by {kind.__name__}\n")

    with asyncio_gevent.sync_context(Manager()):
        gevent.spawn(os.kill, os.getpid(), signal.SIGTERM)
        await_(asyncio.sleep(3600))
elif how == "greenlet that tries for ever":

    def try_for_ever():
        while True:
            try:
                await_(asyncio.sleep(3600))
            except asyncio.CancelledError:
                sys.stdout.write("cancelled\n")

    asyncio_gevent._ambient.CLEAN_UP_SECONDS = 0.1
    gevent.spawn(try_for_ever)
    gevent.sleep(0)
elif how == "clean-up of a greenlet":

    async def clean_up_slowly():
        await asyncio.sleep(0.01)
        sys.stdout.write("greenlet cleaned up\n")

    def greenlet():
        try:
            await_(asyncio.sleep(3600))
        finally:
            await_(clean_up_slowly())

    gevent.spawn(greenlet)
    gevent.sleep(0)
elif how not in ("end", "main greenlet"):
    raise SystemExit(f"unknown: {how}")
