"""Loops after a fork: the child can make its own, the parent's stand still there."""

from __future__ import annotations

import pytest
from support import run_script

CASES = [
    "before_any_loop", "after_a_loop", "beside_a_loop", "in_a_coroutine", "returns_in_a_coroutine",
    "waits_for_a_socket", "exits_in_a_coroutine", "from_multiprocessing", "two_generations",
]  # fmt: skip


@pytest.mark.parametrize("how", ["os.fork", "gevent.os.fork"])
@pytest.mark.parametrize("case", CASES)
def test_fork(case: str, how: str) -> None:
    if case == "from_multiprocessing" and how != "os.fork":
        pytest.skip("multiprocessing forks as it likes")
    run_script("fork", case, how).check("ok")
