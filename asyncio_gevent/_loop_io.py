"""The side of the event loop that faces the world: descriptors, sockets, signals, threads.

Rule 1: this file does not run anything. What becomes ready goes to the ready queue of the event
        loop, which is in `_event_loop.py`.
Rule 2: where asyncio's own methods do the job on top of `add_reader` and `add_writer`, they are
        left alone: servers, connections, ``sendfile``, pipes.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import os
import signal
import stat
from asyncio import events
from typing import TYPE_CHECKING, Any

import gevent
import gevent.socket
from gevent.hub import get_hub
from gevent.resolver.thread import Resolver as ThreadResolver

from asyncio_gevent import _compat
from asyncio_gevent._children import ChildWatcher, SubprocessTransport
from asyncio_gevent._executor import HubExecutor, wrap_foreign_future
from asyncio_gevent._originals import original_epoll, original_resolvers
from asyncio_gevent._sockets import SocketMethods
from asyncio_gevent._transports import (
    DatagramTransport,
    ReadPipeTransport,
    SocketTransport,
    SSLProtocol,
    WritePipeTransport,
)
from asyncio_gevent._watchers import (
    READ,
    WRITE,
    IOHandle,
    Registry,
    file_of,
    wake_on_signals,
)

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

__all__ = ["IOEventLoop"]

_DEFAULT_HANDLERS: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}


class IOEventLoop(SocketMethods, asyncio.SelectorEventLoop):
    """What `EventLoop` does with descriptors, sockets, children, signals, threads and names.

    Attributes:
        _readers, _writers: descriptor to its handle.
        _busy_io: (descriptor, events) to the handle whose callback is suspended.
        _fresh: handles whose watcher was started since the hub's last poll; those of all event
            loops of the OS thread, while this one runs.
        _io_done: something was sent, closed, or is to be watched, which another descriptor of this
            event loop may become ready by: the hub is to poll before the next pass.
        _async: the hub's async watcher while the event loop runs, else None.
        _hub_loop: the loop of the hub that runs, or last ran, the event loop.
        _is_libuv: it is gevent's libuv loop.
        _child_watchers: those of children that have not ended.
    """

    if TYPE_CHECKING:
        _ready: deque[Any]
        _stopping: bool
        _closed: bool
        _debug: bool
        _thread_id: int | None
        _task_factory: Any
        _clock_resolution: float
        _timer_cancelled_count: int
        _current_handle: Any
        _default_executor: Any
        _executor_shutdown_called: bool
        _signal_handlers: dict[int, Any]
        _coroutine_origin_tracking_enabled: bool

        def _check_closed(self) -> None: ...
        def _check_running(self) -> None: ...
        def _check_callback(self, callback: Any, method: str) -> None: ...
        def _check_signal(self, sig: int) -> None: ...
        def _ensure_fd_no_transport(self, fd: Any) -> None: ...
        def _handle_signal(self, sig: int) -> None: ...
        def _check_default_executor(self) -> None: ...
        def _asyncgen_firstiter_hook(self, agen: Any) -> None: ...
        def _asyncgen_finalizer_hook(self, agen: Any) -> None: ...

    _async: Any
    _hub_loop: Any
    _is_libuv: bool

    def __init__(self) -> None:
        self._readers: dict[int, IOHandle] = {}
        self._writers: dict[int, IOHandle] = {}
        self._busy_io: dict[tuple[int, int], IOHandle] = {}
        self._fresh: list[IOHandle] = []
        self._io_done = False
        self._hub_executor: HubExecutor | None = None
        self._lookups: HubExecutor | None = None
        self._child_watchers: set[ChildWatcher] = set()
        super().__init__(Registry(self._readers, self._writers))

    def close(self) -> None:
        """Stop watching everything, and close the event loop, which must not be running."""
        if not self._closed:
            for handle in self._io_handles():
                handle.cancel()
            for watcher in list(self._child_watchers):
                watcher.close()
        super().close()
        self._readers.clear()
        self._writers.clear()
        self._hub_executor = self._lookups = None

    def _make_self_pipe(self) -> None:
        # `_write_to_self` is an async watcher, and signals have `wake_on_signals`.
        self._ssock = self._csock = None

    def _close_self_pipe(self) -> None:
        pass

    # --- descriptors ------------------------------------------------------------------------

    def add_reader(  # type: ignore[override]
        self, fd: Any, callback: Callable[..., Any], *args: Any
    ) -> None:
        """Call ``callback(*args)`` whenever the descriptor is ready to read.

        Raises:
            OSError: the descriptor is closed, or of a kind that cannot be waited for.
            RuntimeError: a transport uses it.
        """
        self._ensure_fd_no_transport(fd)
        self._check_closed()
        self._add_io(self._readers, _waitable(fd), READ, callback, args).fileobj = fd

    def add_writer(  # type: ignore[override]
        self, fd: Any, callback: Callable[..., Any], *args: Any
    ) -> None:
        """Call ``callback(*args)`` whenever the descriptor is ready to write.

        Raises:
            OSError: the descriptor is closed, or of a kind that cannot be waited for.
            RuntimeError: a transport uses it.
        """
        self._ensure_fd_no_transport(fd)
        self._check_closed()
        self._add_io(self._writers, _waitable(fd), WRITE, callback, args).fileobj = fd

    def remove_reader(self, fd: Any) -> bool:
        """Stop watching for reading; return whether it was watched."""
        self._ensure_fd_no_transport(fd)
        return self._remove_io(self._readers, _registered(self._readers, fd))

    def remove_writer(self, fd: Any) -> bool:
        """Stop watching for writing; return whether it was watched."""
        self._ensure_fd_no_transport(fd)
        return self._remove_io(self._writers, _registered(self._writers, fd))

    # Transports of 3.15 pass the context of whoever has made them.

    def _add_reader(
        self, fd: int, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> IOHandle:
        return self._add_io(self._readers, fd, READ, callback, args, context)

    def _add_writer(
        self, fd: int, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> IOHandle:
        return self._add_io(self._writers, fd, WRITE, callback, args, context)

    def _remove_reader(self, fd: int) -> bool:
        return self._remove_io(self._readers, fd)

    def _remove_writer(self, fd: int) -> bool:
        return self._remove_io(self._writers, fd)

    def _add_io(
        self,
        handles: dict[int, IOHandle],
        fd: int,
        mask: int,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        context: Any = None,
    ) -> IOHandle:
        if self._closed:
            self._check_closed()
        if fd.__class__ is not int:
            fd = _fileno(fd)
        self._io_done = True
        if fd in (self._writers if mask == READ else self._readers):
            # libev would modify an entry of epoll, and aborts the process if that is not there.
            os.fstat(fd)
        handle = IOHandle(fd, mask, callback, args, self, context)
        previous = handles.get(fd)
        handles[fd] = handle
        if previous is not None:
            previous.cancel()
        busy = self._busy_io.get((fd, mask)) if self._busy_io else None
        if busy is not None and busy.queued and busy.file == file_of(fd):
            # The callback before it is suspended: no second entry. (Unless the number is that of
            # another file by now.)
            busy.successor = handle
            handle.held = True
        elif self._async is None:
            handle.file = file_of(fd)
        else:
            try:
                handle.start()
            except BaseException:
                if handles.get(fd) is handle:
                    del handles[fd]
                raise
        return handle

    def _io_handles(self) -> list[IOHandle]:
        self._end_idle_waits()
        return [*self._readers.values(), *self._writers.values()]

    def _hold_io(self, handle: IOHandle) -> None:
        # Its callback is suspended, and may have had itself replaced before (a protocol that
        # pauses and resumes reading, say): the new one waits as well.
        self._busy_io[handle.fd, handle.events] = handle
        handle.file = file_of(handle.fd)
        handles = self._readers if handle.events == READ else self._writers
        current = handles.get(handle.fd)
        if current is not None and current is not handle and handle.file is not None:
            current.held = True
            current.close_watcher()
            handle.successor = current

    def _remove_io(self, handles: dict[int, IOHandle], fd: int) -> bool:
        handle = handles.pop(fd, None)
        if handle is None:
            return False
        self._io_done = True
        handle.cancel()
        other = (self._writers if handles is self._readers else self._readers).get(fd)
        if other is not None:
            other.note_to_check()
        return True

    # --- transports -------------------------------------------------------------------------

    def _make_socket_transport(
        self,
        sock: Any,
        protocol: Any,
        waiter: Any = None,
        *,
        extra: Any = None,
        server: Any = None,
        **context: Any,
    ) -> Any:
        if _compat.LIBRARY_VERSION_CHECKS_FDS:
            self._ensure_fd_no_transport(sock)
        return SocketTransport(self, sock, protocol, waiter, extra, server, **context)

    def _make_ssl_transport(
        self,
        rawsock: Any,
        protocol: Any,
        sslcontext: Any,
        waiter: Any = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: Any = None,
        server: Any = None,
        **options: Any,
    ) -> Any:
        if _compat.LIBRARY_VERSION_CHECKS_FDS:
            self._ensure_fd_no_transport(rawsock)
        context = {"context": options.pop("context")} if "context" in options else {}
        ssl_protocol = SSLProtocol(
            self, protocol, sslcontext, waiter, server_side, server_hostname, **options
        )
        SocketTransport(self, rawsock, ssl_protocol, extra=extra, server=server, **context)
        return ssl_protocol._app_transport

    def _make_datagram_transport(
        self,
        sock: Any,
        protocol: Any,
        address: Any = None,
        waiter: Any = None,
        extra: Any = None,
        **context: Any,
    ) -> Any:
        if _compat.LIBRARY_VERSION_CHECKS_FDS:
            self._ensure_fd_no_transport(sock)
        return DatagramTransport(self, sock, protocol, address, waiter, extra, **context)

    def _make_read_pipe_transport(
        self, pipe: Any, protocol: Any, waiter: Any = None, extra: Any = None
    ) -> Any:
        return ReadPipeTransport(self, pipe, protocol, waiter, extra)

    def _make_write_pipe_transport(
        self, pipe: Any, protocol: Any, waiter: Any = None, extra: Any = None
    ) -> Any:
        return WritePipeTransport(self, pipe, protocol, waiter, extra)

    async def _make_subprocess_transport(
        self,
        protocol: Any,
        args: Any,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        extra: Any = None,
        **kwargs: Any,
    ) -> Any:
        if _compat.chosen_child_watcher() is not None:
            return await super()._make_subprocess_transport(  # type: ignore[misc]
                protocol, args, shell, stdin, stdout, stderr, bufsize, extra, **kwargs
            )
        waiter = self.create_future()
        transport = SubprocessTransport(
            self, protocol, args, shell, stdin, stdout, stderr, bufsize,
            waiter=waiter, extra=extra, **kwargs,
        )  # fmt: skip
        try:
            await waiter
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            transport.close()
            if not transport.is_calling():
                await transport._wait()
            raise
        return transport

    # --- signals ----------------------------------------------------------------------------

    def add_signal_handler(  # type: ignore[override]
        self, sig: int, callback: Callable[..., Any], *args: Any
    ) -> None:
        """Call ``callback(*args)`` as a handle when the signal arrives. Main OS thread only.

        Raises:
            ValueError: not a signal number.
            RuntimeError: not in the main OS thread, or the signal cannot be caught.
        """
        if asyncio.iscoroutine(callback) or inspect.iscoroutinefunction(callback):
            raise TypeError("coroutines cannot be used with add_signal_handler()")
        self._check_signal(sig)
        self._check_closed()
        try:
            wake_on_signals.acquire(self, get_hub())
        except (ValueError, OSError) as error:
            raise RuntimeError(str(error)) from error
        self._signal_handlers[sig] = events.Handle(callback, args, self, None)
        try:
            _compat.unix_events.signal.signal(sig, _ignore_signal)
            # Limit the occurrences of EINTR, as asyncio does.
            _compat.unix_events.signal.siginterrupt(sig, False)
        except OSError as error:
            del self._signal_handlers[sig]
            self._release_signals()
            if error.errno == errno.EINVAL:
                raise RuntimeError(f"sig {sig} cannot be caught") from error
            raise

    def remove_signal_handler(self, sig: int) -> bool:
        """Give the signal its default action again; return whether it had a handler here."""
        # Not asyncio's own method: that one takes the wake-up descriptor of the process away,
        # which other event loops of this thread share.
        self._check_signal(sig)
        if self._signal_handlers.pop(sig, None) is None:
            return False
        try:
            _compat.unix_events.signal.signal(sig, _DEFAULT_HANDLERS.get(sig, signal.SIG_DFL))
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise RuntimeError(f"sig {sig} cannot be caught") from error
            raise
        finally:
            self._release_signals()
        return True

    def _release_signals(self) -> None:
        if not self._signal_handlers and not self.is_running():
            wake_on_signals.release(self)

    # --- threads and names ------------------------------------------------------------------

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Call ``func(*args)`` in a native thread and return a future for the result.

        ``None`` stands for the threads of the hub's pool, ``gevent.get_hub().threadpool``.
        """
        self._check_closed()
        if self._debug:
            self._check_callback(func, "run_in_executor")
        if executor is None:
            executor = self._default_executor
            self._check_default_executor()
            if executor is None:
                if self._hub_executor is None:
                    self._hub_executor = HubExecutor(self)
                return self._hub_executor.submit(func, args)
        future = executor.submit(func, *args)
        return wrap_foreign_future(future, self)

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait until the calls in the default executor have ended; no more are taken.

        Args:
            timeout: seconds to wait at most; then a ``RuntimeWarning`` is issued.
        """
        self._executor_shutdown_called = True
        if self._hub_executor is not None:
            await self._hub_executor.join(timeout)
        if self._default_executor is not None:
            if timeout is None:
                await super().shutdown_default_executor()
            else:
                await super().shutdown_default_executor(timeout)

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        """Look an address up with the hub's resolver."""
        # asyncio's name for the module: it may have been replaced there, too.
        if _compat.base_events.socket.getaddrinfo not in _OWN_RESOLVERS:
            # Somebody put a function of theirs there, and asyncio calls what is there.
            return await super().getaddrinfo(
                host, port, family=family, type=type, proto=proto, flags=flags
            )
        return await self._look_up("getaddrinfo", host, port, family, type, proto, flags)

    async def getnameinfo(self, sockaddr: Any, flags: int = 0) -> Any:
        """Look a name up with the hub's resolver."""
        if _compat.base_events.socket.getnameinfo not in _OWN_RESOLVERS:
            return await super().getnameinfo(sockaddr, flags)
        return await self._look_up("getnameinfo", sockaddr, flags)

    async def _look_up(self, function: str, *args: Any) -> Any:
        started = self.time()
        if type(get_hub().resolver) is ThreadResolver:
            # What it does, in the same threads, but without printing what the caller is told, and
            # without a greenlet that waits. Not the default executor: nobody waits for it.
            if self._lookups is None:
                self._lookups = HubExecutor(self, is_joined=False)
            future = self._lookups.submit(original_resolvers[function], args)
            greenlet = None
        else:
            # It blocks the greenlet that calls it, so it gets one of its own.
            future = self.create_future()
            greenlet = gevent.spawn(_resolve, getattr(gevent.socket, function), args, future)
        try:
            return await future
        finally:
            if greenlet is not None:
                greenlet.kill(block=False)
            if self._debug:
                _compat.base_events.logger.debug(
                    "Looking up %r took %.3f seconds", args, self.time() - started
                )


def _resolve(function: Callable[..., Any], args: Any, future: asyncio.Future[Any]) -> None:
    try:
        result = function(*args)
    except Exception as error:
        if not future.done():
            future.set_exception(error)
    else:
        if not future.done():
            future.set_result(result)


_OWN_RESOLVERS = (
    *original_resolvers.values(),
    gevent.socket.getaddrinfo,
    gevent.socket.getnameinfo,
)


def _ignore_signal(signum: int, frame: Any) -> None:
    # There must be a handler in Python for the interpreter to write to the wake-up descriptor.
    pass


def _fileno(fd: Any) -> int:
    # As in the module selectors, which asyncio leaves this to.
    if isinstance(fd, int):
        return fd
    try:
        return int(fd.fileno())
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"Invalid file object: {fd!r}") from None


def _registered(handles: dict[int, IOHandle], fd: Any) -> int:
    # A file that was closed does not know its number any more. As the module selectors does, look
    # for the object then.
    fileno = _fileno(fd)
    if fileno < 0:
        for handle in handles.values():
            if handle.fileobj is fd:
                return handle.fd
        raise ValueError(f"Invalid file descriptor: {fileno}")
    return fileno


def _waitable(fd: Any) -> int:
    # What epoll says of a descriptor it cannot watch, at the same place.
    fileno = _fileno(fd)
    if fileno < 0:
        raise ValueError(f"Invalid file descriptor: {fileno}")
    mode = os.fstat(fileno).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    if stat.S_ISCHR(mode) and original_epoll is not None:
        # A terminal can be waited for, /dev/null cannot. Only epoll knows: libev takes what it
        # refuses for always ready.
        with original_epoll() as epoll:
            epoll.register(fileno, 0)
    return fileno
