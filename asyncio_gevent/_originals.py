"""What must be had from before monkey patching, whenever this package is imported.

``gevent.monkey`` replaces functions in the modules themselves, so that a plain ``import`` gives
what was there at that moment. ``get_original`` gives the interpreter's own in either order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from gevent.monkey import get_original, is_module_patched

__all__ = ["get_ident", "get_original", "is_module_patched", "native_local", "os_close"]

#: Identifier of the calling OS thread. The patched one gives that of the greenlet.
get_ident = cast("Callable[[], int]", get_original("_thread", "get_ident"))

#: Closes at once. The patched one defers to after the hub's next poll (gevent 25.8.1).
os_close = cast("Callable[[int], None]", get_original("os", "close"))

#: ``threading.local`` by OS thread. ``_thread`` itself is patched, ``_local`` is its type there.
native_local = cast("type[Any]", get_original("_thread", "_local"))
