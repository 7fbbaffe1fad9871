"""Which event loop carries the hub in this process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

import gevent

HOST = os.environ.get("ASYNCIO_GEVENT_HOST", "asyncio")


def run(coroutine: Coroutine[Any, Any, Any], **options: Any) -> Any:
    """``asyncio.run()`` of the kind of event loop that this process is about."""
    if HOST == "uvloop":
        import uvloop

        return uvloop.run(coroutine, **options)
    return asyncio.run(coroutine, **options)


def loop() -> Any:
    """Return gevent's loop of this OS thread."""
    return gevent.get_hub().loop


def host_name(host: Any) -> str:
    return f"{type(host).__module__}.{type(host).__name__}"


PRIVATE = {"asyncio": "asyncio_gevent._hosts.PrivateHost", "uvloop": "uvloop.Loop"}[HOST]
RUNNING = {"asyncio": "asyncio.unix_events._UnixSelectorEventLoop", "uvloop": "uvloop.Loop"}[HOST]
