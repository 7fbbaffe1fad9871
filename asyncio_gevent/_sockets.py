"""The event loop's ``sock_*`` methods, which do one thing with a socket for the task that asks.

Rule 1: the call is made in the task itself, at once, and again when the hub says that the socket is
        ready. So what was received is the task's, also if it is cancelled at the same moment.
Rule 2: who waits is seen in `_readers` and `_writers`, as with asyncio, and nobody else is.

Theory. A task that talks to a peer waits for the same socket again and again, and most of the cost
of a wait is to have the hub watch a descriptor: a watcher, and a system call of the poll, since
only a watcher that was never started makes libev tell the kernel of the descriptor again, and the
number may meanwhile be that of another file. But while the hub does not poll, it has told the
kernel nothing: so a `Wait` that is over keeps its watcher, stopped, until the next poll is about to
begin, and if the task has received, sent and waits again by then, it is started again. (It must not
stay active: gevent puts off the close of a socket that has an active watcher.) With libuv every
wait takes a new watcher: there a stopped one has been taken back from the kernel.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
import weakref
from operator import methodcaller
from typing import TYPE_CHECKING, Any

import gevent.socket

from asyncio_gevent import _compat
from asyncio_gevent._originals import original_socket
from asyncio_gevent._watchers import READ, WRITE, IOHandle, file_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SocketMethods", "Wait"]


class Wait(IOHandle):
    """Tasks that wait until a socket is ready to read, or until it is ready to write.

    It is a handle that never runs. It has a watcher while a task waits, and a stopped one from then
    on until the next poll.

    Attributes:
        waiter: the future of the task whose turn it is, or None.
        others: those of the tasks that wait after it.
        is_new: the kernel may not have been told yet of what this waits for, so that the descriptor
            has to be looked at before each poll. Only an event proves that it has.
        get_socket: returns the socket, unless that has gone: the number may be another one's by
            then.
        handles, waits: the dictionaries that it is in while a task waits, and as long as it has a
            watcher.
    """

    __slots__ = ("get_socket", "handles", "is_new", "others", "waiter", "waits")

    def __init__(
        self,
        sock: Any,
        fd: int,
        mask: int,
        handles: dict[int, IOHandle],
        waits: dict[int, Wait],
        loop: Any,
    ) -> None:
        super().__init__(fd, mask, _never_called, (), loop)
        self.get_socket = _reference(sock)
        self.handles = handles
        self.waits = waits
        self.waiter: asyncio.Future[None] | None = None
        self.others: list[asyncio.Future[None]] = []
        self.is_new = False

    def start(self) -> None:
        """Start watching, with a new watcher."""
        super().start()
        self.is_new = True

    def restart(self) -> None:
        """Start watching again when the event loop runs again, if a task waits."""
        if self.waiter is not None:
            super().restart()

    def fire(self) -> None:
        """Wake one task, in the hub. The next one is woken after the next poll, if it still can."""
        waiter = self.waiter
        self.is_new = False
        # In this order: what a signal handler raises in between does not lose the wake-up.
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        self._go_on()

    def _go_on(self) -> None:
        # With the next task, if there is one.
        others = self.others
        while others:
            self.waiter = others.pop(0)
            if not self.waiter.done():
                return
        self.waiter = None
        if self.handles.get(self.fd) is self:
            del self.handles[self.fd]
        watcher = self.watcher
        if watcher is None:
            self.end()
        else:
            watcher.stop()
            self._loop._fresh.append(self)

    def forget(self, waiter: asyncio.Future[None]) -> None:
        """Note that a task does not wait any more."""
        if self.waiter is waiter:
            self._go_on()
        elif waiter in self.others:
            self.others.remove(waiter)

    def before_poll(self) -> None:
        """Stop watching if no task waits."""
        if self.waiter is None:
            self.end()
        elif self.is_new:
            super().before_poll()

    def note_to_check(self) -> None:
        """Check the descriptor before the next poll, as if the watcher was new."""
        self.is_new = True
        super().note_to_check()

    def renew(self) -> None:
        """Watch with a new watcher, after an error in libuv."""
        if self.watcher is not None:
            self.close_watcher()
            self.release()

    def cancel(self) -> None:
        """Stop watching: another handle takes the place of this one, or the event loop is closed.

        As in asyncio, the tasks go on waiting, unless the socket was closed: then they hear of it.
        """
        super().cancel()
        self.end()
        if not self.is_of(self.fd):
            while self.waiter is not None:
                self.fire()

    def is_of(self, fd: int) -> bool:
        """Whether it is this descriptor that the tasks wait for; not if that was closed."""
        sock = self.get_socket()
        return sock is None or sock.fileno() == fd

    def end(self) -> None:
        """Stop watching; no task waits."""
        self.close_watcher()
        if self.waits.get(self.fd) is self:
            del self.waits[self.fd]
        loop = self._loop
        other = (loop._writers if self.events == READ else loop._readers).get(self.fd)
        if other is not None:
            other.note_to_check()


def _never_called() -> None:
    """Is what the handle of a `Wait` shows as its callback."""


def _reference(sock: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(sock)
    except TypeError:
        return _nothing


def _nothing() -> None:
    return None


#: Sockets that are no TLS sockets, as asyncio demands.
_PLAIN = (original_socket, gevent.socket.socket)


class SocketMethods:
    """The ``sock_*`` methods of an event loop.

    Attributes:
        _read_waits, _write_waits: descriptor to its wait, as long as that has a watcher.
    """

    if TYPE_CHECKING:
        _debug: bool
        _io_done: bool
        _is_libuv: bool
        _async: Any
        _readers: dict[int, IOHandle]
        _writers: dict[int, IOHandle]
        _transports: Any

        def _check_closed(self) -> None: ...
        def create_future(self) -> asyncio.Future[Any]: ...
        def _ensure_fd_no_transport(self, fd: Any) -> None: ...
        async def _ensure_resolved(self, address: Any, **kwargs: Any) -> Any: ...

    def __init__(self, *args: Any) -> None:
        self._read_waits: dict[int, Wait] = {}
        self._write_waits: dict[int, Wait] = {}
        super().__init__(*args)

    # --- receiving --------------------------------------------------------------------------

    async def sock_recv(self, sock: Any, n: int) -> bytes:
        """Receive up to `n` bytes from a socket that does not block."""
        methods = self._methods(sock)
        try:
            return methods.recv(n)  # type: ignore[no-any-return]
        except (BlockingIOError, InterruptedError):
            pass
        while True:
            # What `_when_ready` does, without a coroutine of its own.
            waiter: asyncio.Future[None] = self.create_future()
            wait = self._wait(sock, READ, waiter)
            try:
                await waiter
            except BaseException:
                wait.forget(waiter)
                raise
            try:
                return methods.recv(n)  # type: ignore[no-any-return]
            except (BlockingIOError, InterruptedError):
                pass

    async def sock_recv_into(self, sock: Any, buf: Any) -> int:
        """Receive into a buffer; return the number of bytes."""
        methods = self._methods(sock)
        try:
            return methods.recv_into(buf)  # type: ignore[no-any-return]
        except (BlockingIOError, InterruptedError):
            pass
        return await self._when_ready(  # type: ignore[no-any-return]
            sock, READ, methodcaller("recv_into", buf), methods
        )

    if sys.version_info >= (3, 11):

        async def sock_recvfrom(self, sock: Any, bufsize: int) -> Any:
            """Receive a datagram; return it and the address it came from."""
            methods = self._methods(sock)
            try:
                return methods.recvfrom(bufsize)
            except (BlockingIOError, InterruptedError):
                pass
            return await self._when_ready(sock, READ, methodcaller("recvfrom", bufsize), methods)

        async def sock_recvfrom_into(self, sock: Any, buf: Any, nbytes: int = 0) -> Any:
            """Receive a datagram into a buffer; return its size and the address it came from."""
            methods = self._methods(sock)
            if not nbytes:
                nbytes = len(buf)
            try:
                return methods.recvfrom_into(buf, nbytes)
            except (BlockingIOError, InterruptedError):
                pass
            return await self._when_ready(
                sock, READ, methodcaller("recvfrom_into", buf, nbytes), methods
            )

    # --- sending ----------------------------------------------------------------------------

    async def sock_sendall(self, sock: Any, data: Any) -> None:
        """Send all of the data. After an error nobody knows how much was sent."""
        methods = self._methods(sock)
        self._io_done = True
        try:
            sent = methods.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if data.__class__ is bytes and sent == len(data):
            return
        view = memoryview(data)
        if view.itemsize != 1:
            view = view.cast("B")  # what is sent is counted in bytes
        while sent < len(view):
            send = methodcaller("send", view[sent:])
            sent += await self._when_ready(sock, WRITE, send, methods)
            self._io_done = True

    if sys.version_info >= (3, 11):

        async def sock_sendto(self, sock: Any, data: Any, address: Any) -> int:
            """Send a datagram to an address; return how much of it was sent."""
            methods = self._methods(sock)
            self._io_done = True
            try:
                return methods.sendto(data, address)  # type: ignore[no-any-return]
            except (BlockingIOError, InterruptedError):
                pass
            return await self._when_ready(  # type: ignore[no-any-return]
                sock, WRITE, methodcaller("sendto", data, address), methods
            )

    # --- connecting -------------------------------------------------------------------------

    async def sock_connect(self, sock: Any, address: Any) -> None:
        """Connect a socket that does not block; a name is looked up before."""
        self._methods(sock)
        if sock.family in _INET_FAMILIES:
            resolved = await self._ensure_resolved(
                address, family=sock.family, type=sock.type, proto=sock.proto, loop=self
            )
            address = resolved[0][4]
        self._io_done = True
        try:
            sock.connect(address)
            return
        except (BlockingIOError, InterruptedError):
            pass  # also if it was interrupted, it goes on in the background
        await self._when_ready(sock, WRITE, _check_connected, sock, address)

    async def sock_accept(self, sock: Any) -> Any:
        """Accept a connection; return its socket, which does not block, and the peer's address."""
        self._methods(sock)
        try:
            return _accept(sock)
        except (BlockingIOError, InterruptedError):
            pass
        return await self._when_ready(sock, READ, _accept, sock)

    # --- waiting ----------------------------------------------------------------------------

    def _methods(self, sock: Any) -> Any:
        # What has the methods of the socket that do not wait.
        kind = type(sock)
        if kind not in _PLAIN:
            _compat.check_ssl_socket(sock)
        if self._debug and sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")
        # gevent's socket wraps the C one in Python, to wait where that would block.
        return sock._sock if kind is gevent.socket.socket else sock

    async def _when_ready(self, sock: Any, mask: int, call: Callable[..., Any], *args: Any) -> Any:
        """Make the call as soon as it does not block, and return what it returns."""
        while True:
            waiter: asyncio.Future[None] = self.create_future()
            wait = self._wait(sock, mask, waiter)
            try:
                await waiter
            except BaseException:
                wait.forget(waiter)
                raise
            try:
                return call(*args)
            except (BlockingIOError, InterruptedError):
                pass

    def _wait(self, sock: Any, mask: int, waiter: asyncio.Future[None]) -> Wait:
        """Have the future done when the socket is ready."""
        fd = sock.fileno()
        if fd in self._transports.data:  # to look it up in weak references takes long
            self._ensure_fd_no_transport(fd)
        self._io_done = True
        if mask == READ:
            handles, waits = self._readers, self._read_waits
        else:
            handles, waits = self._writers, self._write_waits
        wait = waits.get(fd)
        if wait is None or wait.get_socket() is not sock:
            return self._wait_anew(sock, fd, mask, handles, waits, waiter)
        if wait.waiter is not None:
            wait.others.append(waiter)
            return wait
        wait.waiter = waiter
        previous = handles.get(fd)
        handles[fd] = wait
        if previous is not None:
            previous.cancel()
        try:
            if self._is_libuv or wait.watcher is None:
                wait.start()
            else:
                wait.watcher.start(wait.fire)
        except BaseException:
            wait.forget(waiter)
            raise
        return wait

    def _wait_anew(
        self,
        sock: Any,
        fd: int,
        mask: int,
        handles: dict[int, IOHandle],
        waits: dict[int, Wait],
        waiter: asyncio.Future[None],
    ) -> Wait:
        self._check_closed()
        if fd < 0:  # closed while the task waited
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        previous = handles.get(fd)
        if isinstance(previous, Wait) and previous.is_of(fd):
            # By another object for the same socket.
            previous.others.append(waiter)
            return previous
        wait = Wait(sock, fd, mask, handles, waits, self)
        wait.waiter = waiter
        for each in (previous, waits.get(fd)):
            if each is not None:
                each.cancel()
        handles[fd] = waits[fd] = wait
        if self._async is None:
            wait.file = file_of(fd)
        else:
            try:
                wait.start()
            except BaseException:
                wait.forget(waiter)
                raise
        return wait

    def _end_idle_waits(self) -> None:
        # Before all watchers are started or closed.
        for wait in [*self._read_waits.values(), *self._write_waits.values()]:
            if wait.waiter is None:
                wait.end()


#: Families whose addresses are looked up.
_INET_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def _check_connected(sock: Any, address: Any) -> None:
    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error != 0:
        raise OSError(error, f"Connect call failed {address}")


def _accept(sock: Any) -> Any:
    connection, address = sock.accept()
    connection.setblocking(False)
    return connection, address
