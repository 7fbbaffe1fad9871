"""A step forks while a call is under way in the default executor; both processes end in order."""

import asyncio
import os

from gevent.monkey import get_original

import asyncio_gevent

reader, writer = os.pipe()
child = None


async def main() -> None:
    global child
    asyncio.get_running_loop().run_in_executor(None, get_original("os", "read"), reader, 1)
    await asyncio.sleep(0)
    child = get_original("os", "fork")()
    if child:
        _, status = get_original("os", "waitpid")(child, 0)
        print("the child has ended with", status)
        os.write(writer, b"1")


asyncio_gevent.run(main())
if not child:
    os._exit(0)
