"""One asyncio client for all greenlets: the views of a Flask application share an aiohttp session.

The views are plain functions, in a greenlet for each request. They wait for coroutines by `await_`,
on the ambient loop of the thread, to which the session belongs.
"""

from gevent import monkey

monkey.patch_all()

import asyncio

import aiohttp
import flask
import gevent
import gevent.pywsgi
import requests
from aiohttp import web

from asyncio_gevent import async_to_sync, await_, spawn

# --- a service that is far away, and speaks asyncio -----------------------------------------------


async def price(request: web.Request) -> web.Response:
    await asyncio.sleep(0.2)
    return web.json_response({"item": request.match_info["item"], "price": 42})


async def start_service() -> tuple[web.AppRunner, str]:
    app = web.Application()
    app.router.add_get("/price/{item}", price)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    return runner, f"http://{host}:{port}"


# --- the application ------------------------------------------------------------------------------

application = flask.Flask(__name__)


async def open_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()


@async_to_sync
async def fetch_price(item: str) -> int:
    # It has a time limit of asyncio, and one of gevent may be around the call.
    answer = await asyncio.wait_for(session.get(f"{service}/price/{item}"), timeout=10)
    async with answer:
        return int((await answer.json())["price"])


@application.get("/<item>")
def view(item: str) -> str:
    with gevent.Timeout(10):
        return f"{item} costs {fetch_price(item)}"


# --- the demonstration ----------------------------------------------------------------------------

runner, service = await_(start_service())
session = await_(open_session())
server = gevent.pywsgi.WSGIServer(("127.0.0.1", 0), application, log=None)
server.start()

url = f"http://127.0.0.1:{server.server_port}"
requests_at_once = [spawn(requests.get, f"{url}/{item}") for item in ("apple", "pear", "fig")]
for greenlet in requests_at_once:
    print(greenlet.get().text)

server.stop()
await_(session.close())
await_(runner.cleanup())

# Expected output:
#
#     apple costs 42
#     pear costs 42
#     fig costs 42
