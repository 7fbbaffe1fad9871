"""gevent's own suite on our gevent loop, judged strictly: see `gevent_suite`.

All files run on the private host on Python 3.11, and where CONFORMANCE=all is set. Elsewhere, and
in the other three ways, it is a selection, for the time it takes; all of it runs with::

    python -m tests.conformance.gevent_suite [--host uvloop] [--attached]
"""

import os
import sys

import gevent.monkey
import pytest
from support import GEVENT

from . import gevent_suite, gevent_tables

#: What is most about a loop, and quick.
SELECTION = [
    "test__api", "test__core_async", "test__core_callback", "test__core_fork", "test__core_stat",
    "test__core_watcher", "test__destroy_default_loop", "test__event", "test__greenlet",
    "test__iwait", "test__loop_callback", "test__os", "test__order", "test__select",
    "test__selectors", "test__server", "test__signal", "test__sleep0", "test__socket_close",
    "test__subprocess_poll", "test__threadpool", "test__timeout",
]  # fmt: skip

COMPLETE = sys.version_info[:2] == (3, 11) or os.environ.get("CONFORMANCE") == "all"

pytestmark = [
    pytest.mark.skipif(
        gevent.monkey.is_module_patched("socket") or "libuv" in gevent.config.loop.__module__,
        reason="it starts processes of its own",
    ),
    pytest.mark.timeout(200),
]


def judge(name: str, **options: object) -> None:
    attached = bool(options.get("attached"))
    host = str(options.get("host", "asyncio"))
    known = gevent_tables.deviations(host, attached)
    run = gevent_suite.run_file(name, **options)
    problems = gevent_suite.check_loops(run, host=host, attached=attached)
    for test, (outcome, detail) in run.results.items():
        if outcome in gevent_suite.FAILED and test not in known:
            problems.append(f"{outcome}: {test}\n{detail}")
    assert run.results
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", gevent_suite.files() if COMPLETE else SELECTION)
def test_on_the_private_host(name: str) -> None:
    judge(name)


@pytest.mark.parametrize("name", SELECTION)
@pytest.mark.parametrize(
    ("host", "attached"), [("uvloop", False), ("asyncio", True), ("uvloop", True)]
)
def test_in_other_ways(name: str, host: str, attached: bool) -> None:
    if host == "uvloop":
        pytest.importorskip("uvloop", reason="optional")
    judge(name, host=host, attached=attached)


@pytest.mark.skipif(GEVENT < (26,), reason="older suites have fewer files")
def test_the_tables_name_what_there_is() -> None:
    files = set(gevent_suite.files()) | set(gevent_tables.LEFT_OUT)
    for table in (
        gevent_tables.DEVIATIONS, gevent_tables.UVLOOP, gevent_tables.ATTACHED,
        gevent_tables.ATTACHED_HANGS, gevent_tables.ATTACHED_UVLOOP,
    ):  # fmt: skip
        for test, reason in table.items():
            assert test.partition(".")[0] in files, test
            assert reason
    assert set(SELECTION) <= files


def test_another_loop_would_be_noticed() -> None:
    run = gevent_suite.run_file("test__sleep0", loop="libev-cext")
    assert "not asyncio_gevent" in gevent_suite.check_loops(run, host="asyncio", attached=False)[0]
    run = gevent_suite.run_file("test__sleep0")
    assert gevent_suite.check_loops(run, host="uvloop", attached=False)
    assert gevent_suite.check_loops(run, host="asyncio", attached=True)


def test_a_failure_would_be_noticed() -> None:
    """A file that does not exist fails, as one that cannot be imported does."""
    run = gevent_suite.run_file("test__no_such_file")
    assert [outcome for outcome, _ in run.results.values()] == ["fail"]
