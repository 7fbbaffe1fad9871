"""Run one module of the interpreter's ``test.test_asyncio`` and report test by test.

    python worker.py JOB.json FD

A fresh process for each module, started by `asyncio_suite`, which kills it when a test hangs. The
job says what to run, on which loop, and whether `gevent.monkey.patch_all()` comes first; events go
to the pipe FD as lines of JSON:

    {"event": "plan", "tests": [...]}                  what will be run, in order
    {"event": "start", "test": id}
    {"event": "end", "test": id, "outcome": ..., "detail": ..., "loops": [made, runs, foreign], ...}
    {"event": "absent" | "no module", "detail": ...}   nothing to run, and why
    {"event": "done"}

Rule: what a test of the standard library sees here is what it sees under ``python -m test``: the
same resources (less the network), hooks, and warnings (``-W default`` comes from the driver).
"""

import json
import sys

with open(sys.argv[1]) as file:
    JOB = json.load(file)

if JOB["patched"]:
    # Before anything else is imported, as gevent asks of a program.
    from gevent import monkey

    monkey.patch_all()

import faulthandler
import functools
import importlib
import os
import signal
import threading
import unittest
from unittest import mock

PACKAGE = "test.test_asyncio"
# All of regrtest's resources that some test of asyncio asks for, but "network".
RESOURCES = ["cpu", "subprocess", "walltime"]


class Reporter(unittest.TestResult):
    """A unittest result that writes each event to the driver at once."""

    def __init__(self, fd, substitution):
        super().__init__()
        self._fd = fd
        self._pid = os.getpid()
        self._substitution = substitution
        self._outcome = None  # (outcome, detail) of the running test; the worst of its subtests

    def send(self, **event):
        # A child that a test forked inherits the pipe, but has nothing to say in it.
        if os.getpid() == self._pid:
            data = memoryview((json.dumps(event) + "\n").encode())
            while data:
                data = data[os.write(self._fd, data) :]

    def startTest(self, test):
        super().startTest(test)
        self._outcome = None
        self._substitution.counts.reset()
        self.send(event="start", test=test_id(test))

    def stopTest(self, test):
        super().stopTest(test)
        outcome, detail = self._outcome or ("pass", "")
        counts = self._substitution.counts
        self.send(
            event="end",
            test=test_id(test),
            outcome=outcome,
            detail=detail,
            decorated=is_skipped_by_decorator(test),
            altered=take_leftovers(),
            loops=[counts.made, counts.runs, counts.foreign],
        )

    def _note(self, test, outcome, detail):
        if not isinstance(test, unittest.TestCase):
            # setUpClass or setUpModule: no test has started, those that it serves will not.
            self.send(event="fixture", test=str(test), outcome=outcome, detail=detail)
        elif self._outcome is None or self._outcome[0] in ("skip", "xfail"):
            self._outcome = (outcome, detail)

    def addError(self, test, err):
        super().addError(test, err)
        self._note(test, "error", self.errors[-1][1])

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._note(test, "fail", self.failures[-1][1])

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            failed = issubclass(err[0], test.failureException)
            text = (self.failures if failed else self.errors)[-1][1]
            self._note(test, "fail" if failed else "error", f"{subtest}\n{text}")

    def addSkip(self, test, reason):
        self._note(test, "skip", reason)

    def addExpectedFailure(self, test, err):
        self._note(test, "xfail", "marked as an expected failure")

    def addUnexpectedSuccess(self, test):
        self._note(test, "fail", "unexpected success of a test marked as an expected failure")


def test_id(test):
    """``test_tasks.SleepTests.test_x``: the module counts from test.test_asyncio."""
    return test.id().removeprefix(PACKAGE + ".")


def is_skipped_by_decorator(test):
    """Whether the loop had no part in the skip of *test*: it was decided at import."""
    method = getattr(test, getattr(test, "_testMethodName", ""), None)
    return bool(
        getattr(type(test), "__unittest_skip__", False)
        or getattr(method, "__unittest_skip__", False)
    )


#: What regrtest's flag "environment altered" was set for since the last test.
leftovers = []


def take_leftovers():
    """Say what the test left behind (threads, exceptions that nobody could catch), if anything."""
    from test import support

    altered, support.environment_altered = support.environment_altered, False
    text = "\n".join(leftovers)
    leftovers.clear()
    return (text or "environment altered") if altered else ""


def set_up_support():
    """Do what regrtest does before it runs a test file."""
    from test import support

    support.use_resources = RESOURCES
    support.verbose = False

    def unraisable(args, report=sys.unraisablehook):
        support.environment_altered = True
        leftovers.append(
            f"{args.err_msg or 'Exception ignored in'} {args.object!r}: {args.exc_value!r}"
        )
        report(args)

    def thread_died(args, report=threading.excepthook):
        support.environment_altered = True
        leftovers.append(f"{args.thread!r} died of {args.exc_value!r}")
        report(args)

    @functools.wraps(support.print_warning)
    def print_warning(message, report=support.print_warning):
        leftovers.append(message)
        report(message)

    if JOB["patched"]:
        # gevent's waitpid(-1) also finds the children that its Popen has waited for.
        reap_children = support.reap_children

        def reap_real_children():
            with mock.patch.object(os, "waitpid", monkey.get_original("os", "waitpid")):
                reap_children()

        support.reap_children = reap_real_children

    sys.unraisablehook = unraisable
    threading.excepthook = thread_died
    support.print_warning = print_warning


def dump_stacks_on(signum):
    """Let the driver ask where a hanging test is: stacks of threads, then of greenlets."""

    def greenlets(*_):
        # Runs when the interpreter is back in Python code, which a blocked hub is every 0.3 s.
        if "gevent" in sys.modules:
            from gevent.util import print_run_info

            print_run_info(file=sys.stderr)

    signal.signal(signum, greenlets)
    faulthandler.register(signum, all_threads=True, chain=True)


def select(suite, leave_out, only):
    """Yield the tests of *suite* that the job wants, in unittest's order."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from select(test, leave_out, only)
            continue
        name = test_id(test)
        if any(name == entry or name.startswith(entry + ".") for entry in leave_out):
            continue
        if only is None or name in only:
            yield test


def main():
    fd = int(sys.argv[2])
    os.set_inheritable(fd, False)
    # The script's own directory is no place for the tests to import from.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if path != here]
    # A shell starts background jobs with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.enable()
    dump_stacks_on(signal.SIGQUIT)
    try:
        package = importlib.import_module(PACKAGE)
    except (ImportError, unittest.SkipTest) as error:
        Reporter(fd, None).send(event="absent", detail=f"{type(error).__name__}: {error}")
        return
    set_up_support()

    sys.path.append(here)
    import loops

    sys.path.pop()
    substitution = loops.substitute(JOB["loop"])
    reporter = Reporter(fd, substitution)
    if JOB["extra_path"]:
        package.__path__.append(JOB["extra_path"])
    try:
        module = importlib.import_module(f"{PACKAGE}.{JOB['module']}")
    except (ModuleNotFoundError, unittest.SkipTest) as error:
        reporter.send(event="no module", detail=f"{type(error).__name__}: {error}")
        return
    substitution.adapt(module)
    only = None if JOB["only"] is None else set(JOB["only"])
    found = unittest.defaultTestLoader.loadTestsFromModule(module)
    suite = unittest.TestSuite(select(found, JOB["leave_out"], only))
    reporter.send(event="plan", tests=[test_id(test) for test in suite])
    # The suite drops each test when it is over, and with it whatever the test kept alive.
    suite.run(reporter)
    reporter.send(event="done")


if __name__ == "__main__":
    main()
