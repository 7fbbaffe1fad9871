"""run(), new_event_loop(), EventLoop as a loop factory, and the policy."""

from __future__ import annotations

import asyncio
import sys
import threading
import warnings
from typing import Any

import gevent
import pytest
from support import IMPORT_ROOT, PATCHED, in_greenlet, in_native_thread, in_thread, run_script

import asyncio_gevent
from asyncio_gevent import EventLoop

# Policies are deprecated from 3.14 on, ours as well as asyncio's.
pytestmark = pytest.mark.filterwarnings("ignore:.*[Pp]olic.*:DeprecationWarning")


async def value_of(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


# --- run ------------------------------------------------------------------------------------------


def test_run_returns_the_result_and_leaves_nothing() -> None:
    loops: list[Any] = []

    async def main() -> str:
        loops.append(asyncio.get_running_loop())
        return "result"

    assert asyncio_gevent.run(main()) == "result"
    (loop,) = loops
    assert isinstance(loop, EventLoop)
    assert loop.is_closed()


def test_run_raises_what_the_coroutine_raises() -> None:
    async def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio_gevent.run(main())


@pytest.mark.parametrize("debug", [True, False, None])
def test_run_in_debug_mode(debug: bool | None) -> None:
    async def main() -> bool:
        return asyncio.get_running_loop().get_debug()

    assert asyncio_gevent.run(main(), debug=debug) is bool(debug)


def test_run_does_not_touch_the_current_event_loop_of_others() -> None:
    """What ``asyncio.get_event_loop()`` gives outside of coroutines is not ours to change."""
    mine = asyncio.new_event_loop()
    asyncio.set_event_loop(mine)
    try:
        in_greenlet(lambda: asyncio_gevent.run(value_of(1)))
        assert asyncio.get_event_loop_policy().get_event_loop() is mine
    finally:
        asyncio.set_event_loop(None)
        mine.close()


def test_get_event_loop_in_a_coroutine_is_the_running_one() -> None:
    async def main() -> None:
        assert asyncio.get_event_loop() is asyncio.get_running_loop()
        gevent.sleep(0)
        assert asyncio.get_event_loop() is asyncio.get_running_loop()

    asyncio_gevent.run(main())


def test_tasks_that_are_left_are_cancelled_and_their_errors_reported(observed: Any) -> None:
    async def failing() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            raise ZeroDivisionError

    async def main() -> None:
        task = asyncio.create_task(failing())  # noqa: F841 - a strong reference
        await asyncio.sleep(0)

    asyncio_gevent.run(main())
    (context,) = observed.handled
    assert isinstance(context["exception"], ZeroDivisionError)
    assert context["message"] == "unhandled exception during asyncio.run() shutdown"
    observed.handled.clear()


def test_new_event_loop() -> None:
    loop = asyncio_gevent.new_event_loop()
    assert type(loop) is EventLoop
    assert loop.run_until_complete(value_of(1)) == 1
    loop.close()


# --- as a factory ---------------------------------------------------------------------------------


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.Runner came with Python 3.11")
def test_in_a_runner_of_asyncio() -> None:
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        assert runner.run(value_of(1)) == 1
        assert runner.run(value_of(2)) == 2
        assert isinstance(runner.get_loop(), EventLoop)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="loop_factory came with Python 3.12")
def test_in_asyncio_run() -> None:
    async def main() -> Any:
        gevent.sleep(0)
        return type(asyncio.get_running_loop())

    assert asyncio.run(main(), loop_factory=EventLoop) is EventLoop


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.Runner came with Python 3.11")
def test_runners_in_greenlets_at_the_same_time() -> None:
    def run(number: int) -> list[Any]:
        with asyncio.Runner(loop_factory=EventLoop) as runner:
            return [runner.run(value_of(number)), runner.run(value_of(-number))]

    greenlets = [gevent.spawn(run, number) for number in range(20)]
    gevent.joinall(greenlets, raise_error=True)
    assert [each.value for each in greenlets] == [[n, -n] for n in range(20)]


# --- the policy -----------------------------------------------------------------------------------


@pytest.fixture
def policy() -> Any:
    before = asyncio.get_event_loop_policy()
    policy = asyncio_gevent.EventLoopPolicy()
    asyncio.set_event_loop_policy(policy)
    yield policy
    asyncio.set_event_loop_policy(before)


def test_the_policy_makes_our_loops(policy: Any) -> None:
    loop = asyncio.new_event_loop()
    assert type(loop) is EventLoop
    loop.close()
    assert isinstance(policy, asyncio.AbstractEventLoopPolicy)


def test_asyncio_run_with_the_policy(policy: Any) -> None:
    async def main() -> Any:
        gevent.sleep(0)
        return type(asyncio.get_running_loop())

    assert asyncio.run(main()) is EventLoop
    greenlets = [gevent.spawn(asyncio.run, main()) for _ in range(20)]
    gevent.joinall(greenlets, raise_error=True)
    assert {each.value for each in greenlets} == {EventLoop}


@pytest.mark.parametrize("place", [in_thread, in_native_thread])
def test_the_current_loop_is_one_per_thread(policy: Any, place: Any) -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)

    def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="no current event loop"):
            policy.get_event_loop()
        other = asyncio.new_event_loop()
        asyncio.set_event_loop(other)
        assert policy.get_event_loop() is other
        assert other.run_until_complete(value_of(1)) == 1
        asyncio.set_event_loop(None)
        other.close()

    place(elsewhere)
    assert policy.get_event_loop() is loop
    asyncio.set_event_loop(None)
    loop.close()


@pytest.mark.skipif(not PATCHED, reason="greenlets share what the OS thread has, before patching")
def test_the_current_loop_is_one_per_greenlet_after_patching(policy: Any) -> None:
    def own(number: int) -> Any:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        gevent.sleep(0)
        assert policy.get_event_loop() is loop
        result = loop.run_until_complete(value_of(number))
        asyncio.set_event_loop(None)
        loop.close()
        return result

    threads_results: list[Any] = []
    threads = [
        threading.Thread(target=lambda n=n: threads_results.append(own(n))) for n in range(10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(threads_results) == list(range(10))


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="from 3.14 on nobody makes one by itself")
def test_the_main_thread_gets_a_loop_of_its_own_accord(policy: Any) -> None:
    with warnings.catch_warnings():
        # Python 3.12 and 3.13 warn when they make one.
        warnings.simplefilter("ignore", DeprecationWarning)
        loop = policy.get_event_loop()
    assert type(loop) is EventLoop
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert policy.get_event_loop() is loop
    asyncio.set_event_loop(None)
    loop.close()


# --- in fresh processes ---------------------------------------------------------------------------


def test_importing_warns_of_nothing_and_changes_nothing() -> None:
    run_script("imports").check("ok")


@pytest.mark.parametrize("order", ["asyncio", "asyncio_gevent", "policy", "loop"])
def test_patching_late(order: str) -> None:
    """After asyncio was imported, after this package was, after a policy or a loop was made."""
    run_script("patch_late", order, patched=False, warnings="default").check("ok")


@pytest.mark.parametrize("gevent_loop", ["libev-cext", "libuv-cffi"])
def test_a_program_that_never_patches(gevent_loop: str) -> None:
    if gevent_loop == "libuv-cffi":
        pytest.importorskip("cffi", reason="gevent's libuv loop is made of it")
    run_script("unpatched", environment={"GEVENT_LOOP": gevent_loop}, patched=False).check("ok")


def test_the_program_may_end_while_a_loop_runs_in_the_background() -> None:
    finished = run_script("ends_early", warnings="default")
    assert (finished.status, finished.out) == (0, "end\n"), finished
    assert "Traceback" not in finished.err, finished


def test_the_package_is_the_one_that_is_tested() -> None:
    assert asyncio_gevent.__file__.startswith(str(IMPORT_ROOT))


def test_nested_runs_after_nest_asyncio() -> None:
    run_script("nested_run").check("ok")
