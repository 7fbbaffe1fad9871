"""Make the tests of ``test.test_asyncio`` build the loop that is to be tested.

The suite builds its loops in some ten ways: ``asyncio.new_event_loop()``, the default policy, the
loop classes by name (with selectors that a loop on the hub has no use for), a bare
``BaseEventLoop`` whose poll is mocked, and a loop with virtual time. `substitute` puts the tested
loop at the end of each of these ways, and counts the loops that really ran.

Rule: nothing here changes what the tested loop does, only that it is the one.
"""

import asyncio
import sys
import types
import weakref
from unittest import mock

# Methods that BaseEventLoop leaves to its subclasses. Tests replace them by mocks, to run a bare
# BaseEventLoop; the tested loop has its own, and the mocks pass the calls on.
POLL_METHODS = frozenset({"_process_events", "_write_to_self"})

# Its name, the module variable that asyncio.events makes the default policy from.
DEFAULT_POLICY = (
    "DefaultEventLoopPolicy" if sys.version_info < (3, 14) else "_DefaultEventLoopPolicy"
)


class Counts:
    """What one test did with loops."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.made = 0  # loops of the tested class
        self.runs = 0  # calls of their run_forever(); every other way to run one ends there
        self.foreign = 0  # loops of any other class


class Unchanged:
    """The suite as it is, on the standard loop: the control."""

    def __init__(self):
        self.counts = Counts()

    def adapt(self, module):
        """Change nothing in the test *module*."""


class Substitution:
    """The tested loop class in all places where the suite looks for one.

    Args:
        cls: the loop class; it gets counters, and its constructor accepts a selector.
        policy: the event loop policy whose loops are of that class.
    """

    def __init__(self, cls, policy):
        self.cls = cls
        self.counts = Counts()
        self._instrument()
        asyncio.SelectorEventLoop = asyncio.BaseEventLoop = cls
        asyncio.unix_events.SelectorEventLoop = cls
        if sys.version_info >= (3, 13):
            asyncio.EventLoop = asyncio.unix_events.EventLoop = cls
        for module in (asyncio, asyncio.unix_events):
            if DEFAULT_POLICY in vars(module):
                setattr(module, DEFAULT_POLICY, policy)
        from test.test_asyncio import utils

        utils.TestLoop = self._make_test_loop

    def adapt(self, module):
        """Give the test *module* the loop where it takes it from a module of asyncio."""
        if module.__name__.endswith(".test_base_events"):
            module.base_events = Overlay(module.base_events, BaseEventLoop=self.cls)
            # BaseLoopSockSendfileTests take this class for its lack of a native sendfile.
            asyncio.selector_events.BaseSelectorEventLoop = type(
                "LoopWithoutNativeSendfile",
                (self.cls,),
                {"_sock_sendfile_native": asyncio.base_events.BaseEventLoop._sock_sendfile_native},
            )

    def _make_test_loop(self, gen=None):
        # Without a script of times, tests use TestLoop as just some loop.
        return self.cls() if gen is None else virtual_time_class(self.cls)(gen)

    def _instrument(self):
        """Count in place, so that the class keeps its identity wherever it is used."""
        cls, counts = self.cls, self.counts
        init, run_forever, base_init = (
            cls.__init__,
            cls.run_forever,
            asyncio.base_events.BaseEventLoop.__init__,
        )

        def counting_init(self, selector=None, **options):
            if selector is not None:
                selector.close()
            init(self, **options)
            counts.made += 1

        def counting_run_forever(self):
            counts.runs += 1
            return run_forever(self)

        def counting_base_init(self, *args, **kwargs):
            if not isinstance(self, cls):
                counts.foreign += 1
            base_init(self, *args, **kwargs)

        def setattr_seeing_through_mocks(self, name, value):
            if isinstance(value, mock.Mock):
                if name in POLL_METHODS:
                    value = mock.Mock(side_effect=getattr(self, name))
                elif name == "_selector":
                    value = mock.Mock(wraps=getattr(self, name, None))
            object.__setattr__(self, name, value)

        def run_once(self):
            if self.is_running():
                return iteration(self)
            self.call_soon(self.stop)
            self.run_forever()

        # Tests that want one iteration call this method, which a loop need not have.
        iteration, cls._run_once = getattr(cls, "_run_once", None), run_once
        cls.__init__ = counting_init
        cls.run_forever = counting_run_forever
        cls.__setattr__ = setattr_seeing_through_mocks
        asyncio.base_events.BaseEventLoop.__init__ = counting_base_init


class Overlay(types.ModuleType):
    """A module's view of another *module*, with some names replaced."""

    def __init__(self, module, **names):
        super().__init__(module.__name__)
        self.__dict__.update(names)
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, name)


def virtual_time_class(cls):
    """Make a subclass of loop class *cls* for `test_asyncio.utils.TestCase.new_test_loop`.

    As with the suite's TestLoop, time stands still but for what a generator says: after each
    iteration it is sent the times of the new timers and answers by how much the clock goes forward.
    A check at `close` that the generator is at its end shows that the timers were just the expected
    ones. Only public methods of the loop are used.
    """

    class VirtualTimeLoop(cls):
        def __init__(self, gen):
            super().__init__()
            self.__now = 0
            self.__script = gen()
            next(self.__script)
            self.__new_timers = []

        def time(self):
            return self.__now

        def advance_time(self, advance):
            self.__now += advance

        def call_at(self, when, callback, *args, context=None):
            self.__new_timers.append(when)
            return super().call_at(when, callback, *args, context=context)

        def run_forever(self):
            error = None

            def between_iterations():
                # Each run is the first callback of an iteration, since it was the first to be
                # scheduled in the one before. It also keeps the loop from waiting for its timers in
                # real time.
                nonlocal tick, error
                tick = self.call_soon(between_iterations)
                try:
                    self.__follow_script()
                except BaseException as failure:
                    error = failure
                    self.stop()

            tick = self.call_soon(between_iterations)
            try:
                super().run_forever()
            finally:
                tick.cancel()
            if error is not None:
                raise error
            self.__follow_script()

        def __follow_script(self):
            timers, self.__new_timers = self.__new_timers, []
            for when in timers:
                self.__now += self.__script.send(when)

        def close(self):
            was_closed = self.is_closed()
            super().close()
            if not was_closed:
                try:
                    self.__script.send(0)
                except StopIteration:
                    pass
                else:
                    raise AssertionError("the script of times is not at its end")

    return VirtualTimeLoop


def leave_threads_of_hubs_out_of_account():
    """Let `test.support` count the threads that tests leave behind, without those of gevent's hubs.

    The threads of a hub's pool live as long as the hub; they are no leftover of the test that first
    used them.
    """
    from gevent.hub import Hub, get_hub
    from test.support import threading_helper

    hubs = weakref.WeakSet([get_hub()])
    init, count = Hub.__init__, threading_helper._thread._count

    def noting_init(self, *args, **kwargs):
        init(self, *args, **kwargs)
        hubs.add(self)

    def count_others():
        pools = [hub._threadpool for hub in list(hubs) if hub._threadpool is not None]
        return count() - sum(pool.size for pool in pools)

    Hub.__init__ = noting_init
    threading_helper._thread = Overlay(threading_helper._thread, _count=count_others)


def substitute(name):
    """Put the loop called *name* in place.

    Args:
        name: ``"ours"``, ``"uvloop"``, ``"standard"`` (the suite untouched), or ``"selector"``:
            the standard loop by way of the substitution, to see what that itself breaks.
    """
    if name == "standard":
        return Unchanged()
    if name == "ours":
        import asyncio_gevent

        leave_threads_of_hubs_out_of_account()
        return Substitution(asyncio_gevent.EventLoop, asyncio_gevent.EventLoopPolicy)
    if name == "uvloop":
        import uvloop

        cls = type("Loop", (uvloop.Loop,), {})
    else:
        cls = type("Loop", (asyncio.SelectorEventLoop,), {})
    policy = getattr(asyncio.unix_events, DEFAULT_POLICY)
    return Substitution(cls, type("Policy", (policy,), {"_loop_factory": cls}))
