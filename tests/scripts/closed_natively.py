"""Sockets that a task waits for and that are closed behind asyncio's back: closed_natively.py.

libev and libuv abort the process if they tell the kernel of a descriptor that is not there.
"""

import asyncio
import socket

import gevent

import asyncio_gevent

hub = gevent.get_hub()


def close_later(sock: socket.socket, rounds: int) -> None:
    """Close it after so many rounds of the hub's callbacks, before which it does not poll."""
    if rounds:
        hub.loop.run_callback(close_later, sock, rounds - 1)
    else:
        socket.close(sock.detach())  # not by the object: gevent's waits until the hub has polled


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return ours, theirs


async def before_the_first_poll() -> None:
    ours, theirs = pair()
    task = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(ours, 1))
    hub.loop.run_callback(close_later, ours, 5)
    await asyncio.sleep(0.02)
    task.cancel()
    theirs.close()


async def in_the_other_direction() -> None:
    loop = asyncio.get_running_loop()
    ours, theirs = pair()
    try:
        while True:
            ours.send(b"x" * 65536)
    except BlockingIOError:
        pass
    loop.add_writer(ours, print)
    task = asyncio.ensure_future(loop.sock_recv(ours, 1))
    await asyncio.sleep(0.02)
    loop.remove_writer(ours)
    close_later(ours, 0)
    await asyncio.sleep(0.02)
    task.cancel()
    theirs.close()


def before_the_loop_goes_on() -> None:
    loop = asyncio_gevent.new_event_loop()
    ours, theirs = pair()
    task = loop.create_task(loop.sock_recv(ours, 1))
    loop.run_until_complete(asyncio.sleep(0.01))
    gevent.sleep(0)
    hub.loop.run_callback(close_later, ours, 3)
    loop.run_until_complete(asyncio.sleep(0.01))
    task.cancel()
    loop.run_until_complete(asyncio.wait([task]))
    loop.close()
    theirs.close()


asyncio_gevent.run(before_the_first_poll())
print(1)
asyncio_gevent.run(in_the_other_direction())
print(2)
before_the_loop_goes_on()
print(3)
