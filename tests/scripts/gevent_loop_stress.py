"""Greenlets and coroutines that do everything at random, for some rounds, and all of it ends.

    GEVENT_LOOP=asyncio_gevent.gevent_loop.GeventLoop \\
        python tests/scripts/gevent_loop_stress.py (private|attached) SEED ROUNDS [inner]

With ``inner`` greenlets run event loops of their own as well.
"""

import asyncio
import os
import random
import sys
import traceback

import gevent
import gevent.event
import gevent.socket
import gevent.subprocess
from gevent.monkey import get_original, is_module_patched

from asyncio_gevent import await_, green, spawn, sync_to_async

place, seed, rounds, *options = sys.argv[1:]
choose = random.Random(int(seed))
uses_uvloop = os.environ.get("ASYNCIO_GEVENT_HOST") == "uvloop"
native_sleep = get_original("time", "sleep")
start_native_thread = get_original("_thread", "start_new_thread")
count = 0
depth = 0


def moment():
    return choose.random() * 0.003


def run(coroutine, with_uvloop):
    if with_uvloop:
        import uvloop

        return uvloop.run(coroutine)
    return asyncio.run(coroutine)


# --- what greenlets do ---------------------------------------------------------------------------


def sleep():
    gevent.sleep(moment())


def switch():
    for _ in range(5):
        gevent.sleep(0)


def wait_for_event():
    event = gevent.event.Event()
    gevent.spawn_later(moment(), event.set)
    assert event.wait(20)


def use_sockets():
    one, other = gevent.socket.socketpair()
    reader = gevent.spawn(one.recv, 1)
    gevent.sleep(choose.choice([0, 0.001]))
    other.send(b"x")
    assert reader.get(timeout=20) == b"x"
    one.close()
    other.close()


def hear_of_thread():
    watcher = gevent.get_hub().loop.async_()
    event = gevent.event.Event()
    watcher.start(event.set)
    delay = moment()

    def send():
        native_sleep(delay)
        watcher.send()

    start_native_thread(send, ())
    assert event.wait(20)
    watcher.close()


def use_threadpool():
    assert gevent.get_hub().threadpool.apply(int) == 0


def time_out():
    with gevent.Timeout(0.001, False):
        gevent.event.Event().wait()


def kill():
    victim = gevent.spawn(gevent.sleep, 100)
    gevent.sleep(0)
    victim.kill()


def use_async_code():
    if depth:
        return  # of which event loop would be a matter of chance
    try:
        assert await_(asyncio.sleep(moment(), 7)) == 7
    except RuntimeError as error:
        if "closed before" not in str(error):
            raise


def run_child():
    assert gevent.subprocess.call(["true"]) == 0


def run_inner_loop():
    global depth
    if depth < 2:
        depth += 1
        # See gevent_loop_stress's neighbour, loops_in_threads, for why not uvloop.
        with_uvloop = not (uses_uvloop and is_module_patched("threading"))
        try:
            run(work_in_loop(3), with_uvloop and choose.random() < 0.5)
        finally:
            depth -= 1


BLOCKING = [
    sleep, switch, wait_for_event, use_sockets, hear_of_thread, use_threadpool, time_out, kill,
    use_async_code,
]  # fmt: skip
IN_GREENLETS = [*BLOCKING * 3, run_child]
if "inner" in options:
    IN_GREENLETS.append(run_inner_loop)


def work_in_greenlet(number):
    global count
    for _ in range(number):
        choose.choice(IN_GREENLETS)()
        count += 1


# --- what coroutines do --------------------------------------------------------------------------


async def sleep_async():
    await asyncio.sleep(moment())


async def call_function():
    await sync_to_async(work_in_greenlet)(2)


async def wait_for_greenlet():
    await spawn(work_in_greenlet, 2)


@green
async def block():
    choose.choice(BLOCKING[:-1])()
    await asyncio.sleep(0)
    choose.choice(BLOCKING[:-1])()


async def use_streams():
    async def answer(reader, writer):
        writer.write(await reader.read(10))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    writer.write(b"text")
    assert await reader.read(10) == b"text"
    writer.close()
    server.close()


async def cancel():
    task = asyncio.ensure_future(sync_to_async(gevent.sleep)(100))
    await asyncio.sleep(0.001)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        pass


async def use_executor():
    await asyncio.get_running_loop().run_in_executor(None, int)


async def run_child_async():
    if not depth:  # before Python 3.12 asyncio watches children in the main thread's loop only
        process = await asyncio.create_subprocess_exec("true")
        assert await process.wait() == 0


IN_COROUTINES = [
    *[sleep_async, call_function, wait_for_greenlet, block, use_streams, cancel, use_executor] * 3,
    run_child_async,
]


async def work_in_coroutine(number):
    global count
    for _ in range(number):
        await choose.choice(IN_COROUTINES)()
        count += 1


async def work_in_loop(number):
    await asyncio.wait_for(asyncio.gather(*[work_in_coroutine(number) for _ in range(3)]), 20)


# --- the rounds ----------------------------------------------------------------------------------

for _ in range(int(rounds)):
    greenlets = [gevent.spawn(work_in_greenlet, 5) for _ in range(5)]
    if place == "attached":
        run(work_in_loop(4), uses_uvloop)
    gevent.joinall(greenlets, raise_error=True, timeout=20)
    for greenlet in greenlets:
        if not greenlet.dead:
            traceback.print_stack(greenlet.gr_frame)
    assert all(greenlet.dead for greenlet in greenlets), gevent.get_hub().loop
assert count
print("ok")
