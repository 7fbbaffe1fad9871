"""The event loop is imported, made or even running before gevent is imported."""

import asyncio
import os
import sys

order = sys.argv[1]
uses_uvloop = os.environ.get("ASYNCIO_GEVENT_HOST") == "uvloop"
if order == "gevent first":
    import gevent
if uses_uvloop:
    import uvloop

    run = uvloop.run
else:
    run = asyncio.run
if order == "loop first":
    import gevent


async def main():
    import gevent

    ticks = []

    def tick():
        while len(ticks) < 5:
            gevent.sleep(0.001)
            ticks.append(1)

    try:
        gevent.sleep(1)
    except RuntimeError as error:
        assert "would block" in str(error), error
    else:
        raise AssertionError("no error")
    gevent.spawn(tick)
    while len(ticks) < 5:
        await asyncio.sleep(0.001)


run(main())
import gevent

gevent.sleep(0.001)
run(main())
print("ok")
