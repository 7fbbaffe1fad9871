"""A child that somebody waits for by way of its Popen, and not by the event loop."""

import asyncio

import asyncio_gevent


async def main() -> None:
    process = await asyncio.create_subprocess_exec("sh", "-c", "exit 3")
    print(process._transport.get_extra_info("subprocess").wait())
    print(await process.wait())


asyncio_gevent.run(main())
