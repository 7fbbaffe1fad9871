"""A WSGI application and a coroutine service call each other, in one process and one OS thread.

The legacy application (Flask on gevent's pywsgi) has a view that needs an asyncio library: it calls
the coroutine service with aiohttp. The coroutine service (aiohttp) has a handler that needs legacy
code: it calls the legacy application with requests, a blocking library, straight from the
coroutine. Hundreds of requests go both ways at the same time, over real HTTP on the loopback
interface:

    driver (greenlets)   ->  WSGI view /report      ->  asyncio client  ->  coroutine handler /quote
    driver (coroutines)  ->  coroutine handler /order  ->  requests.get  ->  WSGI view /stock

Two heart-beats, a coroutine and a greenlet, show that nothing stalls meanwhile.
"""

from gevent import monkey

monkey.patch_all()  # before the other imports: now what requests waits for, it waits in the hub

import asyncio
import os
import resource
import secrets
import signal
import sys
import threading
import time
import traceback

import aiohttp
import flask
import gevent
import gevent.event
import gevent.pool
import gevent.pywsgi
import requests
from aiohttp import web

import asyncio_gevent

REQUESTS = 300  # each way
AT_ONCE = 100  # each way
WAIT = 1.0  # seconds that each request waits at its far end
BEAT = 0.01  # seconds between two heart-beats
DEADLINE = 45.0  # seconds for everything

os_threads: set[int] = set()  # the ids of the OS threads that did any of the work


def answer(token: str, who: str) -> str:
    """Return what the far end `who` says to `token`."""
    os_threads.add(threading.get_native_id())
    return f"{token} answered by {who}"


# --- the legacy application: greenlets, blocking calls --------------------------------------------

legacy = flask.Flask("legacy")
loops_now = loops_most = 0


@legacy.get("/report/<token>")
def report(token: str) -> str:
    """A legacy view that needs an asyncio library: many run at once, each on a loop of its own."""
    global loops_now, loops_most
    loops_now += 1
    loops_most = max(loops_most, loops_now)
    try:
        return asyncio_gevent.run(get_quote(legacy.config["SERVICE"], token))
    finally:
        loops_now -= 1


async def get_quote(service: str, token: str) -> str:
    async with (
        aiohttp.ClientSession(service) as session,
        session.get(f"/quote/{token}") as response,
    ):
        response.raise_for_status()
        return await response.text()


@legacy.get("/stock/<token>")
def stock(token: str) -> str:
    time.sleep(WAIT)
    return answer(token, "the WSGI application")


# --- the service: coroutines ----------------------------------------------------------------------

routes = web.RouteTableDef()
LEGACY = web.AppKey("LEGACY", str)


@routes.get("/order/{token}")
async def order(request: web.Request) -> web.Response:
    """A coroutine that needs legacy code: this task waits in requests, the service does not."""
    response = requests.get(f"{request.app[LEGACY]}/stock/{request.match_info['token']}")
    response.raise_for_status()
    return web.Response(text=response.text)


@routes.get("/quote/{token}")
async def quote(request: web.Request) -> web.Response:
    await asyncio.sleep(WAIT)
    return web.Response(text=answer(request.match_info["token"], "the coroutine service"))


async def serve(
    legacy_url: str,
    url: "gevent.event.AsyncResult[str]",
    heart: "HeartBeat",
    stop: gevent.event.Event,
) -> None:
    """Run the service, and put its address into `url`, until `stop` is set."""
    app = web.Application()
    app[LEGACY] = legacy_url
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        url.set(f"http://{host}:{port}")
        beating = asyncio.create_task(beat_in_coroutine(heart))
        stop.wait()  # gevent's event, not asyncio's: here, too, only the calling task waits
        beating.cancel()
    finally:
        await runner.cleanup()


# --- heart-beats ----------------------------------------------------------------------------------


class HeartBeat:
    """Notes by how much beats come later than they should."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.beats = 0
        self.worst = 0.0  # seconds that the latest of them was late
        self.due = 0.0

    def start(self) -> None:
        self.due = time.perf_counter() + BEAT

    def beat(self) -> None:
        now = time.perf_counter()
        self.worst = max(self.worst, now - self.due)
        self.beats += 1
        self.due = now + BEAT


async def beat_in_coroutine(heart: HeartBeat) -> None:
    heart.start()
    while True:
        await asyncio.sleep(BEAT)
        heart.beat()


def beat_in_greenlet(heart: HeartBeat) -> None:
    heart.start()
    while True:
        gevent.sleep(BEAT)
        heart.beat()


# --- the drivers: what comes from outside ---------------------------------------------------------


def drive_legacy(url: str, tokens: list[str]) -> list[str]:
    """Ask the legacy application for a report for each token, from greenlets."""

    def ask(token: str) -> str:
        response = requests.get(f"{url}/report/{token}")
        return response.text if response.ok else f"{token}: status {response.status_code}"

    return list(gevent.pool.Pool(AT_ONCE).imap(ask, tokens))


async def drive_service(url: str, tokens: list[str]) -> list[str]:
    """Send an order to the service for each token, from tasks."""

    async def ask(token: str) -> str:
        async with session.get(f"/order/{token}") as response:
            text = await response.text()
            return text if response.ok else f"{token}: status {response.status}"

    connector = aiohttp.TCPConnector(limit=AT_ONCE)
    async with aiohttp.ClientSession(url, connector=connector) as session:
        return await asyncio.gather(*(ask(token) for token in tokens))


# --- all together ---------------------------------------------------------------------------------


def demonstrate() -> list[str]:
    """Run both applications and both drivers at the same time; return what went wrong."""
    task_heart, greenlet_heart = HeartBeat("task"), HeartBeat("greenlet")
    stop = gevent.event.Event()
    url: gevent.event.AsyncResult[str] = gevent.event.AsyncResult()

    server = gevent.pywsgi.WSGIServer(("127.0.0.1", 0), legacy, log=None)
    server.start()
    legacy_url = f"http://127.0.0.1:{server.server_port}"

    service = gevent.spawn(asyncio_gevent.run, serve(legacy_url, url, task_heart, stop))
    service.link_exception(url)  # if it cannot start, url.get() raises its exception
    service_url = legacy.config["SERVICE"] = url.get()

    print(f"{REQUESTS} requests each way, {AT_ONCE} at a time, each waits {WAIT} s at its far end:")
    beating = gevent.spawn(beat_in_greenlet, greenlet_heart)
    reports = [secrets.token_hex(8) for _ in range(REQUESTS)]
    orders = [secrets.token_hex(8) for _ in range(REQUESTS)]
    started = time.perf_counter()
    legacy_driver = gevent.spawn(drive_legacy, legacy_url, reports)
    service_driver = gevent.spawn(asyncio_gevent.run, drive_service(service_url, orders))
    gevent.joinall([legacy_driver, service_driver], raise_error=True)
    took = time.perf_counter() - started

    threads = count_os_threads()
    task_heart.beat()  # so that one that has stopped for good is found, too
    greenlet_heart.beat()
    beating.kill()
    stop.set()
    service.get()
    server.stop()

    return [
        *check_answers(
            "WSGI view -> aiohttp client -> coroutine",
            [answer(token, "the coroutine service") for token in reports],
            legacy_driver.value,
        ),
        *check_answers(
            "coroutine -> requests.get -> WSGI view",
            [answer(token, "the WSGI application") for token in orders],
            service_driver.value,
        ),
        *check_heart(task_heart),
        *check_heart(greenlet_heart),
        *check_threads(threads),
        *check_time(took),
    ]


def show(label: str, text: object) -> None:
    print(f"  {label:<42}{text}")


def check_answers(way: str, expected: list[str], got: list[str]) -> list[str]:
    wrong = [text for text, right in zip(got, expected, strict=True) if text != right]
    show(f"{way}:", f"{len(expected) - len(wrong)} of {len(expected)} answers are right")
    if not wrong:
        return []
    return [f"{way}: {len(wrong)} wrong answers, the first is {wrong[0][:200]!r}"]


def check_heart(heart: HeartBeat) -> list[str]:
    late = f"the worst {heart.worst * 1000:.0f} ms late"
    show(f"heart-beat of a {heart.name}:", f"{heart.beats} beats, {late}")
    # Had a single blocking call stopped the thread, a heart-beat would be late by its whole wait.
    if heart.beats > 1 and heart.worst < WAIT:
        return []
    return [f"something stalled: a {heart.name} made {heart.beats} beats, {late}"]


def check_threads(threads: int) -> list[str]:
    show("event loops at the same time:", loops_most + 2)  # and the service's and its driver's
    show("OS threads:", threads)
    return [] if threads == 1 else [f"{threads} OS threads did the work instead of one"]


def check_time(took: float) -> list[str]:
    waits = 2 * REQUESTS * WAIT
    total = 4 * REQUESTS  # each request from outside makes one inside
    show("time:", f"{took:.1f} s, {total / took:.0f} HTTP requests per second")
    show("", f"(the waits alone, one after the other: {waits:.0f} s)")
    return [] if took < waits else ["the waits came one after the other"]


def count_os_threads() -> int:
    """Return how many OS threads the process has or, off Linux, how many did any of the work."""
    try:
        return len(os.listdir("/proc/self/task"))
    except FileNotFoundError:
        return len(os_threads)


def main() -> int:
    signal.alarm(int(DEADLINE) + 10)  # should the hub itself hang: this kills the process
    try:
        prepare()
        with gevent.Timeout(DEADLINE, TimeoutError(f"not done after {DEADLINE:.0f} s")):
            problems = demonstrate()
    except Exception as error:
        traceback.print_exc()
        problems = [f"{type(error).__name__}: {error}"]
    for problem in problems:
        print(f"WRONG: {problem}", file=sys.stderr)
    if problems:
        return 1
    print(
        "Shown: in one thread, greenlets ran coroutines and coroutines called blocking code,\n"
        "hundreds at the same time. Every answer was right, and nothing else stood still\n"
        "while somebody waited."
    )
    return 0


def prepare() -> None:
    """Set what is special about a program that is its own client."""
    # The addresses are numeric. gevent's usual resolver would ask for them in a pool of threads,
    # and requests would ask a proxy if the environment names one.
    gevent.config.resolver = "block"
    os.environ["NO_PROXY"] = "127.0.0.1"
    # Both ends of two connections for each request, both ways; some systems allow 256 only.
    needed = 8 * AT_ONCE + 100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


if __name__ == "__main__":
    sys.exit(main())

# Expected output:
#
#     300 requests each way, 100 at a time, each waits 1.0 s at its far end:
#       WSGI view -> aiohttp client -> coroutine: 300 of 300 answers are right
#       coroutine -> requests.get -> WSGI view:   300 of 300 answers are right
#       heart-beat of a task:                     ... beats, the worst ... ms late
#       heart-beat of a greenlet:                 ... beats, the worst ... ms late
#       event loops at the same time:             ...
#       OS threads:                               1
#       time:                                     ... s, ... HTTP requests per second
#                                                 (the waits alone, one after the other: 600 s)
#     Shown: in one thread, greenlets ran coroutines and coroutines called blocking code,
#     hundreds at the same time. Every answer was right, and nothing else stood still
#     while somebody waited.
