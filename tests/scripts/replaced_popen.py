"""A tracer has put a function in the place of subprocess.Popen, before all imports."""

import subprocess

original = subprocess.Popen


def popen(*args, **kwargs):
    print("called")
    return original(*args, **kwargs)


subprocess.Popen = popen

import asyncio

import asyncio_gevent


async def main() -> None:
    process = await asyncio.create_subprocess_exec("true")
    print(await process.wait())


asyncio_gevent.run(main())
