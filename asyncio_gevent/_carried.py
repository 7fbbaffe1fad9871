"""Where the hub waits: in a private host, or in the greenlet that runs an asyncio loop.

See `gevent_loop` for the theory.
"""

from __future__ import annotations

import os
import sys
from asyncio import events
from collections.abc import Callable
from os import getpid
from types import MethodType
from typing import Any
from weakref import WeakSet

from greenlet import getcurrent, greenlet

from asyncio_gevent import _compat
from asyncio_gevent._blocking import blocking_call, is_short_wait
from asyncio_gevent._compat import get_hub_if_exists
from asyncio_gevent._gevent_watchers import READ
from asyncio_gevent._hosts import (
    SignalWaker,
    find_factory,
    is_foreign,
    is_in_c,
    make_private_host,
    needs_waker,
    reset_in_child,
    set_running_loop,
    use_native_selector,
)
from asyncio_gevent._originals import get_ident
from asyncio_gevent._turns import CALLBACKS, QUEUES, Turns, left_to_parent

__all__ = ["CarriedLoop"]

_get_running_loop = events._get_running_loop
_switch = greenlet.switch


class CarriedLoop(Turns):
    """The part of a `GeventLoop` that knows its hosts."""

    __slots__ = ("_make_host", "_waker")

    host_factory: Callable[[], Any] | None = None

    def __init__(self, flags: Any = None, default: bool | None = None) -> None:
        super().__init__(flags, default)
        self._waker: SignalWaker | None = None
        _loops.add(self)
        self._make_host = type(self).host_factory or find_factory()
        running = _get_running_loop()
        if running is not None and is_foreign(running):
            self._attach(running)
        else:
            # Now: its descriptors would otherwise get numbers that a program may have closed and
            # still use.
            self._private = make_private_host(self._make_host)

    # --- waking -------------------------------------------------------------------------------

    def _wake(self) -> None:
        # Something was added, outside of a turn or in code that an event loop runs.
        if self._destroyed:
            return
        if get_ident() != self._thread:
            self._wake_threadsafe()
            return
        running = _get_running_loop()
        attached = self._attached
        if running is None:
            if attached is not None and not attached.is_running():
                self._detach()
        elif running is not attached:
            if is_foreign(running):
                self._attach(running)
                return
        else:
            self._watch_for_blocking(getcurrent())
            if not self._is_wake_sent and self._host is attached:
                self._is_wake_sent = True
                if _compat.is_polling(attached, sys._getframe(1)):
                    attached.call_soon_threadsafe(self._on_wake, attached)
                else:
                    attached.call_soon(self._on_wake, attached)
                return
        if not self._awake:
            self._wake_threadsafe()

    def _wake_threadsafe(self) -> None:
        # What was added has been added before this; see `_move_to`.
        if self._is_wake_sent:
            return
        self._is_wake_sent = True
        while True:
            host = self._host
            if host is None:
                return  # whoever makes the hub run looks for it first
            try:
                host.call_soon_threadsafe(self._on_wake, host)
            except RuntimeError:
                if host is not self._host:
                    continue  # there is another one by now
                # It is closed, or about to be: the next one looks for it first.
            return

    # --- hosts --------------------------------------------------------------------------------

    def _move_to(self, host: Any) -> None:
        # The order matters to `_wake_threadsafe`: first the new host, then the flag, and the new
        # host's first turn looks at everything.
        old = self._host
        if old is host:
            self._is_wake_sent = False
            return
        self._forget_sent()
        for descriptor in {*self._watched, *self._changed}:
            if descriptor.registered:
                if old is None or old.is_closed():
                    descriptor.registered = 0
                else:
                    self._unregister(old, descriptor)
            self._changed.add(descriptor)
        self._host = host
        self._is_wake_sent = False

    def _note_running_loop(self, previous: Any, running: Any) -> None:
        # The running event loop of this thread has changed.
        if self._process != getpid():
            # asyncio's own function for forked children (3.12) comes before ours, and what it
            # changes here would change what the parent polls.
            self.reinit()
        if running is not None:
            if running is not self._attached and is_foreign(running) and not self._destroyed:
                self._attach(running)
        elif previous is not None and previous is self._attached:
            self._detach()

    def _attach(self, host: Any) -> None:
        # In the greenlet that runs it, or in something that it has switched to.
        current = getcurrent()
        hub = get_hub_if_exists()
        if current is hub:
            return  # somebody runs an event loop in a callback of the hub, which stands still
        attached = self._attached
        if attached is not None:
            self._release_carrier()
            if attached.is_running():
                self._outer.append((attached, self._carrier))
        use_native_selector(host)
        _compat.check_native_thread(host)
        self._attached = host
        self._carrier = None
        self._watch_for_blocking(current)
        self._move_to(host)
        self._watch_signals(host)
        self._awake = False
        self._go_on(host)

    def _watch_signals(self, host: Any) -> None:
        if is_in_c(host):
            self._install_waker()

    def _install_waker(self) -> None:
        # Also for the standard loop while there are signal watchers: its poll is interrupted, but
        # not by a signal that comes just before it.
        if needs_waker():
            if self._waker is None:
                self._waker = waker = SignalWaker()
                watcher = self.io(waker.fd, READ, ref=False)
                watcher.start(self._drain_waker)
            self._waker.install()

    def _drain_waker(self) -> None:
        if self._waker is not None:
            try:
                self._waker.drain()
            except BaseException:
                self._report(None)  # of a handler of the interpreter, which was called here

    def _remove_waker(self) -> None:
        if self._waker is not None and not is_in_c(self._host):
            self._waker.remove()

    def _detach(self) -> None:
        # It does not run any more.
        host = self._attached
        _compat.check_as_before(host)
        self._release_carrier()
        self._attached = self._carrier = None
        self._displaced = [each for each in self._displaced if host not in each]
        while self._outer:
            outer, carrier = self._outer.pop()
            if outer.is_running():
                self._attached = outer
                self._carrier = carrier
                self._hold(carrier)
                if carrier in self._waiting:
                    self._request = QUEUES, 0  # its turn, in which all this has happened, is over
                break
        if self._host is host:
            self._move_to(self._attached)
        if self._attached is not None:
            self._is_wake_sent = True
            self._attached.call_soon_threadsafe(self._on_outer, self._attached)

    def _on_outer(self, host: Any) -> None:
        # The inner event loop has ended, and has perhaps left nobody to hear of signals.
        if host is self._attached:
            self._watch_signals(host)
        self._on_wake(host)

    @property
    def attached(self) -> Any:
        """The asyncio loop that runs in this OS thread and carries the hub, or None."""
        attached = self._attached
        if attached is None:
            running = _get_running_loop()
            if running is not None:
                self._wake()
                attached = self._attached
        return attached

    # --- the carrier --------------------------------------------------------------------------

    def _watch_for_blocking(self, current: Any) -> None:
        # Whoever runs in the event loop now cannot wait in the hub. gevent calls `switch_out` of
        # a greenlet that is about to, if it has one.
        if getattr(current, "switch_out", None) is None:
            self._hold(current)
            if self._carrier is None:
                self._carrier = current

    def _hold(self, carrier: Any) -> None:
        if carrier is None:
            return  # that of an outer event loop which has asked nothing yet
        carrier.switch_out = self._on_block
        # gevent calls them by name. What it looks at is that they are methods of a greenlet.
        carrier.switch = MethodType(_switch_to_carrier, carrier)
        carrier.throw = MethodType(_throw_into_carrier, carrier)

    def _release_carrier(self) -> None:
        carrier = self._carrier
        if carrier is not None and carrier not in self._lets_wait:
            for name in ("switch_out", "switch", "throw"):
                carrier.__dict__.pop(name, None)

    def _carry(self, request: tuple[Any, int]) -> None:
        # A handle of the attached event loop, in the greenlet that runs it: have the hub do this,
        # and whatever else is due.
        host = self._attached
        current = getcurrent()
        if current is not self._carrier:
            self._release_carrier()
            self._carrier = current
            self._hold(current)
        hub = get_hub_if_exists()
        if hub is None or hub is current:
            return
        if isinstance(hub.loop, CarriedLoop) and hub.loop is not self:
            return  # of another hub of this thread, which it has no more; not a proxy of this one
        self._lets_wait.pop(current, None)  # somebody has gone around our `throw`
        self._request = request
        self._waiting.append(current)
        if self._displaced:
            self._put_behind(host)
        self._awake = True
        set_running_loop(None)
        try:
            _switch(hub)
        except BaseException as error:
            raise _passing(error)  # noqa: B904
        finally:
            set_running_loop(host)
            if current in self._waiting:
                # Something was thrown into it, and the turn is not over.
                self._waiting.remove(current)
                self._bring_forward(host, current)
                self._awake = False
                self._drop_stopped()
                self._go_on(host)

    def _on_block(self) -> None:
        # A greenlet that the attached event loop runs is about to wait in the hub; in it.
        host = self._attached
        current = getcurrent()
        if host is None or _get_running_loop() is not host:
            # It does not run any more, and we have not heard of it.
            current.__dict__.pop("switch_out", None)
            self._wake()
            return
        frame = sys._getframe(1)
        task = _compat.current_task(host)
        # Of uvloop only a task may wait: a callback may be called in the midst of a poll, see
        # `_note_ready`.
        if not is_short_wait(frame) or (task is None and is_in_c(host)):
            raise self._blocking_call(frame)
        if task is not None:
            _compat.leave_task(host, task)
        set_running_loop(None)
        self._lets_wait[current] = host, task  # until `_go_on_with`

    @staticmethod
    def _blocking_call(frame: Any) -> BaseException:
        return blocking_call(
            frame,
            "in a coroutine or callback of an event loop, which carries gevent's hub and could not "
            "go on meanwhile. Call it in a greenlet, `await asyncio_gevent.sync_to_async(function)"
            "(...)`, or make the coroutine one that may block: `@asyncio_gevent.green`, or "
            "`loop.set_task_factory(asyncio_gevent.green_task_factory)` for all",
        )

    def _go_on_with(self, carrier: Any) -> None:
        # It is about to be switched to, with what it has waited for, or something else.
        if carrier in self._lets_wait:
            host, task = self._lets_wait.pop(carrier)
            set_running_loop(host)
            if task is not None:
                _compat.enter_task(host, task)
            self._bring_forward(host, carrier)
            self._move_to(host)
            self._go_on(host)
            self._awake = False

    def _bring_forward(self, host: Any, carrier: Any) -> None:
        # It goes on although another one has begun to run meanwhile: that may be waiting for a lock
        # that this one has, or something was thrown into its carrier. But only to the end of what
        # it is doing; see `_put_behind`.
        inner = self._attached
        if inner is host:
            return
        for entry in self._displaced:
            if entry[1] is host:
                self._displaced.remove(entry)
                break
        else:
            if inner is not None:
                self._displaced.append((host, inner, self._carrier))
        self._exchange(host, carrier)

    def _put_behind(self, host: Any) -> None:
        # In its carrier, which waits from now on for the end of the inner one that it displaced.
        for entry in [*self._displaced]:
            if entry[0] is host:
                self._displaced.remove(entry)
                _, inner, carrier = entry
                if inner.is_running():
                    self._exchange(inner, carrier)
                    self._request = (QUEUES, 0) if carrier in self._waiting else None
                    break

    def _exchange(self, host: Any, carrier: Any) -> None:
        # Attach an outer event loop; the one that is attached becomes an outer one.
        self._outer = [outer for outer in self._outer if outer[0] is not host]
        if self._attached is not None:
            self._release_carrier()
            self._outer.append((self._attached, self._carrier))
        self._attached = host
        self._carrier = carrier
        self._hold(carrier)
        self._move_to(host)

    # --- running ------------------------------------------------------------------------------

    def run(self, nowait: bool = False, once: bool = False) -> None:
        """Run until no callback is queued and no referenced watcher is active. In the hub.

        Args:
            nowait: do what is due, and do not wait.
            once: wait for one event at most.
        """
        self._thread = get_ident()
        self._is_broken = False
        while True:
            self._serve()
            if self._is_broken or self._destroyed or not (self._is_needed() or self._changed):
                break
            self._run_private(nowait, once)
            if nowait or once:
                break
        self._is_broken = False

    def _serve(self) -> None:
        # Do what carriers want, until the hub is to wait by itself.
        while not (self._is_broken or self._destroyed):
            driver = self._take_blocked() if self._blocked else None
            if driver is not None:
                _switch(driver)
            elif self._request is not None:
                request, self._request = self._request, None
                carrier = self._carrier
                self._take_turn(*request)
                try:
                    # It may have left, or must not go on, in a child. Or a greenlet has begun to
                    # run another event loop meanwhile.
                    if self._request is None:
                        if not self._destroyed:
                            carrier = self._carrier
                        if carrier in self._waiting:
                            self._waiting.remove(carrier)
                            _switch(carrier)
                except BaseException:
                    # Thrown into the hub while it was waiting for the carrier.
                    self._report(None)
                    self._awake = False
            elif self._attached is not None and not self._lets_wait and self._refuse_stray():
                pass
            elif self._attached is not None and self._host is self._attached and self._callbacks:
                # Its carrier waits. Perhaps only for something that is queued.
                self._take_turn(CALLBACKS, 0)
            else:
                break

    def _refuse_stray(self) -> bool:
        # Somebody waits in the hub whom nobody has asked: a raw greenlet of a coroutine, which has
        # no hook of ours. It gets the error, if it can be told which one it is.
        if not self._attached.is_running():
            return False
        stray = _compat.find_only_descendant(self._carrier)
        if stray is None:
            return False
        stray.throw(self._blocking_call(stray.gr_frame))
        return True

    def _take_blocked(self) -> Any:
        # Those of outer event loops wait until the inner one has ended.
        for number, (loop, driver) in enumerate(self._blocked):
            if self._attached is None or loop is self._attached:
                del self._blocked[number]
                return driver
        return None

    def _leave_private(self, host: Any) -> None:
        # In a handle of the private host: another event loop runs. The hub serves it from here,
        # so that the private host ends, or goes on, after that has ended: what they both change
        # of the thread, and take back, such as the descriptor for signals, is nested.
        if host not in left_to_parent:
            if self._is_private_within:
                host.stop()  # it was begun while another one ran, and has to end before that
                return
            self._serve()
        if host in left_to_parent:
            # A greenlet has forked, and this is the child, in which the parent's uvloop must do
            # nothing any more.
            if not self._is_broken:
                self.run()
            host.stop()
            return
        if not self._destroyed:
            self._wait_in(host)
            self._watch_signals(host)  # as in `_on_outer`
            self._end_turn(False)

    def _wait_in(self, host: Any) -> None:
        # A private host, also while the carrier of another one waits in the hub.
        stalled = self._attached
        if stalled is not None:
            # When its carrier goes on, so does it.
            stalled.call_soon_threadsafe(self._on_return, stalled)
        self._move_to(host)

    def _run_private(self, nowait: bool, once: bool) -> None:
        host = self._private
        if host is None or host.is_closed():
            host = self._private = make_private_host(self._make_host)
        self._is_private_within = self._attached is not None
        self._wait_in(host)
        self._hooks = sys.get_asyncgen_hooks()
        self._is_wake_sent = True
        self._is_brief = nowait or once
        host.call_soon(self._on_start, host, nowait, once)
        outside = _get_running_loop()
        if outside is not None:
            set_running_loop(None)
        host.set_exception_handler(self._on_host_error)
        host.turns = self
        try:
            host.run_forever()
        except BaseException:
            # Of a signal handler, KeyboardInterrupt say, or thrown into the hub.
            self._forget_sent()
            self._report(None)
            self._awake = False
        finally:
            self._is_once = self._is_brief = False
            host.set_exception_handler(None)
            host.turns = None
            if self._destroyed and host not in left_to_parent:
                host.close()
            if outside is not None:
                set_running_loop(outside)

    def _on_host_error(self, host: Any, context: dict[str, Any]) -> None:
        # No handle of ours fails. But the interpreter calls its handlers of signals in those of
        # uvloop, and before the first instruction of ours, which then have not done their work.
        error = context.get("exception")
        if error is None:
            host.default_exception_handler(context)
            return
        if self._host is host:
            self._forget_sent()
        if is_in_c(host):
            host.call_soon(self._on_error, host, error)  # not in the midst of a poll: `_note_ready`
        else:
            self._on_error(host, error)

    def _on_error(self, host: Any, error: BaseException) -> None:
        # As in `_begin_turn` and `_take_turn`.
        if _get_running_loop() is not None:
            self._hide_private()
        if self._is_brief:
            host.stop()
        try:
            raise error
        except BaseException:
            self._report(None)
        self._end_turn(False)
        if self._host is not host or self._blocked:
            self._leave_private(host)

    def _forget_sent(self) -> None:
        # The next turn looks at everything, and the next poll finds what is ready once more.
        self._is_wake_sent = False
        if self._armed is not None:
            self._armed.cancel()
            self._armed = None
        self._ready.clear()

    def _hide_private(self) -> None:
        # The greenlets are not part of the private host: they may run other event loops.
        set_running_loop(None)
        sys.set_asyncgen_hooks(*self._hooks)

    def _on_start(self, host: Any, nowait: bool, once: bool) -> None:
        self._watch_signals(host)
        # What is queued is called before the first poll, and all else after it.
        self._is_wake_sent = False
        self._begin_turn(host, CALLBACKS, 0)
        if nowait:
            host.call_soon(host.stop)  # after a poll, and what it has found
        self._is_once = once  # the next turn is the last

    def _on_return(self, host: Any) -> None:
        # The carrier, which was stalled, runs its event loop again.
        if host is self._attached:
            self._move_to(host)
            self._carry((QUEUES, 0))

    # --- forks ----------------------------------------------------------------------------------

    def reinit(self) -> None:
        """Go on in a forked child, without a trace in the parent's selector.

        It happens by itself, whoever forks.
        """
        if self._destroyed or self._process == getpid():
            return  # of gevent.os.fork(), after `_after_in_child`
        self._process = getpid()
        self._thread = get_ident()
        self._outer = [outer for outer in self._outer if reset_in_child(outer[0])]
        if self._attached is not None and not reset_in_child(self._attached):
            self._leave_to_parent(self._attached)
            self._release_carrier()
            self._attached = self._carrier = None
            self._waiting.clear()
        if self._private is not None and not reset_in_child(self._private):
            self._leave_to_parent(self._private)
            self._private = None
        # Not before: it takes descriptors out of what is polled.
        self._children.after_fork()
        for watcher in [*self._forks]:
            self._fed.append((watcher, 0))
        self._is_wake_sent = False
        self._wake()

    def _leave_to_parent(self, host: Any) -> None:
        # In the child. To close it, or anything of it, would change what the parent polls.
        left_to_parent.append(host)
        if self._host is host:
            self._host = self._armed = None
            self._changed |= self._watched
            for descriptor in self._changed:
                descriptor.registered = 0


def _passing(error: BaseException) -> BaseException:
    # To kill a greenlet that runs an event loop, or a gevent.Timeout there, ends that. But event
    # loops take all exceptions but two for failures of a callback, so it has to be one of these as
    # well. Not an Exception: gevent's hub throws into the main greenlet what nobody else is to get.
    if isinstance(error, (Exception, KeyboardInterrupt, SystemExit)):
        return error
    kind = type(error)
    try:
        made = type(kind.__name__, (kind, SystemExit), {"__module__": kind.__module__})
        passing: Any = made.__new__(made, *error.args)
    except TypeError:
        return error  # a kind with a layout of its own
    passing.__dict__.update(error.__dict__)
    passing.__cause__ = error
    passing.code = f"{kind.__name__}: {error}"  # what the interpreter says if nobody catches it
    return passing  # type: ignore[no-any-return]


def _switch_to_carrier(carrier: Any, *args: Any, **kwargs: Any) -> Any:
    _prepare_carrier(carrier)
    return type(carrier).switch(carrier, *args, **kwargs)


def _throw_into_carrier(carrier: Any, *args: Any) -> Any:
    _prepare_carrier(carrier)
    return type(carrier).throw(carrier, *args)


def _prepare_carrier(carrier: Any) -> None:
    hub = get_hub_if_exists()
    if hub is not None and isinstance(hub.loop, CarriedLoop):
        hub.loop._go_on_with(carrier)


#: All of this process, for its forked children.
_loops: WeakSet[CarriedLoop] = WeakSet()


#: The same while somebody forks, for each one who does, so that none is lost with its thread.
_forking: list[list[CarriedLoop]] = []


def _before_fork() -> None:
    _forking.append([*_loops])


def _after_in_parent() -> None:
    _forking.pop()


def _after_in_child() -> None:
    # Also for those who fork without gevent's knowledge, as multiprocessing does. libev finds out
    # by itself (EVFLAG_FORKCHECK).
    loops = _forking.pop()
    _forking.clear()  # the other threads are gone
    for each in loops:
        if each._thread == get_ident():
            each.reinit()
        elif each._private is not None and not reset_in_child(each._private):
            left_to_parent.append(each._private)


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_in_parent,
    after_in_child=_after_in_child,
)
