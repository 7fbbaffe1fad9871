"""Where an asyncio loop runs, it carries the hub: who runs when, what may block, who moves."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gevent
import gevent.event
import gevent.lock
import gevent.pool
import gevent.queue
import gevent.socket
import pytest
from gevent.exceptions import LoopExit
from gevent.monkey import get_original
from hosts import HOST, RUNNING, host_name, loop, run
from support import (
    PATCHED,
    Polls,
    in_greenlet,
    in_main,
    in_native_thread,
    native_sleep,
    native_socketpair,
    never,
    run_script,
    start_native_thread,
    until,
)

import asyncio_gevent
from asyncio_gevent import BlockingCallError, await_, greenlet_to_future, spawn, sync_to_async
from asyncio_gevent.gevent_loop import READ, GeventLoop

everywhere = pytest.mark.parametrize("place", [in_main, in_greenlet])


@everywhere
def test_the_running_loop_carries_the_hub(place: Callable[..., Any]) -> None:
    async def main() -> None:
        host = asyncio.get_running_loop()
        assert host_name(host) == RUNNING
        assert loop().attached is host
        assert "attached to" in repr(gevent.get_hub())

    place(lambda: run(main()))
    assert loop().attached is None
    gevent.sleep(0)  # by the private host again


@everywhere
def test_greenlets_go_on_while_nothing_in_the_loop_uses_gevent(place: Callable[..., Any]) -> None:
    ticks: list[int] = []

    def tick() -> None:
        while True:
            gevent.sleep(0.001)
            ticks.append(1)

    async def main() -> None:
        for _ in range(1000):
            await asyncio.sleep(0.001)
            if len(ticks) >= 5:
                return

    ticker = gevent.spawn(tick)
    gevent.sleep(0.002)
    for _ in range(2):  # one event loop after the other
        ticks.clear()
        place(lambda: run(main()))
        assert len(ticks) >= 5
    ticks.clear()
    gevent.sleep(0.02)
    assert ticks
    ticker.kill()


def test_active_watchers_move_with_the_hub() -> None:
    one, other = gevent.socket.socketpair()
    received: list[bytes] = []

    def read() -> None:
        while data := one.recv(1):
            received.append(data)

    def write(data: bytes) -> None:
        other.send(data)

    reader = gevent.spawn(read)
    for number in range(3):
        gevent.sleep(0.001)
        write(b"p%d" % number)
        while len(received) < 4 * number + 2:
            gevent.sleep(0.001)

        async def main(number: int = number) -> None:
            other.send(b"a%d" % number)
            await until(lambda: len(received) == 4 * number + 4)

        run(main())
    other.close()
    reader.join()
    one.close()
    assert b"".join(received) == b"p0a0p1a1p2a2"


def test_a_greenlet_is_no_part_of_the_loop() -> None:
    def look() -> tuple[Any, Any]:
        return asyncio._get_running_loop(), sys.get_asyncgen_hooks().firstiter

    async def main() -> Any:
        running = asyncio.get_running_loop()
        task = asyncio.current_task()
        seen = await spawn(look)
        assert asyncio.get_running_loop() is running
        assert asyncio.current_task() is task
        return seen

    assert run(main())[0] is None


def test_greenlets_run_event_loops_of_their_own() -> None:
    async def inner(value: int) -> int:
        await asyncio.sleep(0.001)
        return value

    async def main() -> list[Any]:
        greenlets = [spawn(asyncio_gevent.run, inner(number)) for number in range(3)]
        return await asyncio.gather(*greenlets)

    assert run(main()) == [0, 1, 2]


def test_a_nested_event_loop_carries_the_hub_meanwhile() -> None:
    """An event loop of asyncio's in a greenlet makes the outer one wait, but not the greenlets."""
    ticks: list[int] = []

    def tick() -> None:
        while True:
            gevent.sleep(0.001)
            ticks.append(1)

    async def inner() -> None:
        ticks.clear()
        while len(ticks) < 3:
            await asyncio.sleep(0.001)

    async def main() -> None:
        ticker = gevent.spawn(tick)
        await spawn(run, inner())
        assert loop().attached is asyncio.get_running_loop()
        ticks.clear()
        while len(ticks) < 3:
            await asyncio.sleep(0.001)
        ticker.kill(block=False)
        await asyncio.sleep(0)

    run(main())


def test_what_was_found_before_an_inner_event_loop_began_is_served() -> None:
    one, other = gevent.socket.socketpair()
    reader = gevent.spawn(one.recv, 1)
    runner = gevent.spawn_later(0.005, lambda: run(asyncio.sleep(0.001)))
    gevent.sleep(0.001)
    other.send(b"x")
    native_sleep(0.01)  # now one poll finds both
    assert runner.get() is None
    assert reader.get() == b"x"
    with gevent.Timeout(0.001, False):
        gevent.event.Event().wait()
    with Polls() as polls:
        gevent.sleep(0.02)
    assert polls.count < 10  # it is asleep
    one.close()
    other.close()


def test_a_loop_that_is_destroyed_while_it_is_attached() -> None:
    """In a thread: the event loop goes on without gevent."""

    def in_thread() -> list[str]:
        done: list[str] = []

        async def main() -> None:
            gevent.get_hub().loop.timer(0.001).start(gevent.get_hub().loop.destroy)
            await until(lambda: "destroyed" in repr(loop()))
            await asyncio.sleep(0.001)
            done.append("went on")

        run(main())
        return done

    assert in_native_thread(in_thread) == ["went on"]


def test_to_kill_a_greenlet_ends_the_loop_that_it_runs() -> None:
    ended: list[str] = []

    runner = gevent.spawn(run, never(ended))
    gevent.sleep(0.001)
    assert loop().attached is not None
    runner.kill(timeout=5)
    assert isinstance(runner.value, gevent.GreenletExit)
    assert ended == ["cleaned up"]
    assert loop().attached is None


@everywhere
def test_a_timeout_around_the_loop_ends_it(place: Callable[..., Any]) -> None:
    ended: list[str] = []

    def with_timeout() -> None:
        with gevent.Timeout(0.01):
            run(never(ended))

    with pytest.raises(gevent.Timeout, match="0.01 seconds"):
        place(with_timeout)
    assert ended == ["cleaned up"]
    assert loop().attached is None


def test_an_inner_loop_ends_before_the_outer_one_goes_on() -> None:
    """Also if that was let through to wait when the inner one began."""
    order: list[str] = []

    async def inner() -> None:
        for _ in range(3):
            await asyncio.sleep(0.001)
        order.append("inner")

    def run_inner() -> None:
        run(inner())

    async def main() -> None:
        runner = spawn(run_inner)
        for _ in range(3):
            await asyncio.to_thread(int)  # after patching its threads are greenlets
        await runner
        order.append("outer")

    run(main())
    assert order == ["inner", "outer"]


def test_many_threads_with_loops_and_executors() -> None:
    """After patching they are greenlets, whose loops wait for the same locks."""
    run_script("loops_in_threads", HOST).check("ok")


@pytest.mark.parametrize("inner", [[], ["inner"]], ids=["alone", "inner"])
@pytest.mark.parametrize("kind", ["private", "attached"])
def test_everything_at_once(kind: str, inner: list[str]) -> None:
    """Nothing hangs, and nothing is lost. Other seeds are for who looks for something."""
    run_script("gevent_loop_stress", kind, "1", "5", *inner).check("ok")


def test_two_greenlets_wait_for_two_loops_one_after_the_other() -> None:
    async def main(value: int) -> int:
        await asyncio.sleep(0.005)
        return value

    greenlets = [gevent.spawn(run, main(number)) for number in range(2)]
    assert [greenlet.get() for greenlet in greenlets] == [0, 1]


def test_the_end_of_the_loop_is_loop_exit_for_who_waits_for_nothing() -> None:
    async def main() -> None:
        await asyncio.sleep(0)

    run(main())
    with pytest.raises(LoopExit):
        gevent.event.Event().wait()


# --- what must not block --------------------------------------------------------------------------


def blocking_calls() -> dict[str, Callable[[], Any]]:
    return {
        "gevent.hub.sleep()": lambda: gevent.sleep(0.001),
        "a gevent function": gevent.event.Event().wait,
        "gevent.hub.sleep() of 0": lambda: gevent.sleep(0),
        "queue": gevent.queue.Queue().get,
        "join": lambda: gevent.spawn(int).join(),
        "pool": lambda: gevent.pool.Pool(2).map(int, "12"),
        "socket": lambda: gevent.socket.create_connection(("127.0.0.1", 1)),
        "await_": lambda: await_(asyncio.sleep(0)),
    }


@pytest.mark.parametrize("name", list(blocking_calls()))
def test_a_blocking_call_is_an_error_that_names_call_and_remedy(name: str) -> None:
    block = blocking_calls()[name]

    async def main() -> None:
        with pytest.raises((BlockingCallError, RuntimeError)) as caught:
            block()
        message = str(caught.value)
        for remedy in ("sync_to_async", "green"):
            assert remedy in message
        if name.endswith("()") or name.startswith("a gevent"):
            assert message.startswith(name + " would block at "), message
            assert "test_attached.py" in message
        await asyncio.sleep(0)  # and all goes on
        assert await spawn(int) == 0

    run(main())


def test_in_a_callback_too() -> None:
    async def main() -> None:
        errors: list[Any] = []
        running = asyncio.get_running_loop()
        running.set_exception_handler(lambda _, context: errors.append(context["exception"]))
        running.call_soon(gevent.sleep, 0.001)
        await until(lambda: errors)
        assert type(errors[0]) is BlockingCallError

    run(main())


def test_it_is_a_blocking_switch_out_error_as_in_gevents_hub() -> None:
    from gevent.exceptions import BlockingSwitchOutError

    async def main() -> None:
        with pytest.raises(BlockingSwitchOutError):
            gevent.sleep(1)

    run(main())


def test_after_the_loop_everything_may_block_again() -> None:
    async def main() -> None:
        gevent.spawn(int)
        with pytest.raises(BlockingCallError):
            gevent.sleep(0)

    for _ in range(2):
        run(main())
        gevent.sleep(0.001)
        assert gevent.spawn(int).get() == 0


def test_a_raw_greenlet_of_a_coroutine_must_not_block_either() -> None:
    import greenlet

    async def main() -> None:
        event = gevent.event.Event()
        for block in (lambda: gevent.sleep(0.001), lambda: event.wait()):
            raw = greenlet.greenlet(block)
            with pytest.raises(BlockingCallError, match="would block at .*test_attached"):
                raw.switch()
            await asyncio.sleep(0)
        with pytest.raises(BlockingCallError, match="would block"):
            greenlet.greenlet(event.wait).switch()  # not even a frame of its own

    run(main())


def test_the_standard_library_may_wait_for_its_own_threads() -> None:
    """After patching these are greenlets, which the hub runs while the event loop waits."""

    async def main() -> None:
        running = asyncio.get_running_loop()
        assert await asyncio.to_thread(lambda: 3) == 3
        assert await running.run_in_executor(None, lambda: 4) == 4
        thread = threading.Thread(target=int)
        thread.start()
        while thread.is_alive():
            await asyncio.sleep(0)
        (info, *_) = await running.getaddrinfo("127.0.0.1", 80, type=1)
        assert info[4] == ("127.0.0.1", 80)
        if PATCHED:
            # That is the program's own wait. Real threads do wait, of course.
            waiting = threading.Thread(target=gevent.sleep, args=(0.001,))
            waiting.start()
            with pytest.raises(BlockingCallError):
                waiting.join()
            while waiting.is_alive():
                await asyncio.sleep(0)
        assert asyncio.current_task() is not None
        assert asyncio.get_running_loop() is running

    run(main())


# --- errors, signals ------------------------------------------------------------------------------


def test_an_error_of_a_greenlet_stays_in_it(observed: Any) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await spawn(lambda: 1 // 0)

    run(main())
    assert [type(error) for error in observed.hub_errors] == [ZeroDivisionError]
    observed.hub_errors.clear()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_in_a_greenlet_ends_the_program(observed: Any, kind: Any) -> None:
    ended: list[str] = []

    def interrupt() -> None:
        raise kind(3)

    async def main() -> None:
        gevent.spawn(interrupt)
        await never(ended)

    with pytest.raises(kind) as caught:
        run(main())
    assert ended
    assert caught.value.__cause__ is None
    observed.hub_errors.clear()
    gevent.sleep(0.001)


def test_signal_watchers_fire_in_the_running_loop() -> None:
    async def main() -> None:
        arrived = gevent.event.Event()
        watcher = gevent.signal_handler(signal.SIGUSR2, arrived.set)
        start_native_thread(lambda: os.kill(os.getpid(), signal.SIGUSR2), ())
        await spawn(arrived.wait)
        watcher.cancel()

    run(main())


def test_a_handler_of_the_interpreter_wakes_a_sleeping_loop() -> None:
    async def main() -> None:
        event = gevent.event.Event()
        before = signal.signal(signal.SIGUSR2, lambda *_: event.set())
        try:
            waiting = spawn(event.wait)
            await asyncio.sleep(0.001)

            def kill() -> None:
                native_sleep(0.02)  # it polls by then; if not, the test is easier
                os.kill(os.getpid(), signal.SIGUSR2)

            start_native_thread(kill, ())
            assert await waiting
        finally:
            signal.signal(signal.SIGUSR2, before)

    run(main())


@pytest.mark.parametrize("outer", ["private", "running"])
def test_signals_wake_the_loop_after_an_inner_one_has_used_them(outer: str) -> None:
    """asyncio's standard loop takes the interpreter's descriptor for signals, and leaves none."""
    run_script("signals_after_inner", outer).check("ok")


# --- threads --------------------------------------------------------------------------------------


def test_threads_reach_the_hub_while_hosts_change() -> None:
    """Each callback from a native thread is called, whatever the hub waits in."""
    arrived: list[int] = []
    done = gevent.event.Event()
    hub_loop = loop()
    count = 2000

    def arrive(number: int) -> None:
        arrived.append(number)
        if len(arrived) == count:
            done.set()

    def in_thread() -> None:
        for number in range(count):
            hub_loop.run_callback_threadsafe(arrive, number)
            if not number % 20:
                native_sleep(0.0005)

    async def main() -> None:
        await asyncio.sleep(0.001)

    keep = hub_loop.async_()
    keep.start(int)
    start_native_thread(in_thread, ())
    while len(arrived) < count // 2:
        run(main())
        gevent.sleep(0.0005)
    done.wait()
    keep.close()
    assert arrived == list(range(count))


def test_a_native_thread_with_a_loop_of_its_own() -> None:
    results: list[Any] = []
    ended = loop().async_()

    async def main() -> None:
        results.append(await sync_to_async(lambda: gevent.sleep(0.001) or 5)())
        results.append(loop().attached is asyncio.get_running_loop())

    def in_thread() -> None:
        try:
            run(main())
        except BaseException as error:
            results.append(error)
        finally:
            hub = gevent.get_hub()
            hub.destroy(destroy_loop=True)
            ended.send()

    event = gevent.event.Event()
    ended.start(event.set)
    start_native_thread(in_thread, ())
    event.wait()
    ended.close()
    assert results == [5, True]


# --- adapters -------------------------------------------------------------------------------------


def test_the_adapters_use_the_running_loop() -> None:
    async def where() -> Any:
        await asyncio.sleep(0)
        return asyncio.get_running_loop()

    async def main() -> None:
        running = asyncio.get_running_loop()

        def in_function() -> Any:
            gevent.sleep(0.001)
            return await_(where())

        assert await sync_to_async(in_function)() is running
        assert await spawn(lambda: await_(where())) is running
        assert await spawn(asyncio_gevent.async_to_sync(where)) is running
        greenlet = gevent.spawn(lambda: 7)
        assert await greenlet_to_future(greenlet) == 7
        task = asyncio.create_task(where())
        waiting = asyncio_gevent.future_to_greenlet(task)
        waiting.start()
        assert await waiting is running
        numbers = [n async for n in asyncio_gevent.async_iter(iter(range(3)))]
        assert numbers == [0, 1, 2]

        async def generate() -> Any:
            for number in range(3):
                await asyncio.sleep(0)
                yield number

        assert await spawn(lambda: list(asyncio_gevent.sync_iter(generate()))) == [0, 1, 2]
        lock = asyncio.Lock()

        def with_lock() -> bool:
            with asyncio_gevent.sync_context(lock):
                return lock.locked()

        assert await spawn(with_lock)
        semaphore = gevent.lock.Semaphore()
        async with asyncio_gevent.async_context(semaphore):
            assert semaphore.locked()

    run(main())


def test_a_cancelled_call_ends_its_greenlet() -> None:
    ended = []

    def block() -> None:
        try:
            gevent.sleep(1000)
        finally:
            ended.append(1)

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(sync_to_async(block)(), 0.005)
        assert ended

    run(main())


def test_the_end_of_the_loop_ends_what_greenlets_wait_for() -> None:
    started = gevent.event.Event()

    async def wait() -> None:
        started.set()
        await never()

    waiting = gevent.Greenlet(lambda: await_(wait()))

    async def main() -> None:
        waiting.start()
        while not started.is_set():
            await asyncio.sleep(0)

    run(main())
    waiting.join(5)
    assert waiting.ready()
    assert isinstance(waiting.value, gevent.GreenletExit)


@pytest.mark.parametrize("kind", ["begun", "queued", "future"])
def test_to_close_the_loop_ends_what_greenlets_wait_for(kind: str, observed: Any) -> None:
    """Without asyncio.run(), which cancels all tasks before; or after it has done so."""
    made = asyncio.SelectorEventLoop() if HOST == "asyncio" else __import__("uvloop").Loop()
    future = made.create_future()
    waiting = gevent.Greenlet(lambda: await_(never() if kind != "future" else future))

    async def main() -> None:
        waiting.start()
        if kind != "queued":
            await asyncio.sleep(0.001)

    made.run_until_complete(main())
    gevent.sleep(0)
    made.close()
    with pytest.raises(RuntimeError, match="closed before|does not run|is closed"):
        waiting.get(timeout=5)
    observed.hub_errors.clear()


def test_without_a_running_loop_it_is_the_ambient_one() -> None:
    async def where() -> str:
        await asyncio.sleep(0.001)
        return type(asyncio.get_running_loop()).__name__

    assert await_(where()) == "AmbientEventLoop"


# --- hosts of all kinds ---------------------------------------------------------------------------


def test_debug_mode() -> None:
    async def main() -> None:
        assert await sync_to_async(lambda: gevent.sleep(0.001) or 1)() == 1
        assert await spawn(lambda: await_(asyncio.sleep(0.001, 2))) == 2

    run(main(), debug=True)


@pytest.mark.skipif(HOST == "uvloop", reason="only asyncio's own loop has a selector")
def test_a_loop_with_gevents_selector_gets_another_one() -> None:
    import gevent.selectors

    host = asyncio.SelectorEventLoop(gevent.selectors.GeventSelector())
    try:

        async def main() -> int:
            assert not type(host._selector).__module__.startswith("gevent")
            return await sync_to_async(lambda: gevent.sleep(0.001) or 1)()

        assert host.run_until_complete(main()) == 1
    finally:
        host.close()


def test_idle_means_idle() -> None:
    one, other = gevent.socket.socketpair()
    reader = gevent.spawn(one.recv, 1)

    async def main() -> None:
        await asyncio.sleep(0.001)
        turns = []
        original = loop()._turn

        def turn(*args: Any) -> None:
            turns.append(args)
            original(*args)

        loop()._turn = turn
        try:
            await asyncio.sleep(0.1)
        finally:
            del loop()._turn
        assert len(turns) <= 1

    run(main())
    other.send(b"x")
    assert reader.get() == b"x"
    one.close()
    other.close()


def test_nothing_of_ours_is_left_in_the_loop() -> None:
    one, other = gevent.socket.socketpair()
    reader = gevent.spawn(one.recv, 1)
    hosts = []

    async def main() -> None:
        host = asyncio.get_running_loop()
        hosts.append(host)
        await asyncio.sleep(0.002)
        assert loop()._host is host

    run(main())
    assert hosts[0].is_closed()
    assert loop()._host is None
    assert all(not each.registered for each in loop()._watched)
    assert not hasattr(gevent.getcurrent(), "switch_out") or PATCHED
    other.send(b"x")
    assert reader.get() == b"x"
    one.close()
    other.close()


@pytest.mark.parametrize("order", ["loop first", "gevent first", "gevent within"])
def test_imports_in_any_order(order: str) -> None:
    run_script("gevent_on_asyncio_order", order, patched=False).check("ok")


def test_uvicorn_style_signals_are_left_alone() -> None:
    """A handler that the event loop has is not replaced by the hub."""

    async def main() -> None:
        running = asyncio.get_running_loop()
        arrived = asyncio.Event()
        running.add_signal_handler(signal.SIGUSR2, arrived.set)
        await sync_to_async(lambda: gevent.sleep(0.001))()
        os.kill(os.getpid(), signal.SIGUSR2)
        await asyncio.wait_for(arrived.wait(), 10)
        running.remove_signal_handler(signal.SIGUSR2)

    run(main())


def test_subprocesses_of_both_worlds() -> None:
    import gevent.subprocess

    async def main() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "print(1)", stdout=asyncio.subprocess.PIPE
        )
        sleeper = await asyncio.create_subprocess_exec("sleep", "60")
        sleeper.terminate()
        assert await sleeper.wait() == -signal.SIGTERM
        other = sync_to_async(gevent.subprocess.check_output)([sys.executable, "-c", "print(2)"])
        (out, _), theirs = await asyncio.gather(process.communicate(), other)
        assert (out, theirs) == (b"1\n", b"2\n")
        assert process.returncode == 0

    run(main())


@pytest.mark.parametrize("how", ["fork", "asyncio", "gevent"])
def test_a_child_takes_nothing_out_of_what_the_parent_polls(how: str) -> None:
    """uvloop calls the interpreter's functions for forked children in those that it starts."""
    import gevent.subprocess

    async def main() -> None:
        one, other = gevent.socket.socketpair()
        reader = spawn(one.recv, 1)
        await asyncio.sleep(0.001)  # it is registered
        if how == "fork":
            pid = get_original("os", "fork")()
            if not pid:
                os._exit(0)
            get_original("os", "waitpid")(pid, 0)
        elif how == "asyncio":
            process = await asyncio.create_subprocess_exec("true")
            await process.wait()
        else:
            await sync_to_async(gevent.subprocess.call)(["true"])
        other.send(b"x")
        assert await asyncio.wait_for(reader, 5) == b"x"
        one.close()
        other.close()

    run(main())


@pytest.mark.parametrize("ends", ["sometime", "before anybody looks"])
def test_many_subprocesses_one_after_the_other(ends: str) -> None:
    """After patching their start waits in gevent, below the carrier, and perhaps their end."""

    async def main() -> None:
        for _ in range(20):
            process = await asyncio.create_subprocess_exec("true")
            if ends != "sometime":
                # asyncio and gevent find it in the same poll, in an order of the system's.
                with suppress(ChildProcessError):
                    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            assert await asyncio.wait_for(process.wait(), 10) == 0

    run(main())


def test_a_descriptor_that_asyncio_uses_is_an_error_not_a_hang(observed: Any) -> None:
    async def main() -> None:
        one, other = gevent.socket.socketpair()
        _, writer = await asyncio.open_connection(sock=one)
        fd = writer.get_extra_info("socket").fileno()
        fired = gevent.event.Event()
        watcher = loop().io(fd, READ)
        watcher.start(lambda: fired.set() or watcher.stop())
        await spawn(fired.wait)
        writer.close()
        await writer.wait_closed()
        other.close()

    run(main())
    assert all(isinstance(error, (RuntimeError, OSError)) for error in observed.hub_errors)
    observed.hub_errors.clear()


@pytest.mark.parametrize("where", ["outside", "turn", "closed", "green"])
def test_asyncio_may_use_the_number_of_a_closed_descriptor(where: str) -> None:
    """Whoever has stopped a watcher may close its descriptor, and asyncio be next to use it."""

    async def main() -> None:
        host = asyncio.get_running_loop()
        one, other = native_socketpair()
        fd = one.fileno()
        watcher = loop().io(fd, READ)
        closed = host.create_future()
        event = gevent.event.Event()

        def close() -> None:
            if where == "closed":
                watcher.close()
            else:
                watcher.stop()
            one.close()
            if where == "turn":
                loop().run_callback(int)  # there is more to do than the descriptor
            if where != "outside":
                closed.set_result(None)

        async def use_number() -> None:
            pair = native_socketpair()
            new, far = pair if pair[0].fileno() == fd else pair[::-1]
            assert new.fileno() == fd
            ready = asyncio.Event()
            host.add_reader(new, ready.set)
            far.send(b"x")
            await asyncio.wait_for(ready.wait(), 5)
            host.remove_reader(new)
            new.close()
            far.close()

        @asyncio_gevent.green
        async def blocked() -> None:
            event.wait()
            await use_number()

        watcher.start(close)
        task = asyncio.ensure_future(blocked())
        await asyncio.sleep(0.001)  # it is registered
        if where == "outside":
            close()
            await use_number()
        elif where == "green":
            loop().run_callback(close)
            loop().run_callback(event.set)
            await task
        else:
            other.send(b"x")
            await closed
            await use_number()
        event.set()
        await task
        watcher.close()
        other.close()

    run(main())


def test_time_passes_while_the_hub_is_carried() -> None:
    async def main() -> float:
        started = time.perf_counter()
        await spawn(gevent.sleep, 0.02)
        return time.perf_counter() - started

    assert 0.02 <= run(main()) < 5


def test_it_is_the_gevent_loop() -> None:
    assert type(loop()) is GeventLoop
