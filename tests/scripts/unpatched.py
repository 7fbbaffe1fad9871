"""A program without ``gevent.monkey``: nothing is patched, and everything works."""

import asyncio
import sys

import asyncio_gevent


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.readline())
    writer.close()
    await writer.wait_closed()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"line\n")
    assert await reader.read() == b"line\n"
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
    process = await asyncio.create_subprocess_exec("true")
    assert await process.wait() == 0
    assert await asyncio.to_thread(lambda: 1) == 1
    assert await asyncio.get_running_loop().getaddrinfo("localhost", 80)


asyncio_gevent.run(main())
from gevent import monkey

assert not monkey.saved, monkey.saved.keys()
assert sys.modules["socket"].socket is monkey.get_original("socket", "socket")
print("ok")
