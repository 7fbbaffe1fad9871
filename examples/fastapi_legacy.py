"""FastAPI on uvicorn, whose routes call legacy gevent code.

    GEVENT_LOOP=asyncio_gevent.gevent_loop.GeventLoop python examples/fastapi_legacy.py

gevent runs on the event loop that uvicorn runs (uvloop where it is installed): there is one thread
and one loop. The legacy code here is a pywsgi server in the same process, ``requests`` after
monkey patching, which gevent makes cooperative, a gevent pool and a gevent queue.
"""

import os

# What `GEVENT_LOOP=...` on the command line does. Before gevent is imported.
os.environ.setdefault("GEVENT_LOOP", "asyncio_gevent.gevent_loop.GeventLoop")

from gevent import monkey

monkey.patch_all()

import asyncio
import contextlib

import gevent
import gevent.pool
import gevent.pywsgi
import gevent.queue
import requests
import uvicorn
from fastapi import FastAPI

from asyncio_gevent import green, sync_to_async

# --- the legacy part: it knows nothing of asyncio ------------------------------------------------

pool = gevent.pool.Pool(4)
jobs: gevent.queue.Queue = gevent.queue.Queue()
done: list[str] = []


def application(environ, start_response):
    """Answer slowly, as old services do."""
    gevent.sleep(0.01)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"legacy " + environ["PATH_INFO"].encode()]


legacy = gevent.pywsgi.WSGIServer(("127.0.0.1", 0), application, log=None)


def fetch(path: str) -> str:
    """Ask the legacy service. It blocks, in gevent."""
    return requests.get(f"http://127.0.0.1:{legacy.server_port}{path}", timeout=10).text


def work() -> None:
    """Do the jobs of the queue, for ever."""
    for job in jobs:
        done.append(fetch(f"/job/{job}"))


# --- the new part --------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI):
    await sync_to_async(legacy.start)()  # it looks up its address, which may block
    worker = gevent.spawn(work)
    yield
    worker.kill(block=False)
    await sync_to_async(legacy.stop)()


app = FastAPI(lifespan=lifespan)


@app.get("/one")
async def one() -> str:
    # A blocking function: in a greenlet, while this coroutine waits.
    return await sync_to_async(fetch)("/one")


@app.get("/many")
async def many() -> list[str]:
    return await asyncio.gather(*(sync_to_async(fetch)(f"/{number}") for number in range(3)))


@app.get("/green")
@green
async def in_place() -> list[str]:
    # Below `@green` whatever is called may block; the event loop goes on.
    first = fetch("/first")
    await asyncio.sleep(0)
    return [first, *pool.map(fetch, ["/second", "/third"])]


@app.get("/queue")
async def queue() -> int:
    jobs.put(len(done))
    return jobs.qsize()


@app.get("/function")
def function() -> str:
    # FastAPI runs it in a thread, which after patching is a greenlet.
    return fetch("/function")


# --- the demonstration ----------------------------------------------------------------------------


async def main() -> None:
    config = uvicorn.Config(app, port=0, log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.001)
    port = server.servers[0].sockets[0].getsockname()[1]

    # gevent code is a client as well, in greenlets of the same thread.
    def ask(path: str):
        return requests.get(f"http://127.0.0.1:{port}{path}", timeout=10).json()

    ask_async = sync_to_async(ask)
    print("one      ", await ask_async("/one"))
    print("many     ", await ask_async("/many"))
    print("green    ", await ask_async("/green"))
    print("function ", await ask_async("/function"))
    await asyncio.gather(*(ask_async("/queue") for _ in range(3)))
    while len(done) < 3:
        await asyncio.sleep(0.001)
    print("jobs done", len(done))
    together = await asyncio.gather(*(ask_async("/green") for _ in range(20)))
    print("20 at the same time:", all(answer == together[0] for answer in together))
    server.should_exit = True
    await serving


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
    else:
        uvloop.run(main())

# Expected output:
#
#     one       legacy /one
#     many      ['legacy /0', 'legacy /1', 'legacy /2']
#     green     ['legacy /first', 'legacy /second', 'legacy /third']
#     function  legacy /function
#     jobs done 3
#     20 at the same time: True
