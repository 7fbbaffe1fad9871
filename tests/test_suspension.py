"""A blocking gevent call in a step suspends that step, and nothing else.

Everywhere that user code runs in an event loop, with every call that gevent blocks in.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import signal
import socket
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import gevent
import gevent.event
import gevent.exceptions
import gevent.queue
import greenlet
import pytest
from support import (
    BLOCKERS,
    PATCHED,
    UNIT,
    Blocker,
    Event,
    Polls,
    Sleep,
    Socket,
    blocker,
    os_close,
    until,
    until_in_greenlet,
)

import asyncio_gevent
from asyncio_gevent import _steps
from asyncio_gevent._runners import PARKED, Runner

# --- every place where user code runs, with every blocking call -----------------------------------
#
# A site makes the event loop call `code`, once, and returns what it opened: an awaitable that
# takes it back.


async def _nothing() -> None:
    pass


Site = Callable[[Callable[[], None]], Awaitable[Awaitable[None]]]


async def task(code: Callable[[], None]) -> Awaitable[None]:
    async def coroutine() -> None:
        code()

    return asyncio.create_task(coroutine())


async def later_step_of_a_task(code: Callable[[], None]) -> Awaitable[None]:
    async def coroutine() -> None:
        await asyncio.sleep(0)
        code()
        await asyncio.sleep(0)

    return asyncio.create_task(coroutine())


async def call_soon(code: Callable[[], None]) -> Awaitable[None]:
    asyncio.get_running_loop().call_soon(code)
    return _nothing()


async def call_soon_threadsafe(code: Callable[[], None]) -> Awaitable[None]:
    asyncio.get_running_loop().call_soon_threadsafe(code)
    return _nothing()


async def timer(code: Callable[[], None]) -> Awaitable[None]:
    asyncio.get_running_loop().call_later(0.001, code)
    return _nothing()


async def done_callback(code: Callable[[], None]) -> Awaitable[None]:
    future = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda future: code())
    future.set_result(None)
    return _nothing()


async def add_reader(code: Callable[[], None]) -> Awaitable[None]:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()

    def readable() -> None:
        assert ours.recv(1) == b"x"
        code()

    async def close() -> None:
        loop.remove_reader(ours)
        ours.close()
        theirs.close()

    loop.add_reader(ours, readable)
    theirs.send(b"x")
    return close()


async def add_writer(code: Callable[[], None]) -> Awaitable[None]:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()

    def writable() -> None:
        loop.remove_writer(ours)
        code()

    async def close() -> None:
        ours.close()
        theirs.close()

    loop.add_writer(ours, writable)
    return close()


async def connection_made(code: Callable[[], None]) -> Awaitable[None]:
    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            code()

    return await _connect(Protocol)


async def data_received(code: Callable[[], None]) -> Awaitable[None]:
    class Protocol(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            code()

    return await _connect(Protocol, b"x")


async def eof_received(code: Callable[[], None]) -> Awaitable[None]:
    class Protocol(asyncio.Protocol):
        def eof_received(self) -> None:
            code()

    return await _connect(Protocol, eof=True)


async def connection_lost(code: Callable[[], None]) -> Awaitable[None]:
    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transport.close()

        def connection_lost(self, error: Any) -> None:
            code()

    return await _connect(Protocol)


async def _connect(protocol: Any, data: bytes = b"", *, eof: bool = False) -> Awaitable[None]:
    ours, theirs = socket.socketpair()
    # Not awaited: it takes until connection_made() has returned.
    connecting = asyncio.create_task(
        asyncio.get_running_loop().create_connection(protocol, sock=ours)
    )
    theirs.send(data)
    if eof:
        theirs.shutdown(socket.SHUT_WR)

    async def close() -> None:
        transport, _ = await connecting
        transport.close()
        await until(lambda: ours.fileno() < 0)
        theirs.close()

    return close()


async def datagram_received(code: Callable[[], None]) -> Awaitable[None]:
    class Protocol(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, address: Any) -> None:
            code()

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        Protocol, local_addr=("127.0.0.1", 0)
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", transport.get_extra_info("sockname"))

    async def close() -> None:
        transport.close()
        await asyncio.sleep(0)

    return close()


async def pipe_data_received(code: Callable[[], None]) -> Awaitable[None]:
    class Protocol(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            code()

    reader, writer = os.pipe()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        Protocol, os.fdopen(reader, "rb")
    )
    os.write(writer, b"x")

    async def close() -> None:
        os_close(writer)
        transport.close()
        await asyncio.sleep(0)

    return close()


async def signal_handler(code: Callable[[], None]) -> Awaitable[None]:
    loop = asyncio.get_running_loop()

    async def close() -> None:
        loop.remove_signal_handler(signal.SIGUSR1)

    loop.add_signal_handler(signal.SIGUSR1, code)
    os.kill(os.getpid(), signal.SIGUSR1)
    return close()


async def asyncgen_finalizer(code: Callable[[], None]) -> Awaitable[None]:
    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            code()

    generator = generate()
    await generator.__anext__()
    del generator
    return _nothing()


async def exception_handler(code: Callable[[], None]) -> Awaitable[None]:
    loop = asyncio.get_running_loop()

    async def close() -> None:
        loop.set_exception_handler(None)

    loop.set_exception_handler(lambda loop, context: code())
    loop.call_soon(lambda: 1 / 0)
    return close()


async def subprocess_pipe_data_received(code: Callable[[], None]) -> Awaitable[None]:
    class Protocol(asyncio.SubprocessProtocol):
        def pipe_data_received(self, fd: int, data: bytes) -> None:
            code()

    transport, _ = await asyncio.get_running_loop().subprocess_exec(
        Protocol, "cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    stdin: Any = transport.get_pipe_transport(0)
    stdin.write(b"x")

    async def close() -> None:
        stdin.close()
        await transport._wait()
        transport.close()
        await asyncio.sleep(0)

    return close()


SITES: list[Site] = [
    task, later_step_of_a_task, call_soon, call_soon_threadsafe, timer, done_callback,
    add_reader, add_writer, connection_made, data_received, eof_received, connection_lost,
    datagram_received, pipe_data_received, signal_handler, asyncgen_finalizer,
    exception_handler, subprocess_pipe_data_received,
]  # fmt: skip


@pytest.mark.parametrize("kind", BLOCKERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("site", SITES, ids=lambda site: site.__name__)
def test_a_blocking_call_suspends_its_step_only(site: Site, kind: type[Blocker]) -> None:
    seen: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def code() -> None:
            before = asyncio.current_task(), sys.get_asyncgen_hooks(), gevent.getcurrent()
            seen.append("blocks")
            call.block()
            seen.append("goes on")
            # Who runs is what it was.
            assert asyncio.get_running_loop() is loop
            assert before == (asyncio.current_task(), sys.get_asyncgen_hooks(), gevent.getcurrent())
            seen.append("ends")

        with blocker(kind) as call:
            opened = await site(code)
            await until(lambda: seen)
            if not issubclass(kind, Sleep):  # which ends when it likes
                await asyncio.sleep(0.001)  # another task and a timer go on
                assert seen == ["blocks"]
            # A greenlet sees nothing of it.
            identity = gevent.spawn(
                lambda: (asyncio._get_running_loop(), tuple(sys.get_asyncgen_hooks()))
            )
            await until(identity.ready)
            assert identity.get() == (None, (None, None))
            call.release()
            await until(lambda: len(seen) > 1)
            await opened

    asyncio_gevent.run(main())
    assert seen == ["blocks", "goes on", "ends"]


# --- identity: running loop, current task, hooks --------------------------------------------------


def identity() -> tuple[Any, ...]:
    loop = asyncio._get_running_loop()
    task = asyncio.current_task() if loop is not None else None
    return loop, task, tuple(sys.get_asyncgen_hooks())


NOBODY = (None, None, (None, None))


def test_only_runners_ever_see_a_running_loop() -> None:
    """After every switch of a mixed load, the identity is that of the greenlet it went to."""
    wrong: list[Any] = []
    switches = 0
    hub = gevent.get_hub()

    def check(event: str, pair: Any) -> None:
        nonlocal switches
        switches += 1
        loop = asyncio._get_running_loop()
        if isinstance(pair[1], Runner):
            if loop is not pair[1].loop and pair[1].state is not PARKED:  # which ends
                wrong.append((event, pair, loop))
        elif pair[1] is hub:
            pass  # which takes the identity back first of all
        elif loop is not None or tuple(sys.get_asyncgen_hooks()) != (None, None):
            wrong.append((event, pair, loop))

    async def worker() -> None:
        for _ in range(3):
            gevent.sleep(0)
            await asyncio.sleep(0)
            gevent.spawn(gevent.sleep, 0).join()
            await asyncio.sleep(0.001)

    async def main() -> None:
        await asyncio.gather(*(worker() for _ in range(5)))

    greenlet.settrace(check)
    try:
        greenlets = [gevent.spawn(asyncio_gevent.run, main()) for _ in range(5)]
        gevent.joinall(greenlets, raise_error=True)
    finally:
        greenlet.settrace(None)
    assert switches > 100
    assert wrong == []


def test_the_current_task_of_a_loop_is_nobody_while_its_step_is_suspended() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        seen = gevent.spawn(lambda: asyncio.current_task(loop)).get()
        assert seen is None
        assert asyncio.current_task() is task

    asyncio_gevent.run(main())


def test_an_asynchronous_generator_of_a_greenlet_is_not_the_loops_business() -> None:
    """The hooks of the event loop are not there when a greenlet iterates one by hand."""

    async def generate() -> AsyncIterator[int]:
        yield 1

    def iterate() -> None:
        generator: Any = generate()
        with pytest.raises(StopIteration):
            generator.__anext__().send(None)
        del generator

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        gevent.spawn(iterate).get()
        assert not loop._asyncgens

    asyncio_gevent.run(main())


@pytest.mark.skipif(not PATCHED, reason="greenlets are threads only after patching")
def test_the_current_thread_is_that_of_the_caller_in_every_runner() -> None:
    seen: list[Any] = []

    async def step() -> None:
        seen.append(threading.current_thread())
        gevent.sleep(0)
        seen.append(threading.current_thread())

    async def main() -> None:
        await asyncio.gather(*(step() for _ in range(3)))

    thread = threading.Thread(target=lambda: asyncio_gevent.run(main()))
    thread.start()
    thread.join()
    assert set(seen) == {thread}
    asyncio_gevent.run(main())
    assert set(seen) == {thread, threading.current_thread()}


# --- no second entry ------------------------------------------------------------------------------


def test_data_arrives_in_order_and_one_after_the_other() -> None:
    calls: list[bytes] = []
    inside = 0
    release = gevent.event.Event()

    class Protocol(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            nonlocal inside
            inside += 1
            assert inside == 1
            if not calls:
                calls.append(data)
                release.wait()
            else:
                calls.append(data)
            inside -= 1

    async def main() -> None:
        ours, theirs = socket.socketpair()
        transport, _ = await asyncio.get_running_loop().create_connection(Protocol, sock=ours)
        theirs.send(b"1")
        await until(lambda: calls)
        with Polls() as polls:
            for byte in b"2345":
                theirs.send(bytes([byte]))
                await asyncio.sleep(UNIT / 4)
        assert calls == [b"1"]
        assert polls.count < 30, "it is polled though nobody can take the data"
        release.set()
        await until(lambda: len(calls) > 1)
        assert b"".join(calls) == b"12345"
        transport.close()
        theirs.close()

    asyncio_gevent.run(main())


def test_a_reader_is_not_called_while_its_callback_is_suspended() -> None:
    calls: list[bytes] = []
    release = gevent.event.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()

        def readable() -> None:
            calls.append(b"enter")
            release.wait()
            calls.append(ours.recv(1))

        loop.add_reader(ours, readable)
        theirs.send(b"12")
        await until(lambda: calls)
        with Polls() as polls:
            await asyncio.sleep(UNIT)
        assert calls == [b"enter"]
        assert polls.count < 15
        release.set()
        await until(lambda: len(calls) == 4)
        assert calls == [b"enter", b"1", b"enter", b"2"]
        loop.remove_reader(ours)
        ours.close()
        theirs.close()

    asyncio_gevent.run(main())


def test_a_writer_is_not_called_while_its_callback_is_suspended() -> None:
    calls: list[str] = []
    release = gevent.event.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()

        def writable() -> None:
            calls.append("enter")
            release.wait()
            loop.remove_writer(ours)

        loop.add_writer(ours, writable)
        await until(lambda: calls)
        with Polls() as polls:
            await asyncio.sleep(UNIT)
        assert calls == ["enter"]
        assert polls.count < 15
        release.set()
        await until(lambda: not loop._writers)  # type: ignore[attr-defined]
        assert calls == ["enter"]
        ours.close()
        theirs.close()

    asyncio_gevent.run(main())


def test_reading_and_writing_do_not_hinder_each_other() -> None:
    """A suspended reader is no reason to stop the writer of the same descriptor."""
    calls: list[str] = []
    release = gevent.event.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()

        def readable() -> None:
            calls.append("read")
            ours.recv(1)
            release.wait()

        def writable() -> None:
            calls.append("write")
            loop.remove_writer(ours)

        loop.add_reader(ours, readable)
        theirs.send(b"1")
        await until(lambda: calls)
        loop.add_writer(ours, writable)
        await until(lambda: len(calls) > 1)
        assert calls == ["read", "write"]
        release.set()
        loop.remove_reader(ours)
        ours.close()
        theirs.close()
        await asyncio.sleep(0)

    asyncio_gevent.run(main())


@pytest.mark.parametrize("remove", [True, False])
def test_a_new_reader_waits_until_the_suspended_one_before_it_has_ended(remove: bool) -> None:
    calls: list[str] = []
    release = gevent.event.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()

        def first() -> None:
            calls.append("first")
            release.wait()
            calls.append(ours.recv(1).decode())

        def second() -> None:
            calls.append("second")
            calls.append(ours.recv(1).decode())

        loop.add_reader(ours, first)
        theirs.send(b"12")
        await until(lambda: calls)
        for _ in range(2):
            if remove:
                assert loop.remove_reader(ours)
            loop.add_reader(ours, second)
        await asyncio.sleep(0.001)
        assert calls == ["first"]
        release.set()
        await until(lambda: len(calls) == 4)
        assert calls == ["first", "1", "second", "2"]
        assert loop.remove_reader(ours)
        assert not loop.remove_reader(ours)
        ours.close()
        theirs.close()

    asyncio_gevent.run(main())


def test_a_reader_removed_while_suspended_is_not_called_again() -> None:
    calls: list[str] = []
    release = gevent.event.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()

        def readable() -> None:
            calls.append("enter")
            release.wait()
            calls.append("end")

        loop.add_reader(ours, readable)
        theirs.send(b"12")
        await until(lambda: calls)
        await asyncio.sleep(0.001)  # it fires once more meanwhile
        assert loop.remove_reader(ours)
        release.set()
        await until(lambda: len(calls) > 1)
        await asyncio.sleep(0.001)
        assert calls == ["enter", "end"]
        ours.close()
        theirs.close()

    asyncio_gevent.run(main())


def test_another_file_of_the_same_number_does_not_wait() -> None:
    """A callback closes its file and blocks; the next file gets the number it had."""
    seen: list[str] = []
    release = gevent.event.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        number = ours.fileno()

        def first() -> None:
            loop.remove_reader(number)
            os_close(ours.detach())
            seen.append("first")
            release.wait()
            seen.append("ended")

        loop.add_reader(number, first)
        theirs.send(b"1")
        await until(lambda: seen)
        again, other = socket.socketpair()
        if again.fileno() != number:
            os.dup2(again.fileno(), number)
            again.close()
            again = socket.socket(fileno=number)

        def second() -> None:
            again.recv(1)
            seen.append("second")

        loop.add_reader(number, second)
        other.send(b"2")
        await until(lambda: len(seen) == 2)
        assert seen == ["first", "second"]
        release.set()
        await until(lambda: len(seen) == 3)
        # The end of the first one does nothing to the second.
        other.send(b"3")
        await until(lambda: len(seen) == 4)
        loop.remove_reader(number)
        for each in (theirs, again, other):
            each.close()

    asyncio_gevent.run(main())
    assert seen == ["first", "second", "ended", "second"]


@pytest.mark.parametrize("how", ["close", "abort"])
def test_a_protocol_hears_of_the_lost_connection_after_its_data(how: str) -> None:
    """Callbacks of a protocol do not overlap, though the connection goes meanwhile."""
    seen: list[str] = []
    release = gevent.event.Event()

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            seen.append("enters")
            getattr(self.transport, how)()
            release.wait()
            seen.append("leaves")

        def connection_lost(self, error: Any) -> None:
            seen.append("lost")

    async def main() -> None:
        ours, theirs = socket.socketpair()
        await asyncio.get_running_loop().create_connection(Protocol, sock=ours)
        theirs.send(b"1")
        await until(lambda: seen)
        await asyncio.sleep(0.001)
        assert seen == ["enters"]
        release.set()
        await until(lambda: len(seen) == 3)
        assert ours.fileno() < 0
        theirs.close()

    asyncio_gevent.run(main())
    assert seen == ["enters", "leaves", "lost"]


def test_a_transport_is_forgotten_after_its_callback_was_suspended() -> None:
    class Protocol(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            gevent.sleep(0)
            received.append(data)

    received: list[bytes] = []

    async def connect() -> weakref.ref[Any]:
        ours, theirs = socket.socketpair()
        transport, protocol = await asyncio.get_running_loop().create_connection(
            Protocol, sock=ours
        )
        theirs.send(b"1")
        await until(lambda: received)
        transport.close()
        theirs.close()
        return weakref.ref(protocol)

    async def main() -> None:
        protocol = await connect()
        await asyncio.sleep(0.001)
        gc.collect()
        assert protocol() is None

    asyncio_gevent.run(main())


# --- contexts -------------------------------------------------------------------------------------

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")


def test_a_context_that_a_suspended_step_has_entered_can_be_used_by_others() -> None:
    context = contextvars.copy_context()
    context.run(variable.set, "before")
    release = gevent.event.Event()
    seen: list[str] = []

    def first() -> None:
        variable.set("of the first")
        seen.append("first")
        release.wait()
        seen.append(variable.get())

    def second() -> None:
        seen.append(variable.get())
        variable.set("of the second")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(first, context=context)
        await until(lambda: seen)
        loop.call_soon(second, context=context)
        loop.call_soon(second, context=context)
        await until(lambda: len(seen) == 3)
        release.set()
        await until(lambda: len(seen) == 4)
        assert seen == ["first", "of the first", "of the first", "of the first"]
        # Afterwards it is entered itself again.
        loop.call_soon(second, context=context)
        await asyncio.sleep(0)
        assert context[variable] == "of the second"

    asyncio_gevent.run(main())


def test_a_context_entered_within_a_suspended_step() -> None:
    """``Context.run()`` in a step that then blocks: a handle with that context runs."""
    context = contextvars.copy_context()
    release = gevent.event.Event()
    seen: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(context.run, release.wait)
        await asyncio.sleep(0)
        loop.call_soon(seen.append, "ran", context=context)
        await until(lambda: seen)
        release.set()
        await asyncio.sleep(0.001)

    asyncio_gevent.run(main())


def test_the_context_of_a_step_is_its_own_across_a_suspension() -> None:
    async def step(name: str) -> None:
        variable.set(name)
        for _ in range(3):
            gevent.sleep(0)
            assert variable.get() == name
            await asyncio.sleep(0)
            assert variable.get() == name

    async def main() -> None:
        variable.set("main")
        await asyncio.gather(step("a"), step("b"), step("c"))
        assert variable.get() == "main"

    variable.set("outside")
    asyncio_gevent.run(main())
    assert variable.get() == "outside"


# --- raw greenlets of a step ----------------------------------------------------------------------


async def in_raw_greenlet(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function that may call `await_only`: SQLAlchemy's greenlet_spawn, in short."""
    child = greenlet.greenlet(function)
    child.driver = greenlet.getcurrent()  # type: ignore[attr-defined]
    child.gr_context = contextvars.copy_context() if sys.version_info < (3, 14) else None
    result = child.switch(*args)
    while not child.dead:
        try:
            value = await result
        except BaseException:
            result = child.throw(*sys.exc_info())
        else:
            result = child.switch(value)
    return result


def await_only(awaitable: Any) -> Any:
    return greenlet.getcurrent().parent.switch(awaitable)


@pytest.mark.parametrize("kind", BLOCKERS, ids=lambda kind: kind.__name__)
def test_a_raw_greenlet_of_a_step_may_block(kind: type[Blocker]) -> None:
    seen: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def code() -> str:
            me = asyncio.current_task()
            before = identity()
            seen.append("blocks")
            call.block()
            assert identity() == before
            assert asyncio.current_task() is me
            await_only(asyncio.sleep(0))
            assert identity() == before
            gevent.sleep(0)
            assert identity() == before
            return "result"

        async def coroutine() -> str:
            result: str = await in_raw_greenlet(code)
            assert asyncio.get_running_loop() is loop
            await asyncio.sleep(0)
            return result

        with blocker(kind) as call:
            task = asyncio.create_task(coroutine())
            await until(lambda: seen)
            await asyncio.sleep(0)
            sibling = gevent.spawn(identity)
            await until(sibling.ready)
            assert sibling.get() == NOBODY
            call.release()
            assert await task == "result"

    asyncio_gevent.run(main())


@pytest.mark.parametrize("awaits_again", [False, True])
def test_a_raw_greenlet_goes_on_while_its_first_runner_is_suspended(awaits_again: bool) -> None:
    """Its parent is the greenlet in which it was made, where another task's step may block by now.

    It ends, or awaits, in its own task all the same, and does not disturb that step.
    """
    release = gevent.event.Event()
    seen: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def code() -> str:
            seen.append(await_only(future))
            if awaits_again:
                seen.append(await_only(asyncio.sleep(0, "again")))
            return "result"

        async def block() -> None:
            seen.append("blocks")
            assert release.wait() is True
            seen.append("goes on")

        first = asyncio.create_task(in_raw_greenlet(code))
        second = asyncio.create_task(block())
        await until(lambda: seen)
        future.set_result("awaited")
        assert await first == "result"
        release.set()
        await second
        again = ["again"] if awaits_again else []
        assert seen == ["blocks", "awaited", *again, "goes on"]

    asyncio_gevent.run(main())


def test_raw_greenlets_that_were_made_in_one_batch_block_later() -> None:
    """All of them have the same parent, and different steps drive them when they block."""
    releases = [gevent.event.Event() for _ in range(5)]
    seen: list[int] = []

    async def main() -> None:
        start = asyncio.Event()

        def code(number: int) -> int:
            me = asyncio.current_task()
            await_only(start.wait())
            assert asyncio.current_task() is me
            releases[number].wait()
            assert asyncio.current_task() is me
            seen.append(number)
            await_only(asyncio.sleep(0))
            assert asyncio.current_task() is me
            return number

        tasks = [asyncio.create_task(in_raw_greenlet(code, number)) for number in range(5)]
        await asyncio.sleep(0)
        start.set()
        await asyncio.sleep(0.001)
        order = [3, 0, 4, 1, 2]
        for number in order:
            releases[number].set()
            assert await tasks[number] == number
        assert seen == order

    asyncio_gevent.run(main())


def test_many_raw_greenlets_block_at_the_same_time() -> None:
    ended: list[int] = []

    def code(number: int) -> None:
        me = asyncio.current_task()
        for _ in range(5):
            gevent.sleep(0.0001 * (number % 3))
            assert asyncio.current_task() is me
            await_only(asyncio.sleep(0))
            assert asyncio.current_task() is me
        ended.append(number)

    async def main() -> None:
        await asyncio.gather(*(in_raw_greenlet(code, number) for number in range(20)))

    greenlets = [gevent.spawn(asyncio_gevent.run, main()) for _ in range(3)]
    gevent.joinall(greenlets, raise_error=True)
    assert sorted(ended) == sorted([*range(20)] * 3)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
@pytest.mark.parametrize("blocks", [False, True])
def test_raw_greenlets_of_eager_tasks(blocks: bool) -> None:
    """Their first steps are in that of another task, and so all of them have the same parent."""
    ended: list[int] = []

    def code(number: int) -> int:
        me = asyncio.current_task()
        for _ in range(3):
            await_only(asyncio.sleep(0))
            assert asyncio.current_task() is me
            if blocks:
                gevent.sleep(0.0001 * (number % 3))
                assert asyncio.current_task() is me
        ended.append(number)
        return number

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        tasks = [asyncio.create_task(in_raw_greenlet(code, number)) for number in range(10)]
        assert await asyncio.gather(*tasks) == [*range(10)]

    asyncio_gevent.run(main())
    assert sorted(ended) == [*range(10)]


class SyncFace:
    """A sync face of an async library, as Playwright has one: no hub, no gevent, just switches.

    The event loop runs in a greenlet of its own. Callbacks switch from there to the user's
    greenlet, and that switches to the greenlet of the event loop for it to go on.
    """

    def __enter__(self) -> SyncFace:
        self.loop = asyncio_gevent.new_event_loop()
        user = greenlet.getcurrent()

        async def main() -> None:
            self.stop = self.loop.create_future()
            self.loop.call_soon(user.switch)
            await self.stop

        self.fiber = greenlet.greenlet(lambda: self.loop.run_until_complete(main()))
        self.fiber.switch()
        return self

    def call(self, coroutine: Any) -> Any:
        user = greenlet.getcurrent()
        task = self.loop.create_task(coroutine)
        task.add_done_callback(lambda _: user.switch())
        while not task.done():
            self.fiber.switch()
        return task.result()

    def __exit__(self, *exc_info: object) -> None:
        self.loop.call_soon(self.stop.set_result, None)
        self.fiber.switch()
        self.loop.close()


async def double(number: int) -> int:
    await asyncio.sleep(0.001)
    gevent.sleep(0.001)
    return 2 * number


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("users", [1, 3])
def test_the_greenlet_that_runs_a_loop_is_switched_to_by_hand(users: int, blocks: bool) -> None:
    def use() -> list[int]:
        with SyncFace() as face:
            results = [face.call(double(number)) for number in range(3)]
            if blocks:
                gevent.sleep(0.001)  # the event loop goes on meanwhile
            return [*results, face.call(double(3))]

    if users == 1:
        assert use() == [0, 2, 4, 6]
        return
    greenlets = [gevent.spawn(use) for _ in range(users)]
    gevent.joinall(greenlets, raise_error=True)
    assert [each.value for each in greenlets] == [[0, 2, 4, 6]] * users


def test_a_switch_by_hand_to_a_loop_that_nobody_has_left_is_an_error() -> None:
    loop = asyncio_gevent.new_event_loop()
    running = greenlet.greenlet(loop.run_forever)
    gevent.get_hub().loop.run_callback(running.switch)
    gevent.sleep(0)
    with pytest.raises(gevent.exceptions.InvalidSwitchError, match="unexpected switch"):
        running.switch("what for?")
    loop.close()


def test_the_tracer_goes_when_no_raw_greenlet_blocks_any_more() -> None:
    release = gevent.event.Event()

    async def main() -> None:
        assert greenlet.gettrace() is None
        task = asyncio.create_task(in_raw_greenlet(release.wait))
        await asyncio.sleep(0)
        release.set()
        await task
        await asyncio.sleep(0.001)
        assert greenlet.gettrace() is None

    asyncio_gevent.run(main())


def test_a_tracer_that_is_there_is_called_all_the_time_and_stays() -> None:
    switches = 0

    def tracer(event: str, pair: Any) -> None:
        nonlocal switches
        switches += 1

    def code() -> None:
        for _ in range(5):
            before = switches
            gevent.sleep(0)
            assert switches >= before + 2

    async def main() -> None:
        await in_raw_greenlet(code)

    greenlet.settrace(tracer)
    try:
        asyncio_gevent.run(main())
        gevent.sleep(0)
        assert greenlet.gettrace() is tracer
    finally:
        greenlet.settrace(None)


def test_a_tracer_set_while_a_raw_greenlet_blocks_stays() -> None:
    """As ddtrace does: it calls the one before it, and expects to stay."""
    switches = 0
    release = gevent.event.Event()
    again = gevent.event.Event()

    async def main() -> None:
        def code() -> None:
            me = asyncio.current_task()
            release.wait()
            assert asyncio.current_task() is me
            again.wait()
            assert asyncio.current_task() is me

        task = asyncio.create_task(in_raw_greenlet(code))
        await asyncio.sleep(0)
        previous = greenlet.gettrace()

        def tracer(event: str, pair: Any) -> None:
            nonlocal switches
            switches += 1
            if previous is not None:
                previous(event, pair)

        greenlet.settrace(tracer)
        release.set()
        await asyncio.sleep(0.001)
        again.set()
        await task
        before = switches
        gevent.sleep(0)
        assert switches > before

    try:
        asyncio_gevent.run(main())
    finally:
        greenlet.settrace(None)


def test_a_raw_greenlet_whose_parent_is_another_raw_greenlet() -> None:
    async def main() -> None:
        def inner() -> str:
            me = asyncio.current_task()
            gevent.sleep(0)
            assert asyncio.current_task() is me
            return "inner"

        def outer() -> Any:
            me = asyncio.current_task()
            child = greenlet.greenlet(inner)
            result = child.switch()
            assert asyncio.current_task() is me
            gevent.sleep(0)
            return result

        assert await in_raw_greenlet(outer) == "inner"

    asyncio_gevent.run(main())


def test_sqlalchemy_with_a_listener_that_blocks() -> None:
    pytest.importorskip("aiosqlite")
    from sqlalchemy import event, text
    from sqlalchemy.ext.asyncio import create_async_engine

    blocked: list[Any] = []

    async def query(engine: Any, number: int) -> int:
        async with engine.connect() as connection:
            result = await connection.execute(text("select :number"), {"number": number})
            return int(result.scalar())

    async def main() -> None:
        engine = create_async_engine("sqlite+aiosqlite://")

        @event.listens_for(engine.sync_engine, "before_cursor_execute")
        def block(*args: Any) -> None:
            me = asyncio.current_task()
            blocked.append(me)
            gevent.sleep(0.001)
            assert asyncio.current_task() is me

        try:
            assert [await query(engine, number) for number in range(3)] == [0, 1, 2]
            results = await asyncio.gather(*(query(engine, number) for number in range(5)))
            assert results == [0, 1, 2, 3, 4]
        finally:
            await engine.dispose()
        assert len(blocked) == 8
        # aiosqlite's thread is on its way out.
        await until(lambda: not [t for t in threading.enumerate() if "connection" in t.name])

    asyncio_gevent.run(main())


# --- in numbers -----------------------------------------------------------------------------------


def test_twenty_loops_at_the_same_time_in_one_thread() -> None:
    running = 0
    most = 0

    async def worker(loop: Any) -> None:
        nonlocal running, most
        me = asyncio.current_task()
        for _ in range(5):
            running += 1
            most = max(most, running)
            gevent.sleep(0.001)
            running -= 1
            assert (asyncio.get_running_loop(), asyncio.current_task()) == (loop, me)
            await asyncio.sleep(0.001)
            assert (asyncio.get_running_loop(), asyncio.current_task()) == (loop, me)

    async def main(number: int) -> int:
        loop = asyncio.get_running_loop()
        await asyncio.gather(worker(loop), worker(loop))
        return number

    greenlets = [gevent.spawn(lambda n=n: asyncio_gevent.run(main(n))) for n in range(20)]
    gevent.joinall(greenlets, raise_error=True)
    assert [each.value for each in greenlets] == list(range(20))
    assert most > 20  # of 40 tasks; more than one of each loop at a time


def test_more_suspended_steps_than_runners_are_kept() -> None:
    release = gevent.event.Event()
    count = _steps.MAX_PARKED * 2
    ended: list[int] = []

    async def step(number: int) -> None:
        release.wait()
        ended.append(number)

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        tasks = [asyncio.create_task(step(number)) for number in range(count)]
        await until(lambda: len(loop._suspended) == count)
        release.set()
        await asyncio.gather(*tasks)
        assert sorted(ended) == list(range(count))
        await until(lambda: not loop._suspended)
        assert len(loop._parked) <= _steps.MAX_PARKED

    asyncio_gevent.run(main())


# --- together with asyncio's and gevent's other means ---------------------------------------------


def test_gevent_and_asyncio_talk_in_one_coroutine() -> None:
    requests: gevent.queue.Queue[int] = gevent.queue.Queue()
    answers: asyncio.Queue[int] = asyncio.Queue()

    def server() -> None:
        for number in requests:
            if number < 0:
                return
            answers.put_nowait(number * 2)

    async def main() -> None:
        running = gevent.spawn(server)
        for number in range(10):
            requests.put(number)
            assert await answers.get() == number * 2
        requests.put(-1)
        running.join()

    asyncio_gevent.run(main())


def test_an_asyncio_lock_is_held_across_a_suspension() -> None:
    holders = 0

    async def step(lock: asyncio.Lock) -> None:
        nonlocal holders
        async with lock:
            holders += 1
            assert holders == 1
            gevent.sleep(0)
            holders -= 1

    async def main() -> None:
        lock = asyncio.Lock()
        await asyncio.gather(*(step(lock) for _ in range(5)))

    asyncio_gevent.run(main())


def test_an_exception_of_the_blocking_call_is_raised_in_the_step() -> None:
    async def main() -> None:
        result = gevent.event.AsyncResult()
        gevent.spawn(result.set_exception, ZeroDivisionError())
        with pytest.raises(ZeroDivisionError):
            result.get()
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.001):
            gevent.event.Event().wait()
        await asyncio.sleep(0)

    asyncio_gevent.run(main())


def test_a_timeout_of_gevent_that_a_step_left_behind_hits_nobody_else() -> None:
    """It was started in a step that is over; another one is suspended in the same runner."""
    hit: list[str] = []

    async def careless() -> None:
        with gevent.Timeout(0.001):
            await asyncio.sleep(UNIT)

    async def bystander() -> None:
        try:
            gevent.sleep(UNIT)
        except gevent.Timeout:
            hit.append("hit")

    async def main() -> None:
        await asyncio.gather(careless(), bystander(), return_exceptions=True)

    asyncio_gevent.run(main())
    assert hit == []


def test_a_greenlet_that_kills_the_one_a_step_runs_in_ends_that_step_only() -> None:
    async def step() -> None:
        victim = gevent.getcurrent()
        gevent.spawn(gevent.kill, victim)
        gevent.event.Event().wait()

    async def main() -> None:
        with pytest.raises(greenlet.GreenletExit):
            await asyncio.create_task(step())
        await asyncio.sleep(0)

    asyncio_gevent.run(main())


def test_a_stale_wake_up_of_a_parked_runner_does_nothing() -> None:
    async def main() -> None:
        switch = gevent.getcurrent().switch  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        gevent.get_hub().loop.run_callback(switch, "stale")
        await asyncio.sleep(0.001)

    asyncio_gevent.run(main())


def test_a_timeout_of_gevent_around_an_await() -> None:
    """It was started in a step, and is raised where its task awaits something by now."""

    async def main() -> str:
        task = asyncio.current_task()
        for _ in range(2):
            with pytest.raises(gevent.Timeout), gevent.Timeout(0.001):
                await asyncio.sleep(3600)
            assert asyncio.current_task() is task
            with gevent.Timeout(3600):
                await asyncio.sleep(0)
                gevent.sleep(0)
        # What it awaited is cancelled by that, as by Task.cancel(), unless it is shielded.
        future = asyncio.get_running_loop().create_future()
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.001):
            await asyncio.shield(future)
        assert not future.done()
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.001):
            await future
        assert future.cancelled()
        events = []

        async def clean_up() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                events.append("cleaned up")
                raise ValueError  # nobody asks for it

        inner = asyncio.ensure_future(clean_up())
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.001):
            await inner
        await asyncio.wait([inner])
        assert events == ["cleaned up"]
        return "result"

    assert asyncio_gevent.run(main()) == "result"


def test_a_step_is_resumed_by_a_switch_from_another_greenlet() -> None:
    """Not gevent's way, but some do it: ``greenlet.switch()`` of one that waits in the hub."""
    result: list[Any] = []

    async def step() -> None:
        runner = gevent.getcurrent()

        def resume() -> None:
            runner.switch("value")  # type: ignore[attr-defined]
            result.append(identity())

        gevent.spawn(resume)
        result.append(gevent.get_hub().switch())
        assert asyncio.get_running_loop() is not None

    async def main() -> None:
        await step()
        await asyncio.sleep(0)

    asyncio_gevent.run(main())
    assert sorted(result, key=str) == sorted(["value", NOBODY], key=str)


def test_the_stack_of_a_suspended_task_can_be_shown() -> None:
    release = gevent.event.Event()

    async def step() -> None:
        release.wait()

    async def main() -> None:
        task = asyncio.create_task(step())
        await asyncio.sleep(0)
        assert task.get_stack()[-1].f_code.co_name == "step"
        assert "step" in repr(task)
        assert asyncio.all_tasks() == {task, asyncio.current_task()}
        release.set()
        await task

    asyncio_gevent.run(main())


def test_the_frames_of_a_step_end_at_a_module() -> None:
    """aiohttp goes up the stack until it finds the frame of a module."""
    names: list[str] = []

    async def main() -> None:
        frame: Any = sys._getframe()
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back

    asyncio_gevent.run(main())
    assert names[0] == "main"
    assert names[-1] == "<module>"


# --- when the event loop stops, is closed, or dies ------------------------------------------------


def _with_a_suspended_step(
    call: Blocker, seen: list[str], *, raw: bool = False
) -> asyncio_gevent.EventLoop:
    """Return an event loop that does not run, with a step that is suspended."""
    loop = asyncio_gevent.EventLoop()

    def block() -> None:
        seen.append("blocks")
        try:
            call.block()
            seen.append("goes on")
        except BaseException as error:
            seen.append(type(error).__name__)
            raise
        finally:
            seen.append("finally")

    async def step() -> None:
        if raw:
            await in_raw_greenlet(block)
        else:
            block()
        await asyncio.sleep(0)
        seen.append("next step")

    loop.create_task(step())
    loop.run_until_complete(until(lambda: seen))
    return loop


@pytest.mark.parametrize("raw", [False, True], ids=["", "raw"])
@pytest.mark.parametrize("kind", [Event, Socket], ids=lambda kind: kind.__name__)
def test_a_step_may_end_after_the_loop_has_stopped(kind: type[Blocker], raw: bool) -> None:
    seen: list[str] = []
    with blocker(kind) as call:
        loop = _with_a_suspended_step(call, seen, raw=raw)
        call.release()
        while len(seen) < 3:
            gevent.sleep(0.001)
        assert seen == ["blocks", "goes on", "finally"]
        assert identity() == NOBODY
        gevent.sleep(0.001)
        assert seen == ["blocks", "goes on", "finally"], "nothing else runs"
        loop.run_until_complete(until(lambda: len(seen) == 4))
        assert seen[-1] == "next step"
        loop.close()


@pytest.mark.parametrize("raw", [False, True], ids=["", "raw"])
def test_a_step_is_still_suspended_when_the_loop_runs_again(raw: bool) -> None:
    seen: list[str] = []
    with blocker(Event) as call:
        loop = _with_a_suspended_step(call, seen, raw=raw)
        loop.run_until_complete(asyncio.sleep(0))
        assert seen == ["blocks"]
        call.release()
        loop.run_until_complete(until(lambda: len(seen) == 4))
        assert seen == ["blocks", "goes on", "finally", "next step"]
        loop.close()


@pytest.mark.parametrize("raw", [False, True], ids=["", "raw"])
@pytest.mark.parametrize("kind", [Event, Socket, Sleep], ids=lambda kind: kind.__name__)
def test_close_ends_suspended_steps(kind: type[Blocker], raw: bool, observed: Any) -> None:
    seen: list[str] = []
    with blocker(kind) as call:
        loop = _with_a_suspended_step(call, seen, raw=raw)
        loop.close()
        if raw:
            # GreenletExit ends a raw greenlet, but is no exception for the one that waits for
            # it: that one goes on to its next await, which asyncio complains of.
            gc.collect()
            (context,) = observed.handled
            assert context["message"] == "Task was destroyed but it is pending!"
            observed.handled.clear()
        assert seen == ["blocks", "GreenletExit", "finally"]
        assert identity() == NOBODY
    gevent.sleep(UNIT)
    assert seen == ["blocks", "GreenletExit", "finally"]


def test_close_while_a_step_blocks_again_in_its_finally() -> None:
    loop = asyncio_gevent.EventLoop()
    first, second = gevent.event.Event(), gevent.event.Event()
    seen: list[str] = []

    async def step() -> None:
        try:
            first.wait()
        finally:
            seen.append("blocks again")
            second.wait()
            seen.append("ends")

    task = loop.create_task(step())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert seen == ["blocks again"]
    second.set()
    while not task.done():
        gevent.sleep(0)
    assert seen == ["blocks again", "ends"]
    assert isinstance(task.exception(), greenlet.GreenletExit)
    assert identity() == NOBODY


def test_close_with_suspended_callbacks() -> None:
    """GreenletExit in a plain callback is nobody's mistake, and not reported."""
    loop = asyncio_gevent.EventLoop()
    ours, theirs = socket.socketpair()
    entered: list[str] = []

    def block(name: str) -> None:
        entered.append(name)
        gevent.event.Event().wait()

    # A handle that is not that of a task's step.
    loop.call_soon(block, "soon")
    loop.call_later(0, block, "later")
    loop.add_reader(ours, block, "reader")
    theirs.send(b"1")
    loop.run_until_complete(until(lambda: len(entered) == 3))
    loop.close()
    ours.close()
    theirs.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("raiser", ["callback", "task", "resumed step", "resumed raw greenlet"])
def test_a_loop_that_dies_while_steps_are_suspended(
    error: type[BaseException], raiser: str
) -> None:
    loop = asyncio_gevent.EventLoop()
    release, deadly = gevent.event.Event(), gevent.event.Event()
    seen: list[str] = []

    async def step() -> None:
        release.wait()
        seen.append("ended")

    def die() -> None:
        raise error("died")

    def wait_and_die() -> None:
        deadly.wait()
        die()

    async def dying() -> None:
        if raiser == "task":
            die()
        elif raiser == "resumed step":
            wait_and_die()
        elif raiser == "resumed raw greenlet":
            await in_raw_greenlet(wait_and_die)

    suspended = loop.create_task(step())
    task = loop.create_task(dying())
    if raiser == "callback":
        loop.call_later(0.001, die)
    loop.call_later(0.001, deadly.set)
    with pytest.raises(error, match="died"):
        loop.run_forever()
    assert identity() == NOBODY
    assert not loop.is_running()
    # It can be used again.
    release.set()
    loop.run_until_complete(suspended)
    assert seen == ["ended"]
    assert loop.run_until_complete(asyncio.sleep(0, "result")) == "result"
    if raiser != "callback":
        assert isinstance(task.exception(), error)
    loop.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_run_ends_with_the_error_and_cancels_suspended_steps(error: type[BaseException]) -> None:
    seen: list[str] = []

    async def step() -> None:
        try:
            gevent.event.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            await asyncio.sleep(0)
            seen.append("cleaned up")
            raise

    async def main() -> None:
        task = asyncio.create_task(step())  # noqa: F841 - a strong reference
        await asyncio.sleep(0)
        raise error

    with pytest.raises(error):
        asyncio_gevent.run(main())
    assert seen == ["cancelled", "cleaned up"]


def test_a_loop_forgotten_with_a_suspended_step_warns() -> None:
    loop = asyncio_gevent.EventLoop()
    release = gevent.event.Event()
    seen: list[int] = []

    async def step() -> None:
        release.wait()
        seen.append(1)

    task = loop.create_task(step())
    loop.run_until_complete(asyncio.sleep(0))
    release.set()
    while not seen:
        gevent.sleep(0)
    loop.run_until_complete(task)
    with pytest.warns(ResourceWarning, match="unclosed event loop"):
        reference = weakref.ref(loop)
        del loop, task
        gc.collect()
        gevent.sleep(0)
        gc.collect()
    assert reference() is None


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
@pytest.mark.parametrize("wait", ["await", "block"])
def test_timeouts_of_eager_tasks_that_share_a_greenlet(wait: str) -> None:
    """Each is for the task in whose block it is, not for the one that has made the tasks."""

    async def step(seconds: float) -> str:
        try:
            with gevent.Timeout(seconds):
                await asyncio.sleep(0)
                if wait == "block" and seconds == 100:
                    gevent.sleep(UNIT * 2)
                await asyncio.sleep(UNIT * 3)
        except gevent.Timeout as error:
            return f"{error.seconds == seconds}"
        return "none"

    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        return await asyncio.gather(
            *[loop.create_task(step(seconds)) for seconds in (UNIT, UNIT * 2, 100)]
        )

    assert asyncio_gevent.run(main()) == ["True", "True", "none"]


def test_dead_proxies_do_not_disturb() -> None:
    """All objects of the process are looked at to find a raw greenlet that blocks."""

    class Something:
        pass

    something = Something()
    proxies = [weakref.proxy(something)]
    del something
    loop = asyncio_gevent.EventLoop()

    async def block() -> None:
        greenlet.greenlet(lambda: gevent.event.Event().wait()).switch()

    async def main() -> None:
        task = asyncio.ensure_future(block())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        tasks.append(asyncio.ensure_future(block()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    tasks: list[Any] = []
    loop.run_until_complete(main())
    loop.close()
    assert tasks.pop().done()
    assert proxies


def test_a_task_that_cancels_itself_after_a_blocking_call_is_cancelled() -> None:
    # As in asyncio also if it then returns: its step runs, and is not one to throw into.
    loop = asyncio_gevent.EventLoop()

    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        gevent.sleep(0)
        assert task.cancel()

    async def main() -> None:
        task = asyncio.ensure_future(work())
        await asyncio.wait([task])
        assert task.cancelled()

    loop.run_until_complete(main())
    assert not loop._suspended
    assert not loop._suspended_tasks
    assert not loop._special
    loop.close()


def test_a_step_that_is_suspended_again_in_another_context_is_noted_anew() -> None:
    # What shares that context must not enter it.
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    inner = contextvars.copy_context()
    inner.run(variable.set, 1)
    entered = gevent.event.Event()
    release = gevent.event.Event()
    seen: list[int] = []

    def block() -> None:
        entered.set()
        release.wait()

    async def work() -> None:
        gevent.sleep(0)
        inner.run(block)

    async def main() -> None:
        task = asyncio.ensure_future(work())
        await until(entered.is_set)
        asyncio.get_running_loop().call_soon(lambda: seen.append(variable.get()), context=inner)
        await asyncio.sleep(0)
        assert seen == [1]
        release.set()
        await task

    loop = asyncio_gevent.EventLoop()
    loop.run_until_complete(main())
    assert not loop._special
    loop.close()


@pytest.mark.parametrize("place", ["enter_task", "leave_task"])
def test_what_a_signal_handler_raises_at_the_edge_of_a_step_is_survived(
    place: str, monkeypatch: pytest.MonkeyPatch, observed: Any
) -> None:
    """The step goes on, other tasks too, and no event loop is left running in the hub."""
    original = getattr(_steps, place)
    calls = 0
    seen: list[Any] = []

    def interrupted(loop: Any, task: Any) -> None:
        nonlocal calls
        calls += task is sleeping
        if task is sleeping and calls == 3:
            raise ZeroDivisionError
        original(loop, task)

    async def sleep() -> None:
        for _ in range(5):
            gevent.sleep(0)
            assert asyncio.current_task() is sleeping
            seen.append(calls)

    async def main() -> None:
        nonlocal sleeping
        sleeping = asyncio.ensure_future(sleep())
        # With a greenlet that looks on.
        while not sleeping.done():
            await asyncio.sleep(0)
            await asyncio_gevent.spawn(look)

    def look() -> None:
        assert asyncio._get_running_loop() is None

    sleeping: Any = None
    monkeypatch.setattr(_steps, place, interrupted)
    asyncio_gevent.run(main())
    assert len(seen) == 5
    assert calls > 3
    assert [type(error) for error in observed.hub_errors] == [ZeroDivisionError]
    observed.hub_errors.clear()


@pytest.mark.parametrize("with_another", [False, True])
def test_a_step_that_was_suspended_closes_its_event_loop(with_another: bool) -> None:
    loop = asyncio_gevent.EventLoop()
    seen: list[str] = []

    async def main() -> None:
        loop.call_soon(loop.stop)
        gevent.sleep(0)
        stopped.wait()
        loop.close()
        seen.append("closed")

    async def other() -> None:
        try:
            gevent.sleep(100)
        finally:
            seen.append("killed")

    stopped = gevent.event.Event()
    task = loop.create_task(main())
    if with_another:
        ended = loop.create_task(other())
    loop.run_forever()
    stopped.set()
    until_in_greenlet(lambda: "closed" in seen)
    if with_another:
        assert ended.done()
    assert seen == ["killed"] * with_another + ["closed"]
    assert loop.is_closed()
    until_in_greenlet(task.done)
    assert task.exception() is None
    assert not loop._suspended


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_an_eager_task_cancels_the_task_in_whose_step_it_begins() -> None:
    # That step was suspended before, and runs now.
    async def child(parent: Any) -> None:
        assert parent.cancel()

    async def work() -> None:
        gevent.sleep(0)
        loop = asyncio.get_running_loop()  # it ends before the hub has its turn
        asyncio.eager_task_factory(loop, child(asyncio.current_task()))

    async def main() -> None:
        task = asyncio.ensure_future(work())
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio_gevent.run(main())
