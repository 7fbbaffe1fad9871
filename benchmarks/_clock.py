"""What a workload is measured with: time, memory, and sleepers that wake at the same moment."""

from __future__ import annotations

import gc
import itertools
import os
import time
from collections.abc import Callable


class Clock:
    """Measures what its ``with`` block takes. Entered more than once it adds up.

    Attributes:
        wall: seconds.
        cpu: seconds of processor time, of all threads of this process.
        count: operations, if they are not as many as were asked for.
        memory: bytes for each item, where a workload measures them.
        remark: what a table has to say about the measurement, if anything.
    """

    def __init__(self) -> None:
        self.wall = 0.0
        self.cpu = 0.0
        self.count: int | None = None
        self.memory: float | None = None
        self.remark: str | None = None

    def __enter__(self) -> Clock:
        gc.collect()  # what others have left is not for this one to clean up
        self._cpu = time.process_time()
        self._wall = time.perf_counter()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.wall += time.perf_counter() - self._wall
        self.cpu += time.process_time() - self._cpu


def private_memory() -> int:
    """Return the bytes that this process keeps in memory, but for what it shares with others."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            _, resident, shared = statm.read().split()[:3]
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux: the greatest size so far, which is good for the first measurement
        import resource
        import sys

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 * (sys.platform != "darwin")


class Sleepers:
    """So many that sleep until the same moment.

    Each of them calls `delay` and then sleeps that long. Afterwards `finish` takes off the clock
    the time in which all of them slept and nothing was to be done. What is left is what it takes
    to put them to sleep and to wake them.

    Args:
        count: how many there will be.
        patience: seconds until they wake, from when the first one goes to sleep; within these all
            have to sleep.
    """

    def __init__(self, count: int, patience: float) -> None:
        self.count = count
        self._number = itertools.count()  # its next() is atomic: sleepers may be native threads
        self._patience = patience
        self._started = self._wakes = self._all_asleep = 0.0
        self.memory = 0  # of the process, when all sleep

    def delay(self) -> float:
        """Return how many seconds the next one has to sleep."""
        number = next(self._number)
        if number == 0:
            self._started = time.perf_counter()
            self._wakes = self._started + self._patience
        if number == self.count - 1:
            self.memory = private_memory()
            self._all_asleep = time.perf_counter()
        return max(0.0, self._wakes - time.perf_counter())

    @property
    def seconds(self) -> float:
        """From the first one to the last one, when others may have woken already."""
        return self._all_asleep - self._started

    def finish(self, clock: Clock) -> bool:
        """Correct the clock.

        Returns:
            False if the first ones woke before the last ones slept: there was no such time, and
            the measurement is worth nothing.
        """
        if self._all_asleep >= self._wakes:
            return False
        clock.wall -= self._wakes - self._all_asleep
        return True


#: Sleepers of which it is learnt how fast they are.
FEW = 10


def measure_sleepers(
    size: int, sleep: Callable[[Sleepers, Clock], object]
) -> Callable[[int, Clock], None]:
    """Return what measures `size` sleepers at a time.

    Args:
        size: how many sleep at the same time.
        sleep: lets all sleepers sleep, and puts the clock around that. It returns when they are
            awake again.
    """

    def insist(size: int, patience: float, clock: Clock) -> Sleepers:
        while True:
            once = Clock()
            sleepers = Sleepers(size, patience)
            sleep(sleepers, once)
            if sleepers.finish(once):
                clock.wall += once.wall
                clock.cpu += once.cpu
                return sleepers
            patience = 2.0 * sleepers.seconds

    # Not the first time: what is made once shall not count.
    seconds = min([insist(FEW, 0.01, Clock()).seconds for _ in range(4)][1:]) / (FEW - 1)
    gc.collect()
    memory_before = private_memory()
    # If it is too little, there will be another attempt. If it is too much, it is waited for.
    patience = 0.005 + size * min(2.0 * seconds, 300e-6)

    def measure(count: int, clock: Clock) -> None:
        nonlocal patience
        for _ in range(count // size):
            sleepers = insist(size, patience, clock)
            # Twice as long as this time: a busy machine shall not spoil the next one.
            patience = 0.005 + 2.0 * sleepers.seconds
            if clock.memory is None:
                clock.memory = (sleepers.memory - memory_before) / size

    return measure
