"""The growth of cost and memory as a picture."""

from __future__ import annotations

import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from report import exponent, growth_costs


def plot_growth(report: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draw the cost of an operation over the number, both logarithmic, a panel for each kind."""
    import matplotlib

    matplotlib.use("svg")
    # The same figures give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "growth"
    matplotlib.rcParams["svg.fonttype"] = "none"  # text as text, not as outlines
    from matplotlib import pyplot

    titles = {
        name.partition("/")[0]: workload["title"]
        for name, workload in report["groups"]["growth"]["workloads"].items()
    }
    kinds: dict[str, list[tuple[str, dict[int, float]]]] = {}
    for kind, contestant, costs in growth_costs(report):
        kinds.setdefault(kind, []).append((contestant, costs))
    everybody = dict.fromkeys(contestant for lines in kinds.values() for contestant, _ in lines)
    colours = {contestant: f"C{number}" for number, contestant in enumerate(everybody)}
    columns = min(4, len(kinds))
    rows = -(-len(kinds) // columns)
    drawing, panels = pyplot.subplots(
        rows, columns, figsize=(4 * columns, 3.4 * rows), squeeze=False
    )
    for panel in panels.flat[len(kinds) :]:
        panel.axis("off")
    for panel, (kind, lines) in zip(panels.flat, kinds.items(), strict=False):
        panel.set_title(titles[kind].replace("`", ""), fontsize=8)
        for contestant, costs in lines:
            slope = exponent(costs)
            label = contestant if slope is None else f"{contestant} (n^{slope:.2f})"
            numbers = [*costs]
            panel.plot(
                numbers,
                [costs[n] * 1e6 for n in numbers],
                color=colours[contestant],
                marker="o",
                markersize=3,
                label=label,
            )
        _draw_logarithm(panel, lines)
        panel.set_xscale("log")
        panel.set_yscale("log")
        # At least two powers of ten, or noise would look like growth.
        middle = statistics.geometric_mean(
            cost * 1e6 for _, costs in lines for cost in costs.values()
        )
        low, high = panel.get_ylim()
        panel.set_ylim(min(low, middle / 10), max(high, middle * 10))
        panel.set_xlabel("n", fontsize=8)
        panel.set_ylabel("µs", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.legend(fontsize=7)
    drawing.tight_layout()
    drawing.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(drawing)


def _draw_logarithm(panel: Any, lines: Sequence[tuple[str, Mapping[int, float]]]) -> None:
    """Draw how cost would grow with log n, from the middle of the costs at 100 on."""
    at_100 = [costs[100] * 1e6 for _, costs in lines if 100 in costs]
    numbers = sorted({number for _, costs in lines for number in costs if number >= 100})
    if at_100 and len(numbers) > 1:
        logarithms = [
            statistics.geometric_mean(at_100) * math.log(number) / math.log(100)
            for number in numbers
        ]
        panel.plot(numbers, logarithms, color="0.6", linestyle="--", linewidth=1, label="log n")
