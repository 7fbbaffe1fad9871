"""The process of one file of gevent's suite; see `gevent_suite`.

Writes a line of JSON for each test that ends, and one at the end that says which loops ran.
"""

import atexit
import json
import os
import runpy
import sys
import traceback
import unittest

_write = os.write
_exit = os._exit
_getpid = os.getpid
PID = os.getpid()


def report(pipe, **event):
    """Write one event; not in a forked child, which has a copy of all this."""
    if _getpid() == PID:
        _write(pipe, json.dumps(event).encode() + b"\n")


def watch_results(pipe):
    """Report the outcome of each test of any runner: all results are derived from one class."""
    base = unittest.TestResult
    outcomes = {}

    def note(name, outcome, takes_error):
        method = getattr(base, name)

        def noting(self, test, *args):
            detail = ""
            if takes_error:
                detail = "".join(traceback.format_exception(*args[0]))[-3000:]
            elif outcome == "skip":
                detail = args[0]
            outcomes.setdefault(test.id(), []).append((outcome, detail))
            return method(self, test, *args)

        setattr(base, name, noting)

    note("addSuccess", "pass", False)
    note("addFailure", "fail", True)
    note("addError", "error", True)
    note("addSkip", "skip", False)
    note("addExpectedFailure", "xfail", True)
    note("addUnexpectedSuccess", "unexpected", False)

    stop = base.stopTest
    sub = base.addSubTest

    def add_sub_test(self, test, subtest, error):
        if error is not None:
            outcomes.setdefault(test.id(), []).append(
                ("fail", "".join(traceback.format_exception(*error))[-3000:])
            )
        return sub(self, test, subtest, error)

    def stop_test(self, test):
        found = outcomes.pop(test.id(), [("pass", "")])
        rank = ["error", "fail", "unexpected", "skip", "xfail", "pass"]
        outcome, detail = min(found, key=lambda each: rank.index(each[0]))
        report(pipe, event="test", test=test.id(), outcome=outcome, detail=detail)
        return stop(self, test)

    left_out = set(json.loads(os.environ.get("GEVENT_SUITE_LEFT_OUT", "[]")))
    run = unittest.TestCase.run

    def run_test(self, result=None):
        if self.id() not in left_out:
            return run(self, result)
        result.startTest(self)
        result.addSkip(self, "left out, see gevent_tables")
        result.stopTest(self)
        return result

    unittest.TestCase.run = run_test

    start = base.startTest

    def start_test(self, test):
        report(pipe, event="start", test=test.id())
        return start(self, test)

    base.startTest, base.stopTest, base.addSubTest = start_test, stop_test, add_sub_test


def watch_loops(pipe):
    """Report at the end which gevent loop this process used, and which hosts carried it."""
    import gevent

    hosts = {"private": set(), "attached": set()}
    loop_class = gevent.config.loop
    module = sys.modules.get("asyncio_gevent._carried")
    if hasattr(loop_class, "_attach"):
        make, attach = module.make_private_host, loop_class._attach

        def making(factory):
            host = make(factory)
            hosts["private"].add(f"{type(host).__module__}.{type(host).__qualname__}")
            return host

        def attaching(self, host):
            hosts["attached"].add(f"{type(host).__module__}.{type(host).__qualname__}")
            return attach(self, host)

        module.make_private_host, loop_class._attach = making, attaching

    def at_exit():
        report(
            pipe,
            event="loops",
            loop=f"{loop_class.__module__}.{loop_class.__qualname__}",
            **{kind: sorted(names) for kind, names in hosts.items()},
        )

    atexit.register(at_exit)
    return at_exit


def run(name):
    """Run the file as ``python -m`` does; return its exit status."""
    sys.argv[:] = [name]
    try:
        runpy.run_module(f"gevent.tests.{name}", run_name="__main__", alter_sys=True)
    except SystemExit as ending:
        code = ending.code
        return code if isinstance(code, int) else 0 if code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def run_attached(name, kind):
    """Run it in a greenlet, while an asyncio loop runs in the main one."""
    import asyncio

    import gevent
    import gevent.testing  # it sets the class of hubs, and there will be one before the file runs

    async def main():
        ended = asyncio.get_running_loop().create_future()
        greenlet = gevent.Greenlet(run, name)
        greenlet.link(lambda each: ended.done() or ended.set_result(each.value))
        greenlet.start()
        status = await ended
        return status if isinstance(status, int) else 1

    if kind == "uvloop":
        import uvloop

        return uvloop.run(main())
    return asyncio.run(main())


if __name__ == "__main__":
    name, mode, descriptor = sys.argv[1], sys.argv[2], int(sys.argv[3])
    os.set_inheritable(descriptor, False)
    # As with ``python -m``: this file's directory is not where modules are looked for.
    sys.path[0] = ""
    watch_results(descriptor)
    REPORT_LOOPS = watch_loops(descriptor)
    if mode == "private":
        status = run(name)
    else:
        status = run_attached(name, mode)
    report(descriptor, event="end", status=status)
    if mode != "private":
        # A file that patches in a greenlet, after the main one has begun, never gets through the
        # end of `threading`, with no loop of gevent's.
        REPORT_LOOPS()
        sys.stdout.flush()
        sys.stderr.flush()
        _exit(status)
    sys.exit(status)
