"""Random steps over bridges between greenlets and coroutines, compared with a model of them.

A *bridge* is a chain of frames, each of which waits for the next one: functions that block and
coroutines in turn, joined by the adapters. At its top is what the test holds: a greenlet, a task,
``future_to_greenlet(...)`` or ``greenlet_to_future(...)``. At its end is a leaf, which waits for
an event of the test, then ends as it is told to, and may wait for a second event to clean up.

The model (`Model`) knows no loop, hub or turn. It says who hears of an interruption, and what the
outcome of a frame is to the frame that waits for it:

- what is thrown into a greenlet, or cancels a task, goes to the innermost frame it can reach; a
  link whose autocancel or autokill flag is off cannot be passed: the frame above it ends at once,
  and the frames below go on by themselves;
- outcomes go up, the same objects. ``CancelledError`` becomes `CancelledExit` where a coroutine
  had a task of its own, ``GreenletExit`` becomes ``CancelledError`` where a greenlet is awaited;
- what was thrown into a greenlet is raised there in the end, unless what it waited for has
  failed; what is thrown second does not wait.

After each step the hub runs until nothing happens any more, and the bridges must be where the
model has them. Where several steps happen in one turn, the order is nobody's business: then the
outcome only has to be one that was on its way. In the end each bridge has ended once, and nothing
is left. ``ADAPTER_MACHINE_EXAMPLES=3000`` makes it run for longer.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from asyncio import CancelledError
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import gevent
import pytest
from conftest import Observed
from gevent import GreenletExit
from gevent.event import Event
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

import asyncio_gevent
from asyncio_gevent import CancelledExit, EventLoop, await_
from asyncio_gevent._ambient import get_ambient_loop
from asyncio_gevent._portals import portals

EXAMPLES = int(os.environ.get("ADAPTER_MACHINE_EXAMPLES", "600"))
BATCH = 200
STEPS = 25
MAX_FRAMES = 6
HAS_TIMEOUTS = sys.version_info >= (3, 11)

SWALLOWED = "swallowed"
Outcome = tuple[str, Any]  # ("return" or "raise", an object, or a class for any instance of it)
CANCELLED: Outcome = ("raise", CancelledError)


class Boom(Exception):
    """What leaves fail with, and what is thrown into greenlets."""


# --- what a bridge is made of ---------------------------------------------------------------------


class Link(NamedTuple):
    """How a frame waits for the next one; the flags are those of the adapters."""

    kind: str
    autocancel: bool = True
    autokill: bool = True

    def __repr__(self) -> str:
        return f"<{self.kind} {self.autocancel:d}{self.autokill:d}>"


class Chain(NamedTuple):
    """A bridge as it is drawn.

    Attributes:
        top: "greenlet", "task", "from future" (a FutureGreenlet) or "from greenlet" (its future).
        links: from the top on.
        swallows: the leaf catches what interrupts it, and returns.
        has_cleanup: the leaf waits for a second event before it ends.
        keeps: the workers of sync_to_async are known to somebody, and not used again.
        times_out: the coroutines have timeouts.
    """

    top: str
    links: tuple[Link, ...]
    swallows: bool
    has_cleanup: bool
    keeps: bool
    times_out: bool


TO_SYNC = "sync_to_async", "greenlet_to_future", "spawn", "direct"
TO_ASYNC = "await_", "await_ task", "async_to_sync", "await_ future"
WITH_FLAGS = "sync_to_async", "greenlet_to_future", "async_to_sync"


@st.composite
def chains(draw: Any, most: int = MAX_FRAMES) -> Chain:
    top = draw(st.sampled_from(["greenlet", "task", "from future", "from greenlet"]))
    is_async = top in ("task", "from greenlet")
    links: list[Link] = []
    flags = st.sampled_from([True, True, False])
    if top == "from future":
        kinds = st.sampled_from(["await_", "await_ task", "await_ future"])
        links.append(Link(draw(kinds), draw(flags), draw(flags)))
        is_async = True
    elif top == "from greenlet":
        links.append(Link("greenlet_to_future", draw(flags), draw(flags)))
        is_async = False
    for _ in range(draw(st.integers(0, most - 1 - len(links)))):
        if links and links[-1].kind == "await_ future":
            break
        kind = draw(st.sampled_from(TO_SYNC if is_async else TO_ASYNC))
        links.append(Link(kind, draw(flags), draw(flags)) if kind in WITH_FLAGS else Link(kind))
        is_async = not is_async
    mostly = st.sampled_from([True, True, False])
    swallows, times_out = draw(st.booleans()), draw(st.booleans())
    return Chain(top, tuple(links), swallows, draw(mostly), draw(mostly), times_out)


# --- the model ------------------------------------------------------------------------------------


def kind_of(what: Any) -> type:
    return what if isinstance(what, type) else type(what)


def raised(what: Any) -> Outcome:
    """The outcome of a frame that raises; a CancelledError need not stay the same object."""
    return "raise", (kind_of(what) if issubclass(kind_of(what), CancelledError) else what)


def is_raised(outcome: Outcome, kind: type) -> bool:
    return outcome[0] == "raise" and issubclass(kind_of(outcome[1]), kind)


class Model:
    """What a bridge does.

    Attributes:
        is_async: of each frame; the last one is the leaf.
        ended: the outcome of each frame, or None.
        pending: what was thrown into a frame that waits for its clean-up to end.
        hasty: frames that got a second exception, and have ended, but in a task that has not.
        requested: frames that have killed the greenlet they await.
        cancels: how often the task that begins with a frame was cancelled.
        leaf: "waiting", "cleaning" or "ended".
        heard: the exceptions that the leaf got.
    """

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.links = chain.links
        self.last = last = len(chain.links)
        first = chain.top in ("task", "from greenlet")
        self.is_async = [first == (k % 2 == 0) for k in range(last + 1)]
        self.is_future = bool(last) and self.links[-1].kind == "await_ future"
        self.ended: list[Outcome | None] = [None] * (last + 1)
        self.attached = [True] * (last + 1)
        self.pending: dict[int, Any] = {}
        self.hasty: set[int] = set()
        self.requested: set[int] = set()
        self.timed_out: set[int] = set()
        self.cancels: Counter[int] = Counter()
        self.leaf = "waiting"
        self.leaf_outcome: Outcome = ("return", None)
        self.heard: list[type] = []

    def is_in_task(self, k: int) -> bool:
        """Whether a blocking frame is part of the task of the frame above."""
        return k > 0 and self.links[k - 1].kind in ("sync_to_async", "direct")

    def is_worker(self, k: int) -> bool:
        return k > 0 and self.links[k - 1].kind == "sync_to_async"

    def begins_task(self, k: int) -> bool:
        """Whether a coroutine, or the future at the end, has a task of its own."""
        if k == 0:
            return True
        return self.links[k - 1].kind in ("await_ task", "await_ future") or not self.is_in_task(
            k - 1
        )

    def is_direct(self, k: int) -> bool:
        return k > 0 and self.links[k - 1].kind == "direct"

    def innermost(self, k: int) -> int:
        """Return the frame that blocks in the greenlet of this one, which is that of a step."""
        task = self.task_of(k)
        below = range(k + 1, self.last + 1)
        return max([k, *(j for j in below if self.is_direct(j) and self.task_of(j) == task)])

    def task_of(self, k: int) -> int:
        while not (self.is_async[k] and self.begins_task(k)):
            k -= 1
        return k

    # What the test does.

    def release(self, outcome: Outcome) -> None:
        if self.leaf == "waiting":
            self._finish_leaf(outcome)

    def release_cleanup(self) -> None:
        if self.leaf == "cleaning":
            self._end_leaf(self.leaf_outcome)

    def kill(self, k: int, error: Any) -> None:
        """Throw this into the greenlet of a blocking frame."""
        if self.ended[k] is not None or k in self.hasty:
            return
        if k == self.last:
            self._hear(error)
        elif self.is_in_task(k):
            if k in self.pending:
                self.hasty.add(k)
                self.pending[k] = error
            else:
                self.pending[k] = error
                self._cancel_below(k)
        elif k in self.pending or not self.links[k].autocancel:
            self._abandon(k, raised(error))
        else:
            self.pending[k] = error
            self.cancel(k + 1)

    def cancel(self, k: int) -> None:
        """Cancel the task of a coroutine."""
        if self.ended[k] is None:
            self.cancels[self.task_of(k)] += 1
            self._cancel_innermost(k)

    def time_out(self, k: int) -> None:
        self.timed_out.add(k)
        self.cancel(k)

    def end_unbegun(self, outcome: Outcome) -> None:
        self.leaf = "ended"
        self.ended = [outcome] * (self.last + 1)

    # Down.

    def _cancel_innermost(self, k: int) -> None:
        if k == self.last:
            self._hear(CancelledError)
            return
        link, below = self.links[k], k + 1
        if link.kind == "direct" and below == self.last:
            self._hear(CancelledError)
        elif self.is_in_task(below) and below != self.last:
            if below in self.pending:
                self.pending[below] = CancelledError  # the last one, as from any call that blocks
            self._cancel_below(below)
        elif link.autokill:
            self.requested.add(k)
            self.kill(below, CancelledExit if link.kind == "sync_to_async" else GreenletExit)
        else:
            self._abandon(k, CANCELLED)

    def _cancel_below(self, k: int) -> None:
        (self.cancel if self.begins_task(k + 1) else self._cancel_innermost)(k + 1)

    def _abandon(self, k: int, outcome: Outcome) -> None:
        self.attached[k + 1] = False
        self._leave(k, outcome)

    def _hear(self, error: Any) -> None:
        if self.leaf == "waiting":
            if not self.is_future:
                self.heard.append(kind_of(error))
            swallows = self.chain.swallows and not self.is_future
            self._finish_leaf(("return", SWALLOWED) if swallows else raised(error))
        elif self.leaf == "cleaning":
            self.heard.append(kind_of(error))
            self._end_leaf(raised(error))

    def _finish_leaf(self, outcome: Outcome) -> None:
        if self.chain.has_cleanup and not self.is_future:
            self.leaf, self.leaf_outcome = "cleaning", outcome
        else:
            self._end_leaf(outcome)

    def _end_leaf(self, outcome: Outcome) -> None:
        self.leaf = "ended"
        self._leave(self.last, outcome)

    # Up.

    def _leave(self, k: int, outcome: Outcome) -> None:
        if k in self.timed_out:
            task = self.task_of(k)
            self.cancels[task] -= 1
            others = self.cancels[task] + sum(
                self.is_worker(i) and self.task_of(i) == task and i < k for i in self.pending
            )
            if is_raised(outcome, CancelledError) and not others:
                outcome = "raise", TimeoutError
        self.ended[k] = outcome
        if k and self.attached[k]:
            above = k - 1
            if self.is_async[above]:
                self._leave(above, self._awaited(above, outcome))
            else:
                self._leave(above, self._waited_for(above, outcome))

    def _waited_for(self, k: int, outcome: Outcome) -> Outcome:
        """What a blocking frame makes of the outcome of a coroutine."""
        if k in self.pending:
            has_failed = outcome[0] == "raise" and not is_raised(outcome, CancelledError)
            return outcome if has_failed and k not in self.hasty else raised(self.pending[k])
        if not self.is_in_task(k) and outcome == CANCELLED and self.links[k].autokill:
            return "raise", CancelledExit
        return outcome

    def _awaited(self, k: int, outcome: Outcome) -> Outcome:
        """What a coroutine makes of the outcome of a blocking frame."""
        link, below = self.links[k], k + 1
        if link.kind == "direct":
            return outcome
        if below in self.pending and self.cancels[self.task_of(below)] and HAS_TIMEOUTS:
            # Two have cancelled the task: its greenlet, and somebody else, who is not forgotten.
            if not link.autokill:
                return CANCELLED
            self.requested.add(k)
        is_exit = is_raised(outcome, GreenletExit)
        if link.kind != "sync_to_async":
            is_exit = issubclass(kind_of(outcome[1]), GreenletExit)  # gevent returns them
            if is_raised(outcome, CancelledError) and not is_exit:
                return CANCELLED
        if not is_exit:
            return outcome
        return CANCELLED if link.autocancel or k in self.requested else ("return", outcome[1])


# --- the bridge itself ----------------------------------------------------------------------------


class Frame:
    def __init__(self) -> None:
        self.begun = self.ended = 0
        self.greenlet: Any = None
        self.task: Any = None
        self.timeout: Any = None


class Bridge:
    """A chain that runs.

    Attributes:
        holder: what is at the top.
        made: futures and tasks that somebody has to ask for their exceptions.
        actions: steps since it was last at rest; after two in one turn it is `loose`.
        thrown: all exceptions that were on their way.
        was_cancelled: what is at the top was, before it was done.
    """

    def __init__(self, chain: Chain, loop: Any) -> None:
        self.chain = chain
        self.loop = loop
        self.model = Model(chain)
        self.frames = [Frame() for _ in self.model.ended]
        self.plan: Outcome = ("return", None)
        self.event = Event() if not self.model.is_async[-1] else loop.create_future()
        self.cleanup = Event() if not self.model.is_async[-1] else loop.create_future()
        self.made: list[Any] = []
        self.heard: list[type] = []
        self.thrown: list[Any] = []
        self.actions = 0
        self.loose = False
        self.is_checked = False
        self.was_cancelled = False
        self.holder = self._start()

    def _start(self) -> Any:
        top, links = self.chain.top, self.chain.links
        if top == "task":
            return self.loop.create_task(self.coroutine(0))
        if top == "greenlet":
            return asyncio_gevent.spawn(self.function, 0)
        if top == "from greenlet":
            greenlet = gevent.Greenlet(self.function, 1)
            _, autocancel, autokill = links[0]
            return asyncio_gevent.greenlet_to_future(
                greenlet, autocancel, True, autokill, loop=self.loop
            )
        kind, autocancel, autokill = links[0]
        greenlet = asyncio_gevent.future_to_greenlet(
            self._awaitable(kind, 1),
            None if kind == "await_ future" else self.loop,
            True,
            autocancel,
            autokill,
        )
        greenlet.start()
        return greenlet

    def _awaitable(self, kind: str, k: int) -> Any:
        if kind == "await_ future":
            return self.event
        if kind == "await_ task":
            self.made.append(self.loop.create_task(self.coroutine(k)))
            return self.made[-1]
        return self.coroutine(k)

    def function(self, k: int) -> Any:
        """A frame that blocks."""
        frame = self.frames[k]
        frame.begun += 1
        if self.chain.keeps or not self.model.is_worker(k):
            frame.greenlet = gevent.getcurrent()
        try:
            if k == self.model.last:
                return self._leaf()
            kind, autocancel, autokill = self.chain.links[k]
            loop = None if self.model.is_in_task(k) else self.loop
            if kind == "async_to_sync":
                return asyncio_gevent.async_to_sync(
                    self.coroutine, True, autocancel, autokill, loop=loop
                )(k + 1)
            return await_(self._awaitable(kind, k + 1), loop=loop)
        finally:
            frame.ended += 1

    def _leaf(self) -> Any:
        try:
            try:
                self.event.wait()
                return self._do_as_planned()
            except BaseException as error:
                return self._swallow(error)
        finally:
            if self.chain.has_cleanup:
                try:
                    self.cleanup.wait()
                except BaseException as error:
                    self.heard.append(type(error))
                    raise

    async def coroutine(self, k: int) -> Any:
        """A frame that awaits."""
        frame = self.frames[k]
        frame.begun += 1
        frame.task = asyncio.current_task()
        try:
            async with AsyncExitStack() as stack:
                if self.chain.times_out and HAS_TIMEOUTS:
                    frame.timeout = await stack.enter_async_context(asyncio.timeout(None))
                if k == self.model.last:
                    return await self._async_leaf()
                return await self._await(self.chain.links[k], k + 1)
        finally:
            frame.ended += 1

    async def _await(self, link: Link, k: int) -> Any:
        kind, autocancel, autokill = link
        if kind == "direct":
            return self.function(k)
        if kind == "spawn":
            return await asyncio_gevent.spawn(self.function, k)
        if kind == "sync_to_async":
            call = asyncio_gevent.sync_to_async(self.function, autocancel, True, autokill)
            return await call(k)
        greenlet = gevent.Greenlet(self.function, k)
        future = asyncio_gevent.greenlet_to_future(greenlet, autocancel, True, autokill)
        self.made.append(future)
        return await future

    async def _async_leaf(self) -> Any:
        try:
            try:
                await self.event
                return self._do_as_planned()
            except BaseException as error:
                return self._swallow(error)
        finally:
            if self.chain.has_cleanup:
                try:
                    await self.cleanup
                except BaseException as error:
                    self.heard.append(type(error))
                    raise

    def _do_as_planned(self) -> Any:
        how, what = self.plan
        if how == "return":
            return what
        raise what

    def _swallow(self, error: BaseException) -> Any:
        if error is not self.plan[1]:
            self.heard.append(type(error))
            if self.chain.swallows:
                return SWALLOWED
        raise error

    # Steps.

    def acts(self, error: Any = None) -> None:
        self.actions += 1
        self.loose = self.loose or self.actions > 1
        if error is not None:
            self.thrown.append(error)

    def release(self, outcome: Outcome) -> None:
        if asyncio.isfuture(self.event):
            if self.event.done() or self.loop.is_closed():
                return
        elif self.event.is_set():
            return
        self.acts(outcome[1])
        self.plan = outcome
        self.model.release(outcome if outcome[0] == "return" else raised(outcome[1]))
        if not asyncio.isfuture(self.event):
            self.event.set()
        elif not self.model.is_future or outcome[0] == "return":
            self.event.set_result(outcome[1])
        elif isinstance(outcome[1], CancelledError):
            self.event.cancel()
        else:
            self.event.set_exception(outcome[1])

    def release_cleanup(self) -> None:
        self.acts()
        self.loose = self.loose or self.model.leaf == "waiting"
        self.model.release_cleanup()
        if not asyncio.isfuture(self.cleanup):
            self.cleanup.set()
        elif not (self.cleanup.done() or self.loop.is_closed()):
            self.cleanup.set_result(None)

    def interrupt(self, k: int, error: BaseException) -> bool:
        """Interrupt a frame in the way of its kind; return whether it can be."""
        model, frame = self.model, self.frames[k]
        if k == 0:
            target = self.holder
        elif k == model.last and model.is_future:
            target = self.event
        else:
            target = frame.task or frame.greenlet
        if target is None or (model.is_async[k] and self.loop.is_closed()):
            return False
        if model.is_async[k]:
            self.acts()
            model.cancel(k)
            if target.cancel() and k == 0:
                self.was_cancelled = True
        elif model.is_direct(k):
            k = model.innermost(k)
            if self.loose or self.actions or k in model.pending or frame.ended:
                return False  # it is the greenlet of others then
            self.acts(error)
            model.kill(k, error)
            gevent.get_hub().loop.run_callback(target.throw, error)
        else:
            if k and model.is_worker(k) and (self.loose or self.actions):
                return False
            if frame.ended and k:
                return False
            self.acts(error)
            model.kill(k, error)
            target.kill(error, block=False)
        return True

    def let_go(self) -> None:
        """Have it end somehow."""
        for event in self.event, self.cleanup:
            if not asyncio.isfuture(event):
                event.set()
            elif not (event.done() or self.loop.is_closed()):
                event.set_result(None)

    def time_out(self, k: int) -> None:
        frame = self.frames[k]
        if frame.timeout is None or frame.ended or k in self.model.timed_out:
            return
        self.acts()
        self.model.time_out(k)

        def reschedule() -> None:
            if not frame.ended:
                frame.timeout.reschedule(self.loop.time() - 1)

        self.loop.call_soon(reschedule)

    # Checks.

    def is_done(self) -> bool:
        ready = getattr(self.holder, "ready", None) or self.holder.done
        return bool(ready())

    def outcome(self) -> Outcome:
        holder = self.holder
        if isinstance(holder, gevent.Greenlet):
            if holder.exception is not None:
                return "raise", holder.exception
            return ("raise" if isinstance(holder.value, GreenletExit) else "return"), holder.value
        try:
            return "return", holder.result()
        except BaseException as error:
            return "raise", error

    def check(self) -> None:
        """Compare it with the model; it is at rest."""
        if not self.loose:
            self.loose = True  # what has failed once is only released
            self._check()
            self.loose = False

    def _check(self) -> None:
        model = self.model
        expected = model.ended[0]
        assert self.is_done() == (expected is not None), self
        assert self.heard == model.heard, self
        for k, frame in enumerate(self.frames):
            if frame.begun and k not in model.hasty:
                assert frame.ended == (model.ended[k] is not None), (k, self)
        if expected is not None and not self.is_checked:
            self.is_checked = True
            self._check_outcome(expected)

    def _check_outcome(self, expected: Outcome) -> None:
        how, what = self.outcome()
        if isinstance(self.holder, gevent.Greenlet) and is_exit(expected):
            expected = "raise", expected[1]
        assert how == expected[0], self
        if isinstance(expected[1], type):
            assert type(what) is expected[1], self
        else:
            assert what is expected[1], self
        if self.chain.top == "task" and HAS_TIMEOUTS:
            assert self.holder.cancelling() == self.model.cancels[0], self

    def check_end(self) -> None:
        """Check what must be so after everything was released."""
        self.check()
        if self.chain.top == "from greenlet" and self.loop.is_closed():
            return  # a future of a closed loop stays as it is
        assert self.is_done(), self
        what = self.outcome()[1]
        allowed = [CancelledError, CancelledExit, GreenletExit, TimeoutError]
        if self.loop.is_closed() and self.model.is_future:
            allowed.append(RuntimeError)
            self.thrown.append(what)
        on_its_way = *self.thrown, self.plan[1], SWALLOWED
        assert type(what) in allowed or any(what is each for each in on_its_way), self
        if self.was_cancelled and self.chain.top == "task" and self.outcome()[0] == "return":
            # Except by a step that was suspended, and returned before it could be told.
            is_step = any(link.kind == "direct" for link in self.chain.links)
            assert self.heard or is_step, ("nobody has heard of the cancel", self)
        for frame in self.frames:
            assert frame.begun == frame.ended <= 1, self
        for each in self.made:
            assert each.done(), self
        self.ask()

    def ask(self) -> None:
        """Ask what it has made for exceptions."""
        for each in (*self.made, self.event, self.holder):
            if asyncio.isfuture(each) and each.done() and not each.cancelled():
                each.exception()  # or it would be logged as never retrieved

    def __repr__(self) -> str:
        frames = [f"{frame.begun}{frame.ended}" for frame in self.frames]
        outcome = self.outcome() if self.is_done() else None
        return (
            f"<{self.chain}\n  is {outcome} {frames} heard {self.heard}"
            f"\n  model {self.model.__dict__}{' loose' if self.loose else ''}>"
        )


def is_exit(outcome: Outcome) -> bool:
    return issubclass(kind_of(outcome[1]), GreenletExit)


# --- the machine ----------------------------------------------------------------------------------


def rest() -> None:
    """Let the hub run until nothing happens any more."""
    for _ in range(12 * MAX_FRAMES):
        gevent.idle()


EXCEPTIONS: dict[str, Callable[[], BaseException]] = {
    "exit": GreenletExit,
    "boom": Boom,
    "timeout": lambda: gevent.Timeout(),
    "cancelled": CancelledError,
}
INTERRUPTION = st.sampled_from(["exit", "boom", "timeout"])
FRAME = st.integers(0, MAX_FRAMES - 1)
INDEX = st.integers(0, 2)


class Machine(RuleBasedStateMachine):
    def __init__(self, observed: Observed) -> None:
        super().__init__()
        self.observed = observed
        self.bridges: list[Bridge] = []
        self.over: list[Bridge] = []
        self.loop: Any = None
        self.runner: Any = None
        self.stopped = False
        self.endings: list[gevent.Greenlet] = []

    # Steps.

    def _pick(self, index: int) -> Bridge:
        # One of the last, so that bridges see more than one step; a loose one if there is no other.
        bridges = [bridge for bridge in self.bridges if not bridge.loose] or self.bridges
        return bridges[-1 - index % min(3, len(bridges))]

    def _rest(self) -> None:
        rest()
        for bridge in [*self.bridges]:
            if self.stopped and bridge.loop is self.loop:
                continue
            bridge.check()
            bridge.actions = 0
            if not bridge.loose and all(bridge.model.ended):
                bridge.check_end()
                self.bridges.remove(bridge)
                self.over.append(bridge)

    def _loosen(self, bridge: Bridge) -> None:
        # While the loop is stopped nobody waits for clean-up in it: the frames above end first.
        if self.stopped and bridge.loop is self.loop:
            bridge.loose = True

    def _make(self, chain: Chain, own_loop: bool) -> Bridge:
        if own_loop:
            if self.loop is None:
                self.loop = EventLoop()
                self.stopped = True
            self._run()
        self.bridges.append(Bridge(chain, self.loop if own_loop else get_ambient_loop()))
        return self.bridges[-1]

    def _run(self) -> None:
        if self.stopped:
            self.stopped = False
            self.runner = gevent.spawn(self.loop.run_forever)
            self._rest()

    @rule(chain=chains(), own_loop=st.booleans())
    def start(self, chain: Chain, own_loop: bool) -> None:
        self._make(chain, own_loop)
        self._rest()

    @rule(chain=chains(), own_loop=st.booleans(), turns=st.sampled_from([0, 0, 1, 2, 3, 5, 8]))
    def start_and_interrupt(self, chain: Chain, own_loop: bool, turns: int) -> None:
        bridge = self._make(chain, own_loop)
        for _ in range(turns):
            gevent.sleep(0)
        error = Boom()
        if turns or chain.top.startswith("from"):
            bridge.acts()
            bridge.interrupt(0, error)
        else:
            bridge.interrupt(0, error)
            is_task = chain.top == "task"
            bridge.model = Model(chain)
            bridge.model.cancels[0] = 1
            bridge.model.end_unbegun(CANCELLED if is_task else ("raise", error))
        self._rest()

    @precondition(lambda self: self.bridges)
    @rule(index=INDEX, how=st.sampled_from(["return", *EXCEPTIONS]))
    def release(self, index: int, how: str) -> None:
        self._release(self._pick(index), how)
        self._rest()

    def _release(self, bridge: Bridge, how: str) -> None:
        if how == "return":
            bridge.release(("return", object()))
        else:
            bridge.release(("raise", EXCEPTIONS[how]()))

    @precondition(lambda self: any(each.model.leaf == "cleaning" for each in self.bridges))
    @rule(index=INDEX)
    def clean_up(self, index: int) -> None:
        cleaning = [each for each in self.bridges if each.model.leaf == "cleaning"]
        cleaning[index % len(cleaning)].release_cleanup()
        self._rest()

    @precondition(lambda self: self.bridges)
    @rule(
        index=INDEX,
        interruptions=st.lists(st.tuples(FRAME, INTERRUPTION), min_size=1, max_size=2),
        again=st.booleans(),
    )
    def interrupt(self, index: int, interruptions: list[tuple[int, str]], again: bool) -> None:
        bridge = self._pick(index)
        self._loosen(bridge)
        for frame, how in interruptions + interruptions[-1:] * again:
            bridge.interrupt(frame % len(bridge.frames), EXCEPTIONS[how]())
            self._rest()

    @precondition(lambda self: self.bridges)
    @rule(index=INDEX, frame=FRAME)
    def time_out(self, index: int, frame: int) -> None:
        bridge = self._pick(index)
        self._loosen(bridge)
        bridge.time_out(frame % len(bridge.frames))
        self._rest()

    @rule(
        chain=chains(3),
        own_loop=st.booleans(),
        frames=st.tuples(st.sampled_from([0, 0, *range(MAX_FRAMES)]), FRAME),
        how=st.sampled_from(["return", "return", *EXCEPTIONS, "interrupt", "clean up"]),
        turns=st.sampled_from([0, 0, 1, 1, 2, 4]),
        ends_first=st.sampled_from([True, True, False]),
    )
    def race(
        self,
        chain: Chain,
        own_loop: bool,
        frames: tuple[int, int],
        how: str,
        turns: int,
        ends_first: bool,
    ) -> None:
        """Two things at almost the same time."""
        has_cleanup = how == "clean up"
        bridge = self._make(chain._replace(has_cleanup=has_cleanup), own_loop)
        self._rest()
        if has_cleanup:
            self._release(bridge, "return")
            self._rest()

        def end() -> None:
            if how == "interrupt":
                bridge.interrupt(frames[1] % len(bridge.frames), Boom())
            elif how == "clean up":
                bridge.release_cleanup()
            else:
                self._release(bridge, how)

        def interrupt() -> None:
            bridge.interrupt(frames[0] % len(bridge.frames), Boom())

        first, second = (end, interrupt) if ends_first else (interrupt, end)
        first()
        for _ in range(turns):
            gevent.sleep(0)
        second()
        self._rest()

    @precondition(lambda self: self.loop is not None and not self.stopped)
    @rule()
    def stop_loop(self) -> None:
        self.loop.stop()
        self.runner.join()
        self.stopped = True
        for bridge in self.bridges:
            if bridge.loop is self.loop and bridge.model.pending:
                bridge.loose = True  # frames that wait for a clean-up do not any longer

    @precondition(lambda self: self.stopped)
    @rule()
    def run_loop(self) -> None:
        self._run()

    @precondition(lambda self: self.loop is not None)
    @rule()
    def close_loop(self) -> None:
        """Close the loop when its tasks are done, as one should; greenlets may wait for futures."""
        self._run()
        waiting = [
            bridge
            for bridge in self.bridges
            if bridge.loop is self.loop
            and not bridge.loose
            and not bridge.is_done()
            and not bridge.model.is_async[0]
            and len(bridge.frames) == 2
            and bridge.model.is_future
        ]
        self._finish([each for each in self.bridges if each.loop is self.loop], but=waiting)
        self._close()
        rest()
        for bridge in waiting:
            assert isinstance(bridge.outcome()[1], RuntimeError), bridge
            bridge.thrown.append(bridge.outcome()[1])
            self.bridges.remove(bridge)
            self.over.append(bridge)

    def _close(self) -> None:
        self.loop.stop()
        self.runner.join()
        assert not asyncio.all_tasks(self.loop)
        self.loop.close()
        self.loop = None

    @precondition(lambda self: len([each for each in self.bridges if not each.loose]) > 2)
    @rule()
    def shut_down(self) -> None:
        """Shut down the ambient loop, and go on with another one."""
        ambient = [bridge for bridge in self.bridges if bridge.loop is not self.loop]
        for bridge in ambient:
            bridge.loose = True  # its tasks are cancelled, in any order
        self.endings.append(gevent.spawn(asyncio_gevent.shutdown))
        self._rest()

    # The end.

    def _finish(self, bridges: list[Bridge], but: list[Bridge]) -> None:
        ending = [bridge for bridge in bridges if bridge not in but]
        for bridge in ending:
            self._release(bridge, "return")
        self._rest()
        for bridge in ending:
            bridge.release_cleanup()
        self._rest()
        for bridge in ending:
            bridge.check_end()
            if bridge in self.bridges:
                self.bridges.remove(bridge)
                self.over.append(bridge)

    def teardown(self) -> None:
        try:
            if self.loop is not None:
                self._run()
            self._finish([*self.bridges], but=[])
        finally:
            left, self.bridges = self.bridges, []
            for bridge in left:
                bridge.let_go()
            rest()
            if self.loop is not None:
                self._close()
            asyncio_gevent.shutdown()
            for ending in self.endings:
                ending.get()
            rest()
            for bridge in left:
                bridge.ask()
            self.over += left
            errors = [*self.observed.hub_errors]
            self.observed.hub_errors.clear()
        assert not portals
        for bridge in self.over:
            for frame in bridge.frames:
                if isinstance(frame.greenlet, gevent.Greenlet):  # not the runner of a loop
                    assert frame.greenlet.dead
                assert frame.task is None or frame.task.done()
        # The hub prints what greenlets fail with.
        expected = [each for bridge in self.over for each in (*bridge.thrown, bridge.plan[1])]
        strange = [
            error
            for error in errors
            if not (
                isinstance(error, (CancelledError, TimeoutError))
                or error in expected
                or (self.endings and "loop was closed before" in str(error))
            )
        ]
        assert not strange, strange


@pytest.mark.soft_limit(50)
@pytest.mark.parametrize("batch", range(-(-EXAMPLES // BATCH)))
def test_bridges_do_what_the_model_does(batch: int, observed: Observed) -> None:
    def machine() -> Machine:
        return Machine(observed)

    run_state_machine_as_test(
        seed(batch)(machine),
        settings=settings(
            max_examples=min(BATCH, EXAMPLES),
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
            report_multiple_bugs=False,
        ),
    )
    gc.collect()
    # As with tasks of asyncio: what fails while the loop is shut down, and what fails when who
    # awaits it has just been cancelled. The other futures are asked for their exceptions.
    messages = "unhandled exception during asyncio.run()", "GreenletFuture exception was never"
    handled = [each for each in observed.handled if not each["message"].startswith(messages)]
    assert not handled, handled
    observed.handled.clear()
