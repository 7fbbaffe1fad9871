"""CPython's own tests of asyncio on our event loop, in the interpreter that runs pytest.

One test here is one module of ``test.test_asyncio``, plain or after `gevent.monkey.patch_all()`.
The modules run in processes of their own, two at a time; a test here waits for its module. For a
single test of CPython: ``python -m tests.conformance.asyncio_suite --tests MODULE.CLASS.TEST``.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest

from . import asyncio_suite, tables

# Seconds. Here a test waits for others, and a hang inside has the time limits of the driver.
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not asyncio_suite.modules(),
        reason="this Python comes without the tests of the standard library (test.test_asyncio)",
    ),
]

PROCESSES = 2
MODES = {"plain": False, "patched": True}


@pytest.fixture(scope="session")
def verdicts(request):
    """Futures for the verdicts of all selected modules, which run in the background."""
    wanted = dict.fromkeys(
        (item.callspec.params["module"], item.callspec.params["mode"])
        for item in request.session.items
        if getattr(item, "originalname", "") == "test_module"
    )
    pool = ThreadPoolExecutor(PROCESSES)
    yield {each: pool.submit(run_and_judge, *each) for each in wanted}
    pool.shutdown(cancel_futures=True)


def run_and_judge(module, mode):
    run = asyncio_suite.run_module(module, patched=MODES[mode])
    return run, asyncio_suite.judge(run, patched=MODES[mode])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("module", asyncio_suite.modules())
def test_module(module, mode, verdicts):
    """Each test passes, or is listed as a deviation and fails."""
    run, verdict = verdicts[module, mode].result()
    if run.absent:
        pytest.skip(run.absent)
    if verdict.problems:
        pytest.fail(str(verdict), pytrace=False)
    assert run.count(*asyncio_suite.PASSED), f"no test of {module} has passed"


def test_deviations_of_patching_are_not_ours():
    """What is blamed on monkey patching fails on the standard loop as well, once patched."""
    blamed = [
        test
        for test, deviation in tables.deviations(True, asyncio_suite.backend()).items()
        if deviation.blames_patching
    ]
    for module in {test.split(".")[0] for test in blamed}:
        tests = [test for test in blamed if test.split(".")[0] == module]
        run = asyncio_suite.run_module(module, loop="standard", patched=True, only=tests)
        outcomes = {test: result.outcome for test, result in run.results.items()}
        assert outcomes.keys() == set(tests)
        assert asyncio_suite.FAILED.issuperset(outcomes.values()), outcomes


@pytest.mark.parametrize("module", ["test_base_events", "test_pep492", "test_runners"])
def test_substitution_breaks_nothing_by_itself(module):
    """The standard loop passes as well where it is put in place by the same means as ours."""
    run = asyncio_suite.run_module(module, loop="selector")
    assert asyncio_suite.judge(run, loop="selector").problems == []


def test_a_hang_costs_one_test_and_a_crash_too(tmp_path):
    """The driver goes on after a test that hangs or kills its process."""
    (tmp_path / "test_killers.py").write_text(
        "import os, time, unittest\n"
        "class Killers(unittest.TestCase):\n"
        "    def test_1_passes(self): pass\n"
        "    def test_2_hangs(self): time.sleep(1000)\n"
        "    def test_3_fails(self): self.fail('as expected')\n"
        "    def test_4_crashes(self): os._exit(3)\n"
        "    def test_5_skips(self): self.skipTest('no reason')\n"
        "    def test_6_fails_in_a_subtest(self):\n"
        "        with self.subTest(i=1): self.fail('as expected')\n"
        "        with self.subTest(i=2): pass\n"
        "    def test_7_passes(self): pass\n"
    )
    run = asyncio_suite.run_module(
        "test_killers", loop="standard", limit=2.0, extra_path=str(tmp_path)
    )
    outcomes = {test.rsplit(".", 1)[1]: result.outcome for test, result in run.results.items()}
    assert outcomes == {
        "test_1_passes": "pass",
        "test_2_hangs": "hang",
        "test_3_fails": "fail",
        "test_4_crashes": "crash",
        "test_5_skips": "skip",
        "test_6_fails_in_a_subtest": "fail",
        "test_7_passes": "pass",
    }
    assert "in test_2_hangs" in run.results["test_killers.Killers.test_2_hangs"].detail


def test_judge_is_strict_both_ways(monkeypatch):
    """Nothing that is wrong with a run goes unnoticed."""
    test = "test_context.DecimalContextTest.test_asyncio_task_decimal_context"
    run = asyncio_suite.run_module("test_context")

    def problems():
        return [problem.split(":")[0] for problem in asyncio_suite.judge(run).problems]

    assert problems() == []
    monkeypatch.setitem(tables.DEVIATIONS, test, tables.Deviation("of no kind"))
    assert problems() == ["LISTED as a deviation, but pass"]
    result = run.results.pop(test)
    assert "LISTED as a deviation, but not there" in problems()
    run.results[test] = result
    result.outcome = "fail"
    assert problems() == []
    monkeypatch.delitem(tables.DEVIATIONS, test)
    assert problems() == ["FAIL"]
    result.outcome = "skip"
    assert problems() == ["SKIPPED on this loop alone"]
    result.outcome, result.altered = "pass", "a thread"
    assert problems() == ["LEFTOVER"]
    result.altered, result.loops = "", [0, 0, 0]
    assert problems() == ["LOOP"]
    result.loops = [1, 1, 1]
    assert problems() == ["LOOP"]


def test_what_fails_on_the_standard_loop_too_is_the_environments_fault(monkeypatch):
    """A failure counts as the environment's only if it shows without us and without patching."""
    test = "test_context.DecimalContextTest.test_asyncio_task_decimal_context"
    run = asyncio_suite.run_module("test_context")
    run.results[test].outcome = "fail"
    asked = []

    def run_control(module, *, loop, patched=False, only=None, **kwargs):
        asked.append((loop, patched))
        return asyncio_suite.ModuleRun(module, {test: asyncio_suite.Result("error")})

    monkeypatch.setattr(asyncio_suite, "run_module", run_control)
    verdict = asyncio_suite.judge(run, patched=True)
    assert (verdict.environment, verdict.problems) == ([test], [])
    assert set(asked) == {("standard", False)}
