"""Any number of event loops run at the same time in one OS thread, one per greenlet."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import gevent
import gevent.event
import gevent.pool
import pytest
from support import PATCHED, UNIT, in_greenlet, until

import asyncio_gevent
from asyncio_gevent import EventLoop


async def echo_server() -> tuple[Any, int]:
    async def serve(reader: Any, writer: Any) -> None:
        try:
            while data := await reader.read(1024):
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def ask(port: int, question: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(question)
    answer: bytes = await reader.readexactly(len(question))
    writer.close()
    await writer.wait_closed()
    return answer


def test_a_server_in_one_loop_and_clients_in_twenty_others() -> None:
    port = gevent.event.AsyncResult()
    finished = gevent.event.Event()

    async def serve() -> None:
        server, number = await echo_server()
        port.set(number)
        finished.wait()  # suspends this step; the server goes on
        server.close()
        await server.wait_closed()

    async def client(number: int) -> bytes:
        text = str(number).encode()
        for _ in range(3):
            assert await ask(port.get(), text) == text
        return text

    server = gevent.spawn(asyncio_gevent.run, serve())
    clients = [gevent.spawn(asyncio_gevent.run, client(number)) for number in range(20)]
    gevent.joinall(clients, raise_error=True)
    assert [each.value for each in clients] == [str(number).encode() for number in range(20)]
    finished.set()
    server.get()


def test_a_server_and_its_blocking_client_in_one_coroutine() -> None:
    """A gevent socket in a coroutine talks to a server of the very same loop."""
    import gevent.socket

    async def main() -> None:
        server, port = await echo_server()
        with gevent.socket.create_connection(("127.0.0.1", port)) as client:
            for number in range(5):
                text = str(number).encode()
                client.sendall(text)
                assert client.recv(10) == text
        await until(lambda: len(asyncio.all_tasks()) == 1)
        server.close()
        await server.wait_closed()

    asyncio_gevent.run(main())


def test_loops_that_come_and_go_do_not_disturb_one_that_stays() -> None:
    ended = False

    async def stay() -> int:
        rounds = 0
        while not ended:
            await asyncio.sleep(0.0005)
            rounds += 1
        return rounds

    async def come_and_go() -> None:
        await asyncio.sleep(0)
        gevent.sleep(0)

    staying = gevent.spawn(asyncio_gevent.run, stay())
    for _ in range(20):
        in_greenlet(lambda: asyncio_gevent.run(come_and_go()))
        asyncio_gevent.run(come_and_go())
    ended = True
    assert staying.get() > 0


def test_the_running_loop_of_each_is_its_own() -> None:
    """A step in between looks like this: hub, runner of one, hub, runner of another."""
    loops: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loops.append(loop)
        task = asyncio.current_task()
        for number in range(10):
            if number % 2:
                await asyncio.sleep(0)
            else:
                gevent.sleep(0)
            assert asyncio.get_running_loop() is loop
            assert asyncio.current_task() is task
            assert asyncio.all_tasks() == {task}

    greenlets = [gevent.spawn(asyncio_gevent.run, main()) for _ in range(10)]
    gevent.joinall(greenlets, raise_error=True)
    assert len(set(loops)) == 10


def test_a_loop_is_made_in_one_greenlet_run_in_another_closed_in_a_third() -> None:
    loop = in_greenlet(EventLoop)
    assert in_greenlet(lambda: loop.run_until_complete(asyncio.sleep(0, 1))) == 1
    assert loop.run_until_complete(asyncio.sleep(0, 2)) == 2
    in_greenlet(loop.close)
    assert loop.is_closed()


def test_one_loop_for_all_greenlets() -> None:
    """It runs in the background; greenlets give it coroutines and wait for the results."""
    loop = EventLoop()
    background = gevent.spawn(loop.run_forever)

    def call(coroutine: Any) -> Any:
        result = gevent.event.AsyncResult()

        def done(task: Any) -> None:
            if task.exception() is not None:
                result.set_exception(task.exception())
            else:
                result.set(task.result())

        loop.create_task(coroutine).add_done_callback(done)
        return result.get()

    async def double(number: int) -> int:
        await asyncio.sleep(0.001)
        return number * 2

    pool = gevent.pool.Pool(10)
    assert pool.map(lambda number: call(double(number)), range(50)) == [2 * n for n in range(50)]
    loop.stop()
    background.get()
    loop.close()


def test_run_coroutine_threadsafe_from_another_greenlet() -> None:
    loop = EventLoop()
    background = gevent.spawn(loop.run_forever)
    future = asyncio.run_coroutine_threadsafe(asyncio.sleep(0.001, "result"), loop)
    done = gevent.event.Event()
    future.add_done_callback(lambda future: done.set())
    done.wait()
    assert future.result() == "result"
    loop.call_soon_threadsafe(loop.stop)
    background.get()
    loop.close()


@pytest.mark.skipif(not PATCHED, reason="threads are greenlets only after patching")
def test_a_loop_in_each_of_two_hundred_patched_threads() -> None:
    results: list[int] = []

    async def main(number: int) -> None:
        assert await asyncio.to_thread(lambda: number) == number
        await asyncio.sleep(0.001)
        results.append(number)

    threads = [threading.Thread(target=lambda n=n: asyncio_gevent.run(main(n))) for n in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(200))


@pytest.mark.skipif(not PATCHED, reason="concurrent.futures is cooperative after patching")
def test_waiting_for_a_concurrent_future_of_another_loop() -> None:
    """The way of every sync wrapper around an async SDK, with one "thread" for its loop."""
    loop = EventLoop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def call(number: int) -> Any:
        future = asyncio.run_coroutine_threadsafe(asyncio.sleep(0.001, number), loop)
        return future.result(timeout=5)

    assert gevent.pool.Pool(10).map(call, range(30)) == list(range(30))
    # Also from within another loop's coroutine.

    async def main() -> Any:
        return call(1)

    assert asyncio_gevent.run(main()) == 1
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_sockets_between_two_loops_with_a_suspended_side() -> None:
    """While one side is suspended in gevent, its other connections are served."""
    ours, theirs = socket.socketpair()
    release = gevent.event.Event()

    async def blocked_and_serving() -> bytes:
        async def block() -> None:
            release.wait()

        blocked = asyncio.create_task(block())
        reader, writer = await asyncio.open_connection(sock=ours)
        question: bytes = await reader.readexactly(4)
        writer.write(question[::-1])
        await blocked
        writer.close()
        return question

    async def asking() -> bytes:
        reader, writer = await asyncio.open_connection(sock=theirs)
        writer.write(b"1234")
        answer: bytes = await reader.readexactly(4)
        release.set()
        assert await reader.read() == b""
        writer.close()
        return answer

    serving = gevent.spawn(asyncio_gevent.run, blocked_and_serving())
    assert asyncio_gevent.run(asking()) == b"4321"
    assert serving.get() == b"1234"


def test_a_timer_of_one_loop_is_not_late_for_the_work_of_others() -> None:
    delays: list[float] = []

    async def punctual() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(5):
            started = loop.time()
            await asyncio.sleep(UNIT / 4)
            delays.append(loop.time() - started - UNIT / 4)

    async def busy(ended: Any) -> None:
        while not ended():
            await asyncio.sleep(0)

    running = gevent.spawn(asyncio_gevent.run, punctual())
    others = [gevent.spawn(asyncio_gevent.run, busy(running.ready)) for _ in range(3)]
    gevent.joinall([running, *others], raise_error=True)
    # Far above what it takes, far below what a starved loop would show.
    assert sorted(delays)[2] < UNIT * 5


@pytest.mark.skipif(not PATCHED, reason="asyncio's own loop waits in the hub only after patching")
def test_asyncio_s_own_loop_beside_keeps_its_hooks() -> None:
    """One that begins to run while ours rests."""
    seen = []

    async def generate() -> Any:
        try:
            yield 1
        finally:
            seen.append("closed")

    async def own() -> None:
        generator = generate()
        await asyncio.sleep(UNIT)  # ours has its turns
        await generator.__anext__()
        generators.append(generator)

    generators: list[Any] = []
    event = gevent.event.Event()

    async def ours() -> None:
        while not event.is_set():
            await asyncio.sleep(UNIT / 10)

    running = gevent.spawn(asyncio_gevent.run, ours())
    gevent.sleep(UNIT)
    loop = asyncio.SelectorEventLoop()
    loop.run_until_complete(own())
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    event.set()
    running.get()
    assert seen == ["closed"]
