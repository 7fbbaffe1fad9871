"""What must be had from before monkey patching, whenever this package is imported.

``gevent.monkey`` replaces functions in the modules themselves, so that a plain ``import`` gives
what was there at that moment. ``gevent.monkey.get_original`` gives the interpreter's own in either
order.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from gevent.monkey import get_original, is_module_patched

__all__ = [
    "NativeRLock",
    "NativeSelector",
    "find_popen",
    "fstat",
    "get_ident",
    "is_module_patched",
    "native_getsignal",
    "native_local",
    "native_signal",
    "native_sleep",
    "native_socketpair",
    "original_epoll",
    "original_resolvers",
    "original_socket",
    "os_close",
    "os_waitpid",
]

#: Identifier of the calling OS thread. The patched one gives that of the greenlet.
get_ident = cast("Callable[[], int]", get_original("_thread", "get_ident"))

#: Blocks the OS thread.
native_sleep = cast("Callable[[float], None]", get_original("time", "sleep"))

#: Lock of OS threads that the one which holds it may take again.
NativeRLock = cast("type[Any]", get_original("_thread", "RLock"))

#: The selector that asyncio's own loop uses, before gevent's takes its place.
NativeSelector = cast("type[Any]", get_original("selectors", "DefaultSelector"))

#: A pair of sockets of the C class, which nobody patches: ``socket.socketpair`` makes sockets of
#: the class that the module ``socket`` has at the moment.
native_socketpair = cast("Callable[[], Any]", get_original("_socket", "socketpair"))

#: Sets the interpreter's handler of a signal, that of SIGCHLD included.
native_signal = cast("Callable[[int, Any], Any]", get_original("signal", "signal"))

#: The interpreter's handler of a signal, that of SIGCHLD included.
native_getsignal = cast("Callable[[int], Any]", get_original("signal", "getsignal"))

#: What a descriptor is; an ``OSError`` if it is none.
fstat = os.fstat

#: Closes at once. The patched one defers to after the hub's next poll (gevent 25.8.1).
os_close = cast("Callable[[int], None]", get_original("os", "close"))

#: ``threading.local`` by OS thread. ``_thread`` itself is patched, ``_local`` is its type there.
native_local = cast("type[Any]", get_original("_thread", "_local"))

#: Does not wait in the hub, and knows nothing of what gevent has reaped.
os_waitpid = cast("Callable[[int, int], tuple[int, int]]", get_original("os", "waitpid"))


#: Name to function: they block the OS thread.
original_resolvers = {name: get_original("socket", name) for name in ("getaddrinfo", "getnameinfo")}

#: ``select.epoll``, which gevent takes away, or None: elsewhere than on Linux there is none.
try:
    original_epoll: Any = get_original("select", "epoll")
except AttributeError:
    original_epoll = None

#: The class ``socket.socket``, before gevent's takes its place.
original_socket = cast("type[Any]", get_original("socket", "socket"))

_popen = get_original("subprocess", "Popen")
#: Nobody has replaced it before this package was imported.
_is_popen_original = isinstance(_popen, type) and _popen.__module__ == "subprocess"


def find_popen() -> Any:
    """Return the Popen that an event loop starts children with, or None.

    None if somebody has put one of theirs into ``subprocess``, which asyncio then calls.
    """
    gevents = getattr(sys.modules.get("gevent.subprocess"), "Popen", None)
    if subprocess.Popen not in (_popen, gevents) or not _is_popen_original:
        return None
    return _make_popen(is_module_patched("subprocess") or is_module_patched("os"))


@functools.cache
def _make_popen(is_patched: bool) -> Any:
    base = _popen
    if is_patched:
        # Of a second copy of the module: in the patched one gevent has replaced what Popen calls,
        # so that the original class does not work there either.
        spec = importlib.util.find_spec("subprocess")
        assert spec is not None and spec.loader is not None
        module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.os = SimpleNamespace(**{name: get_original("os", name) for name in dir(os)})
        # Those that everybody catches.
        for name in ("SubprocessError", "CalledProcessError", "TimeoutExpired"):
            setattr(module, name, getattr(subprocess, name))
        base = module.Popen

    class Popen(base):  # type: ignore[misc, valid-type]
        """Starts a child without a switch to the hub, and leaves it to the loop to reap it."""

        def poll(self) -> Any:
            return self.returncode

    return Popen
