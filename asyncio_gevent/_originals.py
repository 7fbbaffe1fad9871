"""What must be had from before monkey patching, whenever this package is imported.

``gevent.monkey`` replaces functions in the modules themselves, so that a plain ``import`` gives
what was there at that moment. ``get_original`` gives the interpreter's own in either order.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from gevent.monkey import get_original, is_module_patched

__all__ = [
    "get_ident",
    "get_original",
    "is_module_patched",
    "native_local",
    "native_popen",
    "native_sleep",
    "os_close",
    "os_waitpid",
]

#: Identifier of the calling OS thread. The patched one gives that of the greenlet.
get_ident = cast("Callable[[], int]", get_original("_thread", "get_ident"))

#: Blocks the OS thread.
native_sleep = cast("Callable[[float], None]", get_original("time", "sleep"))

#: Closes at once. The patched one defers to after the hub's next poll (gevent 25.8.1).
os_close = cast("Callable[[int], None]", get_original("os", "close"))

#: ``threading.local`` by OS thread. ``_thread`` itself is patched, ``_local`` is its type there.
native_local = cast("type[Any]", get_original("_thread", "_local"))

#: Does not wait in the hub, and knows nothing of what gevent has reaped.
os_waitpid = cast("Callable[[int, int], tuple[int, int]]", get_original("os", "waitpid"))


@functools.cache
def native_popen() -> Any:
    """Return a ``subprocess.Popen`` that blocks its OS thread, and no hub, while it starts.

    Of a second copy of the module: in the patched one gevent has replaced what Popen calls, so
    that the original class does not work there either. The copy has the original functions of
    ``os``, and the exceptions that everybody catches.
    """
    spec = importlib.util.find_spec("subprocess")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.os = SimpleNamespace(**{name: get_original("os", name) for name in dir(os)})
    for name in ("SubprocessError", "CalledProcessError", "TimeoutExpired"):
        setattr(module, name, getattr(subprocess, name))
    return module.Popen
