"""Turn the figures of `run.py` into tables and a plot.

    python benchmarks/report.py FILE.json [--part PART] [--plot FILE.svg]
    python benchmarks/report.py --update docs/performance.md

The first prints tables in Markdown. PART is one of "about", "bars", "notes", "growth", or a group
("loops", "bridges", "gevent") or a table of it ("loops wall", "loops cpu", "bridges memory").

The second rewrites in a document what stands between lines like these, from
``benchmarks/results/3.11.json``:

    <!-- table: 3.11 loops wall -->
    <!-- end -->
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from _bars import BARS, GROWTH, Bar

RESULTS = pathlib.Path(__file__).parent / "results"
MARKED = re.compile(
    r"^(?P<head><!-- table: (?P<name>\S+) (?P<part>[\w ]+?) -->\n).*?(?P<end><!-- end -->)$",
    flags=re.MULTILINE | re.DOTALL,
)

#: What the report calls figures of a contestant, or why there are none.
Results = Mapping[str, Mapping[str, Any]]

# --- figures --------------------------------------------------------------------------------------


def ratios(results: Results, numerator: str, denominator: str, kind: str) -> list[float] | None:
    """Return the ratios of two contestants' seconds, one of each round.

    Args:
        results: of a workload, by contestant.
        kind: "wall" or "cpu".

    Returns:
        None if one of the two has no figures.
    """
    pair = [results.get(name, {}).get(kind) for name in (numerator, denominator)]
    if not (pair[0] and pair[1]):
        return None
    # A processor time of nothing, which the clock's resolution allows, is no figure either.
    if not all(pair[1]):
        return None
    return [upper / lower for upper, lower in zip(*pair, strict=True)]


def exponent(costs: Mapping[int, float], least: int = 100) -> float | None:
    """Return how cost grows with number: the slope of its logarithm over that of the number.

    Args:
        costs: by number.
        least: smaller numbers are left out.

    Returns:
        0.0 if it does not grow, 1.0 if it grows in proportion. None of fewer than two numbers.
    """
    points = [
        (math.log(number), math.log(cost)) for number, cost in costs.items() if number >= least
    ]
    if len(points) < 2:
        return None
    x, y = zip(*points, strict=True)
    return statistics.linear_regression(x, y).slope


def judge(report: Mapping[str, Any], bars: Iterable[Bar] = BARS) -> list[dict[str, Any]]:
    """Return the bars of those who took part, each with the ratio and the verdict."""
    verdicts = []
    for bar in bars:
        group = report["groups"].get(bar.group, {"contestants": [], "workloads": {}})
        took_part = {bar.against, bar.contestant} <= {*group["contestants"]}
        if not took_part or bar.workload not in group["workloads"]:
            continue
        results = group["workloads"][bar.workload]["results"]
        values = ratios(results, bar.against, bar.contestant, bar.kind)
        ratio = None if values is None else statistics.median(values)
        verdicts.append({**vars(bar), "ratio": ratio, "verdict": verdict(ratio, bar.at_least)})
    for kind, contestant, costs in growth_costs(report):
        slope = exponent(costs)
        if contestant == "ours" and slope is not None:
            missed = "met" if slope <= GROWTH else f"missed by {slope - GROWTH:.2f}"
            verdicts.append(
                {
                    "group": "growth",
                    "workload": kind,
                    "contestant": contestant,
                    "against": "",
                    "kind": "exponent",
                    "at_most": GROWTH,
                    "ratio": slope,
                    "verdict": missed,
                }
            )
    return verdicts


def verdict(ratio: float | None, at_least: float) -> str:
    """Return "met", or by how much it is not."""
    if ratio is None:
        return "not measured"
    if ratio >= at_least:
        return "met"
    return f"missed by {1 - ratio / at_least:.1%}"


def growth_costs(report: Mapping[str, Any]) -> list[tuple[str, str, dict[int, float]]]:
    """Return of the group "growth": kind, contestant, seconds for an operation by number."""
    return [
        (kind, contestant, {number: statistics.median(of[number]["wall"]) for number in of})
        for kind, contestants in _growth(report).items()
        for contestant, of in contestants.items()
    ]


def _growth(report: Mapping[str, Any]) -> dict[str, dict[str, dict[int, Mapping[str, Any]]]]:
    """Return by kind, contestant and number what was measured."""
    kinds: dict[str, dict[str, dict[int, Mapping[str, Any]]]] = {}
    for name, workload in report["groups"].get("growth", {}).get("workloads", {}).items():
        kind, _, number = name.partition("/")
        for contestant, result in workload["results"].items():
            if result.get("wall"):
                kinds.setdefault(kind, {}).setdefault(contestant, {})[int(number)] = result
    return kinds


# --- tables ---------------------------------------------------------------------------------------


def figure(value: float) -> str:
    """Return three digits of a number, or all those before its point."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 3)}f}"


def spread(values: Sequence[float]) -> str:
    """Return the median, the least and the greatest."""
    if len(values) == 1:
        return figure(values[0])
    return f"{figure(statistics.median(values))} ({figure(min(values))}-{figure(max(values))})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, whose first column is text."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def compare(group: Mapping[str, Any], kind: str) -> str:
    """Return the table of ratios of a group."""
    base = group["base"]
    others = [name for name in group["contestants"] if name != base]
    rows = []
    for workload in group["workloads"].values():
        results = workload["results"]
        cells = [workload["title"], _base_cell(results, base, kind)]
        for name in others:
            pair = (name, base) if group["longer"] else (base, name)
            values = ratios(results, *pair, kind)
            star = "\\*" if "remark" in results.get(name, {}) else ""
            cells.append(_lack(results, name) if values is None else spread(values) + star)
        rows.append(cells)
    what = {"wall": "time", "cpu": "processor time"}[kind]
    return table([what, f"{base}, µs", *others], rows)


def _base_cell(results: Results, base: str, kind: str) -> str:
    values = results.get(base, {}).get(kind)
    return figure(statistics.median(values) * 1e6) if values else _lack(results, base)


def _lack(results: Results, name: str) -> str:
    result = results.get(name, {"missing": True})
    if "failure" in result:
        return "fails"
    return "-" if "missing" in result else "?"


def memory(group: Mapping[str, Any]) -> str:
    """Return the table of the memory of each of many at the same time."""
    contestants = group["contestants"]
    rows = []
    for workload in group["workloads"].values():
        results = workload["results"]
        if any("memory" in result for result in results.values()):
            rows.append(
                [
                    workload["title"],
                    *[
                        f"{results[name]['memory']:,.0f}"
                        if "memory" in results.get(name, {})
                        else _lack(results, name)
                        for name in contestants
                    ],
                ]
            )
    return table(["bytes for each", *contestants], rows) if rows else ""


def growth(report: Mapping[str, Any]) -> str:
    """Return the tables of cost and memory by number."""
    kinds = _growth(report)
    numbers = sorted({number for of in kinds.values() for each in of.values() for number in each})
    titles = {
        name.partition("/")[0]: workload["title"]
        for name, workload in report["groups"]["growth"]["workloads"].items()
    }
    costs, memories = [], []
    for kind, contestants in kinds.items():
        for contestant, of in contestants.items():
            title = [titles[kind], contestant]
            slope = exponent({n: statistics.median(of[n]["wall"]) for n in of})
            costs.append(
                [
                    *title,
                    *[
                        spread([wall * 1e6 for wall in of[n]["wall"]]) if n in of else ""
                        for n in numbers
                    ],
                    "-" if slope is None else f"{slope:.2f}",
                ]
            )
            large = [n for n in numbers if n >= 1_000]
            if any("memory" in of[n] for n in of if n >= 1_000):
                memories.append(
                    [*title, *[f"{of[n]['memory']:,.0f}" if n in of else "" for n in large]]
                )
    head = [f"{number:,}" for number in numbers]
    text = table(["µs", "", *head, "exponent"], costs)
    if memories:
        text += "\n" + table(["bytes for each", "", *head[-len(large) :]], memories)
    return text


def bars(report: Mapping[str, Any]) -> str:
    """Return the table of what is to hold."""
    rows = []
    for each in judge(report):
        limit = f"≥ {figure(each['at_least'])}" if "at_least" in each else f"≤ {each['at_most']}"
        rows.append(
            [
                f"{each['group']} {each['workload']}",
                each["contestant"],
                each["against"],
                each["kind"],
                limit,
                "-" if each["ratio"] is None else figure(each["ratio"]),
                each["verdict"],
            ]
        )
    return table(["workload", "of", "against", "what", "bar", "measured", "verdict"], rows)


def notes(report: Mapping[str, Any], names: Iterable[str] | None = None) -> str:
    """Return remarks on figures, and the reasons of failures."""
    remarks, failures = [], []
    for name in names or report["groups"]:
        for workload in report["groups"][name]["workloads"].values():
            for contestant, result in workload["results"].items():
                said = f"- {workload['title']}, {contestant}: "
                if "failure" in result:
                    failures.append(said + result["failure"])
                elif "remark" in result:
                    remarks.append(said + result["remark"])
    text = ""
    if remarks:
        text += "Remarks (\\*):\n\n" + "\n".join(remarks) + "\n"
    if failures:
        text += "\n" * bool(text) + "Failures:\n\n" + "\n".join(failures) + "\n"
    return text


def about(report: Mapping[str, Any]) -> str:
    """Return what the figures were made with."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    text = (
        f"Python {report['python']}, {versions}; {report['platform']}, {report['cpu']}, "
        f"{report['cores']} cores, at most {report['open_files']} open files; {report['date']}; "
        f"{report['rounds']} rounds of {report['seconds']:g} s: `{report['command']}`\n"
    )
    return text + "".join(f"Left out: {each}\n" for each in report["left_out"])


# --- documents ------------------------------------------------------------------------------------


def render(report: Mapping[str, Any], part: str) -> str:
    """Return a part of a report in Markdown.

    Raises:
        KeyError: the report has no such part.
    """
    if part in ("about", "bars", "notes", "growth"):
        return {"about": about, "bars": bars, "notes": notes, "growth": growth}[part](report)
    name, _, kind = part.partition(" ")
    group = report["groups"][name]
    makers = {
        "wall": lambda: compare(group, "wall"),
        "cpu": lambda: compare(group, "cpu"),
        "memory": lambda: memory(group),
        "notes": lambda: notes(report, [name]),
    }
    kinds = [kind] if kind else [*makers]
    return "\n".join(text for text in (makers[each]() for each in kinds) if text)


def render_group(report: Mapping[str, Any], name: str) -> str:
    """Return a group with its heading."""
    group = report["groups"][name]
    text = f"## {group['title']}\n\n{group['reading']}\n\n{render(report, name)}"
    return text + ("\n" + notes(report, [name]) if name == "growth" else "")


def render_all(report: Mapping[str, Any]) -> str:
    """Return all that there is, but for the bars."""
    return "\n".join([about(report), *[render_group(report, name) for name in report["groups"]]])


def update(text: str, results: pathlib.Path = RESULTS) -> str:
    """Return a document with its tables made anew from the files in a directory."""

    def make_anew(match: re.Match[str]) -> str:
        report = json.loads((results / f"{match['name']}.json").read_text(encoding="utf-8"))
        return f"{match['head']}\n{render(report, match['part'])}\n{match['end']}"

    return MARKED.sub(make_anew, text)


def main() -> None:
    """Print tables, or update a document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=pathlib.Path)
    parser.add_argument("--part")
    parser.add_argument("--plot", type=pathlib.Path, help="an SVG of the growth")
    parser.add_argument("--update", type=pathlib.Path, metavar="DOCUMENT")
    options = parser.parse_args()
    if options.update:
        old = options.update.read_text(encoding="utf-8")
        options.update.write_text(update(old), encoding="utf-8")
    if options.file:
        report = json.loads(options.file.read_text(encoding="utf-8"))
        print(render(report, options.part) if options.part else render_all(report))
        if options.plot:
            from _plot import plot_growth

            plot_growth(report, options.plot)
    elif not options.update:
        parser.error("name a file, or a document to update")


if __name__ == "__main__":
    main()
