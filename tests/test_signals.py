"""Signals: handlers of several loops, and Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from typing import Any

import gevent
import gevent.event
import pytest
from support import (
    UNIT,
    NativeThread,
    end_script,
    in_native_thread,
    native_sleep,
    os_close,
    start_script,
    until,
)

import asyncio_gevent
from asyncio_gevent import EventLoop


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_handler_is_called_as_a_callback() -> None:
    seen: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def handler(*args: int) -> None:
            seen.append((args, asyncio.get_running_loop() is loop))

        loop.add_signal_handler(signal.SIGUSR1, handler, 1, 2)
        send(signal.SIGUSR1)
        await until(lambda: seen)
        assert loop.remove_signal_handler(signal.SIGUSR1)
        assert not loop.remove_signal_handler(signal.SIGUSR1)

    asyncio_gevent.run(main())
    assert seen == [((1, 2), True)]
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


@pytest.mark.parametrize("sender", ["greenlet", "native thread", "alarm"])
def test_a_signal_wakes_a_loop_that_rests(sender: str) -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        arrived = asyncio.Event()
        number = signal.SIGALRM if sender == "alarm" else signal.SIGUSR1
        loop.add_signal_handler(number, arrived.set)
        thread = None
        if sender == "greenlet":

            def when_it_rests() -> None:
                while loop._awake:
                    gevent.sleep(0.001)
                send(number)

            gevent.spawn(when_it_rests)
        elif sender == "native thread":

            def when_it_waits() -> None:
                native_sleep(0.005)
                send(number)

            thread = NativeThread(when_it_waits)
        else:
            signal.setitimer(signal.ITIMER_REAL, 0.005)
        await arrived.wait()
        if thread is not None:
            thread.join()
        loop.remove_signal_handler(number)

    asyncio_gevent.run(main())


def test_handlers_of_two_loops_in_one_thread() -> None:
    seen: list[str] = []

    async def main(number: int, name: str) -> None:
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()

        def handler() -> None:
            assert asyncio.get_running_loop() is loop
            seen.append(name)
            arrived.set()

        loop.add_signal_handler(number, handler)
        await arrived.wait()
        loop.remove_signal_handler(number)

    first = gevent.spawn(asyncio_gevent.run, main(signal.SIGUSR1, "first"))
    second = gevent.spawn(asyncio_gevent.run, main(signal.SIGUSR2, "second"))
    while signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL:
        gevent.sleep(0)
    # When the first one ends, the wake-up descriptor stays for the second.
    send(signal.SIGUSR1)
    first.get()
    gevent.sleep(0.001)
    send(signal.SIGUSR2)
    second.get()
    assert seen == ["first", "second"]


def test_the_last_one_who_asks_for_a_signal_gets_it() -> None:
    seen: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        other = EventLoop()
        other.add_signal_handler(signal.SIGUSR1, seen.append, "other")
        loop.add_signal_handler(signal.SIGUSR1, seen.append, "replaced")
        loop.add_signal_handler(signal.SIGUSR1, seen.append, "last")
        send(signal.SIGUSR1)
        await until(lambda: seen)
        other.close()

    asyncio_gevent.run(main())
    assert seen == ["last"]


def test_the_wake_up_descriptor_of_others() -> None:
    """One that is set meanwhile stays, and one that was closed meanwhile is not left there."""
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    number = ends[1].fileno()

    async def set_it() -> None:
        signal.set_wakeup_fd(number)

    asyncio_gevent.run(set_it())
    assert signal.set_wakeup_fd(number) == number

    async def close_it() -> None:
        for end in ends:
            os_close(end.detach())

    asyncio_gevent.run(close_it())
    assert signal.set_wakeup_fd(-1) == -1


def test_close_takes_handlers_back() -> None:
    loop = EventLoop()
    loop.add_signal_handler(signal.SIGUSR1, int)
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_suspended_handler_does_not_block_the_next_signal() -> None:
    release = gevent.event.Event()
    seen: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def first() -> None:
            seen.append("first")
            release.wait()
            seen.append("ended")

        loop.add_signal_handler(signal.SIGUSR1, first)
        loop.add_signal_handler(signal.SIGUSR2, seen.append, "second")
        send(signal.SIGUSR1)
        await until(lambda: seen)
        send(signal.SIGUSR2)
        await until(lambda: len(seen) == 2)
        release.set()
        await until(lambda: len(seen) == 3)
        assert seen == ["first", "second", "ended"]
        loop.remove_signal_handler(signal.SIGUSR1)
        loop.remove_signal_handler(signal.SIGUSR2)

    asyncio_gevent.run(main())


def test_a_signal_while_a_step_computes() -> None:
    seen: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, seen.append, "handled")
        send(signal.SIGUSR1)
        assert seen == []
        await until(lambda: seen)
        loop.remove_signal_handler(signal.SIGUSR1)

    asyncio_gevent.run(main())


def test_a_suspended_handler_is_not_entered_by_the_next_signal() -> None:
    seen: list[str] = []
    release = gevent.event.Event()

    def handler() -> None:
        seen.append("enter")
        release.wait()
        seen.append("leave")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, handler)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)
            await until(lambda: seen)
            await asyncio.sleep(UNIT / 2)
            assert seen == ["enter"]
        release.set()
        await until(lambda: len(seen) == 4)
        loop.remove_signal_handler(signal.SIGUSR1)

    asyncio_gevent.run(main())
    assert seen == ["enter", "leave"] * 2


def test_only_in_the_main_thread() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(RuntimeError, match="main thread"):
            loop.add_signal_handler(signal.SIGUSR1, int)

    in_native_thread(lambda: asyncio_gevent.run(main()))


@pytest.mark.skipif(
    sys.version_info < (3, 13),
    reason="a cancel of a running step cannot be taken back from the next await before 3.13",
)
@pytest.mark.parametrize("resumed", [False, True])
def test_ctrl_c_in_the_code_of_a_step_that_then_blocks(resumed: bool) -> None:
    """It cancels the task, and the blocking call is where the task hears of it."""
    seen: list[str] = []

    async def main() -> None:
        if resumed:
            gevent.sleep(0)
        signal.raise_signal(signal.SIGINT)
        try:
            gevent.event.Event().wait(1)
            seen.append("not cancelled")
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        asyncio_gevent.run(main())
    assert seen == ["cancelled", "cleaned up"]


@pytest.mark.parametrize("interrupted", ["the callback", "the loop"])
def test_ctrl_c_loses_no_handle(interrupted: str) -> None:
    """Raised in the loop's own code between two handles, it would be lost with one of them."""
    loop = EventLoop()
    seen: list[str] = []

    def callback() -> None:
        frame = sys._getframe()
        if interrupted == "the loop":
            while "asyncio_gevent" not in frame.f_globals["__name__"]:
                frame = frame.f_back  # type: ignore[assignment]
        handler: Any = signal.getsignal(signal.SIGINT)
        handler(signal.SIGINT, frame)
        seen.append("goes on")

    async def main() -> None:
        loop.call_soon(callback)
        await asyncio.sleep(0)
        seen.append("stepped")

    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(main())
    if interrupted == "the loop":
        assert seen == ["goes on", "stepped"]
    else:
        assert seen == []
        loop.run_until_complete(asyncio.sleep(0))  # the handles that were ready are still there
        assert seen == ["stepped"]
    loop.close()


# --- Ctrl-C, in a fresh process -------------------------------------------------------------------


def press_ctrl_c(how: str, library: str, **options: Any) -> Any:
    process = start_script("ctrl_c", how, library, warnings="default", **options)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    if how == "insists":
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGINT)
    return end_script(process)


CLEANED_UP = "cleans up\ncleaned up\n"


@pytest.mark.parametrize(
    "how",
    [
        "waits",
        "another task",
        "blocks",
        "blocks in a raw greenlet",
        "busy",
        "greenlet",
        "busy greenlet",
    ],
)
def test_ctrl_c_ends_run_and_the_tasks_clean_up(how: str) -> None:
    if how == "another task" and sys.version_info < (3, 11):
        pytest.skip("up to 3.10 KeyboardInterrupt ends the main task, and with it the run")
    finished = press_ctrl_c(how, "asyncio_gevent")
    assert (finished.status, finished.out) == (0, CLEANED_UP + "KeyboardInterrupt\n"), finished
    if not how.endswith("greenlet") or "raw" in how:
        assert finished.err == "", finished


@pytest.mark.parametrize("how", ["waits", "another task", "insists", "busy", "swallows", "handler"])
def test_ctrl_c_ends_run_as_it_ends_asyncio_run(how: str) -> None:
    if how in ("insists", "swallows") and sys.version_info < (3, 11):
        pytest.skip("up to 3.10 the first Ctrl-C is raised, not a cancel")
    if how == "busy" and sys.version_info < (3, 11):
        pytest.skip("up to 3.10 asyncio may lose the task's next step to it, and wait for ever")
    ours = press_ctrl_c(how, "asyncio_gevent")
    theirs = press_ctrl_c(how, "asyncio", patched=False)
    assert (ours.status, ours.out) == (theirs.status, theirs.out), (ours, theirs)


@pytest.mark.parametrize("method", ["_enter", "_leave", "_rest", "_run_batch"])
def test_an_exception_of_a_signal_handler_in_code_of_the_loop(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves run_forever(), as in asyncio, and the next loop finds all as it should be."""
    original: Any = getattr(EventLoop, method)
    armed = [False]

    def interrupted(self: Any, *args: Any) -> Any:
        if armed[0]:
            armed[0] = False
            raise ZeroDivisionError  # which stands for the handler's
        return original(self, *args)

    async def main() -> None:
        await asyncio.sleep(0)
        armed[0] = True
        await asyncio.sleep(0)
        await asyncio.sleep(UNIT)

    monkeypatch.setattr(EventLoop, method, interrupted)
    loop = EventLoop()
    task = loop.create_task(main())
    with pytest.raises(ZeroDivisionError):
        loop.run_forever()
    assert asyncio._get_running_loop() is None
    loop.run_until_complete(asyncio.sleep(0))
    task.cancel()
    loop.call_soon(loop.stop)
    loop.run_forever()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    asyncio_gevent.run(asyncio.sleep(0))
