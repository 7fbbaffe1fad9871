"""The standard library's transports, with what the hub makes better.

They read at most `READ_SIZE` bytes at a time. The standard library's 256 KiB are above the
size from which malloc maps memory, so every read costs an mmap and its page faults.
"""

from __future__ import annotations

import sys
from typing import Any

from gevent.hub import get_hub
from greenlet import getcurrent

from asyncio_gevent import _compat
from asyncio_gevent._originals import is_module_patched
from asyncio_gevent._runners import Runner
from asyncio_gevent._watchers import watch_child, watch_child_by_sigchld

__all__ = ["DatagramTransport", "ReadPipeTransport", "SocketTransport", "SubprocessTransport"]

#: Bytes that a transport reads at a time, at most.
READ_SIZE = 64 * 1024


class SocketTransport(_compat.SelectorSocketTransport):  # type: ignore[misc]
    """A stream socket."""

    max_size = READ_SIZE


class DatagramTransport(_compat.SelectorDatagramTransport):  # type: ignore[misc]
    """A datagram socket. No datagram is larger than `READ_SIZE`."""

    max_size = READ_SIZE


class ReadPipeTransport(_compat.UnixReadPipeTransport):  # type: ignore[misc]
    """The end of a pipe that is read."""

    max_size = READ_SIZE


class SubprocessTransport(_compat.UnixSubprocessTransport):  # type: ignore[misc]
    """A child process, of ``subprocess.Popen``, patched or not."""

    def _start(self, *args: Any, **kwargs: Any) -> None:
        # gevent's Popen waits in the hub for the child to have started. That takes as long as
        # the fork that any Popen blocks for, and is not what suspend=False is to forbid.
        if is_module_patched("subprocess") and not get_hub().loop.default:
            raise RuntimeError(
                "after monkey patching, gevent starts and watches subprocesses in the main OS "
                "thread only: run the event loop there"
            )
        current = getcurrent()
        if not isinstance(current, Runner):
            super()._start(*args, **kwargs)
            return
        current.may_block = True
        try:
            super()._start(*args, **kwargs)
        finally:
            current.may_block = False

    def watch_exit(self) -> None:
        """Tell the protocol when the child has ended."""
        hub = get_hub()
        process = self._proc
        if hasattr(process, "rawlink"):  # gevent's Popen has a child watcher itself
            process.rawlink(lambda process: self._exited(process.returncode))
        elif "gevent.subprocess" in sys.modules and hub.loop.default:
            # Its child watchers reap every child of the process, so it has to be asked.
            watch_child_by_sigchld(hub, process.pid, self._exited)
        else:
            watch_child(hub, process.pid, self._exited)

    def _exited(self, returncode: int) -> None:
        # In the hub.
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._process_exited, returncode)
