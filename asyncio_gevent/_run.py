"""The main road: run a coroutine on the gevent hub."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from greenlet import getcurrent

from asyncio_gevent._compat import cancel_all_tasks, get_hub_if_exists, get_running_loop
from asyncio_gevent._event_loop import EventLoop
from asyncio_gevent.exceptions import BlockingCallError

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["new_event_loop", "run"]

_T = TypeVar("_T")


def new_event_loop(*, suspend: bool = True) -> EventLoop:
    """Return a new `EventLoop`; the caller runs and closes it.

    Args:
        suspend: see `EventLoop`.
    """
    return EventLoop(suspend=suspend)


def run(main: Coroutine[Any, Any, _T], *, debug: bool | None = None) -> _T:
    """Run a coroutine in a new event loop on the gevent hub, and return its result.

    ``asyncio_gevent.run(main())`` is ``asyncio.run(main())``, but only the calling greenlet
    waits. Any number of greenlets of an OS thread may call it at the same time. When the greenlet
    is killed, or times out by ``gevent.Timeout``, the tasks are cancelled and their ``finally``
    blocks run before the exception goes on.

    Args:
        main: the coroutine.
        debug: debug mode of the event loop; None leaves it to ``PYTHONASYNCIODEBUG``.

    Returns:
        What the coroutine returns.

    Raises:
        RuntimeError: called in a coroutine or callback of an event loop. Await the coroutine.
        BlockingCallError: called in the hub.
        ValueError: ``main`` is not a coroutine.
        BaseException: whatever the coroutine raises.

    Blocks the greenlet. From any greenlet but the hub, in any OS thread.
    """
    if get_running_loop() is not None:
        if asyncio.iscoroutine(main):
            main.close()
        raise RuntimeError(
            "asyncio_gevent.run() cannot be called from a running event loop: `await` the "
            "coroutine instead"
        )
    if getcurrent() is get_hub_if_exists():
        if asyncio.iscoroutine(main):
            main.close()
        raise BlockingCallError(
            "asyncio_gevent.run() cannot be called in the hub, which all greenlets wait for: use "
            "`gevent.spawn(asyncio_gevent.run, main())`"
        )
    if not asyncio.iscoroutine(main):
        raise ValueError(f"a coroutine was expected, got {main!r}: use `run(main())`")
    if sys.version_info >= (3, 11):
        with asyncio.Runner(debug=debug, loop_factory=EventLoop) as runner:
            return runner.run(main)
    with _Runner(debug) as loop:
        return loop.run_until_complete(main)


class _Runner:
    """What ``asyncio.run()`` of 3.10 does around the coroutine: there is no asyncio.Runner yet."""

    def __init__(self, debug: bool | None) -> None:
        self._loop = EventLoop()
        if debug is not None:
            self._loop.set_debug(debug)

    def __enter__(self) -> EventLoop:
        return self._loop

    def __exit__(self, *exc_info: object) -> None:
        loop = self._loop
        try:
            cancel_all_tasks(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()
