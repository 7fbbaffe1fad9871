"""Count the instructions that an operation takes, by function of C (needs valgrind).

    python benchmarks/instructions.py GROUP WORKLOAD CONTESTANT... [--count N] [--top N]
    python benchmarks/instructions.py loops protocol_1k standard uvloop ours

They do not depend on what else the machine does, as times do. What the kernel takes is not in
them. A workload runs twice, in processes of their own: the difference is that of N operations to
three times as many, so that what is done once is not counted.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter

from _contest import GROUPS, load_group

#: Of callgrind_annotate: "1,234 (56.78%)  file.c:function [library]".
LINE = re.compile(r"^ *([\d,]+) \([ \d.]+%\)  (?:.*[/:])?([^\s/:]+?)(?:'\d+)? +\[(.*)\]$")
TOTAL = re.compile(r"^ *([\d,]+) \([ \d.]+%\)  PROGRAM TOTALS$")


def work(group: str, workload: str, contestant: str, count: int) -> None:
    """Do a workload, in a process that callgrind watches."""
    if contestant.endswith(" patched"):
        from gevent import monkey

        monkey.patch_all()
    from _clock import Clock

    chosen = load_group(group)
    with chosen.opened(contestant, workload) as measure:
        measure(chosen.workloads[workload].size, Clock())  # what is made once
        measure(count, Clock())


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


def count_instructions(
    group: str, workload: str, contestant: str, count: int
) -> tuple[float, dict[str, float]]:
    """Return the instructions of an operation, and those of each function, the greatest first."""
    with tempfile.TemporaryDirectory() as directory:
        counts = (count, 3 * count)
        files = [str(pathlib.Path(directory, str(each))) for each in counts]
        processes = [
            subprocess.Popen(
                [
                    *("valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={file}"),
                    *(sys.executable, __file__, "--work", group, workload, contestant),
                    *("--count", str(each)),
                ],
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )
            for each, file in zip(counts, files, strict=True)
        ]
        # Not `any`, which would not wait for the other one.
        if sum(process.wait() != 0 for process in processes):
            raise SystemExit(f"{contestant} does not get through {workload}")
        (less, before), (more, after) = (
            parse(
                subprocess.run(
                    ["callgrind_annotate", "--threshold=100", file],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
            )
            for file in files
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
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.group, options.workload, options.contestants[0], options.count)
        # Nobody waits for the clean-up, which some contestants never end.
        os._exit(0)
    for program in ("valgrind", "callgrind_annotate"):
        if shutil.which(program) is None:
            parser.error(f"{program} is not installed")
    if options.workload not in load_group(options.group).workloads:
        parser.error(f"{options.group} has no workload {options.workload!r}")
    size = load_group(options.group).workloads[options.workload].size
    count = -(-options.count // size) * size
    for contestant in options.contestants:
        total, functions = count_instructions(options.group, options.workload, contestant, count)
        print(f"{options.workload}, {contestant}: {total:,.0f} instructions", flush=True)
        for name, value in [*functions.items()][: options.top]:
            print(f"{value:10,.0f}  {name}")


if __name__ == "__main__":
    main()
