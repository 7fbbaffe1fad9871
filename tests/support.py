"""What the tests share: where they run, how they block, how they start fresh processes.

The same test files run plain and after ``gevent.monkey.patch_all()``, see `test_patched`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gevent
import gevent.event
import gevent.lock
import gevent.monkey
import gevent.queue
import gevent.select
import gevent.socket
import gevent.subprocess
import gevent.threadpool
from gevent.monkey import get_original

import asyncio_gevent

TESTS = pathlib.Path(__file__).parent
PATCHED = gevent.monkey.is_module_patched("socket")
#: gevent's version; its own version_info is that of 2020.
GEVENT = tuple(int(part) for part in gevent.__version__.split(".")[:2])
LIBUV = "libuv" in gevent.config.loop.__module__

#: Seconds that stand for "a short while" where real time is the subject. Stretch it on a slow
#: machine: TEST_TIME_UNIT=0.2.
UNIT = float(os.environ.get("TEST_TIME_UNIT", "0.02"))

native_ident: Callable[[], int] = get_original("_thread", "get_ident")
start_native_thread: Callable[..., int] = get_original("_thread", "start_new_thread")
native_sleep: Callable[[float], None] = get_original("time", "sleep")
native_socketpair: Callable[..., Any] = get_original("_socket", "socketpair")
os_close: Callable[[int], None] = get_original("os", "close")


# --- waiting ------------------------------------------------------------------------------------


async def never(ended: list[str] | None = None) -> None:
    """Wait until it is cancelled, and note that in the list."""
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        if ended is not None:
            ended.append("cleaned up")


async def until(condition: Callable[[], Any]) -> None:
    """Let the event loop go on until the condition holds."""
    while not condition():
        await asyncio.sleep(0)


def until_in_greenlet(condition: Callable[[], Any]) -> None:
    """Let the hub go on, and native threads, until the condition holds."""
    while not condition():
        gevent.sleep(0)
        native_sleep(1e-6)  # a busy hub leaves them no time


class Polls:
    """Counts how often the hub of this thread polls.

    ``with Polls() as polls: ...``, then ``polls.count``.
    """

    def __init__(self) -> None:
        self.count = 0
        self._is_over = False
        self._watcher: Any = None

    def __enter__(self) -> Polls:
        self._watcher = gevent.get_hub().loop.check(ref=False)
        self._watcher.start(self._note)
        return self

    def _note(self) -> None:
        if self._is_over:
            self._watcher.stop()
            self._watcher.close()
        else:
            self.count += 1

    def __exit__(self, *exc_info: object) -> None:
        # On libuv only its own callback may stop it: see `asyncio_gevent._watchers._CheckedList`.
        self._is_over = True


# --- places: where an event loop runs -----------------------------------------------------------


def in_main(function: Callable[[], Any]) -> Any:
    return function()


def in_greenlet(function: Callable[[], Any]) -> Any:
    return gevent.spawn(_outcome, function).get().get()


def in_thread(function: Callable[[], Any]) -> Any:
    """In a ``threading.Thread``: a greenlet after patching, else a native thread."""
    if not PATCHED:
        return in_native_thread(function)
    outcome: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcome.append(_outcome(function)))
    thread.start()
    thread.join()
    return outcome[0].get()


def in_native_thread(function: Callable[[], Any]) -> Any:
    """In an OS thread with a hub of its own; the calling greenlet waits."""
    return NativeThread(function).join()


class Outcome:
    def __init__(self, value: Any = None, error: BaseException | None = None) -> None:
        self.value = value
        self.error = error

    def get(self) -> Any:
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None
        return self.value


def _outcome(function: Callable[[], Any]) -> Outcome:
    try:
        return Outcome(function())
    except BaseException as error:
        return Outcome(error=error)


class NativeThread:
    """An OS thread that calls a function, and then destroys the hub it made, if any."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._outcome: Outcome | None = None
        self._async = gevent.get_hub().loop.async_()
        self._ended = gevent.event.Event()
        self._async.start(self._ended.set)
        start_native_thread(self._run, ())

    def _run(self) -> None:
        outcome = _outcome(self._function)
        hub = gevent._hub_local.get_hub_if_exists()
        if hub is not None:
            hub.destroy(destroy_loop=True)
        self._outcome = outcome
        self._async.send()

    def join(self) -> Any:
        """Wait, in this greenlet only, for the outcome of the function."""
        self._ended.wait()
        self._async.stop()
        self._async.close()
        assert self._outcome is not None
        return self._outcome.get()


PLACES: dict[str, Callable[[Callable[[], Any]], Any]] = {
    "main": in_main,
    "greenlet": in_greenlet,
    "thread": in_thread,
    "native": in_native_thread,
}


# --- blocking gevent calls ----------------------------------------------------------------------


class Blocker:
    """A call that blocks its greenlet until somebody releases it.

    ``block`` is called in the code that is to be suspended, ``release`` somewhere else in the
    same OS thread. ``close`` takes back what was opened.
    """

    def block(self) -> None:
        raise NotImplementedError

    def release(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Sleep(Blocker):
    """gevent.sleep() that only ends when its time has come: the only one nobody releases."""

    def block(self) -> None:
        gevent.sleep(UNIT)

    def release(self) -> None:
        pass


class Event(Blocker):
    def __init__(self) -> None:
        self._event = gevent.event.Event()

    def block(self) -> None:
        assert self._event.wait()

    def release(self) -> None:
        self._event.set()


class Result(Blocker):
    def __init__(self) -> None:
        self._result = gevent.event.AsyncResult()

    def block(self) -> None:
        assert self._result.get() == 1

    def release(self) -> None:
        self._result.set(1)


class Lock(Blocker):
    def __init__(self) -> None:
        self._lock = gevent.lock.Semaphore(0)

    def block(self) -> None:
        assert self._lock.acquire()

    def release(self) -> None:
        self._lock.release()


class Queue(Blocker):
    def __init__(self) -> None:
        self._queue = gevent.queue.Queue()

    def block(self) -> None:
        assert self._queue.get() == 1

    def release(self) -> None:
        self._queue.put(1)


class Join(Blocker):
    def __init__(self) -> None:
        self._event = gevent.event.Event()

    def block(self) -> None:
        assert gevent.spawn(self._event.wait).get()

    def release(self) -> None:
        self._event.set()


class Socket(Blocker):
    module: Any = gevent.socket

    def __init__(self) -> None:
        self._ends = self.module.socketpair()

    def block(self) -> None:
        assert self._ends[0].recv(1) == b"1"

    def release(self) -> None:
        self._ends[1].send(b"1")

    def close(self) -> None:
        for end in self._ends:
            end.close()


class Select(Socket):
    def block(self) -> None:
        assert gevent.select.select([self._ends[0]], [], []) == ([self._ends[0]], [], [])


class Subprocess(Blocker):
    def __init__(self) -> None:
        self._process = gevent.subprocess.Popen(["cat"], stdin=gevent.subprocess.PIPE)

    def block(self) -> None:
        assert self._process.wait() == 0

    def release(self) -> None:
        self._process.stdin.close()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


class NativeCall(Blocker):
    """A call in a native thread that the greenlet waits for."""

    def __init__(self) -> None:
        self._ends = os.pipe()

    def block(self) -> None:
        read = get_original("os", "read")
        assert gevent.get_hub().threadpool.apply(read, (self._ends[0], 1)) == b"1"

    def release(self) -> None:
        os.write(self._ends[1], b"1")

    def close(self) -> None:
        self.release()  # the thread may still be there, if nobody waits for it any more
        gevent.get_hub().threadpool.join()
        for end in self._ends:
            os_close(end)


class PatchedSocket(Socket):
    module = socket


class PatchedSelect(PatchedSocket):
    def block(self) -> None:
        assert select.select([self._ends[0]], [], []) == ([self._ends[0]], [], [])


class PatchedSleep(Sleep):
    def block(self) -> None:
        time.sleep(UNIT)


class PatchedLock(Blocker):
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def block(self) -> None:
        self._lock.acquire()

    def release(self) -> None:
        self._lock.release()


class PatchedThread(Blocker):
    def __init__(self) -> None:
        self._event = threading.Event()

        self._thread = threading.Thread(target=self._event.wait)

    def block(self) -> None:
        if self._thread.ident is None:
            self._thread.start()
        self._thread.join()

    def release(self) -> None:
        self._event.set()

    def close(self) -> None:
        self.release()
        if self._thread.ident is not None:
            self._thread.join()


class PatchedSubprocess(Blocker):
    def __init__(self) -> None:
        self._process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def block(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.read() == b"1"
        assert self._process.wait() == 0

    def release(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"1")
        self._process.stdin.close()

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.wait()


BLOCKERS: list[type[Blocker]] = [
    Sleep, Event, Result, Lock, Queue, Join, Socket, Select, Subprocess, NativeCall,
]  # fmt: skip
if PATCHED:
    BLOCKERS += [
        PatchedSleep, PatchedLock, PatchedThread, PatchedSocket, PatchedSelect, PatchedSubprocess,
    ]  # fmt: skip


@contextlib.contextmanager
def blocker(kind: type[Blocker]) -> Iterator[Blocker]:
    made = kind()
    try:
        yield made
    finally:
        made.close()


# --- fresh processes ----------------------------------------------------------------------------

#: The directory from which this run imports the package; fresh processes import the same one.
IMPORT_ROOT = pathlib.Path(asyncio_gevent.__file__).parent.parent

#: Seconds after which a script prints where its threads are, and ends. The limit of the parent
#: comes later.
SCRIPT_LIMIT = 30


class Finished:
    """What a script left: its status (negative: a signal), and what it printed."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err

    def __repr__(self) -> str:
        return f"<status {self.status}\n--- stdout\n{self.out}\n--- stderr\n{self.err}>"

    def check(self, out: str = "") -> None:
        """Assert that it succeeded, printed this, and complained of nothing."""
        assert (self.status, self.out.strip(), self.err) == (0, out, ""), self


def start_script(
    name: str,
    *arguments: str,
    patched: bool | None = None,
    warnings: str = "error",
    environment: dict[str, str] | None = None,
    **options: Any,
) -> Any:
    """Start ``tests/scripts/NAME.py`` in a fresh process, patched if this one is.

    Args:
        name: of the script.
        arguments: of the script.
        patched: call ``gevent.monkey.patch_all()`` before the script; None: as in this process.
        warnings: the option ``-W`` of the interpreter.
        environment: additions to that of this process.
        options: of ``subprocess.Popen``.
    """
    if patched is None:
        patched = PATCHED
    command = [
        sys.executable, "-W", warnings, "-u", str(TESTS / "scripts" / "launch.py"),
        "patched" if patched else "plain", str(SCRIPT_LIMIT),
        str(TESTS / "scripts" / f"{name}.py"), *arguments,
    ]  # fmt: skip
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(import_path())}
    variables.pop("PYTHONWARNINGS", None)
    variables.update(environment or {})
    return gevent.subprocess.Popen(
        command,
        env=variables,
        stdout=gevent.subprocess.PIPE,
        stderr=gevent.subprocess.PIPE,
        text=True,
        **options,
    )


def import_path() -> Sequence[str]:
    """Return what a fresh process needs in PYTHONPATH to import what this one does."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [str(IMPORT_ROOT), *(entry for entry in given if entry)]


def end_script(process: Any) -> Finished:
    """Wait for a script that `start_script` started."""
    with process:
        try:
            out, err = process.communicate(timeout=SCRIPT_LIMIT + 10)
        except gevent.subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            err += "\n(killed: it did not end in time)"
        return Finished(process.returncode, out, err)


def run_script(name: str, *arguments: str, **options: Any) -> Finished:
    """Run a script to its end; the arguments are those of `start_script`."""
    return end_script(start_script(name, *arguments, **options))
