"""asyncio's handles of callbacks and timers, made, compared and cancelled with fewer steps.

They are what asyncio's own are in everything that can be seen; in debug mode, which wants a
traceback of where a handle was made, the event loop takes those.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any

__all__ = ["Handle", "TimerHandle"]


class Handle(asyncio.Handle):
    """``asyncio.Handle``; not for debug mode.

    It is made empty, and filled in by whoever makes it: `_context`, `_loop`, `_callback`, `_args`
    and `_cancelled`. A constructor in Python would take longer than all the rest of ``call_soon()``.
    """

    __slots__ = ()

    __init__ = object.__init__

    _repr = None
    _source_traceback = None

    def cancel(self) -> None:
        """Cancel the callback."""
        self._cancelled = True
        self._callback = None  # type: ignore[assignment]
        self._args = None  # type: ignore[assignment]


class TimerHandle(asyncio.TimerHandle):
    """``asyncio.TimerHandle``; not for debug mode."""

    __slots__ = ()

    def __init__(
        self,
        when: float,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        loop: Any,
        context: contextvars.Context | None = None,
    ) -> None:
        # The same as in `Handle`: to call it would cost what this saves.
        self._context = contextvars.copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None
        self._source_traceback = None
        self._when = when
        self._scheduled = False

    def __lt__(self, other: Any) -> bool:
        # What the heap of timers asks for most often.
        try:
            return self._when < other._when  # type: ignore[no-any-return]
        except AttributeError:
            return NotImplemented

    def cancel(self) -> None:
        """Cancel the callback."""
        if not self._cancelled:
            loop: Any = self._loop
            loop._timer_handle_cancelled(self)
            if loop._debug:  # debug mode has begun since
                super().cancel()
                return
            self._cancelled = True
            self._callback = None  # type: ignore[assignment]
            self._args = None  # type: ignore[assignment]
