"""The same tests after ``gevent.monkey.patch_all()``, and on gevent's libuv loop.

One file at a time in a fresh process, since patching cannot be undone and is to come first. To
look at one of them::

    python tests/scripts/run_patched.py tests/test_io.py -k echo
    GEVENT_LOOP=libuv python -m pytest tests/test_io.py
"""

from __future__ import annotations

import os
import pathlib
import sys

import gevent.subprocess
import pytest
from support import LIBUV, PATCHED, import_path

TESTS = pathlib.Path(__file__).parent
FILES = [
    "test_adapter_machine.py", "test_ambient.py", "test_await.py", "test_bad_input.py",
    "test_cancel.py", "test_contexts.py", "test_conversions.py", "test_event_loop.py",
    "test_executor.py",
    "test_fork.py", "test_functions.py", "test_futures.py", "test_io.py", "test_iterators.py",
    "test_leaks.py", "test_many_loops.py", "test_protocols.py", "test_run_and_policy.py",
    "test_signals.py", "test_sockets.py", "test_suspension.py", "test_threads.py",
]  # fmt: skip

#: Seconds for one file, which takes less than 15.
LIMIT = 120

pytestmark = [
    pytest.mark.skipif(
        PATCHED or LIBUV, reason="these start themselves patched, and with the other loop"
    ),
    pytest.mark.timeout(LIMIT + 20),
    pytest.mark.soft_limit(LIMIT + 10),
]


@pytest.mark.parametrize("name", FILES)
def test_patched(name: str) -> None:
    run_file(name, patched=True, gevent_loop="libev-cext")


# Where the loop of the hub matters: descriptors, timers, signals, children, forks.
LIBUV_FILES = [
    "test_ambient.py", "test_await.py", "test_event_loop.py", "test_fork.py", "test_io.py",
    "test_sockets.py", "test_suspension.py", "test_threads.py",
]  # fmt: skip


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched"])
@pytest.mark.parametrize("name", LIBUV_FILES)
def test_libuv(name: str, patched: bool) -> None:
    pytest.importorskip("cffi", reason="gevent's libuv loop is made of it")
    run_file(name, patched=patched, gevent_loop="libuv-cffi")


def run_file(name: str, *, patched: bool, gevent_loop: str, host: str = "asyncio") -> None:
    arguments = (
        [str(TESTS / "scripts" / "run_patched.py")]
        if patched
        else ["-m", "pytest", "--timeout=0", "-p", "no:cacheprovider"]
    )
    process = gevent.subprocess.Popen(
        [sys.executable, *arguments, "-q", "--no-header", "-rfE", "--tb=short", str(TESTS / name)],
        cwd=TESTS.parent,
        env={
            **os.environ,
            "GEVENT_LOOP": gevent_loop,
            "ASYNCIO_GEVENT_HOST": host,
            "PYTHONPATH": os.pathsep.join(import_path()),
        },
        stdout=gevent.subprocess.PIPE,
        stderr=gevent.subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            out, _ = process.communicate(timeout=LIMIT)
        except gevent.subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            out += f"\n(killed: not done in {LIMIT} s)"
    if process.returncode:
        pytest.fail(f"{name} ended with status {process.returncode}:\n{out}", pytrace=False)


def test_no_file_is_forgotten() -> None:
    """What is not run again concerns the project's files, or starts processes of its own."""
    others = {
        "test_benchmarks.py", "test_docs.py", "test_examples.py", "test_layout.py",
        "test_leftovers.py", "test_on_asyncio.py", "test_patched.py", "test_project.py",
    }  # fmt: skip
    assert {path.name for path in TESTS.glob("test_*.py")} - set(FILES) <= others
    assert set(LIBUV_FILES) <= set(FILES) <= {path.name for path in TESTS.glob("test_*.py")}
