"""asyncio's handles of callbacks and timers, made, compared and cancelled with fewer steps.

They are what asyncio's own are in everything that can be seen; in debug mode, which wants a
traceback of where a handle was made, the event loop takes those.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import contextvars

__all__ = ["Handle", "TimerHandle"]


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
