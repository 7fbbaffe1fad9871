"""gevent is first used when the main thread has ended, and in a function of atexit."""

import atexit
import sys

import gevent
import gevent.event
from gevent.monkey import get_original


def use(what):
    event = gevent.event.Event()
    gevent.spawn_later(0.001, event.set)
    event.wait()
    print(what)


if sys.argv[1] == "atexit":
    atexit.register(use, "ok")
else:
    NativeThread = get_original("threading", "Thread")
    main = get_original("threading", "main_thread")()

    def late():
        main.join()
        use("ok")

    NativeThread(target=late).start()
