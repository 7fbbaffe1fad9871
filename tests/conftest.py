"""What every test is checked for afterwards, and a limit on its time.

A test that leaves something behind fails: an error that the event loop or the hub had to handle,
a log record of asyncio, a running event loop, a living runner, an active watcher, an open
descriptor, a native thread, or a change of the thread-wide state of asyncio. Warnings are errors
by the configuration of pytest.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import pathlib
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import gevent
import gevent.event
import gevent.hub
import gevent.monkey
import gevent.os
import greenlet
import pytest
from gevent.exceptions import LoopExit

import asyncio_gevent
import asyncio_gevent._runners as _runners_module
from asyncio_gevent import EventLoop, _threads
from asyncio_gevent._portals import portals
from asyncio_gevent._runners import Runner

TESTS = pathlib.Path(__file__).parent

#: gevent runs on asyncio in this process, see test_on_asyncio.
ON_ASYNCIO = gevent.config.loop.__name__ == "GeventLoop"
if not ON_ASYNCIO:
    collect_ignore_glob = ["on_asyncio/test_*.py"]

#: Directories of tests of our own.
OWN = (TESTS, TESTS / "on_asyncio")

#: Seconds after which a test gets ``gevent.Timeout``, which costs this test only. Stretch it on a
#: slow machine.
SOFT_TIME_LIMIT = float(os.environ.get("TEST_TIME_LIMIT", "20"))

#: Seconds that a test may take beyond that, for runs without pytest-timeout. Also where Python code
#: never runs again: the thread that waits for it is faulthandler's.
HARD_TIME_LIMIT = 40

#: Seconds within which what is on its way must have ended: deferred closes, native threads.
SETTLING_TIME = 5.0

_runners: weakref.WeakSet[Runner] = weakref.WeakSet()
_loops: weakref.WeakSet[EventLoop] = weakref.WeakSet()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "soft_limit(seconds): what a test may take, in place of SOFT_TIME_LIMIT"
    )
    # Shells that have no job control let what they start in the background ignore it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # gevent's, once in a process, of a sleep of less than that: in tests that is fine.
    config.addinivalue_line(
        "filterwarnings", "ignore:libuv only supports millisecond timer resolution"
    )


@pytest.fixture(scope="session", autouse=True)
def _observe() -> Iterator[None]:
    """Know every runner and every event loop that there is."""
    patch = pytest.MonkeyPatch()
    for cls, instances in ((Runner, _runners), (EventLoop, _loops)):
        patch.setattr(cls, "__init__", _noting(cls.__init__, instances))
    yield
    patch.undo()


def _noting(init: Any, instances: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        instances.add(self)

    return __init__


@pytest.fixture(scope="session", autouse=True)
def _warm_up() -> None:
    """Have the hub make what it makes once and keeps: pool, resolver, child watcher."""
    hub = gevent.get_hub()
    hub.threadpool.apply(int)
    hub.resolver.gethostbyname("localhost")
    hub.loop.install_sigchld()
    if ON_ASYNCIO:
        # The private host runs anew after that: uvloop opens sockets for signals.
        with contextlib.suppress(LoopExit):
            gevent.event.Event().wait()
        gevent.sleep(0)
        gevent.signal_handler(signal.SIGUSR2, int).cancel()  # opens what wakes hosts


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    if pyfuncitem.path.parent not in OWN:
        return (yield)
    limit = _soft_limit(pyfuncitem)
    error = AssertionError(f"not done in {limit} s")
    # Again and again, for what hangs once more while it is being cleaned up.
    timer = gevent.get_hub().loop.timer(limit, 0.5, ref=False)
    timer.start(gevent.getcurrent().throw, error)
    try:
        return (yield)
    finally:
        timer.stop()
        timer.close()


def _soft_limit(item: pytest.Item) -> float:
    marker = item.get_closest_marker("soft_limit")
    return marker.args[0] if marker is not None else SOFT_TIME_LIMIT


class Observed:
    """What was noticed during a test. A test that expects something takes it out.

    Attributes:
        handled: contexts given to ``EventLoop.default_exception_handler``.
        hub_errors: exceptions that the hub had to print.
        log: records of asyncio's logger, from WARNING on.
    """

    def __init__(self) -> None:
        self.handled: list[dict[str, Any]] = []
        self.hub_errors: list[BaseException] = []
        self.log: list[logging.LogRecord] = []


@pytest.fixture(autouse=True)
def observed(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Observed | None]:
    """Fail a test that leaves something behind; give what was noticed to those who ask."""
    if request.path.parent not in OWN:
        yield None  # suites of others
        return
    observed = Observed()
    monkeypatch.setattr(
        EventLoop,
        "default_exception_handler",
        lambda loop, context: observed.handled.append(context),
    )
    monkeypatch.setattr(
        gevent.hub.Hub,
        "print_exception",
        lambda hub, context, kind, value, traceback: observed.hub_errors.append(value or kind),
    )
    handler = logging.Handler(logging.WARNING)
    handler.emit = observed.log.append  # type: ignore[method-assign]
    logging.getLogger("asyncio").addHandler(handler)
    if request.config.getoption("timeout", 0) == 0:  # None: as pyproject.toml says
        faulthandler.dump_traceback_later(_soft_limit(request.node) + HARD_TIME_LIMIT, exit=True)
    gevent.sleep(0)  # the hub runs, and has open what it needs for that
    state = _state()
    try:
        before = _resources()
        yield observed
        asyncio_gevent.shutdown()  # the ambient loop lasts as long as the thread
        left = _leftovers(before)
    finally:
        faulthandler.cancel_dump_traceback_later()
        logging.getLogger("asyncio").removeHandler(handler)
    changed = {key: (value, _state()[key]) for key, value in state.items()}
    _reset_state()
    changed = {key: pair for key, pair in changed.items() if pair[0] != pair[1]}
    left += [f"{key} was {old!r}, is {new!r}" for key, (old, new) in changed.items()]
    left += [f"handled by the event loop: {context!r}" for context in observed.handled]
    left += [f"handled by the hub: {error!r}" for error in observed.hub_errors]
    left += [f"logged: {record.getMessage()}" for record in observed.log]
    assert not left, "\n".join(left)


def _state() -> dict[str, Any]:
    # What asyncio, greenlet and the signal module keep per thread or per process.
    return {
        "running loop": asyncio._get_running_loop(),
        "hooks for asynchronous generators": sys.get_asyncgen_hooks(),
        "depth of coroutine origin tracking": sys.get_coroutine_origin_tracking_depth(),
        "tracer of greenlets": greenlet.gettrace(),
        "handler of SIGINT": signal.getsignal(signal.SIGINT),
        "handler of SIGTERM": signal.getsignal(signal.SIGTERM),
        "handler of SIGUSR1": signal.getsignal(signal.SIGUSR1),
        "handler of SIGCHLD": signal.getsignal(signal.SIGCHLD),
        "wake-up descriptor": _wakeup_fd(),
        "aliases of threads": dict(_threads._aliases),
        "current thread": threading.current_thread(),
        "portals": dict(portals),
    }


def _reset_state() -> None:
    # One failure is to be one failure, and not that of all tests after it.
    asyncio._set_running_loop(None)
    sys.set_asyncgen_hooks(None, None)
    sys.set_coroutine_origin_tracking_depth(0)
    greenlet.settrace(None)
    _runners_module._by_thread.__dict__.clear()


def _wakeup_fd() -> int:
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    return fd


def _resources() -> dict[str, set[str]]:
    return {
        "runner": {repr(runner) for runner in _runners if not runner.dead},
        # Dummies stand for native threads that once asked who they are.
        "thread": {
            repr(thread)
            for thread in threading.enumerate()
            if not isinstance(thread, threading._DummyThread)
        },
        "event loop": {repr(loop) for loop in _loops if not loop.is_closed()},
        "descriptor": set(_descriptors()),
        "native thread": _native_threads(),
        "active watcher": _active_watchers(),
    }


def _leftovers(before: dict[str, set[str]]) -> list[str]:
    deadline = time.monotonic() + SETTLING_TIME
    delay = 0.0
    while True:
        gevent.sleep(delay)  # at least once: the last callbacks of the hub take something back
        after = _resources()
        left = [f"{kind} left: {each}" for kind in after for each in after[kind] - before[kind]]
        if not left or time.monotonic() > deadline:
            return left
        if not delay:
            gc.collect()
            delay = 0.001


def _descriptors() -> Iterator[str]:
    if os.environ.get("ASYNCIO_GEVENT_HOST") == "uvloop":
        # It opens two sockets whenever it begins to run, and closes them when it ends.
        yield from (f"number {number}" for number in range(len(os.listdir("/proc/self/fd"))))
        return
    for fd in os.listdir("/proc/self/fd"):
        try:
            yield f"{fd} -> {os.readlink(f'/proc/self/fd/{fd}')}"
        except FileNotFoundError:  # that of listdir() itself
            pass


def _native_threads() -> set[str]:
    # Those of the pool come and go as they like: gevent keeps idle ones for a while.
    count = len(os.listdir("/proc/self/task")) - gevent.get_hub().threadpool.size
    return {f"number {number}" for number in range(count)}


def _active_watchers() -> set[str]:
    # Those that keep the hub going; gevent's own do not.
    loop = gevent.get_hub().loop
    if hasattr(loop, "debug"):  # libuv, whose `activecnt` is always 0
        return {
            f"{state.type.decode()} {id(state.watcher):#x}"
            for state in loop.debug()
            if state.active and state.ref and state.watcher is not loop  # its own
        }
    return {f"number {number}" for number in range(loop.activecnt)}
