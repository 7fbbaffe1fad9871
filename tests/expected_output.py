"""Run a program in a fresh process and compare what it prints with what its author promises.

Shared by the tests of the examples and of the code blocks in the documentation.

In a promise, `...` inside a line stands for any text of that line, and a line that is `...` alone
for any number of lines. Everything else is literal.
"""

import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Sequence

import asyncio_gevent

#: The directory from which this test run imports the package: a checkout or an environment's
#: site-packages. The fresh process must import the same one, whatever its working directory is.
IMPORT_ROOT = pathlib.Path(asyncio_gevent.__file__).parent.parent


def matches(promise: str, printed: str) -> bool:
    """Tell whether `printed` is what `promise` says, but for white space at the ends of lines."""
    pattern = ""
    for line in promise.strip().splitlines():
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += r".*".join(re.escape(part) for part in line.rstrip().split("...")) + r"\n"
    lines = "".join(f"{line.rstrip()}\n" for line in printed.strip().splitlines())
    return re.fullmatch(pattern, lines) is not None


def run_program(arguments: Sequence[str], *, cwd: pathlib.Path, limit: float) -> str:
    """Run `python *arguments` in a fresh process; return what it printed.

    Args:
        arguments: What follows the interpreter on the command line.
        cwd: The working directory.
        limit: Seconds after which the process is killed.

    Raises:
        AssertionError: It ran longer than `limit`, ended with a status other than 0, or wrote to
        stderr: tracebacks
            that a hub printed, "Task was destroyed", warnings.
    """
    # ResourceWarning shows what was left open; it is silent by default.
    command = [sys.executable, "-W", "default::ResourceWarning", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(IMPORT_ROOT), "PYTHONUNBUFFERED": "1"}
    environment.pop("PYTHONWARNINGS", None)
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired as error:
        streams = [s.decode() if isinstance(s, bytes) else s for s in (error.stdout, error.stderr)]
        raise AssertionError(
            f"did not end within {limit} s; stdout:\n{streams[0]}\nstderr:\n{streams[1]}"
        ) from None
    report = f"status {done.returncode}; stdout:\n{done.stdout}\nstderr:\n{done.stderr}"
    assert done.returncode == 0, report
    assert not done.stderr, report
    return done.stdout


def check_output(promise: str, printed: str) -> None:
    """Fail, showing both, unless `printed` is what `promise` says."""
    assert matches(promise, printed), f"promised:\n{promise}\nprinted:\n{printed}"
