"""Run gevent's own suite, ``gevent.tests`` of the installed gevent, on our gevent loop.

    python -m tests.conformance.gevent_suite [--host asyncio|uvloop] [--attached] [FILE ...]
    python -m tests.conformance.gevent_suite --loop libev-cext

Each file runs in a process of its own (`gevent_worker`). A file that is no unittest is one test,
which passes if the process ends with status 0.

``--attached`` starts each file in a greenlet of a program in which an asyncio loop already runs,
and carries the hub. What cannot be meant there is in `gevent_tables.ATTACHED`, with reasons.
"""

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from . import gevent_tables as tables

HERE = Path(__file__).resolve().parent
OURS = "asyncio_gevent.gevent_loop.GeventLoop"
FILE_LIMIT = 150.0  # seconds for one file; the slowest take 40 on an idle machine
FAILED = frozenset({"fail", "error", "hang", "crash", "unexpected"})

#: The class of the event loop that must have carried the hub.
HOSTS = {
    "asyncio": {"private": "asyncio_gevent._hosts.PrivateHost",
                "attached": "asyncio.unix_events._UnixSelectorEventLoop"},
    "uvloop": {"private": "uvloop.Loop", "attached": "uvloop.Loop"},
}  # fmt: skip


@dataclass
class FileRun:
    """The results of one file: by test id, outcome and detail."""

    name: str
    results: dict = field(default_factory=dict)
    loops: dict = field(default_factory=dict)
    seconds: float = 0.0
    log: str = ""


def files():
    """Return the names of the test files of the installed gevent that the tables leave in."""
    spec = find_spec("gevent.tests")
    directory = Path(spec.submodule_search_locations[0])
    names = sorted(path.stem for path in directory.glob("test_*.py"))
    return [name for name in names if name not in tables.LEFT_OUT]


def environment(loop, host):
    """Return the environment of a worker."""
    path = [str(Path(find_spec("asyncio_gevent").origin).parent.parent)]
    path += [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("GEVENT")},
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, path)),
        "GEVENT_LOOP": loop,
        "ASYNCIO_GEVENT_HOST": host,
        # As gevent's runner has it; this machine may have no network.
        "PYTHONDEVMODE": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONWARNINGS": "default,ignore::ResourceWarning",
        "GEVENTTEST_USE_RESOURCES": "all,-network",
        "GEVENTTEST_QUIET": "1",
    }


def run_file(name, *, loop=OURS, host="asyncio", attached=False, limit=FILE_LIMIT):
    """Run one file.

    Args:
        name: of the module in ``gevent.tests``.
        loop: value of ``GEVENT_LOOP``.
        host: "asyncio" or "uvloop".
        attached: whether an asyncio loop of that kind already runs.
        limit: seconds.
    """
    run = FileRun(name)
    started = time.monotonic()
    env = environment(loop, host)
    if attached:
        # Those that would never end.
        left_out = [test.removeprefix(name + ".") for test in tables.ATTACHED_HANGS]
        env["GEVENT_SUITE_LEFT_OUT"] = json.dumps(["__main__." + test for test in left_out])
    if name in tables.WITHOUT_DEVMODE:
        del env["PYTHONDEVMODE"]
    read, write = os.pipe()
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as cwd:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "gevent_worker.py"), name,
             host if attached else "private", str(write)],
            env=env, cwd=cwd, pass_fds=[write], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        os.close(write)
        running, status, ends = _collect(read, run, started + limit)
        os.close(read)
        try:
            code = process.wait(10 if ends else 0.1)
            if status is None:
                status = code
        except subprocess.TimeoutExpired:
            status = "hang"
            process.send_signal(signal.SIGABRT)  # faulthandler writes the stacks
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                pass
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        log.seek(0)
        run.log = log.read().decode(errors="replace")
    run.seconds = round(time.monotonic() - started, 1)
    tail = run.log[-6000:]
    if status == "hang":
        run.results[running or f"{name}.<exit>"] = ("hang", tail)
    elif running:
        run.results[running] = ("crash", tail)
    elif not run.results:
        run.results[f"{name}.<file>"] = ("pass", "") if status == 0 else ("fail", tail)
    elif status and not any(outcome in FAILED for outcome, _ in run.results.values()):
        run.results[f"{name}.<exit>"] = ("fail", tail)
    return run


def _collect(pipe, run, deadline):
    running = status = None
    buffer = b""
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        data = os.read(pipe, 1 << 16) if ready else b""
        if not data:
            return running, status, bool(ready)
        buffer += data
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            event = json.loads(line)
            kind = event.pop("event")
            if kind == "start":
                running = _id(run.name, event["test"])
            elif kind == "test":
                running = None
                run.results[_id(run.name, event["test"])] = (event["outcome"], event["detail"])
            elif kind == "loops":
                run.loops = event
            else:
                status = event["status"]


def _id(name, test):
    return f"{name}.{test.removeprefix('__main__.')}"


def check_loops(run, *, host, attached):
    """Return what is wrong with the loops that really ran in a file's process."""
    if run.name in tables.NO_LOOP or any(r[0] in ("hang", "crash") for r in run.results.values()):
        return []
    kind = "attached" if attached else "private"
    if run.loops.get("loop") != OURS:
        return [f"{run.name}: the loop was {run.loops.get('loop')}, not {OURS}"]
    wanted = HOSTS[host][kind]
    if wanted not in run.loops[kind]:
        return [f"{run.name}: no {wanted} carried the hub, but {run.loops[kind]}"]
    return []


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="names of files, such as test__event; default all")
    parser.add_argument("--loop", default=OURS, help="GEVENT_LOOP")
    parser.add_argument("--host", default="asyncio", choices=sorted(HOSTS))
    parser.add_argument("--attached", action="store_true", help="an asyncio loop already runs")
    parser.add_argument("--limit", type=float, default=FILE_LIMIT, help="seconds for one file")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", help="write all results to this file")
    parser.add_argument("-v", "--verbose", action="store_true", help="print what failed in full")
    options = parser.parse_args(argv)
    names = [name.removesuffix(".py") for name in options.files] or files()

    def one(name):
        return run_file(
            name, loop=options.loop, host=options.host, attached=options.attached,
            limit=options.limit,
        )  # fmt: skip

    known = tables.deviations(options.host, options.attached) if options.loop == OURS else {}
    totals = {}
    problems = []
    everything = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for run in pool.map(one, names):
            for test, (outcome, detail) in run.results.items():
                everything[test] = outcome
                totals[outcome] = totals.get(outcome, 0) + 1
                if outcome in FAILED and test not in known:
                    problems.append(f"{outcome}: {test}")
                    if options.verbose:
                        problems.append(detail)
            if options.loop == OURS:
                problems += check_loops(run, host=options.host, attached=options.attached)
            print(f"{run.name:45} {run.seconds:6.1f} s  {_summary(run)}", flush=True)
    print("\n".join(problems))
    print(f"{len(names)} files: " + ", ".join(f"{n} {o}" for o, n in sorted(totals.items())))
    if options.json:
        Path(options.json).write_text(json.dumps(everything, indent=1))
    return 1 if problems else 0


def _summary(run):
    counts = {}
    for outcome, _ in run.results.values():
        counts[outcome] = counts.get(outcome, 0) + 1
    return " ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(main())
