"""A child forgets the threads that it does not have, and the parent's hubs go on."""

import gc
import os
import threading

import gevent
import gevent.event

ready = threading.Event()
forked = threading.Event()
done = threading.Event()
loops = []


def make():
    loop = gevent.get_hub().loop  # which has not run yet
    loops.append((loop, gevent.event.Event()))
    ready.set()


def use(loop, event):
    keep = loop.async_()
    keep.start(int)
    loop.run_callback(entered.set)
    event.wait()
    done.set()


def in_thread():
    make()
    forked.wait()
    use(*loops[0])


entered = threading.Event()
threading.Thread(target=in_thread).start()
ready.wait()
pid = os.fork()
if not pid:
    try:
        loops.clear()
        gc.collect()
    finally:
        os._exit(0)
os.waitpid(pid, 0)
forked.set()
entered.wait()
loop, event = loops[0]
loop.run_callback_threadsafe(event.set)
print("ok" if done.wait(10) else "never woken", flush=True)
os._exit(0)
