"""What is known of gevent's own suite on our loop, with reasons; see `gevent_suite`."""

#: Files that say nothing of a loop.
LEFT_OUT = {}

#: Files in which no loop needs to run: they only import, or do all in processes of their own.
NO_LOOP = set()

#: Files whose tests do nothing in the interpreter's development mode.
WITHOUT_DEVMODE = {
    "test__monkey_sigchld",
    "test__monkey_sigchld_2",
    "test__monkey_sigchld_3",
    "test__monkey_sigchld_wakeup_fd",
}

#: Test id to reason.
DEVIATIONS = {}

#: The same, only with uvloop as host.
UVLOOP = {}

_NO_LOOP_EXIT = "waits for LoopExit: where asyncio runs, what a greenlet waits for may yet come"
_MAIN_GREENLET = "is about the main greenlet, in which the event loop runs here"
_DESTROYS = "destroys the hub, which the event loop carries, from a greenlet of that hub"

#: Tests that are not run where an asyncio loop already runs: they would wait for ever.
ATTACHED_HANGS = {
    "test__destroy.TestDestroyHub.test_destroy_hub": _DESTROYS,
    "test__destroy_default_loop.TestDestroyDefaultLoop.test_destroy_gc": _DESTROYS,
    "test__destroy_default_loop.TestDestroyDefaultLoop.test_destroy_two": _DESTROYS,
    "test__issue1686.TestDestroyInChildWithActiveSpawn.test": _DESTROYS,
    "test__queue.TestQueue.test_peek_empty": _NO_LOOP_EXIT,
}

#: The same, only where an asyncio loop already runs.
ATTACHED = {}


def deviations(host, attached):
    """Return the tests that may fail, with reasons."""
    found = dict(DEVIATIONS)
    if host == "uvloop":
        found.update(UVLOOP)
    if attached:
        found.update(ATTACHED)
    return found
