"""What is known of gevent's own suite on our loop, with reasons; see `gevent_suite`."""

#: Files that say nothing of a loop.
LEFT_OUT = {}

#: Files in which no loop needs to run: they only import, are skipped, or do all in processes of
#: their own.
NO_LOOP = {
    "test__GreenletExit", "test___config", "test___monitor", "test___monkey_patching",
    "test__all__", "test__ares_host_result", "test__close_backend_fd", "test__compat",
    "test__core", "test__environ", "test__events", "test__example_echoserver",
    "test__example_udp_server", "test__example_webproxy", "test__example_wsgiserver",
    "test__example_wsgiserver_ssl", "test__examples", "test__execmodules", "test__issue1864",
    "test__issue6", "test__issues461_471", "test__memleak", "test__monkey_builtins_future",
    "test__import_blocking_in_greenlet", "test__monkey_multiple_imports",
    "test__monkey_sigchld_2", "test__monkey_ssl_warning", "test__resolver_dnspython",
    "test__subprocess_interrupted",
}  # fmt: skip

#: Files whose tests do nothing in the interpreter's development mode.
WITHOUT_DEVMODE = {
    "test__monkey_sigchld",
    "test__monkey_sigchld_2",
    "test__monkey_sigchld_3",
    "test__monkey_sigchld_wakeup_fd",
}

_HERE = "fails on libev, too, here: "
_GIL = (
    "may take one more worker: a native thread that wakes the standard loop lets go of the "
    "interpreter before it has said that it is free"
)

#: Test id to reason.
DEVIATIONS = {
    "test___monkey_patching.<file>": _HERE + "wants the tests of the standard library",
    "test__core.TestLibuvCffi.test_io": _HERE + "is about libuv",
    "test__core_timer.TestTimerResolution.test_resolution": _HERE + "the machine",
    "test__examples.<file>": _HERE + "has no tests without gevent's repository, 3.12 and later",
    "test__getaddrinfo_import.<file>": _HERE + "wants a network",
    "test__issue_728.<file>": _HERE + "wants to be run by its name",
    "test__monkey_multiple_imports.<file>": _HERE + "wants to be run by its name",
    "test__subprocess.RunFuncTestCase.test_run_with_shell_timeout_and_capture_output": (
        _HERE + "the shell"
    ),
    "test__threading_fork_from_dummy.<file>": _HERE + "at times, on 3.13",
    "test__hub.TestPeriodicMonitoringThread.test_blocking_threadpool_thread_multi_greenlet": _GIL,
    "test__hub.TestPeriodicMonitoringThread.test_blocking_threadpool_thread_one_greenlet": _GIL,
    "test__hub.TestPeriodicMonitoringThread.test_blocking_threadpool_thread_task_queue": _GIL,
}

#: The same, only with uvloop as host.
UVLOOP = {
    "test__monkey_sigchld_wakeup_fd.<file>": "uvloop has the descriptor for signals while it runs",
}

_NO_LOOP_EXIT = "waits for LoopExit: where asyncio runs, what a greenlet waits for may yet come"
#: Also by way of gevent.testing's hub, which hands errors to the main greenlet.
_MAIN_GREENLET = "is about the main greenlet, in which the event loop runs here"
_DESTROYS = "destroys the hub, which the event loop carries, from a greenlet of that hub"
_HUB_EXISTS = "wants that there is no hub yet"

#: Tests that are not run where an asyncio loop already runs: they would wait for ever.
ATTACHED_HANGS = {
    "test__destroy.TestDestroyHub.test_destroy_hub": _DESTROYS,
    "test__destroy_default_loop.TestDestroyDefaultLoop.test_destroy_gc": _DESTROYS,
    "test__destroy_default_loop.TestDestroyDefaultLoop.test_destroy_two": _DESTROYS,
    "test__issue1686.TestDestroyInChildWithActiveSpawn.test": _DESTROYS,
    "test__queue.TestQueue.test_peek_empty": _NO_LOOP_EXIT,
    "test__queue.TestSimpleQueue.test_peek_empty": _NO_LOOP_EXIT,
    **{
        f"test__systemerror.{case}.{test}": _MAIN_GREENLET
        for case in ("TestCallback", "TestSpawn")
        for test in (
            "test_sys_exit",
            "test_keyboard_interrupt",
            "test_system_error",
            "test_keyboard_interrupt_stderr_patched",
        )
    },
    "test__threading_vs_settrace.TestTrace.test_untraceable_lock_uses_same_lock": _MAIN_GREENLET,
}

#: The same, only where an asyncio loop already runs.
ATTACHED = {
    "test__greenlet.TestBasic.test_tree_locals": _MAIN_GREENLET,
    "test__hub_join.TestJoin.test_join_many_times": _MAIN_GREENLET,
    **{
        f"test__hub_join_timeout.{case}.{test}": _MAIN_GREENLET
        for case in ("Test", "TestAgain")
        for test in (
            "test_callback", "test_event", "test_later", "test_ref_arg", "test_ref_attribute",
            "test_timeout",
        )
    },
    "test__order.TestSleep0.test": _MAIN_GREENLET,
    "test__semaphore.TestSemaphoreFair.test_fair_or_hangs": _NO_LOOP_EXIT,
    "test__signal.TestSignal.test_alarm": _MAIN_GREENLET,
    "test__threading.<file>": _HUB_EXISTS,
    "test__timeout.Test.test_expires_non_exception": _MAIN_GREENLET,
    "test__pywsgi.TestBody304.test_err": _MAIN_GREENLET,
    "test__pywsgi.TestWrite304.test_err": _MAIN_GREENLET,
    "test__threadpool.TestThreadResult.test_exception_in_on_async_doesnt_crash": _MAIN_GREENLET,
    "test__util.TestFormat.test_basic": _MAIN_GREENLET,
    "test__util.TestTree.test_tree": _MAIN_GREENLET,
    "test__util.TestTree.test_tree_no_track": _MAIN_GREENLET,
}  # fmt: skip

_NO_COPY = "uvloop cannot be copied: in a forked child its coroutines stand still"

#: The same, only where uvloop already runs.
ATTACHED_UVLOOP = {
    "test__issue600.TestIssue600.test_process": _NO_COPY,
    "test__monkey_sigchld_2.<file>": _NO_COPY,
    "test__monkey_sigchld_3.<file>": _NO_COPY,
}


def deviations(host, attached):
    """Return the tests that may fail, with reasons."""
    found = dict(DEVIATIONS)
    if host == "uvloop":
        found.update(UVLOOP)
    if attached:
        found.update(ATTACHED)
        if host == "uvloop":
            found.update(ATTACHED_UVLOOP)
    return found
