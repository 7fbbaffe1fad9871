"""gevent on asyncio, tested in processes in which gevent runs on asyncio.

The tests of ``on_asyncio``, on the standard loop and on uvloop, plain and patched, and those of
asyncio on gevent that have something to say there: then both systems are on top of each other. To
look at one of them::

    export GEVENT_LOOP=asyncio_gevent.gevent_loop.GeventLoop ASYNCIO_GEVENT_HOST=uvloop
    python -m pytest tests/on_asyncio/test_attached.py
    python tests/scripts/run_patched.py tests/on_asyncio/test_attached.py
"""

from __future__ import annotations

import pytest
from support import LIBUV, PATCHED
from test_patched import LIMIT, run_file

GEVENT_LOOP = "asyncio_gevent.gevent_loop.GeventLoop"
FILES = ["test_attached.py", "test_gevent_loop.py", "test_green_tasks.py"]

pytestmark = [
    pytest.mark.skipif(PATCHED or LIBUV, reason="these start themselves in all ways"),
    pytest.mark.timeout(LIMIT + 20),
    pytest.mark.soft_limit(LIMIT + 10),
]


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched"])
@pytest.mark.parametrize("host", ["asyncio", "uvloop"])
@pytest.mark.parametrize("name", FILES)
def test_on_asyncio(name: str, host: str, patched: bool) -> None:
    if host == "uvloop":
        pytest.importorskip("uvloop", reason="optional")
    run_file(f"on_asyncio/{name}", patched=patched, gevent_loop=GEVENT_LOOP, host=host)


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched"])
@pytest.mark.parametrize(
    "name",
    [
        "test_ambient.py",
        "test_event_loop.py",
        "test_io.py",
        "test_suspension.py",
        "test_threads.py",
    ],
)
def test_asyncio_on_gevent_on_asyncio(name: str, patched: bool) -> None:
    run_file(name, patched=patched, gevent_loop=GEVENT_LOOP)
