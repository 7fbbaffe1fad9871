"""Count the instructions that an operation takes, by function of C (needs valgrind).

    python benchmarks/instructions.py GROUP WORKLOAD CONTESTANT... [--count N] [--top N]
    python benchmarks/instructions.py loops protocol_1k standard uvloop ours

They do not depend on what else the machine does, as times do. What the kernel takes is not in
them. A workload runs twice, in processes of their own: the difference is that of N operations to
three times as many, so that what is done once is not counted.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from _contest import GROUPS, Missing, load_group
from run import Failure, Worker, make_environment

#: Seconds for each request: valgrind makes a process some fifty times slower.
LIMIT = 1_800.0
#: Seconds, as of run.py.
NAP = 0.001

#: Of callgrind_annotate: "1,234 (56.78%)  file.c:function [library]".
LINE = re.compile(r"^ *([\d,]+) \([ \d.]+%\)  (?:.*[/:])?([^\s/:]+?)(?:'\d+)? +\[(.*)\]$")
TOTAL = re.compile(r"^ *([\d,]+) \([ \d.]+%\)  PROGRAM TOTALS$")


def parse(text: str) -> tuple[int, Counter[str]]:
    """Return the total and the instructions by function that callgrind_annotate has printed."""
    total, functions = 0, Counter[str]()
    for line in text.splitlines():
        if found := TOTAL.match(line):
            total = int(found[1].replace(",", ""))
        elif found := LINE.match(line):
            name = f"{found[2]} [{pathlib.Path(found[3]).name}]"
            functions[name] += int(found[1].replace(",", ""))
    return total, functions


def watch(group: str, workload: str, contestant: str, count: int) -> tuple[int, Counter[str]]:
    """Return what so many operations take, and all that is done once."""
    chosen = load_group(group)
    environment = make_environment(chosen.contestants[contestant], NAP)
    with tempfile.TemporaryDirectory() as directory:
        file = str(pathlib.Path(directory, "callgrind"))
        valgrind = ("valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={file}")
        worker = Worker(
            (*valgrind, sys.executable), group, contestant, {**environment, "PYTHONHASHSEED": "0"}
        )
        is_done = False
        try:
            worker.ask(LIMIT, do="open", workload=workload)
            # What is made once, and then what is counted.
            for number in chosen.workloads[workload].size, count:
                worker.ask(LIMIT, do="measure", count=number)
            is_done = True
        finally:
            worker.end(kill=not is_done)  # callgrind writes as the process ends
        done = subprocess.run(
            ["callgrind_annotate", "--threshold=100", file],
            check=True,
            capture_output=True,
            text=True,
        )
    return parse(done.stdout)


def count_instructions(
    group: str, workload: str, contestant: str, count: int
) -> tuple[float, dict[str, float]]:
    """Return the instructions of an operation, and those of each function, the greatest first.

    Raises:
        Missing: the contestant has no such thing.
        Failure: it does not get through the workload.
    """
    counts = (count, 3 * count)
    with ThreadPoolExecutor() as pool:
        (less, before), (more, after) = pool.map(
            partial(watch, group, workload, contestant), counts
        )
    operations = counts[1] - counts[0]
    after.subtract(before)
    return (more - less) / operations, {
        name: value / operations for name, value in after.most_common()
    }


def main() -> None:
    """Print what was counted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("workload")
    parser.add_argument("contestants", nargs="+", metavar="contestant")
    parser.add_argument("--count", type=int, default=5_000, help="operations, at least")
    parser.add_argument("--top", type=int, default=0, help="so many functions")
    options = parser.parse_args()
    for program in ("valgrind", "callgrind_annotate"):
        if shutil.which(program) is None:
            parser.error(f"{program} is not installed")
    group = load_group(options.group)
    if options.workload not in group.workloads:
        parser.error(f"{options.group} has no workload {options.workload!r}")
    for contestant in options.contestants:
        if contestant not in group.contestants:
            parser.error(f"{options.group} has no contestant {contestant!r}")
        if group.contestants[contestant].python != "main":
            parser.error(f"{contestant} needs a Python of its own, and is only measured by run.py")
    # What a workload does at once it always does as a whole.
    size = group.workloads[options.workload].size
    count = -(-options.count // size) * size
    for contestant in options.contestants:
        head = f"{options.workload}, {contestant}"
        try:
            total, functions = count_instructions(
                options.group, options.workload, contestant, count
            )
        except Missing:
            print(f"{head}: -", flush=True)
        except Failure as error:
            raise SystemExit(f"{head}: {error}") from None
        else:
            print(f"{head}: {total:,.0f} instructions", flush=True)
            for name, value in [*functions.items()][: options.top]:
                print(f"{value:10,.0f}  {name}")


if __name__ == "__main__":
    main()
