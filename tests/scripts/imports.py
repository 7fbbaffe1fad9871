"""Importing the package raises no warning (they are errors here) and changes nothing global."""

import asyncio
import signal
import sys
import threading
import warnings

before = (
    asyncio.events._event_loop_policy,
    signal.getsignal(signal.SIGINT),
    signal.getsignal(signal.SIGCHLD),
    signal.set_wakeup_fd(-1),
    sys.get_asyncgen_hooks(),
    threading.active_count(),
    asyncio.SelectorEventLoop,
    asyncio.Task,
    list(warnings.filters),
)

import asyncio_gevent

after = (
    asyncio.events._event_loop_policy,
    signal.getsignal(signal.SIGINT),
    signal.getsignal(signal.SIGCHLD),
    signal.set_wakeup_fd(-1),
    sys.get_asyncgen_hooks(),
    threading.active_count(),
    asyncio.SelectorEventLoop,
    asyncio.Task,
    list(warnings.filters),
)
assert before == after, (before, after)

import gevent._hub_local

if not gevent.monkey.is_module_patched("threading"):
    assert gevent._hub_local.get_hub_if_exists() is None, "importing makes a hub"

# And using it.
assert asyncio_gevent.run(asyncio.sleep(0, "result")) == "result"
if sys.version_info < (3, 14):
    assert issubclass(asyncio_gevent.EventLoopPolicy, asyncio.AbstractEventLoopPolicy)
for name in asyncio_gevent.__all__:
    if name != "EventLoopPolicy":
        getattr(asyncio_gevent, name)
print("ok")
