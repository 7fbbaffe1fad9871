"""What the run of ``test.test_asyncio`` leaves out, and where our loop may differ.

Names are ``module``, ``module.Class`` or ``module.Class.test``, counted from ``test.test_asyncio``.
"""

import sys
from dataclasses import dataclass


def _names(prefix, *names):
    return [f"{prefix}.{name}" for name in names]


# Tests of the standard library's own parts, which another loop has no use for: reason -> names.
_LEFT_OUT = {
    "Windows only": [
        "test_ctrl_c_in_proactor_loop_helper",
        "test_proactor_events",
        "test_windows_events",
        "test_windows_utils",
    ],
    "private methods of BaseSelectorEventLoop and its transports, on a mock selector": [
        "test_selector_events"
    ],
    "private methods of pipe transports, on mock readers and writers of a mock loop": _names(
        "test_unix_events", "UnixReadPipeTransportTests", "UnixWritePipeTransportTests"
    ),
    "the standard library's child watchers, on a mock os.waitpid()": _names(
        "test_unix_events",
        "AbstractChildWatcherTests",
        "BaseChildWatcherTests",
        "FastChildWatcherTests",
        "SafeChildWatcherTests",
    ),
    "the calls that a mock of the signal module in asyncio.unix_events gets": _names(
        "test_unix_events.SelectorEventLoopSignalTests",
        "test_add_signal_handler_install_error",
        "test_add_signal_handler_install_error2",
        "test_add_signal_handler_install_error3",
        "test_add_signal_handler_setup_error",
        "test_close",
        "test_close_on_finalizing",
        "test_remove_signal_handler",
        "test_remove_signal_handler_2",
        "test_remove_signal_handler_error",
        "test_remove_signal_handler_error2",
    ),
    "SelectEventLoopTests again, with a selector that only the standard loop can use": [
        name
        for module in ("test_events", "test_sendfile", "test_sock_lowlevel")
        for name in _names(
            module, "EPollEventLoopTests", "KqueueEventLoopTests", "PollEventLoopTests"
        )
    ],
    "it puts handles into the heap of timers itself": [
        "test_base_events.BaseEventLoopTests.test__run_once_schedule_handle"
    ],
    "the calls that a mock selector gets": _names(
        "test_base_events.BaseEventLoopTests",
        "test__run_once",
        "test_run_forever_pre_stopped",
        "test_single_selecter_event_callback_after_stopping",
    ),
    "private methods that BaseEventLoop leaves to its subclasses": [
        "test_base_events.BaseEventLoopTests.test_not_implemented"
    ],
    "a private protocol of BaseEventLoop with subclasses that have a run_forever() of their own": [
        "test_base_events.BaseEventLoopTests.test_custom_run_forever_integration"
    ],
    "the number of cancelled timers that BaseEventLoop keeps": [
        "test_base_events.BaseEventLoopTests.test__run_once_cancelled_event_cleanup"
    ],
    "the number of descriptors that a loop has for itself": [
        "test_events.SelectEventLoopTests.test_internal_fds"
    ],
}

# name -> reason
LEFT_OUT = {name: reason for reason, names in _LEFT_OUT.items() for name in names}

# Modules whose tests need no event loop: name -> reason. In all others ours must have run.
WITHOUT_LOOP = {
    "test_protocols": "abstract base classes",
    "test_transports": "abstract base classes",
    "test_tools": "asyncio.tools looks at another process",
}


@dataclass(frozen=True)
class Deviation:
    """A test that fails on our loop, and must do so as long as it is listed.

    Attributes:
        reason: why, and why it is right or not ours to mend.
        python: first and last version concerned, None for no bound.
        patched: only after `gevent.monkey.patch_all()` (True), only without (False), or None.
        backend: only with gevent's "libev" or "libuv" loop, or None.
        limit: seconds after which it counts as a hang, for a test that is known to hang.
        blames_patching: it is monkey patching that breaks it, with any event loop. This is
            checked: it must fail on the standard loop as well.
    """

    reason: str
    python: tuple = (None, None)
    patched: bool = None
    backend: str = None
    limit: float = None
    blames_patching: bool = False

    def applies(self, patched, backend, version=sys.version_info[:2]):
        """Return whether the test must fail under these conditions."""
        first, last = self.python
        return (
            (first is None or first <= version)
            and (last is None or version <= last)
            and self.patched in (None, patched)
            and self.backend in (None, backend)
        )


_FORK_SERVER = Deviation(
    "multiprocessing's fork server does not stop after patching: it does when a pipe to it is "
    "closed, gevent's os.close() leaves that to the next poll of the hub, and os.waitpid() of a "
    "child that gevent did not start keeps the hub from it",
    python=((3, 12), None),
    patched=True,
    limit=5.0,
    blames_patching=True,
)
_MANAGER = Deviation(
    "multiprocessing.Manager does not work after patching: multiprocessing.connection reads with "
    "os.read() from a socket that gevent has made non-blocking, and gets BlockingIOError",
    python=((3, 12), None),
    patched=True,
    blames_patching=True,
)

# test -> Deviation
DEVIATIONS = {
    "test_base_events.BaseEventLoopTests.test_check_thread": Deviation(
        "after patching, the threads of this test are greenlets of one OS thread, and debug mode "
        "complains of other OS threads only",
        patched=True,
    ),
    "test_events.TestCGetEventLoop.test_get_event_loop_new_process": _FORK_SERVER,
    "test_events.TestPyGetEventLoop.test_get_event_loop_new_process": _FORK_SERVER,
    "test_unix_events.TestFork.test_fork_asyncio_run": _MANAGER,
    "test_unix_events.TestFork.test_fork_asyncio_subprocess": _MANAGER,
    "test_unix_events.TestFork.test_fork_signal_handling": _MANAGER,
}


def deviations(patched, backend):
    """Return test -> `Deviation` of what must fail under these conditions."""
    return {
        test: deviation
        for test, deviation in DEVIATIONS.items()
        if deviation.applies(patched, backend)
    }
