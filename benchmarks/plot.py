"""Draws calls a second over those in flight, and how many times hand-written nats-py each makes."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from benchmarks.rpc import BASE, MAIN
from benchmarks.table import Report

_GROWTH = re.compile(r"([\d,]+) in flight, JSON, 128 B: calls/s")
_SIZE_INCHES = (9.0, 8.4)


def draw(report: Report, file: Path) -> None:
    """Draw both as one picture; the same figures make the same bytes."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "busmicro", "svg.fonttype": "none"})
    from matplotlib import pyplot as plt

    figure, (over, bars) = plt.subplots(2, 1, figsize=_SIZE_INCHES, layout="constrained")
    draw_growth(over, growth(report))
    draw_ratios(bars, report.runs[f"{MAIN}: calls/s"])
    figure.savefig(file, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = file.read_text(encoding="utf-8")
    file.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")


def growth(report: Report) -> dict[str, list[tuple[int, float]]]:
    """Return the points of each contender: in flight, and calls a second."""
    points: dict[str, list[tuple[int, float]]] = {}
    for name, found in report.runs.items():
        if matched := _GROWTH.fullmatch(name):
            flights = int(matched[1].replace(",", ""))
            for of, runs in found.items():
                points.setdefault(of, []).append((flights, statistics.median(runs)))
    return {of: sorted(some) for of, some in points.items()}


def draw_growth(axes, points: dict[str, list[tuple[int, float]]]) -> None:
    """Draw a line for each contender, busmicro's thicker and the floor's dashed."""
    for of, some in points.items():
        style = {"linestyle": "--"} if of.startswith("bare") else {}
        width = 2.5 if of == "busmicro" else 1.2
        axes.plot(*zip(*some, strict=True), marker="o", label=of, linewidth=width, **style)
    flights = sorted({flights for some in points.values() for flights, _rate in some})
    axes.set_xscale("log", base=2)
    axes.set_xticks(flights, [f"{number:,}" for number in flights])
    axes.yaxis.set_major_formatter(lambda rate, _position: f"{rate:,.0f}")
    axes.set_ylim(bottom=0)
    axes.set(xlabel="calls in flight", ylabel="calls/s", title="JSON, 128 B, three headers")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def draw_ratios(axes, found: dict[str, list[float]]) -> None:
    """Draw a bar for each contender, the slowest at the bottom."""
    base = statistics.median(found[BASE])
    ratios = {of: statistics.median(runs) / base for of, runs in found.items()}
    names = sorted(ratios, key=ratios.__getitem__)
    colors = ["tab:blue" if name.startswith("busmicro") else "lightgray" for name in names]
    bars = axes.barh(names, [ratios[name] for name in names], color=colors)
    axes.bar_label(bars, [f"{ratios[name]:.2f} ×" for name in names], padding=3)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set(xlabel=f"× {BASE}, calls/s, 64 in flight")
    axes.margins(x=0.1)
