"""A heap of timers, whose entries are tuples that begin with the time when they are due."""

from __future__ import annotations

from bisect import bisect_left
from heapq import heappop
from typing import TypeVar

__all__ = ["take_due"]

_Entry = TypeVar("_Entry", bound="tuple[float, int, object]")

#: Timers that it is worth while to sort for one that is due.
TIMERS_TO_SORT_FOR_ONE = 8


def take_due(timers: list[_Entry], end: float, due: list[_Entry]) -> None:
    """Move the entries whose time is before `end` from the heap to a list, in their order.

    The handler of a signal may raise an exception amid this. No entry is lost then, but one or all
    of those in the list may be in the heap as well.
    """
    # One by one off a heap costs twice as much as to sort it, if most are due; and what is sorted
    # is a heap.
    one_by_one = len(timers) // TIMERS_TO_SORT_FOR_ONE
    while timers and timers[0][0] < end:
        if not one_by_one:
            timers.sort()
            number = bisect_left(timers, (end,))
            due += timers[:number]
            del timers[:number]
            break
        one_by_one -= 1
        due.append(timers[0])
        heappop(timers)
