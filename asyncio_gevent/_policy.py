"""The event loop policy, for programs that make their event loops through asyncio."""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakKeyDictionary

from greenlet import getcurrent

from asyncio_gevent import _compat
from asyncio_gevent._event_loop import EventLoop
from asyncio_gevent._originals import is_module_patched, native_local
from asyncio_gevent._runners import find_owner

__all__ = ["EventLoopPolicy"]


class _Attributes:
    """What asyncio's policy keeps for each thread, as it expects it in one it has not seen yet."""

    _loop = None
    _set_called = False


class _NativeLocal(_Attributes, native_local):  # type: ignore[misc]
    """One per OS thread."""


class EventLoopPolicy(_compat.DefaultEventLoopPolicy):
    """Makes every event loop of asyncio one on the gevent hub.

    ``asyncio.set_event_loop_policy(asyncio_gevent.EventLoopPolicy())``, then ``asyncio.run()``
    as always. Policies are deprecated from Python 3.14 on and gone in 3.16: prefer
    ``asyncio_gevent.run()``, or ``EventLoop`` as ``loop_factory``.

    The current event loop of ``asyncio.set_event_loop()`` is one per OS thread, and one per
    greenlet once ``threading`` is patched.
    """

    _loop_factory = EventLoop

    @property
    def _local(self) -> Any:
        # Threads are greenlets from the moment of patching on, which may come after this policy
        # was made, and after asyncio was imported.
        if not is_module_patched("threading"):
            return self._native_local
        greenlet = getcurrent()
        runner = find_owner(greenlet)
        if runner is not None and runner.loop is not None and runner.loop._caller is not None:
            greenlet = runner.loop._caller  # coroutines are part of the thread that runs them
        return self._by_greenlet.setdefault(greenlet, _Attributes())

    @_local.setter
    def _local(self, value: Any) -> None:
        # The base class sets it when it is made, asyncio in a forked child: both mean that there
        # is no current event loop anywhere.
        self._native_local = _NativeLocal()
        self._by_greenlet: WeakKeyDictionary[Any, _Attributes] = WeakKeyDictionary()

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """Return a new event loop."""
        return self._loop_factory()
