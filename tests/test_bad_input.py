"""What users do wrong: the error that asyncio users know, at the same place, with a remedy.

Twin bodies: the tests with the fixture `loop` run on asyncio's own loop as well.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import socket
import sys
from typing import Any

import gevent
import pytest
from support import PATCHED, in_native_thread, until

import asyncio_gevent
from asyncio_gevent import AsyncioGeventError, BlockingCallError, EventLoop

# After patching asyncio's own loop is none to compare with: it has patched descriptors and threads.
TWINS = [EventLoop] if PATCHED else [EventLoop, asyncio.SelectorEventLoop]


@pytest.fixture(params=TWINS, ids=["ours", "asyncio"][: len(TWINS)])
def loop(request: pytest.FixtureRequest) -> Any:
    loop = request.param()
    yield loop
    if not loop.is_closed():
        loop.close()


async def coroutine_function() -> int:
    return 1


# --- a closed loop --------------------------------------------------------------------------------


CLOSED = {
    "call_soon": lambda loop: loop.call_soon(int),
    "call_soon_threadsafe": lambda loop: loop.call_soon_threadsafe(int),
    "call_later": lambda loop: loop.call_later(1, int),
    "call_at": lambda loop: loop.call_at(1, int),
    "run_forever": lambda loop: loop.run_forever(),
    "run_in_executor": lambda loop: loop.run_in_executor(None, int),
    "add_reader": lambda loop: loop.add_reader(0, int),
    "add_writer": lambda loop: loop.add_writer(1, int),
    "add_signal_handler": lambda loop: loop.add_signal_handler(signal.SIGUSR1, int),
}


@pytest.mark.parametrize("call", CLOSED)
def test_a_closed_loop(loop: Any, call: str) -> None:
    loop.close()
    loop.close()  # twice is fine
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        CLOSED[call](loop)
    assert loop.is_closed()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_a_coroutine_for_a_closed_loop(loop: Any) -> None:
    loop.close()
    for call in (loop.run_until_complete, loop.create_task):
        coroutine = coroutine_function()
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            call(coroutine)
        coroutine.close()


def test_removing_from_a_closed_loop(loop: Any) -> None:
    loop.close()
    for call in (loop.remove_reader, loop.remove_writer):
        try:
            assert call(0) is False
        except RuntimeError as error:  # asyncio has no selector any more
            assert "closed" in str(error)


# --- a running loop -------------------------------------------------------------------------------


def test_closing_a_running_loop(loop: Any) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="Cannot close a running event loop"):
            loop.close()

    loop.run_until_complete(main())


@pytest.mark.parametrize("method", ["run_forever", "run_until_complete"])
def test_running_a_running_loop(loop: Any, method: str) -> None:
    # Once for each event loop: in 3.13.0 asyncio's own is not running any more after the error.
    async def main() -> None:
        coroutine = coroutine_function()
        with pytest.raises(RuntimeError, match="This event loop is already running"):
            getattr(loop, method)(*[coroutine] * (method == "run_until_complete"))
        coroutine.close()
        loop.stop()

    loop.create_task(main())
    loop.run_forever()


def test_running_another_loop_in_a_coroutine(loop: Any) -> None:
    async def main() -> None:
        other = type(loop)()
        with pytest.raises(RuntimeError, match="Cannot run the event loop while another loop"):
            other.run_forever()
        other.close()

    loop.run_until_complete(main())


def test_running_a_loop_that_runs_in_another_greenlet() -> None:
    loop = EventLoop()
    running = gevent.spawn(loop.run_forever)
    while not loop.is_running():
        gevent.sleep(0)
    with pytest.raises(RuntimeError, match="This event loop is already running"):
        loop.run_forever()
    with pytest.raises(RuntimeError, match="Cannot close a running event loop"):
        loop.close()
    loop.stop()
    running.get()
    loop.close()


def test_run_in_a_coroutine_says_what_to_do() -> None:
    async def main() -> None:
        coroutine = coroutine_function()
        with pytest.raises(RuntimeError, match="cannot be called from a running event loop") as e:
            asyncio_gevent.run(coroutine)
        assert "await" in str(e.value)
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED

    asyncio_gevent.run(main())


@pytest.mark.parametrize("value", [coroutine_function, None, 1, lambda: 1, [], asyncio.sleep])
def test_run_something_that_is_no_coroutine(value: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as ours:
        asyncio_gevent.run(value)
    with pytest.raises((ValueError, TypeError)) as theirs:
        asyncio.run(value)
    assert type(ours.value) is type(theirs.value)
    assert "a coroutine was expected" in str(ours.value)
    assert repr(value) in str(ours.value)


def test_run_an_awaitable_that_is_no_coroutine() -> None:
    """From 3.14 on asyncio.run() takes any awaitable; before that it says what it wants."""
    import sys

    class Awaitable:
        def __await__(self) -> Any:
            return coroutine_function().__await__()

    if sys.version_info >= (3, 14):
        assert asyncio_gevent.run(Awaitable()) == 1  # type: ignore[arg-type]
    else:
        with pytest.raises(ValueError, match="a coroutine was expected"):
            asyncio_gevent.run(Awaitable())  # type: ignore[arg-type]


# The destructor of asyncio's loops does not expect one that was not made.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_unknown_option() -> None:
    coroutine = coroutine_function()
    with pytest.raises(TypeError, match="unknown"):
        asyncio_gevent.run(coroutine, unknown=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        asyncio_gevent.run(coroutine, True)  # type: ignore[misc]
    coroutine.close()
    for make in (EventLoop, asyncio_gevent.new_event_loop):
        with pytest.raises(TypeError, match="unknown"):
            make(unknown=1)  # type: ignore[operator]
        with pytest.raises(TypeError):
            make(True)  # type: ignore[operator]


# --- another thread -------------------------------------------------------------------------------


def test_run_forever_in_two_threads(loop: Any) -> None:
    if not isinstance(loop, EventLoop) and sys.version_info[:2] == (3, 13):
        pytest.skip("3.13.0 takes the running loop from the first one, as above")

    async def main() -> None:
        errors: list[str] = []

        def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="already running") as caught:
                loop.run_forever()
            errors.append(str(caught.value))

        await loop.run_in_executor(None, elsewhere)
        assert errors

    loop.run_until_complete(main())


def test_get_running_loop_in_a_thread(loop: Any) -> None:
    async def main() -> None:
        def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="no running event loop"):
                asyncio.get_running_loop()

        await loop.run_in_executor(None, elsewhere)

    loop.run_until_complete(main())


def test_call_soon_from_another_thread_in_debug_mode(loop: Any) -> None:
    loop.set_debug(True)
    loop.slow_callback_duration = 60

    async def main() -> None:
        def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="Non-thread-safe operation"):
                loop.call_soon(int)

        await loop.run_in_executor(None, elsewhere)

    loop.run_until_complete(main())


def test_call_soon_from_another_thread_is_not_lost() -> None:
    """Outside of debug mode nobody checks it. It is wrong, but wakes the loop all the same."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        called = asyncio.Event()
        in_native_thread(lambda: loop.call_soon(called.set))
        await called.wait()

    asyncio_gevent.run(main())


# --- coroutines and callbacks ---------------------------------------------------------------------


def test_a_coroutine_given_twice(loop: Any) -> None:
    coroutine = coroutine_function()
    assert loop.run_until_complete(coroutine) == 1
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        loop.run_until_complete(coroutine)


def test_a_coroutine_given_to_two_tasks(loop: Any) -> None:
    async def main() -> None:
        coroutine = coroutine_function()
        first = loop.create_task(coroutine)
        second = loop.create_task(coroutine)
        assert await first == 1
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            await second

    loop.run_until_complete(main())


def test_something_that_is_no_coroutine(loop: Any) -> None:
    for value in (coroutine_function, 1, None):
        with pytest.raises(TypeError, match="coroutine"):
            loop.create_task(value)
        with pytest.raises(TypeError, match="awaitable|asyncio.Future|coroutine"):
            loop.run_until_complete(value)


def test_a_future_of_another_loop(loop: Any) -> None:
    other = type(loop)()
    future = other.create_future()

    async def main() -> None:
        await future

    with pytest.raises(RuntimeError, match="attached to a different loop"):
        loop.run_until_complete(main())
    with pytest.raises(ValueError, match="loop"):
        loop.run_until_complete(future)
    other.close()


def test_a_loop_that_is_stopped_before_the_future_is_done(loop: Any) -> None:
    loop.call_soon(loop.stop)
    future = loop.create_future()
    with pytest.raises(RuntimeError, match="Event loop stopped before Future completed"):
        loop.run_until_complete(future)


CALLBACKS = {
    "call_soon": lambda loop, callback: loop.call_soon(callback),
    "call_later": lambda loop, callback: loop.call_later(1, callback),
    "call_at": lambda loop, callback: loop.call_at(1, callback),
    "call_soon_threadsafe": lambda loop, callback: loop.call_soon_threadsafe(callback),
    "run_in_executor": lambda loop, callback: loop.run_in_executor(None, callback),
}


@pytest.mark.parametrize("call", CALLBACKS)
def test_a_callback_that_is_a_coroutine_function_in_debug_mode(loop: Any, call: str) -> None:
    loop.set_debug(True)
    coroutine = coroutine_function()
    for callback in (coroutine_function, coroutine):
        with pytest.raises(TypeError, match="coroutines cannot be used with"):
            CALLBACKS[call](loop, callback)
    with pytest.raises(TypeError, match="a callable object was expected"):
        CALLBACKS[call](loop, 1)
    coroutine.close()


def test_a_signal_handler_that_is_a_coroutine_function(loop: Any) -> None:
    coroutine = coroutine_function()
    for callback in (coroutine_function, coroutine):
        with pytest.raises(TypeError, match="coroutines cannot be used with add_signal_handler"):
            loop.add_signal_handler(signal.SIGUSR1, callback)
    coroutine.close()


def test_a_callback_that_cannot_be_called(loop: Any) -> None:
    contexts: list[Any] = []
    loop.set_exception_handler(lambda loop, context: contexts.append(context))
    loop.call_soon(1)
    loop.run_until_complete(until(lambda: contexts))
    assert isinstance(contexts[0]["exception"], TypeError)


def test_times_that_are_none(loop: Any) -> None:
    if not isinstance(loop, EventLoop) and sys.version_info < (3, 11):
        pytest.skip("asyncio does not look at it before 3.11")
    with pytest.raises(TypeError, match="delay must not be None|delay|NoneType"):
        loop.call_later(None, int)
    with pytest.raises(TypeError, match="when"):
        loop.call_at(None, int)


def test_a_time_in_the_past_and_one_that_never_comes(loop: Any) -> None:
    seen: list[int] = []
    loop.call_later(-1, seen.append, 1)
    loop.call_later(float("inf"), seen.append, 2)
    loop.call_later(1e12, seen.append, 3)
    loop.run_until_complete(until(lambda: seen))
    loop.run_until_complete(asyncio.sleep(0.001))
    assert seen == [1]


def test_setters_that_want_a_callable(loop: Any) -> None:
    with pytest.raises(TypeError, match="task factory must be a callable or None"):
        loop.set_task_factory(1)
    with pytest.raises(TypeError, match="A callable object or None is expected"):
        loop.set_exception_handler(1)
    if sys.version_info >= (3, 11):  # deprecated before
        with pytest.raises(TypeError, match="executor must be ThreadPoolExecutor"):
            loop.set_default_executor(object())


# --- descriptors ----------------------------------------------------------------------------------


def test_a_closed_descriptor(loop: Any) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    gevent.sleep(0.001)  # the patched close is deferred
    for call in (loop.add_reader, loop.add_writer):
        with pytest.raises(OSError, match="Bad file descriptor"):
            call(reader, int)
    for call in (loop.remove_reader, loop.remove_writer):
        assert call(reader) is False
    loop.run_until_complete(asyncio.sleep(0))


def test_a_descriptor_that_is_none(loop: Any) -> None:
    for value in (-1, "text", None, 1.5, object()):
        for call in (loop.add_reader, loop.add_writer):
            with pytest.raises((ValueError, TypeError, AttributeError)):
                call(value, int)
    loop.run_until_complete(asyncio.sleep(0))


def test_a_closed_socket(loop: Any) -> None:
    sock = socket.socket()
    sock.close()
    for call in (loop.add_reader, loop.add_writer):
        with pytest.raises((ValueError, OSError)):
            call(sock, int)


def test_a_negative_number(loop: Any) -> None:
    for call in (loop.add_reader, loop.add_writer):
        with pytest.raises(ValueError, match="Invalid file descriptor: -1"):
            call(-1, int)
    for call in (loop.remove_reader, loop.remove_writer):
        with pytest.raises(ValueError, match="Invalid file descriptor: -1"):
            call(-1)


@pytest.mark.parametrize("path", [__file__, os.devnull])
def test_a_file_that_cannot_be_waited_for(loop: Any, path: str) -> None:
    with open(path) as file:
        for call in (loop.add_reader, loop.add_writer):
            with pytest.raises(PermissionError):
                call(file, int)
    loop.run_until_complete(asyncio.sleep(0))


def test_a_descriptor_that_a_transport_uses(loop: Any) -> None:
    ours, theirs = socket.socketpair()

    async def main() -> None:
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        for call in (loop.add_reader, loop.add_writer):
            with pytest.raises(RuntimeError, match="is used by transport"):
                call(ours, int)
        for call in (loop.remove_reader, loop.remove_writer):
            with pytest.raises(RuntimeError, match="is used by transport"):
                call(ours)
        transport.close()
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    theirs.close()


def test_a_socket_that_blocks_in_debug_mode(loop: Any) -> None:
    loop.set_debug(True)
    loop.slow_callback_duration = 60
    ours, theirs = socket.socketpair()

    async def main() -> None:
        with pytest.raises(ValueError, match="the socket must be non-blocking"):
            await loop.sock_recv(ours, 1)
        with pytest.raises(ValueError, match="the socket must be non-blocking"):
            await loop.sock_sendall(ours, b"1")

    loop.run_until_complete(main())
    ours.close()
    theirs.close()


def test_a_socket_of_the_wrong_kind(loop: Any) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            with pytest.raises(ValueError, match="A Stream Socket was expected"):
                await loop.create_connection(asyncio.Protocol, sock=sock)
            with pytest.raises(ValueError, match="A Stream Socket was expected"):
                await loop.create_server(asyncio.Protocol, sock=sock)
        with pytest.raises(ValueError, match="host and port was not specified"):
            await loop.create_connection(asyncio.Protocol)

    loop.run_until_complete(main())


def test_a_descriptor_closed_under_a_reader() -> None:
    """The watcher is left without a file. The loop goes on, and does not spin."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        loop.add_reader(ours, int)
        await asyncio.sleep(0)
        number = ours.fileno()
        ours.close()
        theirs.close()
        await asyncio.sleep(0.001)
        assert loop.remove_reader(number)
        await asyncio.sleep(0.001)

    asyncio_gevent.run(main())


# --- signals --------------------------------------------------------------------------------------


def test_numbers_that_are_no_signals(loop: Any) -> None:
    for number in (0, -1, 10000):
        with pytest.raises(ValueError, match="invalid signal number"):
            loop.add_signal_handler(number, int)
        with pytest.raises(ValueError, match="invalid signal number"):
            loop.remove_signal_handler(number)
    for value in ("SIGUSR1", None, 1.0):
        with pytest.raises(TypeError, match="sig must be an int"):
            loop.add_signal_handler(value, int)


def test_signals_that_cannot_be_caught(loop: Any) -> None:
    for number in (signal.SIGKILL, signal.SIGSTOP):
        with pytest.raises(RuntimeError, match="cannot be caught"):
            loop.add_signal_handler(number, int)
        assert loop.remove_signal_handler(number) is False
    loop.run_until_complete(asyncio.sleep(0))


# --- subprocesses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"universal_newlines": True}, "universal_newlines must be False"),
        ({"text": True}, "text must be False"),
        ({"encoding": "utf-8"}, "encoding must be None"),
        ({"bufsize": 1}, "bufsize must be 0"),
        ({"shell": True}, "shell must be False"),
    ],
)
def test_options_of_subprocesses(options: dict[str, Any], message: str) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match=message):
            await asyncio.create_subprocess_exec("true", **options)

    asyncio_gevent.run(main())


# --- this package's own ---------------------------------------------------------------------------


def test_the_exceptions_are_those_that_users_catch() -> None:
    from gevent.exceptions import BlockingSwitchOutError

    assert issubclass(BlockingCallError, (AsyncioGeventError,))
    assert issubclass(BlockingCallError, RuntimeError)
    assert issubclass(BlockingCallError, BlockingSwitchOutError)


def test_the_selector_cannot_be_polled_and_says_who_polls() -> None:
    loop: Any = EventLoop()
    ours, theirs = socket.socketpair()
    selector = loop._selector
    with pytest.raises(NotImplementedError, match="hub"):
        selector.select(0)
    with pytest.raises(NotImplementedError, match=r"loop\.add_reader"):
        selector.register(ours, 1)
    with pytest.raises(NotImplementedError, match=r"loop\.remove_reader"):
        selector.unregister(ours)
    with pytest.raises(KeyError):
        selector.get_key(ours.fileno())
    loop.add_reader(ours, int)
    loop.add_writer(ours, int)
    assert selector.get_key(ours.fileno()).events == 3
    assert list(selector.get_map()) == [ours.fileno()]
    loop.remove_reader(ours)
    assert selector.get_key(ours.fileno()).events == 2
    loop.close()
    ours.close()
    theirs.close()


def test_a_name_that_the_package_does_not_have() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        asyncio_gevent.no_such_name  # noqa: B018
    with pytest.raises(ImportError):
        from asyncio_gevent import no_such_name  # noqa: F401


def test_all_names_are_there() -> None:
    import sys

    for name in asyncio_gevent.__all__:
        if name != "EventLoopPolicy" or sys.version_info < (3, 14):
            assert getattr(asyncio_gevent, name).__doc__
