"""A child goes on with its own loop, and the parent's goes on as if nothing had happened."""

import os
import sys

import gevent
import gevent.os
from gevent import socket
from gevent.monkey import get_original

how = sys.argv[1]
loop = gevent.get_hub().loop
one, other = socket.socketpair()
forked = []
watcher = loop.fork(ref=False)
watcher.start(forked.append, 1)
reader = gevent.spawn(one.recv, 1)
gevent.sleep(0.001)  # the loop runs, and has registered the reader


def in_child():
    assert not forked
    mine, far = socket.socketpair()
    receiver = gevent.spawn(mine.recv, 1)
    gevent.sleep(0.001)
    far.send(b"x")
    assert receiver.get() == b"x"
    assert forked == [1], forked
    # The parent must not notice that this is not watched any more.
    reader.kill()
    gevent.get_hub().threadpool.apply(int)
    sys.stdout.flush()


if how == "multiprocessing":
    import multiprocessing

    process = multiprocessing.get_context("fork").Process(target=in_child)
    process.start()
    process.join()
    status = process.exitcode
else:
    pid = get_original("os", "fork")() if how == "os" else gevent.os.fork()
    if pid == 0:
        code = 1
        try:
            in_child()
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    status = get_original("os", "waitpid")(pid, 0)[1]
assert status == 0, status
assert not forked
other.send(b"y")
assert reader.get() == b"y"
print("ok")
