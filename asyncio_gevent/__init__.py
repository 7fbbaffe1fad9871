"""asyncio on gevent: greenlets and coroutines in one thread and one loop.

Layer map; imports go downward only.

    facade      __init__.py
    loops       _run.py  _policy.py
                _event_loop.py (asyncio on the hub: running, waking, batches, timers)
                _steps.py (the edge; suspended steps and their runners)
                _loop_io.py (its side to the world: descriptors, signals, threads, names)
    machinery   _threads.py (threads and forks)  _runners.py (every greenlet switch)
                _handles.py  _tasks.py (cancel)  _executor.py (native threads)
                _children.py  _transports.py  _watchers.py (descriptors, signals)
    ground      _compat.py (private names, versions)  _originals.py (from before patching)
                exceptions.py

Importing this package changes nothing global: no patch, no policy, no hub.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncio_gevent._event_loop import EventLoop as EventLoop
from asyncio_gevent._run import new_event_loop as new_event_loop
from asyncio_gevent._run import run as run
from asyncio_gevent.exceptions import AsyncioGeventError as AsyncioGeventError
from asyncio_gevent.exceptions import BlockingCallError as BlockingCallError

if TYPE_CHECKING:
    from asyncio_gevent._policy import EventLoopPolicy as EventLoopPolicy

__all__ = [
    "AsyncioGeventError",
    "BlockingCallError",
    "EventLoop",
    "EventLoopPolicy",
    "new_event_loop",
    "run",
]

__version__ = "1.0.0.dev0"


def __getattr__(name: str) -> Any:
    # Loaded on first use: policies are deprecated from 3.14 on, event loops are not.
    if name == "EventLoopPolicy":
        from asyncio_gevent._policy import EventLoopPolicy

        return EventLoopPolicy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
