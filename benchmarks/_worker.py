"""One contestant in a process of its own, which measures when it is told to.

    python benchmarks/_worker.py GROUP CONTESTANT

It reads requests from standard input and answers them on standard output, both a line of JSON:

    {"do": "open", "workload": NAME}        make what it needs; end the one before it
    {"do": "measure", "count": INT}         -> {"wall": FLOAT, "cpu": FLOAT}, for one operation
    {"do": "calibrate", "seconds": FLOAT}   the same for as many as take so long -> {"count": INT}

An answer may be {"error": REASON} or, if the contestant has no such thing, {"missing": true}.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from contextlib import ExitStack
from typing import Any


def raise_limit_of_open_files() -> None:
    """Allow as many as this user may have: the default of 1,024 is too few for some workloads."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (OSError, ValueError):
        pass  # macOS says "unlimited" and does not take it


class Contest:
    """Answers requests."""

    def __init__(self, group: Any, contestant: str) -> None:
        self._group = group
        self._contestant = contestant
        self._stack = ExitStack()
        self._memory: float | None = None

    def open(self, workload: str) -> dict[str, Any]:
        self._stack.close()
        self._memory = None
        self._size = self._group.workloads[workload].size
        self._measure = self._stack.enter_context(self._group.opened(self._contestant, workload))
        return {}

    def calibrate(self, seconds: float) -> dict[str, Any]:
        count = self._size
        while True:
            clock = self._run(count)
            if clock.wall >= 0.7 * seconds:
                return {"count": count, **_answer(clock, count)}
            more = min(20.0, seconds / max(clock.wall, 1e-9))
            count = self._size * max(count // self._size + 1, int(count * more) // self._size)

    def measure(self, count: int) -> dict[str, Any]:
        return _answer(self._run(count), count)

    def _run(self, count: int) -> Any:
        from _clock import Clock

        clock = Clock()
        # Only the first run shows how much memory something takes; the others use it again.
        clock.memory = self._memory
        self._measure(count, clock)
        self._memory = clock.memory
        return clock


def _answer(clock: Any, count: int) -> dict[str, Any]:
    count = clock.count or count
    answer = {"wall": clock.wall / count, "cpu": clock.cpu / count}
    further = {"memory": clock.memory, "remark": clock.remark}
    return {**answer, **{name: value for name, value in further.items() if value is not None}}


def main() -> None:
    """Answer until there are no more requests."""
    group, contestant = sys.argv[1:]
    # What others print is not for the driver.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    raise_limit_of_open_files()
    if contestant.endswith(" patched"):
        from gevent import monkey

        monkey.patch_all()
    # Not before patching: it imports half of the standard library.
    from _contest import Missing, load_group

    contest = Contest(load_group(group), contestant)
    while line := sys.stdin.readline():
        request = json.loads(line)
        try:
            answer = getattr(contest, request.pop("do"))(**request)
        except Missing:
            answer = {"missing": True}
        except BaseException as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    # Nobody waits for the clean-up of the last one, which some contestants never end.
    os._exit(0)


if __name__ == "__main__":
    main()
