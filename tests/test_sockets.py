"""The ``sock_*`` methods: who waits, who is served, and what becomes of the descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import socket
import ssl
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from support import LIBUV, PATCHED, in_native_thread, run_script, until

import asyncio_gevent


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


async def polled() -> None:
    """Return when the hub has polled, and what it has found was dealt with."""
    loop = asyncio.get_running_loop()
    with pair() as (ours, theirs):
        ours.send(b"x")
        assert await loop.sock_recv(theirs, 1) == b"x"
        ours.send(b"x")
        done = loop.create_future()
        loop.add_reader(theirs, lambda: done.done() or done.set_result(None))
        await done
        loop.remove_reader(theirs)


async def waiting(sock: socket.socket) -> asyncio.Task[bytes]:
    """Return a task that waits in sock_recv()."""
    loop: Any = asyncio.get_running_loop()
    task = asyncio.create_task(loop.sock_recv(sock, 100))
    await until(lambda: sock.fileno() in loop._readers)
    return task


def watched(loop: Any) -> tuple[Any, ...]:
    return loop._readers, loop._writers, loop._read_waits, loop._write_waits


# --- waiting --------------------------------------------------------------------------------------


def test_who_waits_is_registered_and_nobody_else() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        with pair() as (ours, theirs):
            task = await waiting(ours)
            key = loop._selector.get_key(ours)
            assert key.events == 1 and key.data[1] is None
            theirs.send(b"1")
            assert await task == b"1"
            assert loop.remove_reader(ours) is False
            assert ours.fileno() not in loop._selector.get_map()

    asyncio_gevent.run(main())


def test_a_watcher_is_kept_until_the_next_poll_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who receives, sends and waits again before needs no other one."""
    started = 0

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()

        async def echo(sock: socket.socket) -> None:
            while data := await loop.sock_recv(sock, 100):
                await loop.sock_sendall(sock, data)

        with pair() as (ours, theirs):
            echoing = asyncio.create_task(echo(theirs))
            for number in range(50):
                await loop.sock_sendall(ours, b"%d" % number)
                assert await loop.sock_recv(ours, 100) == b"%d" % number
            count = started
            ours.close()
            await echoing
            await polled()
            assert watched(loop) == ({}, {}, {}, {})
            if not LIBUV:
                assert count == 2

    from asyncio_gevent._sockets import Wait

    start = Wait.start

    def count_start(self: Wait) -> None:
        nonlocal started
        started += 1
        start(self)

    monkeypatch.setattr(Wait, "start", count_start)
    asyncio_gevent.run(main())


def test_neither_a_socket_nor_its_number_is_kept() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        with pair() as (ours, theirs):
            theirs.send(b"1")
            copy = ours.dup()
            copy.setblocking(False)
            assert await loop.sock_recv(copy, 1) == b"1"
            task = await waiting(copy)
            theirs.send(b"2")
            assert await task == b"2"
            assert LIBUV or copy.fileno() in loop._read_waits
            reference = weakref.ref(copy)
            copy.close()
            del copy, task
            gc.collect()
            assert reference() is None
            # Another socket has the number, and is waited for before the hub has polled.
            other = ours.dup()
            other.setblocking(False)
            task = asyncio.create_task(loop.sock_recv(other, 1))
            await polled()
            theirs.send(b"3")
            assert await task == b"3"
            other.close()
            await polled()
            assert watched(loop) == ({}, {}, {}, {})

    asyncio_gevent.run(main())


def test_a_socket_that_another_file_was_put_in_place_of() -> None:
    async def main() -> None:
        with pair() as (ours, theirs), pair() as (other, peer):
            task = await waiting(ours)
            theirs.send(b"1")
            assert await task == b"1"
            await polled()
            os.dup2(other.fileno(), ours.fileno())
            task = await waiting(ours)
            await polled()
            peer.send(b"2")
            assert await task == b"2"

    asyncio_gevent.run(main())


def test_tasks_that_receive_from_the_same_socket_are_served_in_order() -> None:
    """With asyncio's loop all but the last one wait for ever."""

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        with pair() as (ours, theirs):
            tasks = [asyncio.create_task(loop.sock_recv(ours, 1)) for _ in range(4)]
            await polled()
            tasks.pop(1).cancel()
            theirs.send(b"123")
            assert await asyncio.gather(*tasks) == [b"1", b"2", b"3"]
            await polled()
            assert watched(loop) == ({}, {}, {}, {})

    asyncio_gevent.run(main())


def test_two_objects_for_the_same_socket() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        with pair() as (ours, theirs):
            again = socket.socket(fileno=ours.fileno())
            again.setblocking(False)
            tasks = [asyncio.create_task(loop.sock_recv(sock, 1)) for sock in (ours, again)]
            await polled()
            theirs.send(b"12")
            assert await asyncio.gather(*tasks) == [b"1", b"2"]
            again.detach()

    asyncio_gevent.run(main())


def test_what_was_received_is_never_lost_by_a_cancel() -> None:
    """asyncio receives in a callback, and drops it if the task was cancelled meanwhile."""

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        with pair() as (ours, theirs):
            for number in range(20):
                task = await waiting(ours)
                data = b"%d" % number
                theirs.send(data)
                # Woken, and cancelled before its step.
                await until(lambda: ours.fileno() not in loop._readers)
                task.cancel()
                try:
                    received = await task
                except asyncio.CancelledError:
                    received = await loop.sock_recv(ours, 100)
                assert received == data

    asyncio_gevent.run(main())


def test_a_cancelled_wait_ends() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        with pair() as (ours, _):
            task = await waiting(ours)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert ours.fileno() not in loop._selector.get_map()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(loop.sock_recv(ours, 1), 0.001)
            await polled()
            assert watched(loop) == ({}, {}, {}, {})

    asyncio_gevent.run(main())


@pytest.mark.parametrize("other", ["add_reader", "remove_reader"])
def test_another_reader_takes_the_place(other: str) -> None:
    """The task waits for ever then, as with asyncio, until it is cancelled."""

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        with pair() as (ours, theirs):
            task = await waiting(ours)
            heard: list[bytes] = []
            if other == "add_reader":
                loop.add_reader(ours, lambda: heard.append(ours.recv(1)))
                theirs.send(b"1")
                await until(lambda: heard)
            else:
                assert loop.remove_reader(ours)
                theirs.send(b"1")
            await polled()
            assert not task.done()
            task.cancel()
            await asyncio.wait([task])
            if other == "add_reader":  # it is none of the task's business
                theirs.send(b"2")
                await until(lambda: heard == [b"1", b"2"])
                assert loop.remove_reader(ours)
            else:
                assert await loop.sock_recv(ours, 1) == b"1"

    asyncio_gevent.run(main())


def test_a_socket_takes_the_place_of_a_reader() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        with pair() as (ours, theirs):
            loop.add_reader(ours, lambda: pytest.fail("removed"))
            task = asyncio.create_task(loop.sock_recv(ours, 1))
            await polled()
            theirs.send(b"1")
            assert await task == b"1"

    asyncio_gevent.run(main())


# --- closing --------------------------------------------------------------------------------------


def test_who_waits_for_a_closed_socket_hears_of_it_when_the_number_is_used_again() -> None:
    """With asyncio's loop it waits for ever."""

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        with pair() as (ours, theirs):
            copy = ours.dup()
            copy.setblocking(False)
            number = copy.fileno()
            task = await waiting(copy)
            await polled()
            copy.close()
            await polled()
            assert task.done() == PATCHED  # gevent tells the watchers at once
            other = ours.dup()
            other.setblocking(False)
            assert other.fileno() == number
            receiving = asyncio.create_task(loop.sock_recv(other, 1))
            with pytest.raises(OSError, match="Bad file descriptor"):
                await task
            theirs.send(b"1")
            assert await receiving == b"1"
            other.close()

    asyncio_gevent.run(main())


@pytest.mark.parametrize("is_read", [True, False], ids=["reader", "writer"])
def test_a_descriptor_closed_before_the_poll_while_the_other_direction_is_watched(
    is_read: bool,
) -> None:
    """libev would abort the process: it tells the kernel of both directions."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with theirs:
            number = ours.detach()
            add, add_other = loop.add_reader, loop.add_writer
            if not is_read:
                add, add_other = add_other, add
            add(number, int)
            await polled()
            add_other(number, int)
            os.close(number)
            await polled()
            loop.remove_reader(number)
            loop.remove_writer(number)

    asyncio_gevent.run(main())


def test_a_socket_closed_before_the_poll_after_a_cancel() -> None:
    async def main() -> None:
        with pair() as (ours, theirs):
            loop: Any = asyncio.get_running_loop()
            with contextlib.suppress(BlockingIOError):
                while True:
                    ours.send(bytes(1 << 16))
            reading = await waiting(ours)
            writing = asyncio.create_task(loop.sock_sendall(ours, b"1"))
            await polled()
            writing.cancel()
            await asyncio.wait([writing])
            ours.close()
            await polled()
            reading.cancel()
            await asyncio.wait([reading])
            theirs.close()
            await polled()
            assert watched(loop) == ({}, {}, {}, {})

    asyncio_gevent.run(main())


# --- the event loop stops, goes elsewhere, ends ---------------------------------------------------


@pytest.mark.parametrize("where", ["here", "in another thread"])
def test_a_wait_goes_on_when_the_event_loop_does(where: str) -> None:
    loop: Any = asyncio_gevent.EventLoop()
    with pair() as (ours, theirs):
        task = loop.run_until_complete(waiting(ours))
        assert loop._readers[ours.fileno()].watcher is None
        theirs.send(b"1")

        def go_on() -> bytes:
            return loop.run_until_complete(task)  # type: ignore[no-any-return]

        assert (in_native_thread(go_on) if where != "here" else go_on()) == b"1"
        loop.close()
    assert watched(loop) == ({}, {}, {}, {})


def test_a_wait_begins_while_the_event_loop_stands_still() -> None:
    loop: Any = asyncio_gevent.EventLoop()
    with pair() as (ours, theirs):

        async def receive() -> bytes:
            loop.stop()
            gevent.sleep(0.01)  # the event loop has stopped when this returns
            assert not loop.is_running()
            return await loop.sock_recv(ours, 1)  # type: ignore[no-any-return]

        task = loop.create_task(receive())
        loop.run_forever()
        gevent.sleep(0.02)
        theirs.send(b"1")
        assert loop.run_until_complete(task) == b"1"
        loop.close()


def test_the_event_loop_is_closed_while_a_task_waits() -> None:
    loop: Any = asyncio_gevent.EventLoop()
    with pair() as (ours, _):
        task = loop.run_until_complete(waiting(ours))
        task._log_destroy_pending = False
        loop.close()
        assert watched(loop) == ({}, {}, {}, {})
        del task
        gc.collect()


# --- what is refused ------------------------------------------------------------------------------

_CALLS: dict[str, Any] = {
    "recv": lambda loop, sock: loop.sock_recv(sock, 1),
    "recv_into": lambda loop, sock: loop.sock_recv_into(sock, bytearray(1)),
    "sendall": lambda loop, sock: loop.sock_sendall(sock, b"1"),
    "connect": lambda loop, sock: loop.sock_connect(sock, "nowhere"),
    "accept": lambda loop, sock: loop.sock_accept(sock),
}
if sys.version_info >= (3, 11):
    _CALLS |= {
        "recvfrom": lambda loop, sock: loop.sock_recvfrom(sock, 1),
        "recvfrom_into": lambda loop, sock: loop.sock_recvfrom_into(sock, bytearray(1)),
        "sendto": lambda loop, sock: loop.sock_sendto(sock, b"1", "nowhere"),
    }


@pytest.mark.parametrize("call", _CALLS)
def test_tls_sockets_and_those_that_block_are_refused(call: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pair() as (ours, _):
            ours.settimeout(1)
            loop.set_debug(True)
            with pytest.raises(ValueError, match="the socket must be non-blocking"):
                await _CALLS[call](loop, ours)
            loop.set_debug(False)
            ours.setblocking(False)
            context = ssl.create_default_context()
            with (
                context.wrap_socket(
                    ours, do_handshake_on_connect=False, server_hostname="nowhere"
                ) as secure,
                pytest.raises(TypeError, match="Socket cannot be of type SSLSocket"),
            ):
                await _CALLS[call](loop, secure)

    asyncio_gevent.run(main())


def test_a_socket_that_a_transport_uses_is_refused() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pair() as (ours, _):
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
            with pytest.raises(RuntimeError, match="is used by transport"):
                await loop.sock_recv(ours, 1)
            transport.abort()
            await polled()

    asyncio_gevent.run(main())


# --- sending, connecting --------------------------------------------------------------------------


def test_everything_is_sent_whatever_it_is_made_of() -> None:
    import array

    async def main() -> None:
        loop = asyncio.get_running_loop()
        numbers = array.array("i", range(1 << 20))
        with pair() as (ours, theirs):
            for data in (numbers, memoryview(numbers), numbers.tobytes(), bytearray(numbers)):
                sending = asyncio.create_task(loop.sock_sendall(ours, data))
                received = bytearray()
                while len(received) < len(numbers) * numbers.itemsize:
                    received += await loop.sock_recv(theirs, 1 << 16)
                await sending
                assert received == numbers.tobytes()

    asyncio_gevent.run(main())


def test_a_peer_that_has_gone() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pair() as (ours, theirs):
            task = await waiting(ours)
            theirs.shutdown(socket.SHUT_WR)
            assert await task == b""
            await loop.sock_sendall(ours, b"1")  # half-closed
            assert await loop.sock_recv(theirs, 1) == b"1"
            theirs.close()
            with pytest.raises(BrokenPipeError):
                await loop.sock_sendall(ours, b"1")

    asyncio_gevent.run(main())


def test_nobody_listens() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as sock, socket.socket() as bound:
            sock.setblocking(False)
            bound.bind(("127.0.0.1", 0))
            address = bound.getsockname()
            with pytest.raises(ConnectionRefusedError) as caught:
                await loop.sock_connect(sock, address)
            assert caught.value.errno == errno.ECONNREFUSED
            assert f"Connect call failed {address}" in str(caught.value)

    asyncio_gevent.run(main())


def test_a_connection_is_not_lost_by_a_cancel() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
            listener.setblocking(False)
            client.setblocking(False)
            task = asyncio.create_task(loop.sock_accept(listener))
            await until(lambda: listener.fileno() in loop._readers)
            await loop.sock_connect(client, listener.getsockname())
            task.cancel()
            try:
                connection, _ = await task
            except asyncio.CancelledError:
                connection, _ = await loop.sock_accept(listener)
            assert connection.gettimeout() == 0
            connection.close()

    asyncio_gevent.run(main())


def test_a_socket_that_is_closed_before_a_poll_does_not_abort_the_process() -> None:
    run_script("closed_natively").check("1\n2\n3")


def test_the_future_of_a_wait_is_made_by_the_event_loop() -> None:
    made: list[Any] = []

    class Loop(asyncio_gevent.EventLoop):
        def create_future(self) -> Any:
            made.append(super().create_future())
            return made[-1]

    async def main() -> None:
        with pair() as (ours, theirs):
            task = asyncio.ensure_future(loop.sock_recv(ours, 1))
            await asyncio.sleep(0)
            assert len(made) == 1
            theirs.send(b"x")
            assert await task == b"x"

    loop = Loop()
    loop.run_until_complete(main())
    loop.close()


def test_a_wait_that_cannot_begin_again_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        with pair() as (ours, theirs):
            theirs.send(b"x")
            assert await loop.sock_recv(ours, 1) == b"x"
            theirs.send(b"x")
            waiting = asyncio.ensure_future(loop.sock_recv(ours, 2))
            assert await waiting == b"x"
            first = asyncio.ensure_future(loop.sock_recv(ours, 1))
            await asyncio.sleep(0)
            wait = loop._read_waits[ours.fileno()]
            theirs.send(b"x")
            await first

            def fail(self: Any) -> None:
                raise ZeroDivisionError

            with monkeypatch.context() as patch:
                patch.setattr(type(wait), "start", fail)
                wait.close_watcher()
                loop._read_waits[ours.fileno()] = wait
                with pytest.raises(ZeroDivisionError):
                    await loop.sock_recv(ours, 1)
            assert wait.waiter is None
            assert ours.fileno() not in loop._readers
            theirs.send(b"y")
            assert await loop.sock_recv(ours, 1) == b"y"

    asyncio_gevent.run(main())
