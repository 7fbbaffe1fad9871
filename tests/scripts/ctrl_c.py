"""Ends by Ctrl-C: ctrl_c.py HOW LIBRARY. Says "ready" when the signal may come."""

import asyncio
import signal
import sys
import time

import gevent
import gevent.event

import asyncio_gevent

how, library = sys.argv[1:]
run = {"asyncio": asyncio.run, "asyncio_gevent": asyncio_gevent.run}[library]


class NextPass:
    """``asyncio.sleep(0)``, of which Ctrl-C may leave no coroutine behind that nobody awaited."""

    def __await__(self):
        yield


next_pass = NextPass()


async def clean_up() -> None:
    task = asyncio.current_task()
    try:
        if how.startswith("blocks"):
            gevent.spawn(print, "ready", flush=True)  # when it does
        else:
            print("ready", flush=True)
        if how == "blocks":
            gevent.event.Event().wait()
        elif how == "blocks in a raw greenlet":
            import greenlet

            greenlet.greenlet(lambda: gevent.event.Event().wait()).switch()
        elif how == "insists":
            # Nothing here hears of the first one, which cancels the task.
            while not task.cancelling():
                time.monotonic()
            print("asked", flush=True)
            while True:
                time.monotonic()
        elif how.startswith("busy"):
            while True:
                await next_pass
        else:
            await asyncio.sleep(3600)
    finally:
        print("cleans up", flush=True)
        await asyncio.sleep(0)
        if library == "asyncio_gevent":
            gevent.sleep(0)
        print("cleaned up", flush=True)


async def main() -> None:
    if how == "another task":
        task = asyncio.create_task(clean_up())
        await asyncio.sleep(3600)
        await task
    elif how == "handler":
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        loop.add_signal_handler(signal.SIGINT, task.cancel)
        await clean_up()
    elif how == "swallows":
        try:
            await clean_up()
        except asyncio.CancelledError:
            print("goes on", flush=True)
    else:
        await clean_up()


try:
    if how in ("greenlet", "busy greenlet"):
        # The main greenlet waits for the one that runs the event loop.
        running = gevent.spawn(run, main())
        try:
            running.get()
        finally:
            running.kill()
    else:
        run(main())
except BaseException as error:
    print(type(error).__name__, flush=True)
else:
    print("ended", flush=True)
