"""Measure this library against what its users could pick instead.

    make bench                                      everything, and the others' environments
    make bench BENCH_ARGS=--quick                   the same in two minutes, roughly
    python benchmarks/run.py --group loops --only 'sock*' --contestants ours uvloop

How to read it. In "loops" and "gevent" a figure says how many times faster than the base a
contestant is: 2.00 is twice as fast, 0.50 takes twice as long. In "bridges" it says how many times
longer than ours it takes. It is the median over the rounds of the ratio within a round; in
brackets are the least and the greatest. A table of times (wall) is followed by one of processor
times, in which a contestant that waits a lot looks better. "-": it has no such thing. "fails": it
ends with an error or not in time; reasons stand below the table. "growth" shows microseconds by
number, and how they grow.

How it is measured. Every contestant runs in a process of its own, for each workload a new one
(with --quick one for all workloads of a group). These wait for their turn: a round lets each of
them do the workload once, in an order that rotates from round to round, so that what else the
machine does falls on all alike. Many short rounds do that better than few long ones: where other
guests of a host take turns with the machine, what lies half a second apart cannot be compared. What
a workload needs is made before the clock starts. `--seconds` is about how long a measurement takes.

What is not installed is left out: `--peer` names a Python that has asyncio-gevent 0.2.5,
`--others` one that has asgiref, greenletio, greenback and eventlet. The figures also go to a JSON
file, of which `report.py` makes the same tables again.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import importlib.util
import json
import os
import pathlib
import platform
import re
import resource
import select
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import report
from _contest import GROUPS, Contestant, Group, Missing, Workload, load_group

HERE = pathlib.Path(__file__).parent
PACKAGES = (
    "gevent greenlet uvloop aiohttp asyncio-gevent asgiref greenletio greenback eventlet".split()
)
#: Rounds of workloads that take long; with --quick it is one.
HEAVY_ROUNDS = 5
#: Seconds for each of the steps of a workload (to make what it needs, to measure once): a
#: contestant that takes longer has failed.
LIMIT = 90.0
QUICK_LIMIT = 20.0
#: With --quick numbers of "growth" end here, and so many sleep at once.
QUICK_MOST = 1_000

# --- a process ------------------------------------------------------------------------------------


class Failure(Exception):
    """A contestant does not get through a workload."""


class Worker:
    """The process of a contestant, see `_worker`.

    Args:
        python: the interpreter, or a command that runs it.
    """

    def __init__(
        self,
        python: str | Sequence[str],
        group: str,
        contestant: str,
        environment: Mapping[str, str],
    ) -> None:
        command = [python] if isinstance(python, str) else [*python]
        # Not a pipe: nobody reads it before the end, and a full one would stop the process.
        self._errors = tempfile.TemporaryFile("w+", errors="replace")
        self._process = subprocess.Popen(
            [*command, str(HERE / "_worker.py"), group, contestant],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            bufsize=1,
            env=environment,
        )

    def ask(self, limit: float, **request: Any) -> dict[str, Any]:
        """Return the answer.

        Args:
            limit: seconds until it has to be there.
            request: see `_worker`.

        Raises:
            Missing: the contestant has no such thing.
            Failure: there is no answer, or it is an error.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended: see below
        if not select.select([self._process.stdout], [], [], limit)[0]:
            raise Failure(f"not done after {limit:g} s")
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._errors.seek(0)
            errors = [each for each in self._errors.read().splitlines() if each[:1].strip()]
            raise Failure(without_paths(f"exit code {status}: {errors[-1] if errors else ''}"))
        answer: dict[str, Any] = json.loads(line)
        if "missing" in answer:
            raise Missing
        if "error" in answer:
            raise Failure(without_paths(answer["error"]))
        return answer

    def end(self, kill: bool = True) -> None:
        """End the process, or let it end by itself, and wait for it."""
        if kill:
            self._process.kill()
        self._process.communicate()
        self._errors.close()


def without_paths(text: str) -> str:
    """Return the text with the names of files only: where they are is nobody's business."""
    return re.sub(r"(?<![\w.])(?:/[\w.+~-]+)*/(?=[\w.+~-])", "", text)


# --- rounds ---------------------------------------------------------------------------------------


class Bench:
    """Measures the workloads of a group.

    Args:
        name: of the group.
        group: the group.
        pythons: of the contestants that take part.
        options: of the command line.
    """

    def __init__(
        self, name: str, group: Group, pythons: Mapping[str, str], options: argparse.Namespace
    ) -> None:
        self._name, self._group, self._pythons = name, group, pythons
        self._rounds, self._seconds = options.rounds, options.seconds
        self._quick, self._nap = options.quick, options.nap
        self._limit = QUICK_LIMIT if options.quick else LIMIT
        self._workers: dict[str, Worker] = {}

    def measure(self, name: str) -> dict[str, Any]:
        """Return by contestant: seconds of an operation in each round, or why there are none."""
        workload = self._group.workloads[name]
        if workload.heavy:
            self.end()  # memory that was used before shows no growth
        results: dict[str, Any] = {}
        calibrated: dict[str, dict[str, Any]] = {}
        for contestant in self._pythons:
            try:
                self._ask(contestant, do="open", workload=name)
                answer = self._ask(contestant, do="calibrate", seconds=self._seconds)
            except (Missing, Failure) as error:
                results[contestant] = lack(error)
                self._end(contestant)
            else:
                calibrated[contestant] = answer
                results[contestant] = {"count": 0, "wall": [], "cpu": []}
        if workload.heavy and self._quick:
            # That took long enough: it is the only round.
            for contestant, answer in calibrated.items():
                note(answer, results[contestant])
        else:
            self._measure_rounds(workload, calibrated, results)
        if workload.heavy or not self._quick:
            self.end()
        return results

    def _measure_rounds(
        self, workload: Workload, calibrated: Mapping[str, dict[str, Any]], results: dict[str, Any]
    ) -> None:
        counts = share_counts(
            {contestant: answer["count"] for contestant, answer in calibrated.items()},
            workload.size,
        )
        names = [*counts]
        for number in range(min(self._rounds, HEAVY_ROUNDS) if workload.heavy else self._rounds):
            shift = number % max(1, len(names))
            for contestant in names[shift:] + names[:shift]:
                result = results[contestant]
                if "failure" in result:
                    continue
                try:
                    answer = self._ask(contestant, do="measure", count=counts[contestant])
                except (Missing, Failure) as error:
                    results[contestant] = lack(error)
                    self._end(contestant)
                else:
                    note({**answer, "count": counts[contestant]}, result)

    def _ask(self, contestant: str, **request: Any) -> dict[str, Any]:
        if contestant not in self._workers:
            self._workers[contestant] = Worker(
                self._pythons[contestant],
                self._name,
                contestant,
                make_environment(self._group.contestants[contestant], self._nap, self._quick),
            )
        return self._workers[contestant].ask(self._limit, **request)

    def _end(self, contestant: str) -> None:
        self._workers.pop(contestant).end()

    def end(self) -> None:
        """End the processes."""
        for contestant in [*self._workers]:
            self._end(contestant)


def make_environment(contestant: Contestant, nap: float, quick: bool = False) -> dict[str, str]:
    """Return the variables of a contestant's process."""
    environment = dict(os.environ, PYTHONWARNINGS="ignore", BENCH_NAP=str(nap))
    if contestant.python != "main":
        # It may name this library's directory, which would hide the other asyncio_gevent.
        environment.pop("PYTHONPATH", None)
    for name in ("BENCH_SLEEPERS", "GEVENT_LOOP", "ASYNCIO_GEVENT_HOST", "EVENTLET_HUB"):
        environment.pop(name, None)
    if quick:
        environment["BENCH_SLEEPERS"] = str(QUICK_MOST)
    return {**environment, **contestant.environment}


def note(answer: Mapping[str, Any], result: dict[str, Any]) -> None:
    """Add what a process has measured to a contestant's results."""
    for name, value in answer.items():
        if name in ("wall", "cpu"):
            result[name].append(rounded(value))
        else:
            result[name] = rounded(value)


def lack(error: Missing | Failure) -> dict[str, Any]:
    """Return what stands in place of figures."""
    return {"missing": True} if isinstance(error, Missing) else {"failure": str(error)}


def rounded(value: Any) -> Any:
    """Return four digits of a number: no figure is better than that. Other things as they are."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def share_counts(counts: Mapping[str, int], size: int) -> dict[str, int]:
    """Return how many operations each contestant measures.

    Where what is made once for all operations (tasks, a greenlet, a full queue) has a share in the
    figure, contestants can be compared only if all do the same number. But one that is a thousand
    times slower would then take minutes, or leave the fastest one microseconds. So all do what the
    fastest does in half of the time that a measurement is to take, unless one takes more than
    four times as long as the fastest. That one does what it can in twice the time.

    Args:
        counts: by contestant, what it does in that time.
        size: the counts are multiples of it, and at least that.
    """
    common = max(counts.values(), default=0) // 2
    return {name: max(1, min(common, 2 * count) // size) * size for name, count in counts.items()}


# --- the whole ------------------------------------------------------------------------------------


def find_pythons(
    group: Group, pythons: Mapping[str, str | None], patterns: list[str] | None
) -> tuple[dict[str, str], list[str]]:
    """Return the Pythons of the contestants that take part, and what is left out, with reasons."""
    found, left_out = {}, []
    for name, contestant in group.contestants.items():
        if patterns and name != group.base and not matches(name, patterns):
            continue
        python = pythons[contestant.python]
        if python is None:
            left_out.append(f"{name}, for want of --{contestant.python}")
        elif contestant.needs and importlib.util.find_spec(contestant.needs) is None:
            left_out.append(f"{name}, for want of {contestant.needs}")
        else:
            found[name] = python
    return found, left_out


def matches(name: str, patterns: list[str] | None) -> bool:
    return not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def is_chosen(group: str, name: str, options: argparse.Namespace) -> bool:
    """Tell whether a workload is to be measured."""
    if group == "growth" and options.quick and int(name.partition("/")[2]) > QUICK_MOST:
        return False
    return matches(name, options.only)


def find_versions(pythons: Mapping[str, str | None]) -> dict[str, str]:
    """Return the versions of what is measured."""
    program = (
        "import importlib.metadata as m, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(name, m.version(name))\n"
        "    except m.PackageNotFoundError: pass"
    )
    versions: dict[str, str] = {}
    for whose, python in pythons.items():
        if python is None:
            continue
        # In this directory there is no asyncio_gevent that could be taken for the installed one.
        command = [python, "-c", program, *PACKAGES]
        done = subprocess.run(command, capture_output=True, text=True, cwd=HERE)
        for line in done.stdout.splitlines():
            name, version = line.split()
            if name == "asyncio-gevent" and whose == "main":
                continue  # it is what is measured
            versions.setdefault(name, version)
            if versions[name] != version:
                versions[f"{name} ({whose})"] = version
    return versions


def find_cpu() -> str:
    """Return the model of the processor."""
    try:
        cpuinfo = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return re.findall(r"^model name\s*: (.*)$", cpuinfo, flags=re.MULTILINE)[0].strip()
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def describe(options: argparse.Namespace, pythons: Mapping[str, str | None]) -> dict[str, Any]:
    """Return what a report says about how it was made."""
    command = shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]])
    for path in (options.peer, options.others, options.json, options.plot):
        if path is not None:
            command = command.replace(str(path), pathlib.Path(path).name)
    return {
        "python": platform.python_version(),
        "versions": find_versions(pythons),
        "platform": platform.platform(),
        "cpu": find_cpu(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "date": datetime.date.today().isoformat(),
        "command": command,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "left_out": [],
        "groups": {},
    }


def parse_options() -> argparse.Namespace:
    """Return the options, with those that --quick decides."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two minutes, and rough figures")
    parser.add_argument(
        "--only", action="extend", nargs="+", metavar="PATTERN", help="workloads, e.g. 'sock*'"
    )
    parser.add_argument("--group", action="extend", nargs="+", choices=GROUPS)
    parser.add_argument(
        "--contestants", action="extend", nargs="+", metavar="PATTERN", help="beside the base"
    )
    parser.add_argument("--rounds", type=int, help="45; with --quick 3")
    parser.add_argument("--seconds", type=float, help="of a measurement: 0.03; with --quick 0.02")
    parser.add_argument("--peer", metavar="PYTHON", help="that has asyncio-gevent 0.2.5")
    parser.add_argument("--others", metavar="PYTHON", help="that has the other bridges")
    parser.add_argument(
        "--nap", type=float, default=0.001, metavar="SECONDS", help="that keeps 0.2.5 awake"
    )
    parser.add_argument("--bars", action="store_true", help="show what is to hold, and whether")
    parser.add_argument(
        "--json", type=pathlib.Path, metavar="FILE", default=report.RESULTS / "latest.json"
    )
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE.svg", help="of the growth")
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 45)
    options.seconds = options.seconds or (0.02 if options.quick else 0.03)
    return options


def run(options: argparse.Namespace) -> None:
    """Measure, print tables in Markdown as they get ready, and write the JSON file."""
    pythons = {
        "main": sys.executable,
        # Absolute, and not resolved: an environment is found by the path of its Python.
        "peer": options.peer and os.path.abspath(options.peer),
        "others": options.others and os.path.abspath(options.others),
    }
    result = describe(options, pythons)
    chosen: dict[str, list[str]] = {}
    found: dict[str, dict[str, str]] = {}
    for name in options.group or GROUPS:
        group = load_group(name)
        workloads = [each for each in group.workloads if is_chosen(name, each, options)]
        if not workloads:
            continue
        chosen[name] = workloads
        found[name], left_out = find_pythons(group, pythons, options.contestants)
        result["left_out"] += [each for each in left_out if each not in result["left_out"]]
        result["groups"][name] = {
            "title": group.title,
            "reading": group.reading,
            "base": group.base,
            "longer": group.longer,
            "contestants": [*found[name]],
            "workloads": {},
        }
    if not chosen:
        raise SystemExit("no workload has such a name")
    print(report.about(result), flush=True)
    for name, workloads in chosen.items():
        group = load_group(name)
        bench = Bench(name, group, found[name], options)
        try:
            for workload in workloads:
                started = time.perf_counter()
                result["groups"][name]["workloads"][workload] = {
                    "title": group.workloads[workload].title,
                    "results": bench.measure(workload),
                }
                seconds = time.perf_counter() - started
                print(f"({name} {workload}: {seconds:.1f} s)", file=sys.stderr, flush=True)
        finally:
            bench.end()
        print(report.render_group(result, name), flush=True)
        write(result, options.json)
    if options.bars:
        print("## Bars\n\n" + report.bars(result))
    if options.plot and "growth" in result["groups"]:
        from _plot import plot_growth

        plot_growth(result, options.plot)


def write(result: dict[str, Any], path: pathlib.Path) -> None:
    """Write what there is so far, a line for each workload."""
    path.parent.mkdir(parents=True, exist_ok=True)
    result["bars"] = [
        {key: rounded(value) for key, value in each.items()} for each in report.judge(result)
    ]
    text = json.dumps(result, separators=(",", ":"))
    for break_before in ('{"title":', '{"group":', '"groups":', '"bars":'):
        text = text.replace(break_before, "\n" + break_before)
    path.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Measure as the command line says."""
    run(parse_options())


if __name__ == "__main__":
    main()
