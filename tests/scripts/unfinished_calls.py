"""Ends while calls are under way in the default executor."""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
from typing import Any

import gevent
from gevent.monkey import get_original

import asyncio_gevent

how = sys.argv[1]
sleep: Any = get_original("time", "sleep")


def call() -> None:
    sleep(0.05)
    os.write(1, b"call ends\n")


async def main() -> None:
    for _ in range(20 if how == "queued" else 1):
        asyncio.get_running_loop().run_in_executor(None, call)
    await asyncio.sleep(0)


if how == "queued":
    gevent.get_hub().threadpool.maxsize = 5
loop = asyncio_gevent.new_event_loop()
loop.run_until_complete(main())
if how != "left open":
    loop.close()
if how == "forked":
    pid = get_original("os", "fork")()
    if not pid:
        # Its copies of the calls never end. Not sys.exit(): faulthandler's watchdog hangs there.
        atexit._run_exitfuncs()
        os._exit(0)
    get_original("os", "waitpid")(pid, 0)
os.write(1, b"program ends\n")
