"""The gevent loop on its private host: watchers, turns, the end, threads, forks."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import tempfile
import time
import weakref
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any

import gevent
import gevent.event
import gevent.hub
import gevent.os
import pytest
from gevent.exceptions import LoopExit
from gevent.monkey import get_original
from hosts import HOST, PRIVATE, host_name, loop
from support import (
    GEVENT,
    native_ident,
    native_socketpair,
    os_close,
    run_script,
    start_native_thread,
)

from asyncio_gevent.gevent_loop import READ, WRITE, GeventLoop

os_dup = os.dup


class Calls(list[Any]):
    """A callback that keeps what it was called with."""

    def __call__(self, *args: Any) -> None:
        self.append(args)


@pytest.fixture
def own() -> Any:
    """A loop of its own, which this greenlet runs itself."""
    made = GeventLoop(default=False)
    yield made
    made.destroy()


@pytest.fixture
def pair() -> Any:
    one, other = native_socketpair()
    for each in (one, other):
        each.setblocking(False)
    yield one, other
    one.close()
    other.close()


def test_this_loop_really_runs() -> None:
    assert type(loop()) is GeventLoop
    assert loop().default
    assert host_name(loop()._private) == PRIVATE
    gevent.sleep(0)
    assert loop()._private.is_running()


# --- the end --------------------------------------------------------------------------------------


def test_nothing_to_wait_for_is_loop_exit() -> None:
    with pytest.raises(LoopExit):
        gevent.event.Event().wait()
    gevent.sleep(0.001)  # and it goes on afterwards
    with pytest.raises(LoopExit):
        gevent.event.Event().wait()


def test_watchers_without_ref_are_no_reason_to_go_on(own: GeventLoop) -> None:
    calls = Calls()
    timer = own.timer(10, ref=False)
    timer.start(calls)
    own.run()
    timer.ref = True
    assert own.activecnt == 1
    timer.ref = False
    own.run()
    assert not calls
    assert timer.active


def test_ref_that_is_taken_away_late_ends_it(own: GeventLoop) -> None:
    endless = own.timer(1000)
    endless.start(int)
    own.timer(0.001).start(setattr, endless, "ref", False)
    own.run()
    assert endless.active


def test_run_once_and_without_waiting(own: GeventLoop) -> None:
    calls = Calls()
    own.timer(1000).start(calls)
    own.run_callback(calls, 1)
    own.run(nowait=True)
    assert calls == [(1,)]
    own.timer(0.001).start(calls, 2)
    own.run(once=True)
    assert calls == [(1,), (2,)]


# --- callbacks ------------------------------------------------------------------------------------


def test_callbacks_are_called_in_order_and_those_they_add_too(own: GeventLoop) -> None:
    calls = Calls()
    stopped = own.run_callback(calls, "stopped")
    pending = own.run_callback(lambda: own.run_callback(calls, 2))
    own.run_callback(calls, 1)
    stopped.stop()
    assert pending.pending and pending
    own.run()
    assert calls == [(1,), (2,)]
    assert not pending.pending and not pending


def test_a_callback_is_true_while_it_is_being_called(own: GeventLoop) -> None:
    seen = []

    def look(items: list[Any]) -> None:
        seen.append((bool(callback), callback.pending))
        callback.args[0].append(1)

    items: list[Any] = []
    callback = own.run_callback(look, items)
    own.run()
    assert seen == [(True, False)]
    assert items == [1]


def test_errors_go_to_the_handler_and_nothing_is_lost(own: GeventLoop) -> None:
    errors = []
    calls = Calls()

    class Handler:
        @staticmethod
        def handle_error(context: Any, kind: Any, value: Any, traceback: Any) -> None:
            errors.append(value.args[0])
            if value.args[0] == "twice":
                raise ValueError

    def fail(what: str) -> None:
        raise RuntimeError(what)

    own.error_handler = Handler()
    own.run_callback(fail, "callback")
    own.run_callback(calls)
    own.run()
    timer = own.timer(0.001, repeat=0.001)

    def fail_twice() -> None:
        calls()
        if len(calls) == 3:
            timer.stop()
        fail("timer")

    timer.start(fail_twice)
    own.run()
    assert errors == ["callback", "timer", "timer"]
    assert len(calls) == 3


def test_an_error_of_the_error_handler_is_printed(
    own: GeventLoop, capsys: pytest.CaptureFixture[str]
) -> None:
    class Handler:
        def handle_error(self, *args: Any) -> None:
            raise ValueError("of the handler")

    own.error_handler = Handler()
    calls = Calls()
    own.run_callback(next, iter(()))
    own.run_callback(calls)
    own.run()
    assert calls == [()]
    assert "of the handler" in capsys.readouterr().err


# --- timers ---------------------------------------------------------------------------------------


def test_timers_fire_in_order_of_time_then_of_start(own: GeventLoop) -> None:
    calls = Calls()
    for name, after in (("d", 0.004), ("b", 0.002), ("a", 0), ("c", 0.002)):
        own.timer(after).start(calls, name)
    started = time.perf_counter()
    own.run()
    assert calls == [("a",), ("b",), ("c",), ("d",)]
    assert time.perf_counter() - started >= 0.004


def test_a_timer_is_inactive_before_its_callback_and_may_be_started_again(own: GeventLoop) -> None:
    states = []
    timer = own.timer(0)

    def fired() -> None:
        states.append(timer.active)
        if len(states) < 3:
            timer.start(fired)

    timer.start(fired)
    own.run()
    assert states == [False] * 3
    assert timer.callback is None
    assert timer.args is None
    assert own.activecnt == 0


def test_repeat_and_again(own: GeventLoop) -> None:
    calls = Calls()
    timer = own.timer(0, repeat=0.001)
    timer.start(lambda: calls(1) or (len(calls) == 3 and timer.stop()))
    own.run()
    assert len(calls) == 3
    once = own.timer(1000, repeat=0.001)
    once.again(lambda: calls(2) or once.stop())
    own.run()
    assert calls[-1] == (2,)
    never = own.timer(0.001)
    never.start(calls, 3)
    never.again(calls, 4)  # without an interval it stops
    assert not never.active
    own.run()
    assert len(calls) == 4


def test_starting_an_active_timer_changes_only_what_it_calls(own: GeventLoop) -> None:
    calls = Calls()
    timer = own.timer(0.001)
    timer.start(calls, 1)
    timer.start(calls, 2)
    assert own.activecnt == 1
    own.run()
    assert calls == [(2,)]


def test_a_timer_that_another_one_stops_does_not_fire(own: GeventLoop) -> None:
    calls = Calls()
    second = own.timer(0)
    own.timer(0).start(second.stop)
    second.start(calls)
    own.run()
    assert not calls


@pytest.mark.parametrize("share", [1, 3, 300])
def test_many_timers_at_once(own: GeventLoop, share: int) -> None:
    """Whatever the share of them that is due, and though some stop others and start new ones."""
    expected = Calls()
    calls = Calls()
    now = time.monotonic()
    stops = {}
    for number in range(1, 601):
        is_due = number % share == 0
        timer = own.timer(0.001 if is_due else 1000)
        if not is_due:
            timer.ref = False
        elif number % 4 == 0 and number < 500:
            stops[number] = own.timer(0.001)
            timer.start(lambda number=number: stops[number].stop() or calls(number))
            expected(number)
            stops[number].start(calls, "stopped")
            continue
        else:
            expected(number)
        timer.start(calls, number)
    own.timer(0.002).start(lambda: own.timer(0).start(calls, "new"))
    while time.monotonic() < now + 0.003:
        pass
    own.run()
    assert calls == [*expected, ("new",)]
    assert own.activecnt == 0
    assert own._stopped_timers >= 0


def test_a_loop_that_a_timer_destroys_fires_no_more() -> None:
    own = GeventLoop(default=False)
    calls = Calls()
    own.timer(0).start(own.destroy)
    for _ in range(20):
        own.timer(0).start(calls)
    own.run()
    assert not calls


@pytest.mark.parametrize("kind", ["sent", "fed"])
def test_a_loop_that_one_of_many_watchers_destroys(kind: str, pair: Any, observed: Any) -> None:
    doomed = GeventLoop(default=False)
    watchers: list[Any] = []
    for _ in range(3):
        watcher = doomed.async_() if kind == "sent" else doomed.io(pair[0].fileno(), READ)
        watcher.start(doomed.destroy)
        watchers.append(watcher)
    if kind == "sent":
        for watcher in watchers:
            watcher.send()
    else:
        doomed.closing_fd(pair[0].fileno())
    doomed.run()
    assert "destroyed" in repr(doomed)


def test_a_reference_is_a_reference_whatever_is_true(own: GeventLoop) -> None:
    wanted, unwanted = own.timer(60, ref=1), own.timer(60, ref=0)  # type: ignore[arg-type]
    for timer, value in ((wanted, True), (unwanted, False)):
        timer.start(int)
        timer.ref = value
    assert own.activecnt == 1
    wanted.stop()
    unwanted.stop()
    assert own.activecnt == 0


def test_what_was_queued_goes_before_a_timer_that_was_started_after_it(own: GeventLoop) -> None:
    calls = Calls()

    def fired() -> None:
        own.run_callback(calls, "queued")
        own.timer(0).start(calls, "started")

    own.timer(0).start(fired)
    own.run()
    assert calls == [("queued",), ("started",)]


def test_stopped_timers_do_not_pile_up(own: GeventLoop) -> None:
    kept = own.timer(1000)
    kept.start(int)
    for _ in range(10_000):
        with own.timer(1000) as timer:
            timer.start(int)
    assert len(own._timers) < 200
    assert own.activecnt == 1
    kept.stop()
    own.run()


def test_any_number_of_seconds(own: GeventLoop) -> None:
    numbers = [0, 0.001, Fraction(1, 500), Decimal("0.003")]
    calls = Calls()
    for number in numbers:
        own.timer(number, Decimal(60)).start(calls, number)
    own.timer(Decimal("0.01")).start(own.break_)
    own.run()
    assert calls == [(number,) for number in numbers]


def test_bad_timers(own: GeventLoop) -> None:
    for repeat in (-1, float("nan")):
        with pytest.raises(ValueError, match="repeat must be positive or zero"):
            own.timer(0, repeat=repeat)
    with pytest.raises(TypeError):
        own.timer(0, "1")
    with pytest.raises(ValueError, match="NaN"):
        own.timer(float("nan"))
    with pytest.raises(TypeError):
        own.timer("1")
    timer = own.timer(float("inf"))
    with pytest.raises(TypeError, match="callable"):
        timer.start(None)
    timer.start(int)
    with pytest.raises((AttributeError, ValueError)):
        timer.priority = 1
    timer.ref = False
    own.run()


# --- descriptors ----------------------------------------------------------------------------------


def test_many_watchers_of_one_descriptor(own: GeventLoop, pair: Any) -> None:
    one, other = pair
    calls = Calls()
    watchers = [own.io(one.fileno(), READ) for _ in range(3)]
    watchers.append(own.io(one.fileno(), WRITE))
    watchers.append(own.io(one.fileno(), READ | WRITE))

    for number, watcher in enumerate(watchers):

        def fired(events: int, number: int = number, watcher: Any = watcher) -> None:
            calls(number, events)
            watcher.stop()

        watcher.start(fired, pass_events=True)
    other.send(b"x")
    own.run()
    numbers = sorted(number for number, _ in calls)
    assert numbers == [0, 1, 2, 3, 4]
    assert all(events == READ for number, events in calls if number < 3)
    assert all(events == WRITE for number, events in calls if number == 3)
    assert not own._watched
    assert not any(each.registered for each in own._descriptors.values())


def test_readiness_is_a_level(own: GeventLoop, pair: Any) -> None:
    one, other = pair
    other.send(b"xx")
    calls = Calls()
    watcher = own.io(one.fileno(), READ)
    watcher.start(lambda: calls() or (one.recv(1) and len(calls) == 2 and watcher.stop()))
    own.run()
    assert len(calls) == 2


def test_a_hangup_wakes_readers(own: GeventLoop, pair: Any) -> None:
    one, other = pair
    calls = Calls()
    watcher = own.io(one.fileno(), READ)
    watcher.start(lambda: calls(one.recv(1)) or watcher.stop())
    other.close()
    own.run()
    assert calls == [(b"",)]


def test_a_watcher_whose_callback_fails_is_stopped(own: GeventLoop, pair: Any) -> None:
    errors = []
    own.error_handler = lambda *args: errors.append(args[2])
    watcher = own.io(pair[0].fileno(), WRITE)
    watcher.start(lambda: 1 // 0)
    own.run()
    assert [type(error) for error in errors] == [ZeroDivisionError]
    assert not watcher.active


def test_stopped_and_started_in_a_turn_costs_the_host_nothing(own: GeventLoop, pair: Any) -> None:
    one, other = pair
    asked = []
    calls = Calls()
    watcher = own.io(one.fileno(), READ)
    names = ["add_reader", "remove_reader"] if HOST == "uvloop" else ["watch"]
    for name in names:

        def noting(method: Any, name: str, *args: Any) -> Any:
            asked.append(name)
            return method(*args)

        setattr(own._private, name, partial(noting, getattr(own._private, name), name))

    def fired() -> None:
        one.recv(1)
        watcher.stop()
        calls()
        if len(calls) < 5:
            watcher.start(fired)
            other.send(b"x")

    watcher.start(fired)
    other.send(b"x")
    own.run()
    assert len(calls) == 5
    assert asked == (names if HOST == "uvloop" else ["watch"] * 2)


def test_a_number_that_was_used_again_is_not_ready_for_what_it_was_before(
    own: GeventLoop, pair: Any
) -> None:
    """Both are found by one poll; the one that fires first closes and replaces the other."""
    calls = Calls()
    pairs = [socket.socketpair() for _ in range(2)]
    watchers = [own.io(one.fileno(), READ) for one, _ in pairs]

    def fired(number: int) -> None:
        calls(number)
        watchers[number].close()
        watchers[1 - number].close()
        fd = pairs[1 - number][0].fileno()
        os.dup2(pair[0].fileno(), fd)  # nothing has been sent there
        watcher = own.io(fd, READ)
        watcher.start(calls, "replaced")
        watchers.append(watcher)

    for number, (_, other) in enumerate(pairs):
        other.send(b"x")
        watchers[number].start(fired, number)
    end = own.timer(0.01)
    end.start(lambda: watchers[-1].close())
    own.run()
    assert len(calls) == 1
    assert calls[0][0] in (0, 1)
    for one, other in pairs:
        one.close()
        other.close()


def test_callbacks_then_descriptors_then_timers(own: GeventLoop, pair: Any) -> None:
    """All of them are due when the loop begins to run."""
    calls = Calls()
    timer = own.timer(0.0)
    timer.start(calls, "timer")
    reader = own.io(pair[0].fileno(), READ)

    def readable() -> None:
        calls("reader")
        own.run_callback(calls, "callback of the reader")
        reader.stop()

    reader.start(readable)
    own.run_callback(calls, "callback")
    pair[1].send(b"x")
    own.run()
    assert [name for (name,) in calls[:2]] == ["callback", "reader"]
    assert sorted(calls[2:]) == [("callback of the reader",), ("timer",)]


def test_regular_files_are_always_ready(own: GeventLoop) -> None:
    calls = Calls()
    with tempfile.TemporaryFile() as file:
        for events in (READ, WRITE):
            watcher = own.io(file.fileno(), events)
            watcher.start(
                lambda happened, watcher=watcher: calls(happened) or watcher.stop(),
                pass_events=True,
            )
        own.run()
        assert sorted(calls) == [(READ,), (WRITE,)]
        turns = count_turns(own)  # and they keep nobody busy once nobody watches them
        own.timer(0.05).start(int)
        own.run()
        assert len(turns) <= 4


def test_a_descriptor_that_is_closed_before_it_is_watched(own: GeventLoop, pair: Any) -> None:
    """Whoever waits finds out, once."""
    calls = Calls()
    fd = os_dup(pair[0].fileno())
    watcher = own.io(fd, READ, ref=False)
    watcher.start(calls)
    own.run_callback(os_close, fd)
    own.timer(0.05).start(int)
    turns = count_turns(own)
    own.run()
    assert calls == [()]
    assert len(turns) <= 6
    watcher.close()


def test_bad_descriptors(own: GeventLoop, pair: Any) -> None:
    with pytest.raises(ValueError, match="non-negative"):
        own.io(-1, READ)
    with pytest.raises(ValueError, match="illegal event mask"):
        own.io(pair[0].fileno(), 8)
    fd = os_dup(pair[0].fileno())
    os_close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        own.io(fd, READ)
    watcher = own.io(pair[0].fileno(), READ)
    with pytest.raises(TypeError, match="callable"):
        watcher.start(3)
    watcher.start(int)
    with pytest.raises(AttributeError, match="read-only"):
        watcher.fd = 1
    with pytest.raises(AttributeError, match="read-only"):
        watcher.events = WRITE
    watcher.close()
    with pytest.raises(ValueError, match="illegal event mask"):
        watcher.events = 8
    with pytest.raises(ValueError, match="non-negative"):
        watcher.fd = -1
    watcher.events = WRITE
    assert watcher.events_str == "WRITE"


def test_a_descriptor_that_is_closed_wakes_those_who_wait(own: GeventLoop) -> None:
    """gevent says ``closing_fd`` before it closes."""
    one, other = native_socketpair()
    calls = Calls()
    watcher = own.io(one.fileno(), READ)

    def fired(events: int) -> None:
        calls(events)
        watcher.stop()

    watcher.start(fired, pass_events=True)

    def close() -> None:
        assert own.closing_fd(one.fileno())
        one.close()

    own.timer(0.001).start(close)
    own.run()
    assert calls == [(READ,)]
    assert not own.closing_fd(other.fileno())
    other.close()


def test_who_polls_a_descriptor_that_is_closed_hears_of_it_in_time() -> None:
    """Not that his time is up first, however short it is, and not before it is closed."""
    from gevent import select, socket

    def original(*_: Any) -> tuple[tuple[()], ...]:
        return (), (), ()  # it is asked first, and there is nothing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "_original_select", original)
        for _ in range(100):
            sock = socket.socket()
            fd = sock.fileno()
            poller = select.poll()
            poller.register(sock, select.POLLIN)
            gevent.spawn(sock.close)
            assert poller.poll(0.001) == [(fd, select.POLLIN)]
            if GEVENT < (25, 8):
                with pytest.raises(OSError):  # it does not catch what io() raises
                    poller.poll(0.001)
            else:
                assert poller.poll(0.001) == [(fd, select.POLLNVAL)]


def test_who_is_fed_does_not_wait_for_checks_for_ever(own: GeventLoop, pair: Any) -> None:
    """One that is started in each turn, as by a server that closes connections."""
    calls = Calls()
    watcher = own.io(pair[0].fileno(), READ)
    watcher.start(lambda: calls("fed") or watcher.stop())
    own.timer(0).start(calls, "timer")
    checks = []

    def again() -> None:
        for each in checks:
            each.close()
        if len(calls) < 2:
            checks.append(own.check())
            checks[-1].start(int)
            own.closing_fd(pair[0].fileno())
            own.timer(0).start(again)

    again()
    own.run()
    assert sorted(calls) == [("fed",), ("timer",)]


def test_a_number_that_is_used_again(own: GeventLoop) -> None:
    """Somebody closes a descriptor behind the loop's back, and the next one gets its number."""
    calls = Calls()
    one, other = native_socketpair()
    fd = one.fileno()
    stale = own.io(fd, READ)
    stale.start(calls, "stale")
    own.timer(0.001).start(int)
    stale.ref = False
    own.run()  # it is registered now
    os_close(one.detach())
    new, far = native_socketpair()
    if new.fileno() != fd:
        os.dup2(new.fileno(), fd)
        new.close()
        new = socket.socket(fileno=fd)
    stale.stop()
    watcher = own.io(fd, READ)
    watcher.start(lambda: calls("new") or watcher.stop())
    far.send(b"x")
    own.run()
    assert calls == [("new",)]
    for each in (other, new, far):
        each.close()


def test_a_watched_descriptor_that_is_closed_keeps_nobody_busy(own: GeventLoop) -> None:
    one, other = native_socketpair()
    watcher = own.io(one.fileno(), READ, ref=False)
    watcher.start(int)
    own.timer(0.001).start(int)
    own.run()
    os_close(one.detach())
    other.close()
    turns = count_turns(own)
    own.timer(0.1).start(int)
    own.run()
    assert len(turns) <= 4
    watcher.close()


# --- idle means idle ------------------------------------------------------------------------------


def count_turns(own: GeventLoop) -> list[Any]:
    turns: list[Any] = []
    original = own._turn

    def turn(*args: Any) -> None:
        turns.append(args)
        original(*args)

    own._turn = turn  # type: ignore[method-assign]
    return turns


def test_idle_means_idle(own: GeventLoop, pair: Any) -> None:
    watchers = [
        own.io(pair[0].fileno(), READ),
        own.timer(1000),
        own.async_(),
        own.check(),
        own.prepare(),
        own.signal(signal.SIGUSR2),
    ]
    for watcher in watchers:
        watcher.ref = False
        watcher.start(int)
    for _ in range(100):
        with own.timer(0.05) as stopped:
            stopped.start(int)
    own.timer(0.001).start(int)
    own.run()
    turns = count_turns(own)
    polls = count_polls(own)
    own.timer(0.2).start(int)
    own.run()
    assert len(turns) <= 4, turns
    assert len(polls) <= 5
    for watcher in watchers:
        watcher.close()


def count_polls(own: GeventLoop) -> list[Any]:
    polls: list[Any] = []
    selector = getattr(own._private, "_selector", None)
    if selector is not None:  # uvloop's cannot be looked at
        original = selector.select

        def select(timeout: Any = None) -> Any:
            polls.append(timeout)
            return original(timeout)

        selector.select = select
    return polls


# --- the other kinds ------------------------------------------------------------------------------


def test_idle_fires_when_nothing_else_does(own: GeventLoop, pair: Any) -> None:
    one, other = pair
    calls = Calls()
    watcher = own.io(one.fileno(), READ)
    watcher.start(lambda: calls("io") or watcher.stop())
    other.send(b"x")
    idle = own.idle()
    idle.start(lambda: calls("idle") or idle.stop())
    own.run_callback(calls, "callback")
    own.run()
    assert calls == [("callback",), ("io",), ("idle",)]


def test_prepare_and_check_fire_around_a_poll(own: GeventLoop) -> None:
    calls = Calls()
    prepare, check = own.prepare(ref=False), own.check()
    prepare.start(calls, "prepare")
    check.start(lambda: calls("check") or check.stop())
    own.run_callback(lambda: own.run_callback(calls, "callback"))
    own.run()
    assert calls[0] == ("prepare",)
    assert calls.index(("callback",)) < calls.index(("check",))


def test_threads_wake_it(own: GeventLoop) -> None:
    calls = Calls()
    watcher = own.async_()

    def in_hub() -> None:
        calls(native_ident())
        watcher.stop()

    watcher.start(in_hub)

    def in_thread() -> None:
        for _ in range(1000):
            watcher.send()
        watcher.send_ignoring_arg(None)

    start_native_thread(in_thread, ())
    own.run()
    assert set(calls) == {(native_ident(),)}
    assert not watcher.active


def test_a_send_before_the_loop_runs_is_not_lost(own: GeventLoop) -> None:
    calls = Calls()
    watcher = own.async_()
    watcher.start(lambda: calls() or watcher.stop())
    watcher.send()
    watcher.send()
    assert watcher.pending
    own.run()
    assert calls == [()]
    assert not watcher.pending


def test_callbacks_from_threads_all_arrive() -> None:
    arrived: list[int] = []
    done = gevent.event.Event()
    hub = gevent.get_hub()

    def arrive(number: int) -> None:
        arrived.append(number)
        if len(arrived) == 4000:
            done.set()

    def in_thread(first: int) -> None:
        for number in range(first, first + 1000):
            hub.loop.run_callback_threadsafe(arrive, number)

    keep = hub.loop.async_()
    keep.start(int)
    for first in range(0, 4000, 1000):
        start_native_thread(in_thread, (first,))
    done.wait()
    keep.close()
    assert sorted(arrived) == list(range(4000))


def test_signals_reach_all_their_watchers(own: GeventLoop) -> None:
    before = signal.getsignal(signal.SIGUSR2)
    calls = Calls()
    watchers = [own.signal(signal.SIGUSR2) for _ in range(2)]
    for number, watcher in enumerate(watchers):
        watcher.start(lambda number=number, watcher=watcher: calls(number) or watcher.stop())
    own.timer(0.001).start(os.kill, os.getpid(), signal.SIGUSR2)
    own.run()
    assert calls == [(0,), (1,)]
    assert signal.getsignal(signal.SIGUSR2) is before
    for number in (0, signal.NSIG, -1):
        with pytest.raises(ValueError, match="illegal signal number"):
            own.signal(number)


def wake_by_signals() -> Any:
    """Have signals wake the hub also if they come just before it polls: the standard loop has only
    that the poll is interrupted, which the main thread may not have begun."""
    watcher = loop().signal(signal.SIGUSR1)
    watcher.start(int)
    return watcher


def test_a_handler_of_the_interpreter_wakes_the_hub() -> None:
    """What it calls of gevent is done although the hub is asleep."""
    event = gevent.event.Event()
    before = signal.signal(signal.SIGUSR2, lambda *_: event.set())
    keep = wake_by_signals()
    try:
        start_native_thread(lambda: os.kill(os.getpid(), signal.SIGUSR2), ())
        assert event.wait(10)
    finally:
        keep.close()
        signal.signal(signal.SIGUSR2, before)


class Interrupted(Exception):
    pass


def interrupt(*args: Any) -> None:
    raise Interrupted


def test_what_a_handler_of_the_interpreter_raises_is_for_the_main_greenlet(observed: Any) -> None:
    before = signal.signal(signal.SIGUSR2, interrupt)
    keep = wake_by_signals()
    try:
        for _ in range(3):
            start_native_thread(lambda: os.kill(os.getpid(), signal.SIGUSR2), ())
            with pytest.raises(Interrupted):
                # Without a timeout: gevent would leave it running if the handler is called just as
                # it has started, and it would be raised in another test.
                gevent.event.Event().wait()
    finally:
        keep.close()
        signal.signal(signal.SIGUSR2, before)
    assert all(isinstance(error, Interrupted) for error in observed.hub_errors)
    observed.hub_errors.clear()


@pytest.mark.parametrize("lost", ["wake", "timer", "start"])
def test_a_handler_that_raises_as_the_loop_is_called_loses_nothing(
    lost: str, observed: Any, monkeypatch: Any
) -> None:
    """Before the first instruction of what the loop has its host call."""
    before = signal.signal(signal.SIGUSR2, interrupt)
    # In C: the handler is called by what comes next.
    interrupt_main = get_original("_thread", "interrupt_main"), signal.SIGUSR2
    ticker = gevent.spawn(gevent.sleep, 60)
    gevent.sleep(0)
    host: Any = loop()._private  # type: ignore[attr-defined]
    watcher = loop().async_()
    try:
        with pytest.raises(Interrupted):
            if lost == "wake":
                host.call_soon(*interrupt_main)
                watcher.send()
            elif lost == "timer" and HOST == "uvloop":
                host.call_later(0.001, *interrupt_main)
                ticker.kill()
                ticker = gevent.spawn(gevent.sleep, 0.002)
                gevent.sleep(0)
                ends = time.monotonic() + 0.05
                while time.monotonic() < ends:
                    pass  # both are due when the host looks
            else:
                method = getattr(type(loop()), f"_on_{lost}")

                def interrupted(*args: Any) -> None:
                    monkeypatch.undo()
                    os.kill(os.getpid(), signal.SIGUSR2)
                    method(*args)

                monkeypatch.setattr(type(loop()), f"_on_{lost}", interrupted)
                if lost == "start":
                    host.stop()
                else:
                    ticker.kill()
                    ticker = gevent.spawn(gevent.sleep, 0.002)
            gevent.event.Event().wait()
    finally:
        signal.signal(signal.SIGUSR2, before)
    gevent.sleep(0.001)
    gevent.spawn(gevent.sleep, 0).join()
    sent = gevent.event.Event()
    watcher.start(sent.set)
    start_native_thread(watcher.send, ())
    assert sent.wait(10)
    watcher.close()
    ticker.kill()
    assert all(isinstance(error, Interrupted) for error in observed.hub_errors)
    observed.hub_errors.clear()


def test_timers_that_were_due_when_a_handler_raised_are_not_lost(
    own: GeventLoop, monkeypatch: Any, observed: Any
) -> None:
    """In the midst of those that are due, where no watcher's callback is to blame."""
    calls = Calls()
    errors = Calls()
    own.error_handler = errors
    timers = [own.timer(0) for _ in range(5)]
    for number, timer in enumerate(timers):
        timer.start(calls, number)

    class Entry(list[Any]):
        # What the loop asks each entry for, at a place where a signal may arrive.
        def pop(self, *args: Any) -> Any:
            if len(self) == 3 and not errors:
                raise Interrupted
            return super().pop(*args)

    own._due = Entry()
    own.run()
    while own.activecnt:
        own.run()
    assert calls == [(0,), (1,), (2,), (3,), (4,)]
    assert [error[1] for error in errors] == [Interrupted]


def fork(function: Any) -> int:
    """Have a native child, of which gevent knows nothing, call this; return its process id."""
    pid: int = get_original("os", "fork")()
    if not pid:
        try:
            os._exit(function() or 0)
        finally:
            os._exit(77)
    return pid


def test_children_have_any_number_of_watchers() -> None:
    read, write = os.pipe()
    pid = fork(lambda: os.read(read, 1) and 3)
    calls = Calls()
    watchers = [loop().child(pid) for _ in range(3)]
    for watcher in watchers:
        watcher.start(
            lambda watcher=watcher: calls([each.rstatus for each in watchers], watcher.rpid)
        )
    os.write(write, b"x")
    while len(calls) < 3:
        gevent.sleep(0.001)
    # All of them know when the first is called.
    assert calls == [([3 << 8] * 3, pid)] * 3
    for watcher in watchers:
        watcher.close()
        assert (watcher.rpid, watcher.rstatus) == (pid, 3 << 8)
    os_close(read)
    os_close(write)


def test_a_child_that_has_ended_before_and_one_of_somebody_else() -> None:
    others = fork(lambda: 4)
    pid = fork(lambda: os.kill(os.getpid(), signal.SIGKILL))
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    ended = gevent.event.Event()
    watcher = loop().child(pid)
    watcher.start(ended.set)
    assert ended.wait(10)
    assert watcher.rstatus == signal.SIGKILL
    watcher.close()
    # Nobody has taken that one's status.
    assert get_original("os", "waitpid")(others, 0) == (others, 4 << 8)


def test_any_child() -> None:
    ended = gevent.event.Event()
    watcher = loop().child(0)
    watcher.start(ended.set)
    assert callable(get_original("signal", "getsignal")(signal.SIGCHLD))
    pid = fork(lambda: 5)
    assert ended.wait(10)
    assert (watcher.rpid, watcher.rstatus) == (pid, 5 << 8)
    watcher.close()


def test_children_are_for_the_default_loop(own: GeventLoop) -> None:
    with pytest.raises(TypeError, match="child watchers are only available on the default loop"):
        own.child(1)
    for bad in ("x", None):
        with pytest.raises(TypeError):
            loop().child(bad)


def test_paths(own: GeventLoop, tmp_path: Any) -> None:
    path = tmp_path / "file"
    calls = Calls()
    watcher = own.stat(str(path), interval=0.01)

    def changed() -> None:
        calls(watcher.prev is None, watcher.attr is None)
        if watcher.attr is None:
            watcher.stop()
        else:
            path.unlink()

    watcher.start(changed)
    assert watcher.interval >= 0.1
    own.run_callback(path.write_bytes, b"x")
    own.run()
    assert calls == [(True, False), (False, True)]
    assert watcher.path == str(path)


def test_what_all_watchers_have(own: GeventLoop, pair: Any) -> None:
    watchers = [
        own.timer(1), own.io(pair[0].fileno(), READ), own.async_(), own.idle(), own.check(),
        own.prepare(), own.fork(), own.signal(signal.SIGUSR2), own.stat("/"),
        getattr(own, "async")(),
    ]  # fmt: skip
    for watcher in watchers:
        assert (watcher.active, watcher.callback, watcher.args) == (False, None, None), watcher
        assert watcher.loop is own
        assert not watcher.pending
        watcher.stop()
        watcher.start(int, 1)
        watcher.start(float, 2)
        assert own.activecnt == 1, watcher
        assert (watcher.active, watcher.callback, watcher.args) == (True, float, (2,))
        for bad in (3, "x"):
            with pytest.raises(TypeError):
                watcher.callback = bad
            with pytest.raises(TypeError):
                watcher.args = bad
        watcher.args = None
        watcher.ref = False
        assert own.activecnt == 0
        watcher.ref = True
        assert own.activecnt == 1
        assert type(watcher).__name__ in repr(watcher)
        watcher.close()
        watcher.close()
        watcher.stop()
        assert own.activecnt == 0
        with watcher as same:
            assert same is watcher


# --- loops, threads, forks ------------------------------------------------------------------------


def test_what_is_fed_fires_once_and_is_not_started(own: GeventLoop, pair: Any) -> None:
    makers = [
        lambda: own.timer(60), lambda: own.io(pair[0].fileno(), READ), own.async_, own.idle,
        own.check, own.prepare, own.fork, lambda: own.signal(signal.SIGUSR2),
        lambda: own.stat("/"),
    ]  # fmt: skip
    for make in makers:
        calls = Calls()
        watcher = make()
        watcher.feed(READ, calls, 1)
        assert (watcher.callback, watcher.args) == (calls, (1,)), watcher
        own.run()
        assert calls == [(1,)], watcher
        assert (watcher.active, watcher.callback, watcher.args) == (False, None, None), watcher
        assert own.activecnt == 0, watcher
        watcher.feed(READ, calls, 2)
        watcher.stop()
        own.run()
        watcher.feed(READ, lambda started=watcher: started.start(calls, 3))
        own.run(nowait=True)
        assert watcher.active, watcher
        watcher.close()
        assert (2,) not in calls
    with pytest.raises(TypeError, match="callable"):
        own.timer(1).feed(READ, None)  # type: ignore[arg-type]
    watcher = own.timer(1)
    own.destroy()
    with pytest.raises(ValueError, match="destroyed"):
        watcher.feed(READ, int)


def test_a_destroyed_loop_says_so(pair: Any) -> None:
    own = GeventLoop(default=False)
    timer, watcher = own.timer(1), own.io(pair[0].fileno(), READ)
    watcher.start(int)
    assert own.ptr
    assert own.destroy()
    assert own.destroy() is None
    assert not own.ptr
    for stale in (timer, watcher):
        with pytest.raises(ValueError, match="destroyed"):
            stale.start(int)
    with pytest.raises(ValueError, match="destroyed"):
        own.timer(1)
    with pytest.raises(ValueError, match="destroyed"):
        own.activecnt  # noqa: B018
    assert "destroyed" in repr(own)


def test_loops_leave_nothing_behind() -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    references = []
    for _ in range(20):
        own = GeventLoop(default=False)
        own.timer(0.0001).start(int)
        own.run()
        own.destroy()
        references.append(weakref.ref(own))
        del own
    gc.collect()
    assert not [each for each in references if each() is not None]
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("place", ["private", "attached"])
def test_nothing_grows(place: str) -> None:
    finished = run_script("gevent_loop_endurance", place, "2000", "30000")
    assert (finished.status, finished.out.strip()) == (0, "ok"), finished


def test_each_native_thread_has_its_own() -> None:
    results: list[Any] = []

    def in_thread() -> None:
        hub = gevent.get_hub()
        gevent.sleep(0.001)
        results.append((hub.loop is main, hub.loop.default, gevent.spawn(int).get()))
        hub.destroy(destroy_loop=True)

    main = loop()
    for _ in range(2):
        main_hub = gevent.get_hub()
        ended = gevent.event.Event()
        keep = main.async_()
        keep.start(ended.set)

        def run() -> None:
            try:
                in_thread()
            finally:
                keep.send()

        start_native_thread(run, ())
        ended.wait()
        keep.close()
        assert main_hub is gevent.get_hub()
    assert results == [(False, False, 0)] * 2


@pytest.mark.parametrize("forks", ["os", "gevent", "multiprocessing"])
def test_forks(forks: str) -> None:
    run_script("gevent_loop_fork", forks, warnings="ignore").check("ok")


def test_other_threads_of_the_parent_go_on_when_the_child_forgets_them() -> None:
    run_script("gevent_loop_fork_threads", patched=False, warnings="ignore").check("ok")


@pytest.mark.parametrize("when", ["atexit", "thread"])
def test_first_used_when_the_program_ends(when: str) -> None:
    run_script("gevent_loop_late", when, patched=False).check("ok")


def test_gevent_itself_imports_it() -> None:
    run_script("gevent_loop_import", patched=False).check("ok")


def test_a_host_that_is_none_is_an_error_that_says_so() -> None:
    finished = run_script(
        "gevent_loop_import", patched=False, environment={"ASYNCIO_GEVENT_HOST": "no.such"}
    )
    assert finished.status
    assert "ASYNCIO_GEVENT_HOST='no.such' names nothing that makes an event loop" in finished.err


def test_the_names_that_gevent_and_its_tests_look_for() -> None:
    import gevent.core

    for name in ("loop", "READ", "WRITE", "callback", "supported_backends", "EVENTS"):
        assert hasattr(gevent.core, name), name
    assert sys.modules[GeventLoop.__module__].loop is GeventLoop
    assert loop().backend == "default"
    assert GeventLoop.MAXPRI > GeventLoop.MINPRI
    from gevent._interfaces import ICallback, ILoop
    from zope.interface import verify

    verify.verifyObject(ILoop, loop())
    verify.verifyObject(ICallback, loop().run_callback(int))
    assert "private host" in repr(gevent.get_hub())


def test_a_number_that_a_callback_gives_to_another_file_is_not_ready() -> None:
    """Although the file that had it was, in the same poll."""
    first, first_peer = socket.socketpair()
    second, second_peer = socket.socketpair()
    quiet, quiet_peer = socket.socketpair()
    watchers = [loop().io(each.fileno(), READ) for each in (first, second)]
    renewed: list[Any] = []
    fired: list[str] = []

    def swap(other: Any) -> None:
        fired.append("swap")
        for watcher in watchers:
            watcher.stop()
        os.dup2(quiet.fileno(), other.fileno())
        renewed.append(loop().io(other.fileno(), READ))
        renewed[0].start(lambda: fired.append("renewed"))

    watchers[0].start(swap, second)
    watchers[1].start(swap, first)
    first_peer.send(b"x")
    second_peer.send(b"x")
    gevent.sleep(0.01)
    assert fired == ["swap"]
    quiet_peer.send(b"x")
    gevent.sleep(0.01)
    assert "renewed" in fired
    for watcher in (*watchers, *renewed):
        watcher.stop()
        watcher.close()
    for each in (first, first_peer, second, second_peer, quiet, quiet_peer):
        each.close()
