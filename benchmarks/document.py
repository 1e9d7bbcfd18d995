"""Writes the figures into `docs/benchmarks.md`, between its two marks.

Beside it go the plot and, as JSON, the figure of every round.
"""

from __future__ import annotations

import json

from benchmarks.processes import ROOT
from benchmarks.table import Report, markdown

PAGE = ROOT / "docs" / "benchmarks.md"
FIGURES = ROOT / "docs" / "benchmarks.json"
PLOT = ROOT / "docs" / "benchmarks.svg"
BEGIN = "<!-- figures: written by `python -m benchmarks.run --markdown` -->"
END = "<!-- end of the figures -->"


def write(report: Report, said: list[str]) -> None:
    """Replace what stands between the marks; the prose around it stays.

    Raises:
        ValueError: The page has no such marks.
    """
    page = PAGE.read_text(encoding="utf-8")
    FIGURES.write_text(as_json(report, said), encoding="utf-8")
    PAGE.write_text(replaced(page, [*said, "", *markdown(report.rows)]), encoding="utf-8")
    if "64 in flight, JSON, 128 B: calls/s" in report.runs:
        from benchmarks import plot

        plot.draw(report, PLOT)


def as_json(report: Report, said: list[str]) -> str:
    """Write the figure of every round, a line for each contender."""
    runs = [
        {"figure": figure, "of": of, "runs": [float(f"{run:.4g}") for run in some]}
        for figure, found in report.runs.items()
        for of, some in found.items()
    ]
    lines = ",\n  ".join(json.dumps(one, ensure_ascii=False) for one in runs)
    return f'{{"machine": {json.dumps(said, ensure_ascii=False)}, "figures": [\n  {lines}\n]}}\n'


def replaced(page: str, lines: list[str]) -> str:
    """Return a page with other lines between its marks.

    Raises:
        ValueError: It has no such marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} has to have a line {BEGIN!r} and one {END!r}")
    return "\n".join([f"{before}{begin}", "", *lines, "", f"{end}{after}"])
