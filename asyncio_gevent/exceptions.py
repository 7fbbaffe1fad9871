"""The exceptions of asyncio_gevent, in one public place."""

from __future__ import annotations

from asyncio import CancelledError

from gevent.exceptions import BlockingSwitchOutError as _Blocked
from greenlet import GreenletExit

__all__ = ["AsyncioGeventError", "BlockingCallError", "CancelledExit"]


class AsyncioGeventError(Exception):
    """Base class of the exceptions that only this package raises."""


class BlockingCallError(AsyncioGeventError, RuntimeError, _Blocked):  # type: ignore[misc]
    """A gevent call would have blocked where it must not.

    Raised in a coroutine or callback of an ``EventLoop(suspend=False)``, and by
    ``run_forever()`` when it is called in the hub. It is a ``RuntimeError``, which is what
    asyncio raises for a loop that is used in the wrong place, and a
    ``gevent.exceptions.BlockingSwitchOutError``, which is what gevent raises in the hub.
    """


class CancelledExit(GreenletExit, CancelledError):  # type: ignore[misc]
    """What a greenlet waited for was cancelled.

    It is an ``asyncio.CancelledError``, which is what ``await`` raises then, and a
    ``gevent.GreenletExit``: a greenlet that lets it pass ends quietly, as a task does that
    lets ``CancelledError`` pass. Like both of them it is a ``BaseException``.
    """
