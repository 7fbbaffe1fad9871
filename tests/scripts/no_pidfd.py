"""A subprocess on a system without pidfds, which ends before anybody watches it: no_pidfd.py."""

import asyncio
import os
import sys

import asyncio_gevent
from asyncio_gevent import _children

del os.pidfd_open


class LateWatcher(_children.ChildWatcher):
    """Begins when the child has ended, and leaves it a zombie."""

    def __init__(self, loop, hub, process, *args):
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        super().__init__(loop, hub, process, *args)


async def main() -> None:
    for _ in range(3):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", "exit(3)")
        print(await process.wait())


_children.ChildWatcher = LateWatcher
asyncio_gevent.run(main())
