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
