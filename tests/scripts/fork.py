"""What happens after a fork: fork.py CASE. The child tells by its status whether all is well."""

import asyncio
import faulthandler
import multiprocessing
import os
import signal
import socket
import sys
import warnings

import gevent
import gevent.event
import gevent.monkey
import gevent.os
from gevent.monkey import get_original

import asyncio_gevent

# Python 3.12 and later warn of a fork with threads, those of the hub's pool.
warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork")
# Timers of less than a millisecond.
warnings.filterwarnings("ignore", message="libuv only supports millisecond")

# The limit on the time of this process is a thread's, which a child does not have.
os.register_at_fork(after_in_child=lambda: signal.alarm(10))


async def everything() -> str:
    """Timers, suspension, wake-up by a greenlet, sockets, threads."""
    await asyncio.sleep(0.001)
    gevent.sleep(0.001)
    future = asyncio.get_running_loop().create_future()
    gevent.spawn(future.set_result, None)
    await future

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(1))
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"x")
    assert await reader.read() == b"x"
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
    assert await asyncio.to_thread(lambda: 1) == 1
    return "everything"


def in_child(fork, function) -> None:
    """Call the function in a forked child, and check in the parent that it succeeded."""
    pid = fork()
    if not pid:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, status = waitpid(pid)
    assert os.waitstatus_to_exitcode(status) == 0, status


def waitpid(pid: int):
    # Cooperative, so that the parent's loops can be seen to go on.
    while True:
        found, status = gevent.os.waitpid(pid, os.WNOHANG)
        if found:
            return found, status
        gevent.sleep(0.001)


def run_everything() -> None:
    assert asyncio_gevent.run(everything()) == "everything"


def before_any_loop(fork) -> None:
    in_child(fork, run_everything)
    run_everything()


def after_a_loop(fork) -> None:
    run_everything()
    in_child(fork, run_everything)
    run_everything()


def beside_a_loop(fork) -> None:
    """A loop runs in another greenlet; it stands still in the child, and goes on in the parent."""
    ticks = []
    end = False

    async def tick() -> None:
        while not end:
            ticks.append(os.getpid())
            await asyncio.sleep(0.001)

    async def suspended() -> None:
        while not end:
            gevent.sleep(0.001)
            ticks.append(os.getpid())
            await asyncio.sleep(0)

    running = gevent.spawn(asyncio_gevent.run, tick())
    blocking = gevent.spawn(asyncio_gevent.run, suspended())
    while len(ticks) < 10:
        gevent.sleep(0.001)

    def child() -> None:
        ticks.clear()
        run_everything()
        gevent.sleep(0.005)
        # The step that was suspended is a greenlet with a timer as any other; tasks are not run.
        assert len(ticks) <= 1, ticks

    in_child(fork, child)
    before = len(ticks)
    while len(ticks) < before + 10:
        gevent.sleep(0.001)
    assert set(ticks) == {os.getpid()}
    end = True
    gevent.joinall([running, blocking], raise_error=True)


def in_a_coroutine(fork) -> None:
    """The step forks; in the child it ends the process, as daemons' and workers' code does."""

    async def main() -> str:
        in_child(fork, lambda: None)
        return await everything()

    assert asyncio_gevent.run(main()) == "everything"


def returns_in_a_coroutine(fork) -> None:
    """The child returns from the step that forked: it goes on with the loop."""
    reader, writer = os.pipe()

    async def main() -> None:
        pid = fork()
        # No loop runs in the child up to here, as in asyncio; it goes on with the next step.
        gevent.sleep(0)
        await asyncio.sleep(0)
        result = await everything()
        os.write(writer, f"{'parent' if pid else 'child'}: {result}\n".encode())
        if not pid:
            os._exit(0)
        while True:
            found, status = gevent.os.waitpid(pid, os.WNOHANG)
            if found:
                break
            await asyncio.sleep(0.001)
        assert os.waitstatus_to_exitcode(status) == 0

    asyncio_gevent.run(main())
    assert sorted(os.read(reader, 1000).split(b"\n")) == [
        b"", b"child: everything", b"parent: everything"
    ]  # fmt: skip


def waits_for_a_socket(fork) -> None:
    """A task waits for a socket, and goes on waiting in the child."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    async def main() -> None:
        receiving = asyncio.create_task(asyncio.get_running_loop().sock_recv(ours, 1))
        await asyncio.sleep(0.001)  # the hub has told the kernel
        pid = fork()
        gevent.sleep(0)
        await asyncio.sleep(0)
        if not pid:
            theirs.send(b"1")
            os._exit(0 if await receiving == b"1" else 1)
        # Not cooperative, since it is the child's turn to receive.
        _, status = get_original("os", "waitpid")(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        theirs.send(b"2")
        assert await receiving == b"2"

    asyncio_gevent.run(main())
    ours.close()
    theirs.close()


def exits_in_a_coroutine(fork) -> None:
    """The child leaves the coroutine by SystemExit, as a program ends."""
    # Its thread is not in the child, which would wait for it when it ends.
    faulthandler.cancel_dump_traceback_later()

    async def main() -> str:
        pid = fork()
        if not pid:
            raise SystemExit(7)
        while True:
            found, status = gevent.os.waitpid(pid, os.WNOHANG)
            if found:
                break
            await asyncio.sleep(0.001)
        assert os.waitstatus_to_exitcode(status) == 7
        return await everything()

    assert asyncio_gevent.run(main()) == "everything"


def from_multiprocessing(fork) -> None:
    context = multiprocessing.get_context("fork")
    for _ in range(2):
        process = context.Process(target=run_everything)
        process.start()
        process.join()
        assert process.exitcode == 0
        run_everything()

    async def main() -> None:
        process = context.Process(target=run_everything)
        process.start()
        process.join()  # suspends the step, if patched
        assert process.exitcode == 0
        await everything()

    asyncio_gevent.run(main())


def two_generations(fork) -> None:
    in_child(fork, lambda: after_a_loop(fork))
    run_everything()


case, how = sys.argv[1:]
if how == "gevent.os.fork" or gevent.monkey.is_module_patched("os"):
    # gevent's fork() sets the handler of SIGCHLD afterwards, in the parent: of a child that has
    # ended by then, gevent's waitpid() never hears (gevent 26.9, without any event loop of ours).
    gevent.get_hub().loop.install_sigchld()
globals()[case]({"os.fork": os.fork, "gevent.os.fork": gevent.os.fork}[how])
print("ok")
