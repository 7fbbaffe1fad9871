"""The benchmarks run, their figures are computed as they say, and the stored tables are theirs."""

from __future__ import annotations

import json
import math
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from support import import_path

ROOT = pathlib.Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"

sys.path.insert(0, str(BENCHMARKS))
try:
    import _clock
    import _contest
    import instructions
    import report
    import run
    from _bars import BARS, Bar
    from _contest import load_group

    GROUPS = {name: load_group(name) for name in _contest.GROUPS}
finally:
    sys.path.remove(str(BENCHMARKS))

#: Seconds for all processes of a run.
LIMIT = 60


def start(*arguments: str, **variables: str) -> str:
    """Run a script of the benchmarks to its end; return what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=BENCHMARKS,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(import_path()), **variables},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- a run ----------------------------------------------------------------------------------------


@pytest.mark.timeout(LIMIT + 20)
@pytest.mark.soft_limit(LIMIT + 10)
def test_a_run_from_end_to_end(tmp_path: pathlib.Path) -> None:
    """A workload of each group, and no other contestants than this library and the bases."""
    path = tmp_path / "results" / "a.json"
    printed = start(
        "run.py", "--only", "call_soon_chain", "below_task", "switch", "timers_fired/10",
        "--contestants", "ours", "ours, standard host",
        "--rounds", "1", "--seconds", "0.001", "--json", str(path),
    )  # fmt: skip
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert list(stored["groups"]) == list(GROUPS)
    for group in stored["groups"].values():
        (workload,) = group["workloads"].values()
        assert set(workload["results"]) == set(group["contestants"])
        for result in workload["results"].values():
            assert result["count"] >= 1
            assert len(result["wall"]) == len(result["cpu"]) == 1
            assert result["wall"][0] > 0
    assert stored["groups"]["loops"]["contestants"] == ["standard", "ours"]
    # What is stored renders to what was printed, and says nothing about the machine's directories.
    assert printed == report.render_all(stored) + "\n"
    assert str(tmp_path) not in path.read_text(encoding="utf-8")
    assert start("report.py", str(path)) == printed
    assert [each["workload"] for each in stored["bars"]] == ["call_soon_chain"]


@pytest.mark.timeout(LIMIT + 20)
@pytest.mark.soft_limit(LIMIT + 10)
def test_one_process_for_all_workloads(tmp_path: pathlib.Path) -> None:
    """As `--quick` has it; what fails there and what there is not stands in the table."""
    path = tmp_path / "a.json"
    printed = start(
        "run.py", "--quick", "--group", "bridges",
        "--only", "suspended_step", "chain", "sleep_in_greenlets",
        "--contestants", "gevent alone", "asgiref", "--others", sys.executable,
        "--rounds", "2", "--seconds", "0.001", "--json", str(path), "--bars",
    )  # fmt: skip
    workloads = json.loads(path.read_text(encoding="utf-8"))["groups"]["bridges"]["workloads"]
    assert workloads["chain"]["results"]["gevent alone"] == {"missing": True}
    assert "asgiref" in workloads["chain"]["results"]["asgiref"]["failure"]
    assert len(workloads["suspended_step"]["results"]["gevent alone"]["wall"]) == 2
    remark = workloads["sleep_in_greenlets"]["results"]["gevent alone"]["remark"]
    assert remark == "only 1,000 at once, as with --quick"
    assert "| fails | - |" in printed
    assert "| bridges suspended_step | ours | gevent alone | wall | ≥ 0.667 |" in printed


def test_groups_need_no_more_than_the_standard_library() -> None:
    """To be imported, for which Python they may run on: what they measure is imported later."""
    start(
        "-c",
        "import sys\n"
        "for name in 'gevent', 'greenlet', 'asyncio_gevent', 'uvloop': sys.modules[name] = None\n"
        "from _contest import GROUPS, load_group\n"
        "for name in GROUPS: load_group(name)",
    )


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_is_complete(name: str) -> None:
    group = GROUPS[name]
    assert group.base in group.contestants
    assert all(workload.title for workload in group.workloads.values())
    assert {each.python for each in group.contestants.values()} <= {"main", "peer", "others"}
    assert all(workload.size >= 1 for workload in group.workloads.values())


def test_bars_are_of_what_there_is() -> None:
    for bar in BARS:
        group = GROUPS[bar.group]
        assert bar.workload in group.workloads
        assert {bar.against, bar.contestant} <= set(group.contestants)
    assert len({(bar.workload, bar.against, bar.kind, bar.contestant) for bar in BARS}) == len(BARS)


# --- figures --------------------------------------------------------------------------------------

RESULTS: dict[str, dict[str, Any]] = {
    "base": {"wall": [4.0, 6.0, 8.0], "cpu": [1.0, 1.0, 1.0]},
    "fast": {"wall": [2.0, 2.0, 1.0], "cpu": [2.0, 4.0, 5.0]},
    "broken": {"failure": "Error: no"},
    "idle": {"wall": [1.0, 1.0, 1.0], "cpu": [0.0, 1.0, 1.0]},
    "other": {"missing": True},
}


def make_report(**workloads: Any) -> dict[str, Any]:
    """Return a report with one group, "loops", of these workloads' results."""
    return {
        "groups": {
            "loops": {
                "title": "Title",
                "reading": "How to read it.",
                "base": "base",
                "longer": False,
                "contestants": [*RESULTS],
                "workloads": {
                    name: {"title": f"the {name}", "results": results}
                    for name, results in workloads.items()
                },
            }
        }
    }


def test_ratios_are_those_within_a_round() -> None:
    assert report.ratios(RESULTS, "base", "fast", "wall") == [2.0, 3.0, 8.0]
    assert report.ratios(RESULTS, "base", "fast", "cpu") == [0.5, 0.25, 0.2]
    assert report.ratios(RESULTS, "fast", "base", "cpu") == [2.0, 4.0, 5.0]


@pytest.mark.parametrize("name", ["broken", "other", "nobody"])
def test_there_is_no_ratio_without_figures(name: str) -> None:
    assert report.ratios(RESULTS, "base", name, "wall") is None
    assert report.ratios(RESULTS, name, "base", "wall") is None


def test_there_is_no_ratio_to_nothing() -> None:
    assert report.ratios(RESULTS, "base", "idle", "cpu") is None


def test_a_cell_has_the_median_and_the_extremes() -> None:
    assert report.spread([8.0, 2.0, 3.0]) == "3.00 (2.00-8.00)"
    assert report.spread([2.0, 4.0]) == "3.00 (2.00-4.00)"
    assert report.spread([2.0]) == "2.00"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.01234, "0.012"),
        (0.5, "0.500"),
        (1.0, "1.00"),
        (12.34, "12.3"),
        (123.4, "123"),
        (12345.6, "12,346"),
    ],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert report.figure(value) == text


@pytest.mark.parametrize(
    ("cost", "slope"),
    [(lambda n: 3.0, 0.0), (lambda n: 2.0 * n, 1.0), (lambda n: n**0.5, 0.5), (math.log, 0.137)],
    ids=["constant", "n", "root", "logarithm"],
)
def test_the_exponent_of_growth(cost: Any, slope: float) -> None:
    costs = {number: cost(number) for number in (100, 50_000)}
    assert report.exponent(costs) == pytest.approx(slope, abs=0.001)
    # Ten are too few to tell.
    assert report.exponent({10: 1e9, **costs}) == pytest.approx(slope, abs=0.001)


def test_the_exponent_is_that_of_all_points() -> None:
    # Of the logarithms (0, 1, 2) of n / 100 and (0, 0, 1) of the cost: half a power of ten each.
    assert report.exponent({100: 1.0, 1_000: 1.0, 10_000: 10.0}) == pytest.approx(0.5)


def test_there_is_no_exponent_of_one_point() -> None:
    assert report.exponent({10: 1.0, 100: 1.0}) is None


def test_bars_are_met_or_missed() -> None:
    bars = [
        Bar("loops", "one", "base", 3.0, contestant="fast"),
        Bar("loops", "one", "base", 4.0, contestant="fast"),
        Bar("loops", "one", "base", 0.25, "cpu", "fast"),
        Bar("loops", "one", "base", 1.0, contestant="broken"),
        Bar("loops", "another", "base", 1.0, contestant="fast"),
        Bar("loops", "one", "absent", 1.0, contestant="fast"),
    ]
    judged = report.judge(make_report(one=RESULTS), bars)
    assert [(each["ratio"], each["verdict"]) for each in judged] == [
        (3.0, "met"), (3.0, "missed by 25.0%"), (0.25, "met"), (None, "not measured"),
    ]  # fmt: skip


def growth_report() -> dict[str, Any]:
    """Return a report of "growth": ours grows in proportion to n, the standard loop's does not."""
    numbers = (100, 1_000, 10_000)
    return {
        "groups": {
            "growth": {
                "title": "Growth",
                "reading": "",
                "workloads": {
                    f"tasks/{number}": {
                        "title": "N tasks",
                        "results": {
                            "standard": {"wall": [1e-6], "cpu": [1e-6], "memory": 50.0},
                            "ours": {"wall": [number * 1e-8] * 3, "cpu": [1e-6] * 3},
                            "uvloop": {"failure": "Error: no"},
                        },
                    }
                    for number in numbers
                },
            }
        }
    }


def test_growth_is_judged() -> None:
    (judged,) = report.judge(growth_report(), [])
    assert judged["workload"] == "tasks"
    assert judged["ratio"] == pytest.approx(1.0)
    assert judged["verdict"].startswith("missed by 0.")


def test_a_table_of_growth() -> None:
    text = report.render(growth_report(), "growth")
    assert "| µs |  | 100 | 1,000 | 10,000 | exponent |" in text
    assert "| N tasks | standard | 1.00 | 1.00 | 1.00 | 0.00 |" in text
    assert "| 100 (100-100) | 1.00 |" in text
    # Of a hundred the memory says nothing.
    assert "| bytes for each |  | 1,000 | 10,000 |\n" in text
    assert "| N tasks | standard | 50 | 50 |\n" in text
    assert "Error: no" in report.render_group(growth_report(), "growth")


# --- tables ---------------------------------------------------------------------------------------


def test_a_table_of_ratios() -> None:
    assert report.render(make_report(one=RESULTS), "loops wall").splitlines() == [
        "| time | base, µs | fast | broken | idle | other |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| the one | 6,000,000 | 3.00 (2.00-8.00) | fails | 6.00 (4.00-8.00) | - |",
    ]


def test_a_table_of_how_much_longer_the_others_take() -> None:
    made = make_report(one=RESULTS)
    made["groups"]["loops"]["longer"] = True
    assert "| 0.333 (0.125-0.500) |" in report.render(made, "loops wall")


def test_a_table_of_memory() -> None:
    made = make_report(one={**RESULTS, "fast": {**RESULTS["fast"], "memory": 1234.6}}, two=RESULTS)
    lines = report.render(made, "loops memory").splitlines()
    assert lines[2:] == ["| the one | ? | 1,235 | fails | ? | - |"]


def test_reasons_and_remarks_stand_below() -> None:
    made = make_report(one={**RESULTS, "fast": {**RESULTS["fast"], "remark": "is pushed"}})
    text = report.render(made, "loops")
    assert "| 3.00 (2.00-8.00)\\* |" in text
    assert "Remarks (\\*):\n\n- the one, fast: is pushed\n" in text
    assert "Failures:\n\n- the one, broken: Error: no\n" in text


def test_the_tables_of_a_document_are_made_anew(tmp_path: pathlib.Path) -> None:
    (tmp_path / "3.11.json").write_text(json.dumps(make_report(one=RESULTS)), encoding="utf-8")
    old = "before\n<!-- table: 3.11 loops wall -->\n{}<!-- end -->\nafter\n"
    new = report.update(old.format("anything\n"), tmp_path)
    assert new == old.format(f"\n{report.render(make_report(one=RESULTS), 'loops wall')}\n")
    assert report.update(new, tmp_path) == new


def test_the_stored_figures_are_those_of_the_document() -> None:
    path = ROOT / "docs" / "performance.md"
    if not path.exists():
        pytest.skip("there is no such document")
    text = path.read_text(encoding="utf-8")
    assert report.MARKED.search(text), "it has no tables"
    assert text.count("<!-- table:") == len(report.MARKED.findall(text)), "a mark has no end"
    # If not: python benchmarks/report.py --update docs/performance.md
    assert report.update(text) == text


PRINTED = """\
--------------------------------------------------------------------------------
Ir
--------------------------------------------------------------------------------
1,234,567 (100.0%)  PROGRAM TOTALS

--------------------------------------------------------------------------------
Ir                   file:function
--------------------------------------------------------------------------------
1,000,001 (81.00%)  /somewhere/Python/ceval.c:_PyEval_EvalFrameDefault'2 [/somewhere/libpython3.so]
  200,002 (16.20%)  ceval.c:_PyEval_EvalFrameDefault [/somewhere/libpython3.so]
    1,003 ( 0.08%)  ???:recv [/somewhere/libc.so.6]
"""


def test_instructions_are_those_of_a_function_and_not_of_a_file() -> None:
    total, functions = instructions.parse(PRINTED)
    assert total == 1_234_567
    assert functions == {
        "_PyEval_EvalFrameDefault [libpython3.so]": 1_200_003,
        "recv [libc.so.6]": 1_003,
    }


#: They stand in for what is not installed everywhere, and takes long: the work is done, and said to
#: take 500 instructions once, and 10 for each operation.
VALGRIND = """\
#!/bin/sh
file=${3#*=}
shift 3
tee "$file" | "$@"
"""
CALLGRIND_ANNOTATE = """\
#!/bin/sh
count=$(sed -n 's/.*"count": //p' "$2" | tail -n 1 | tr -d '}')
echo "$((500 + 10 * count)) (100.0%)  PROGRAM TOTALS"
echo "$((400 + 7 * count)) (80.00%)  a.c:f [/lib/a.so]"
"""


@pytest.fixture
def path_of_valgrind(tmp_path: pathlib.Path) -> str:
    for name, text in ("valgrind", VALGRIND), ("callgrind_annotate", CALLGRIND_ANNOTATE):
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    return f"{tmp_path}{os.pathsep}{os.environ['PATH']}"


def test_instructions_are_those_of_an_operation(path_of_valgrind: str) -> None:
    arguments = "loops", "call_soon_chain", "ours", "--count", "50", "--top", "1"
    printed = start("instructions.py", *arguments, PATH=path_of_valgrind)
    assert printed == "call_soon_chain, ours: 10 instructions\n         7  f [a.so]\n"


def test_what_is_counted_is_done(path_of_valgrind: str) -> None:
    """By the contestant that is named: on its own gevent loop, and not by one that has no such."""
    arguments = "gevent", "switch", "ours, standard host", "--count", "50"
    printed = start("instructions.py", *arguments, PATH=path_of_valgrind)
    assert printed == "switch, ours, standard host: 10 instructions\n"
    arguments = "bridges", "chain", "gevent alone", "--count", "50"
    printed = start("instructions.py", *arguments, PATH=path_of_valgrind)
    assert printed == "chain, gevent alone: -\n"


# --- counts, names, clocks ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "size", "shared"),
    [
        # The fastest takes half the time, and the others as long as they need for as much.
        ({"a": 1000, "b": 400}, 1, {"a": 500, "b": 500}),
        ({"a": 1000, "b": 400}, 300, {"a": 300, "b": 300}),
        # But no more than twice the time.
        ({"a": 1000, "b": 100}, 1, {"a": 500, "b": 200}),
        # At least what is done at once.
        ({"a": 10_000, "b": 10_000}, 10_000, {"a": 10_000, "b": 10_000}),
        ({"a": 1}, 1, {"a": 1}),
        ({}, 1, {}),
    ],
)
def test_counts_are_shared(counts: Any, size: int, shared: Any) -> None:
    assert run.share_counts(counts, size) == shared


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("No such file: '/home/me/x.py'", "No such file: 'x.py'"),
        ("/a/b-c/d.so: not found", "d.so: not found"),
        ("TCP/IP and 3/4", "TCP/IP and 3/4"),
    ],
)
def test_no_directories_are_stored(text: str, without: str) -> None:
    assert run.without_paths(text) == without


class Time:
    """Takes the place of `time`: it goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    process_time = perf_counter


def test_sleep_is_left_out_of_what_sleepers_take(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time()
    monkeypatch.setattr(_clock, "time", time)
    clock = _clock.Clock()
    sleepers = _clock.Sleepers(2, patience=10.0)
    with clock:
        assert sleepers.delay() == 10.0
        time.now += 3.0  # until the second one sleeps as well
        assert sleepers.delay() == 7.0
        time.now += 7.0
        time.now += 2.0  # until both are awake
    assert sleepers.finish(clock)
    assert clock.wall == 5.0
    assert sleepers.seconds == 3.0


def test_sleepers_that_are_not_asleep_together_do_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    time = Time()
    monkeypatch.setattr(_clock, "time", time)
    seconds = 100e-6
    patiences = []

    def sleep(sleepers: _clock.Sleepers, clock: _clock.Clock) -> None:
        """Take so long for each further one to put to sleep, and a second to wake all."""
        patiences.append(sleepers.delay())
        with clock:
            for _ in range(sleepers.count - 1):
                time.now += seconds
                left = sleepers.delay()
            time.now += left + 1.0

    measure = _clock.measure_sleepers(5, sleep)
    del patiences[:]
    clock = _clock.Clock()
    seconds = 3.0
    measure(10, clock)
    # At first as much time as five need of those that were tried before, twice: too little. Then
    # twice as much as was needed, both times.
    assert patiences == pytest.approx([0.006, 24.0, 24.005])
    assert clock.wall == pytest.approx(2 * (4 * 3.0 + 1.0))
    assert clock.memory is not None
