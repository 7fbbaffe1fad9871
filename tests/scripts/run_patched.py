"""Run pytest after ``gevent.monkey.patch_all()``.

    python tests/scripts/run_patched.py tests/test_io.py -k echo

takes the arguments of pytest. What follows a test that hangs is printed by `conftest`.
"""

import sys

from gevent import monkey

monkey.patch_all()

import pytest

# The timer of pytest-timeout would be a greenlet now, which cannot end what blocks the thread;
# and it keeps the hub from noticing that nothing will ever happen any more.
sys.exit(pytest.main(["--timeout=0", "-p", "no:cacheprovider", *sys.argv[1:]]))
