"""Run the interpreter's own ``test.test_asyncio`` against an event loop.

    python -m tests.conformance.asyncio_suite [--loop ours] [--patched] [--modules NAME ...]

Each test module runs in a process of its own (`worker`). A test that exceeds its time limit costs
its process, not the run: it counts as a hang, and the rest of the module goes on in a new process.
Likewise a test that kills the process.

What counts as a failure of ours is decided by `judge`, strictly both ways:

- a test fails that is not listed in `tables.DEVIATIONS`, and does not fail on the standard loop in
  this environment;
- a listed test passes, or is not there any more;
- a test leaves threads behind, or exceptions that nobody catches, and does not on the standard
  loop;
- a test is skipped on our loop that runs on the standard loop;
- our loop did not run in a module whose tests use loops, or some other loop ran in its place.
"""

import argparse
import json
import os
import pkgutil
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

from . import tables

HERE = Path(__file__).resolve().parent
TEST_LIMIT = 30.0  # seconds for one test; the slowest take 6 on an idle machine
IDLE_LIMIT = 60.0  # seconds for imports before the first test, and for the exit after the last
FAILED = frozenset({"fail", "error", "hang", "crash", "not run"})
PASSED = frozenset({"pass", "xfail"})


@dataclass
class Result:
    """How one test ended.

    Attributes:
        outcome: "pass", "xfail", "skip", "fail", "error", "hang", "crash" or "not run".
        detail: traceback, reason of the skip, or stacks of a process that had to be killed.
        seconds: the time it took.
        decorated: whether it was skipped by a decorator, before any loop was made.
        altered: the threads it left or the exceptions it lost (regrtest's "environment altered").
        loops: loops made, runs of those, loops of other classes.
    """

    outcome: str
    detail: str = ""
    seconds: float = 0.0
    decorated: bool = False
    altered: str = ""
    loops: list = field(default_factory=lambda: [0, 0, 0])


@dataclass
class ModuleRun:
    """The results of one module, by test id; `absent` says why there are none."""

    module: str
    results: dict = field(default_factory=dict)
    absent: str = ""

    def count(self, *outcomes):
        return sum(result.outcome in outcomes for result in self.results.values())

    def loops(self):
        """Return the sums of loops made, runs, and foreign loops."""
        return [sum(result.loops[i] for result in self.results.values()) for i in range(3)]


def modules():
    """Return the names of the test modules that this interpreter has and the tables leave in."""
    try:
        spec = find_spec("test.test_asyncio")
    except ModuleNotFoundError:
        return []
    if spec is None:
        return []
    names = (info.name for info in pkgutil.iter_modules(spec.submodule_search_locations))
    return sorted(n for n in names if n.startswith("test_") and n not in tables.LEFT_OUT)


class Process:
    """A worker: a process that runs tests and reports on a pipe.

    Args:
        job: what `worker` shall do.
        directory: an empty directory, the worker's working directory.
    """

    def __init__(self, job, directory):
        (directory / "job.json").write_text(json.dumps(job))
        read, write = os.pipe()
        self.ended = False  # whether the worker has closed the pipe, which only its end does
        self._pipe = read
        self._buffer = b""
        self._log = open(directory / "log", "wb+")
        (directory / "cwd").mkdir()
        command = [
            sys.executable,
            "-W",
            "default",
            str(HERE / "worker.py"),
            str(directory / "job.json"),
            str(write),
        ]
        self._popen = subprocess.Popen(
            command,
            cwd=directory / "cwd",
            env=self._environment(),
            pass_fds=[write],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        os.close(write)

    @staticmethod
    def _environment():
        # The package under test is the one that this process would import, a checkout or an
        # installed one. The worker has another working directory, so all paths are absolute.
        path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
        spec = find_spec("asyncio_gevent")
        if spec is not None and spec.origin:
            path.insert(0, str(Path(spec.origin).parent.parent))
        return {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, path))}

    def next_event(self, limit):
        """Return the next event; None if the process ends or *limit* seconds pass before."""
        deadline = time.monotonic() + limit
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._pipe], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._pipe, 1 << 16) if ready else b""
            if not data:
                self.ended = bool(ready)
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def end(self, limit):
        """Wait *limit* seconds for the process to end by itself, else kill it.

        Returns:
            The exit status, or None if it had to be killed.
        """
        try:
            return self._popen.wait(limit)
        except subprocess.TimeoutExpired:
            self._popen.send_signal(signal.SIGQUIT)  # write the stacks to the log
            try:
                self._popen.wait(1)
            except subprocess.TimeoutExpired:
                pass
            return None
        finally:
            # Also what the tests have started and left.
            try:
                os.killpg(self._popen.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self._popen.wait()

    def log_tail(self):
        self._log.seek(0)
        return self._log.read()[-8000:].decode(errors="replace")

    def close(self):
        os.close(self._pipe)
        self._log.close()


def run_module(module, *, loop="ours", patched=False, only=None, limit=TEST_LIMIT, extra_path=None):
    """Run the tests of one module, in as many processes as hangs and crashes make necessary.

    Args:
        module: name in ``test.test_asyncio``.
        loop: which loop, see `loops.substitute`.
        patched: whether after `gevent.monkey.patch_all()`.
        only: test ids to run, all by default.
        limit: seconds for one test.
        extra_path: a directory with more test modules, beside those of the interpreter.

    Returns:
        A `ModuleRun`.
    """
    run = ModuleRun(module)
    known = tables.deviations(patched, backend())
    limits = defaultdict(lambda: limit, {test: d.limit for test, d in known.items() if d.limit})
    while True:
        job = {
            "module": module,
            "loop": loop,
            "patched": patched,
            "only": only,
            "leave_out": sorted(tables.LEFT_OUT),
            "extra_path": extra_path,
        }
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
            process = Process(job, Path(directory))
            try:
                remaining = _run_process(process, run, limits)
            finally:
                process.end(0)
                process.close()
        if not remaining:
            return run
        only = remaining


def _run_process(process, run, limits):
    """Collect the results of one worker in *run*; return the tests that it did not come to."""
    plan = []
    running = None  # id of the test that has started and not ended
    fixture = None  # what became of the last setUpClass or setUpModule that did not succeed
    started = time.monotonic()
    while True:
        event = process.next_event(limits[running] if running else IDLE_LIMIT)
        if event is None:
            break
        kind = event.pop("event")
        if kind in ("absent", "no module"):
            run.absent = event["detail"]
            process.end(IDLE_LIMIT)
            return []
        if kind == "plan":
            plan = event["tests"]
        elif kind == "start":
            running, started = event["test"], time.monotonic()
        elif kind == "end":
            running = None
            test = event.pop("test")
            run.results[test] = Result(seconds=round(time.monotonic() - started, 3), **event)
        elif kind == "fixture":
            fixture = event
        elif kind == "done":
            status = process.end(IDLE_LIMIT)
            if status != 0:
                what = ("hang", "") if status is None else ("crash", f"exit status {status}\n")
                run.results[f"{run.module}.<exit>"] = Result(what[0], what[1] + process.log_tail())
            _note_not_run(run, plan, fixture)
            return []
    status = process.end(IDLE_LIMIT if process.ended else 0)
    outcome, detail = ("hang", "") if status is None else ("crash", f"exit status {status}\n")
    result = Result(outcome, detail + process.log_tail(), time.monotonic() - started)
    run.results[running or f"{run.module}.<start>"] = result
    return [test for test in plan if test not in run.results] if running else []


def _note_not_run(run, plan, fixture):
    """Give a result to planned tests that never started: a *fixture* of theirs did not succeed."""
    for test in plan:
        if test not in run.results:
            skipped = fixture is not None and fixture["outcome"] == "skip"
            detail = f"{fixture['test']}: {fixture['detail']}" if fixture else "no report"
            run.results[test] = Result("skip" if skipped else "not run", detail)


def backend():
    """Return the name of gevent's loop as this environment selects it: "libev" or "libuv"."""
    return "libuv" if "libuv" in os.environ.get("GEVENT_LOOP", "") else "libev"


@dataclass
class Verdict:
    """What is to be said about one module; `problems` must be empty, the rest is news."""

    module: str
    problems: list = field(default_factory=list)
    environment: list = field(default_factory=list)
    expected: list = field(default_factory=list)

    def __str__(self):
        return "\n\n".join(self.problems) or "nothing to object"


def judge(run, *, loop="ours", patched=False, complete=True, limit=TEST_LIMIT):
    """Compare the results of *run* with the tables and, where they differ, with the standard loop.

    Only what went wrong is run again, on the standard loop without monkey patching: a test that
    fails there as well tells of the environment (no network, user root), not of our loop.

    Args:
        run: the results of one module.
        loop, patched: how they were made.
        complete: whether all tests of the module were run.
        limit: seconds for one test of the control.

    Returns:
        A `Verdict`.
    """
    verdict = Verdict(run.module)
    listed = {
        test: deviation.reason
        for test, deviation in tables.deviations(patched, backend()).items()
        if test.split(".")[0] == run.module
    }
    suspects = {
        test: result
        for test, result in run.results.items()
        if test not in listed
        and (
            result.outcome in FAILED
            or result.altered
            or (result.outcome == "skip" and not result.decorated)
        )
    }
    control = _control(run.module, suspects, limit) if suspects else {}
    for test, result in suspects.items():
        other = control.get(test, Result("not run"))
        if result.outcome == "skip":
            if other.outcome != "skip":
                verdict.problems.append(f"SKIPPED on this loop alone: {test}: {result.detail}")
        elif result.outcome in FAILED:
            if other.outcome in FAILED and not test.endswith(">"):
                verdict.environment.append(test)
            else:
                verdict.problems.append(f"{result.outcome.upper()}: {test}\n{result.detail}")
        elif not other.altered:
            verdict.problems.append(f"LEFTOVER: {test}\n{result.altered}")
    for test, reason in listed.items():
        outcome = run.results[test].outcome if test in run.results else "not there"
        if outcome in FAILED:
            verdict.expected.append(test)
        elif outcome != "not there" or complete:
            verdict.problems.append(f"LISTED as a deviation, but {outcome}: {test} ({reason})")
    if complete and loop != "standard" and not run.absent:
        _, runs, foreign = run.loops()
        if (runs > 0) == (run.module in tables.WITHOUT_LOOP):
            verdict.problems.append(f"LOOP: it ran {runs} times in {run.module}")
        if foreign:
            tests = [test for test, result in run.results.items() if result.loops[2]]
            verdict.problems.append(f"LOOP: {foreign} other loops were made, by {', '.join(tests)}")
    return verdict


def _control(module, suspects, limit):
    """Return the results of the tests *suspects* on the standard loop, without monkey patching."""
    alone = run_module(module, loop="standard", only=sorted(suspects), limit=limit).results
    failed = [test for test, result in alone.items() if result.outcome in FAILED]
    if not failed:
        return alone
    # Some tests only pass after others; they must not pass for broken because they were run alone.
    return {**alone, **run_module(module, loop="standard", limit=limit).results}


def main(argv=None):
    """Run the suite as the command line says and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance.asyncio_suite", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--loop", default="ours", choices=["ours", "standard", "selector", "uvloop"]
    )
    parser.add_argument("--patched", action="store_true", help="after gevent.monkey.patch_all()")
    parser.add_argument("--modules", nargs="+", metavar="NAME", help="test modules, all by default")
    parser.add_argument(
        "--tests", nargs="+", metavar="ID", help="tests, all of the modules by default"
    )
    parser.add_argument("--json", metavar="FILE", help="write all results there")
    parser.add_argument("-j", type=int, default=2, metavar="N", help="processes at a time")
    parser.add_argument("--limit", type=float, default=TEST_LIMIT, help="seconds for one test")
    args = parser.parse_args(argv)
    if args.tests:
        names = sorted({test.split(".")[0] for test in args.tests})
    else:
        names = args.modules or modules()
    if not names:
        print("this interpreter comes without the package test.test_asyncio")
        return 0

    def work(name):
        started = time.monotonic()
        run = run_module(
            name, loop=args.loop, patched=args.patched, only=args.tests, limit=args.limit
        )
        verdict = judge(
            run, loop=args.loop, patched=args.patched, complete=not args.tests, limit=args.limit
        )
        return run, verdict, time.monotonic() - started

    runs = []
    with ThreadPoolExecutor(args.j) as pool:
        for run, verdict, seconds in pool.map(work, names):
            runs.append((run, verdict))
            print(
                f"{run.module:26} {seconds:6.1f} s  pass {run.count(*PASSED):4}"
                f"  skip {run.count('skip'):3}  fail {run.count(*FAILED):3}"
                f"  loops made, run, other: {run.loops()}"
                f"  {run.absent}{'  <--' if verdict.problems else ''}",
                flush=True,
            )
    for run, verdict in runs:
        if verdict.problems:
            print(f"\n=== {run.module}\n{verdict}")
    passed = sum(run.count(*PASSED) for run, _ in runs)
    failed = sum(run.count(*FAILED) for run, _ in runs)
    listed = sum(len(verdict.expected) for _, verdict in runs)
    environment = [test for _, verdict in runs for test in verdict.environment]
    problems = sum(len(verdict.problems) for _, verdict in runs)
    print(f"\n{passed} passed, {failed} failed")
    print(f"{listed} of those are listed, {len(environment)} fail on the standard loop as well")
    for test in environment:
        print(f"  {test}")
    print(f"{problems} problems")
    if args.json:
        report = {
            "python": sys.version,
            "loop": args.loop,
            "patched": args.patched,
            "backend": backend(),
            "modules": {run.module: asdict(run) for run, _ in runs},
            "verdicts": {run.module: asdict(verdict) for run, verdict in runs},
        }
        Path(args.json).write_text(json.dumps(report, indent=1))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
