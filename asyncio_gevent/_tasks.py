"""Tasks whose cancel reaches a step that is suspended in a blocking gevent call.

asyncio's ``Task.cancel()`` cancels the future that the task awaits. A suspended step awaits
none: it is in the middle of ``send()``, in a greenlet that waits in the hub. So the exception is
thrown into that greenlet. The C implementation must not hear of it, or it would cancel the next
``await`` as well; ``cancelling()`` and ``uncancel()`` must count it all the same, since
``asyncio.timeout()`` and ``TaskGroup`` are built on these counts.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

__all__ = ["Task", "holds", "shadow_cancel", "unshadow_cancel"]


class Task(asyncio.Task[Any]):
    """The default task of the event loop: ``asyncio.Task`` with a cancel that reaches further.

    ``_thrown`` counts the requests for cancellation that were thrown into a suspended step and
    not yet taken back by ``uncancel()``; the C implementation counts the others.
    """

    # Of the class, until there is one: `cancelling()` is called by each asyncio.timeout(), and to
    # find an attribute takes less than not to find it.
    _thrown = 0
    if TYPE_CHECKING:
        _must_cancel: bool

    def cancel(self, msg: Any = None) -> bool:
        """Request that the task cancel itself, also while a step of it is suspended.

        Returns:
            Whether the request was taken, that is whether the task was not done.

        Does not block. Call it from the OS thread of the loop.
        """
        loop: Any = self.get_loop()
        # An event loop without suspended steps costs one look at an empty dict.
        if loop._suspended_tasks and loop._throw_cancel(self, msg):
            self._thrown += 1
            return True
        return super().cancel(msg)

    def _cancel_instead(self, msg: Any) -> None:
        # The step ended before the exception could be thrown: the request, which was counted
        # here, becomes an ordinary one, which the C implementation counts.
        self._thrown -= 1
        super().cancel(msg)

    def _throw_instead(self) -> None:
        # The other way round: it was cancelled while its step ran, and that step is suspended
        # now. All requests that the C implementation counts are counted here from now on.
        message = self._cancel_message  # type: ignore[attr-defined]
        requests = super().cancelling()
        for _ in range(requests):
            super().uncancel()
        loop: Any = self.get_loop()
        loop._throw_cancel(self, message)
        self._thrown += requests

    # In 3.10 there are no counts, and nobody calls these.

    def cancelling(self) -> int:
        """Return how many requests for cancellation have not been taken back."""
        return _cancelling(self) + self._thrown

    def uncancel(self) -> int:
        """Take back one request for cancellation and return how many remain."""
        if self._thrown:
            self._thrown -= 1
            if not self._thrown:
                loop: Any = self.get_loop()
                loop._cancels.discard(self)  # if the step has not heard of it, it never will
            return self.cancelling()
        return super().uncancel()


#: Of the class itself: super() takes as long as the call.
_cancelling: Callable[[Any], int] = getattr(asyncio.Task, "cancelling", None)  # type: ignore[assignment]


class _Shadow:
    """The same for a task of another class, while a step of it is suspended.

    A task factory (``asyncio.eager_task_factory``, say) makes the tasks it likes. Their class
    cannot be changed, but what is stored in the instance comes before the methods of the class.
    """

    __slots__ = ("msg", "task", "thrown")

    def __init__(self, task: Any) -> None:
        self.task = task
        self.thrown = 0

    def cancel(self, msg: Any = None) -> bool:
        if self.task.get_loop()._throw_cancel(self.task, msg):
            self.thrown += 1
            return True
        return bool(type(self.task).cancel(self.task, msg))

    def _cancel_instead(self, msg: Any) -> None:
        self.thrown -= 1
        type(self.task).cancel(self.task, msg)

    def cancelling(self) -> int:
        return int(type(self.task).cancelling(self.task)) + self.thrown

    def uncancel(self) -> int:
        if self.thrown:
            self.thrown -= 1
            if not self.thrown:
                self.task.get_loop()._cancels.discard(self.task)
            return self.cancelling()
        return int(type(self.task).uncancel(self.task))


_NAMES = ("cancel", "cancelling", "uncancel", "_cancel_instead")


def shadow_cancel(task: Any) -> None:
    """Let ``cancel()`` of this task of a foreign class reach its suspended step."""
    if getattr(task, "_cancel_instead", None) is not None:
        return
    shadow = _Shadow(task)
    # Not by way of ``__dict__``: the tasks of C have attributes, but do not show them.
    for name in _NAMES:
        setattr(task, name, getattr(shadow, name))


def unshadow_cancel(task: Any) -> None:
    """Undo `shadow_cancel`, unless a request is still counted by the shadow."""
    # The counts of a request that was thrown must last until it is taken back; the cycle of
    # task and shadow, which then remains, is for the garbage collector.
    if not task._cancel_instead.__self__.thrown:
        for name in _NAMES:
            delattr(task, name)


def holds(task: Any, manager: Any) -> bool:
    """Whether a coroutine of this task is in a ``with`` block of this context manager. Slow."""
    coroutine = task.get_coro()
    while coroutine is not None:
        # Its frame keeps the method ``__exit__`` for the end of the block, or the object itself.
        frame = getattr(coroutine, "cr_frame", None)
        for each in gc.get_referents(coroutine, *([] if frame is None else [frame])):
            if each is manager or (type(each) is MethodType and each.__self__ is manager):
                return True
        coroutine = getattr(coroutine, "cr_await", None)
    return False
