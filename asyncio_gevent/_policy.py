"""The event loop policy, for programs that make their event loops through asyncio."""

from __future__ import annotations

import asyncio
from typing import Any

from gevent.local import local

from asyncio_gevent import _compat
from asyncio_gevent._event_loop import EventLoop
from asyncio_gevent._originals import is_module_patched, native_local

__all__ = ["EventLoopPolicy"]


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
        return self._greenlet_local if is_module_patched("threading") else self._native_local

    @_local.setter
    def _local(self, value: Any) -> None:
        # The base class sets it when it is made, asyncio in a forked child: both mean that there
        # is no current event loop anywhere.
        self._native_local = _make_local(native_local)
        self._greenlet_local = _make_local(local)

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """Return a new event loop."""
        return self._loop_factory()


def _make_local(base: type[Any]) -> Any:
    # The attributes that asyncio's policy expects in each thread that it has not seen before.
    return type("_Local", (base,), {"_loop": None, "_set_called": False})()
