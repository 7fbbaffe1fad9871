"""These tests run in processes of their own, where gevent runs on asyncio; see test_on_asyncio."""

from __future__ import annotations

import contextlib

import gevent
import gevent.event
import pytest
from gevent.exceptions import LoopExit

if gevent.config.loop.__name__ != "GeventLoop":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def _warm_up_host() -> None:
    """Have the private host make what it makes once: uvloop opens sockets for signals."""
    with contextlib.suppress(LoopExit):
        gevent.event.Event().wait()
    gevent.sleep(0)
