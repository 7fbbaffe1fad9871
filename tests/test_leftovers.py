"""The fixture that fails a test on leftovers notices them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any

import conftest
import gevent
import greenlet
import pytest
from support import NativeThread, os_close

from asyncio_gevent import EventLoop


def added(make: Callable[[], Callable[[], None]]) -> set[str]:
    """Return the kinds of things that are there after `make` and were not before."""
    before = conftest._resources()
    undo = make()
    gevent.sleep(0)  # what closes a watcher in libuv is the next round of the loop
    try:
        after = conftest._resources()
    finally:
        undo()
    return {kind for kind in after if after[kind] - before[kind]}


def test_an_open_loop() -> None:
    assert added(lambda: EventLoop().close) == {"event loop"}


def test_a_runner() -> None:
    def make() -> Callable[[], None]:
        loop = EventLoop()
        loop.run_until_complete(asyncio.sleep(0))
        return loop.close

    assert added(make) == {"event loop", "runner"}


def test_a_descriptor() -> None:
    def make() -> Callable[[], None]:
        fd = os.open(__file__, os.O_RDONLY)
        return lambda: os_close(fd)

    assert added(make) == {"descriptor"}


def test_a_watcher() -> None:
    def make() -> Callable[[], None]:
        watcher = gevent.get_hub().loop.timer(3600)
        watcher.start(int)

        def undo() -> None:
            watcher.stop()
            watcher.close()

        return undo

    assert added(make) == {"active watcher"}


def test_a_native_thread() -> None:
    from test_executor import NativeEvent

    def make() -> Callable[[], None]:
        release = NativeEvent()
        thread = NativeThread(release.wait)

        def undo() -> None:
            release.set()
            thread.join()

        return undo

    assert "native thread" in added(make)


@pytest.mark.parametrize(
    ("change", "undo", "name"),
    [
        (
            lambda: sys.set_asyncgen_hooks(firstiter=int),
            lambda: sys.set_asyncgen_hooks(None, None),
            "hooks for asynchronous generators",
        ),
        (
            lambda: asyncio._set_running_loop(object()),  # type: ignore[arg-type]
            lambda: asyncio._set_running_loop(None),
            "running loop",
        ),
        (
            lambda: sys.set_coroutine_origin_tracking_depth(1),
            lambda: sys.set_coroutine_origin_tracking_depth(0),
            "depth of coroutine origin tracking",
        ),
        (
            lambda: greenlet.settrace(lambda *args: None),
            lambda: greenlet.settrace(None),
            "tracer of greenlets",
        ),
    ],
)
def test_the_state_of_the_thread(change: Any, undo: Any, name: str) -> None:
    before = conftest._state()
    change()
    try:
        after = conftest._state()
    finally:
        undo()
    assert {key for key in before if before[key] != after[key]} == {name}


def test_what_the_loop_and_the_hub_handle(observed: Any) -> None:
    loop = EventLoop()
    loop.call_soon(lambda: 1 / 0)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert [type(context["exception"]) for context in observed.handled] == [ZeroDivisionError]
    observed.handled.clear()
    gevent.spawn(lambda: 1 / 0).join()
    assert [type(error) for error in observed.hub_errors] == [ZeroDivisionError]
    observed.hub_errors.clear()


def test_what_asyncio_logs(observed: Any) -> None:
    import logging

    logging.getLogger("asyncio").warning("text")
    assert [record.getMessage() for record in observed.log] == ["text"]
    observed.log.clear()
