"""gevent and asyncio: greenlets and coroutines in one thread and one loop.

Layer map; imports go downward only.

    facade      __init__.py
    adapters    _contexts.py  _iterators.py  _functions.py
                _futures.py (await_, greenlets and futures)
                _ambient.py (the loop of those that run none)
                _portals.py (a greenlet that awaits in somebody's task)
                _waiting.py (how a greenlet waits)
    on asyncio  gevent_loop.py (gevent's loop)
                _carried.py (where the hub waits: its hosts, the carrier)
                _turns.py (what is done between two waits)
                _gevent_watchers.py (its watchers)  _hosts.py (asyncio loops that carry it)
                _green_tasks.py (tasks that may block there)
    loops       _run.py  _policy.py
                _event_loop.py (asyncio on the hub: running, waking, batches, timers)
                _steps.py (the edge; suspended steps and their runners)
                _loop_io.py (its side to the world: descriptors, signals, threads, names)
                _sockets.py (its sock_* methods)
    machinery   _blocking.py (what must not block)
                _threads.py (threads and forks)  _runners.py (every greenlet switch)
                _handles.py  _timers.py  _tasks.py (cancel)  _executor.py (native threads)
                _children.py  _transports.py  _watchers.py (descriptors, signals)
    ground      _compat.py (private names, versions)  _originals.py (from before patching)
                exceptions.py

Importing this package changes nothing global: no patch, no policy, no hub.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncio_gevent._ambient import shutdown as shutdown
from asyncio_gevent._contexts import async_context as async_context
from asyncio_gevent._contexts import sync_context as sync_context
from asyncio_gevent._event_loop import EventLoop as EventLoop
from asyncio_gevent._functions import async_to_sync as async_to_sync
from asyncio_gevent._functions import sync_to_async as sync_to_async
from asyncio_gevent._futures import Greenlet as Greenlet
from asyncio_gevent._futures import await_ as await_
from asyncio_gevent._futures import future_to_greenlet as future_to_greenlet
from asyncio_gevent._futures import greenlet_to_future as greenlet_to_future
from asyncio_gevent._futures import spawn as spawn
from asyncio_gevent._green_tasks import green as green
from asyncio_gevent._green_tasks import green_task_factory as green_task_factory
from asyncio_gevent._iterators import async_iter as async_iter
from asyncio_gevent._iterators import sync_iter as sync_iter
from asyncio_gevent._run import new_event_loop as new_event_loop
from asyncio_gevent._run import run as run
from asyncio_gevent.exceptions import AsyncioGeventError as AsyncioGeventError
from asyncio_gevent.exceptions import BlockingCallError as BlockingCallError
from asyncio_gevent.exceptions import CancelledExit as CancelledExit

if TYPE_CHECKING:
    from asyncio_gevent._policy import EventLoopPolicy as EventLoopPolicy

__all__ = [
    "AsyncioGeventError",
    "BlockingCallError",
    "CancelledExit",
    "EventLoop",
    "EventLoopPolicy",
    "Greenlet",
    "async_context",
    "async_iter",
    "async_to_sync",
    "await_",
    "future_to_greenlet",
    "green",
    "green_task_factory",
    "greenlet_to_future",
    "new_event_loop",
    "run",
    "shutdown",
    "spawn",
    "sync_context",
    "sync_iter",
    "sync_to_async",
]

__version__ = "1.0.0.dev0"


def __getattr__(name: str) -> Any:
    # Loaded on first use: policies are deprecated from 3.14 on, event loops are not.
    if name == "EventLoopPolicy":
        from asyncio_gevent._policy import EventLoopPolicy

        return EventLoopPolicy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
