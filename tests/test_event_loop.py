import asyncio, asyncio_gevent, gevent, os, pytest
from support import *
def test_a():
    asyncio_gevent.run(asyncio.sleep(0.01))
def test_leak_loop():
    global L; L=asyncio_gevent.EventLoop()
def test_leak_fd():
    os.pipe()
def test_leak_watch():
    global w; w=gevent.get_hub().loop.timer(100); w.start(int)
def test_leak_runner():
    global L2
    L2=asyncio_gevent.EventLoop(); L2.run_until_complete(asyncio.sleep(0))
def test_leak_exc():
    async def main():
        asyncio.get_running_loop().call_soon(lambda: 1/0)
        await asyncio.sleep(0)
    asyncio_gevent.run(main())
def test_leak_hub():
    gevent.spawn(lambda: 1/0).join()
def test_leak_thread():
    start_native_thread(native_sleep,(20,))
def test_leak_warn():
    asyncio.sleep(0)
def test_script(): pass
