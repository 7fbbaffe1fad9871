"""What asyncio makes most, with fewer steps: handles of callbacks and timers, and futures.

Handles are what asyncio's own are in everything that can be seen; in debug mode, which wants a
traceback of where a handle was made, the event loop takes those.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import contextvars

__all__ = ["Handle", "TimerHandle", "shadow_methods", "unshadow_methods"]


class Handle(asyncio.Handle):
    """``asyncio.Handle``; not for debug mode.

    It is made empty, and filled in by whoever makes it: `_context`, `_loop`, `_callback`, `_args`
    and `_cancelled`. A constructor in Python would take longer than the rest of ``call_soon()``.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        _context: contextvars.Context
        _loop: Any
        _callback: Any
        _args: Any

        def __init__(self) -> None: ...

    else:
        __init__ = object.__init__

    _repr = None
    _source_traceback = None

    def cancel(self) -> None:
        """Cancel the callback."""
        self._cancelled = True
        self._callback = self._args = None


class TimerHandle(asyncio.TimerHandle):
    """``asyncio.TimerHandle``; not for debug mode. `_when` and `_scheduled` are filled in as well.

    The heap of timers is not of these, but of tuples: see `EventLoop._timers`.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        _context: contextvars.Context
        _loop: Any
        _callback: Any
        _args: Any

        def __init__(self) -> None: ...

    else:
        __init__ = object.__init__

    _repr = None
    _source_traceback = None

    def cancel(self) -> None:
        """Cancel the callback."""
        if not self._cancelled:
            self._loop._timer_handle_cancelled(self)
            self._cancelled = True
            self._callback = self._args = None


def shadow_methods(loop: Any) -> dict[str, Any]:
    """Let an event loop that begins to run have in C what is called for every future.

    It takes a third of the time off. Not of one that does not run: that would be a reference to
    itself, which only a garbage collection could free.

    Returns:
        What it has now instead of methods, for `unshadow_methods`.
    """
    own, base = loop.__dict__, asyncio.BaseEventLoop
    shadows: dict[str, Any] = {}
    for name, function in (
        ("create_future", partial(asyncio.Future, loop=loop)),
        ("get_debug", partial(getattr, loop, "_debug")),
    ):
        # But not those of a subclass, or of somebody who has put his own in place.
        if name not in own and getattr(type(loop), name) is getattr(base, name):
            own[name] = shadows[name] = function
    return shadows


def unshadow_methods(loop: Any, shadows: dict[str, Any]) -> None:
    """Take that back."""
    for name, function in shadows.items():
        if loop.__dict__.get(name) is function:
            del loop.__dict__[name]
    shadows.clear()
