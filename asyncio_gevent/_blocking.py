"""What to say of a gevent call that would block where it must not."""

from __future__ import annotations

from typing import Any

from asyncio_gevent.exceptions import BlockingCallError

__all__ = ["blocking_call", "is_short_wait"]

#: Modules that wait for their own locks and threads, which are gevent's after patching, for the
#: moment that it takes the other side. Nobody can be told to write them differently.
_PATIENT = ("logging", "concurrent.futures.")


#: The same, of asyncio: for the threads of its executor (which uvloop ends without a frame of its
#: own, below the runner), for a child to have begun, for the status of one that has ended; gevent's
#: ``Popen.poll()`` lets others run.
_PATIENT_FUNCTIONS = {
    ("asyncio.base_events", "shutdown_default_executor"),
    ("asyncio.base_subprocess", "close"),
    ("asyncio.base_subprocess", "kill"),
    ("asyncio.base_subprocess", "send_signal"),
    ("asyncio.base_subprocess", "terminate"),
    ("asyncio.runners", "close"),
    ("asyncio.unix_events", "_do_wait"),
    ("asyncio.unix_events", "_start"),
}


def blocking_call(frame: Any, problem: str) -> BlockingCallError:
    """Return the error for a gevent call that would block.

    Args:
        frame: of what has called ``hub.switch()``.
        problem: why it must not, and what to do; ends the sentence.
    """
    # gevent's C functions have no frames; its Python ones are above the caller's.
    call = "a gevent function"
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if not name.startswith(("gevent.", "asyncio_gevent.")):
            where = f"{frame.f_code.co_filename}:{frame.f_lineno}, in {frame.f_code.co_name}"
            return BlockingCallError(f"{call} would block at {where}, {problem}")
        if not name.startswith("asyncio_gevent._") or not frame.f_code.co_name.startswith("_"):
            call = f"{name}.{frame.f_code.co_name}()"
        frame = frame.f_back
    return BlockingCallError(f"{call} would block {problem}")


def is_short_wait(frame: Any) -> bool:
    """Whether it is the standard library that waits, for a lock or a thread of its own.

    Args:
        frame: of what has called ``hub.switch()``.
    """
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name == "gevent.thread" and not frame.f_locals.get("blocking", True):
            return True  # a lock that is not to be waited for: it lets others run, no more
        if name == "threading":
            if frame.f_code.co_name == "start":
                return True  # Thread.start(), for the thread to have begun
        elif not name.startswith("gevent."):
            if (name, frame.f_code.co_name) in _PATIENT_FUNCTIONS:
                return True
            return str(name).startswith(_PATIENT)
        frame = frame.f_back
    return False
