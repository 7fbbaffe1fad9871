"""A subprocess that ends while the thread is busy, and gevent reaps it: reaped_child.py."""

import asyncio
import os
import sys

import gevent

import asyncio_gevent

gevent.get_hub().loop.install_sigchld()


async def main() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "exit(7)")
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    print(await process.wait())


asyncio_gevent.run(main())
