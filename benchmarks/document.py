"""Writes the figures into `docs/benchmarks.md`, between its two marks, and the plot beside it."""

from __future__ import annotations

from benchmarks.processes import ROOT
from benchmarks.table import Report, markdown

PAGE = ROOT / "docs" / "benchmarks.md"
PLOT = ROOT / "docs" / "benchmarks.svg"
BEGIN = "<!-- figures: written by `python -m benchmarks.run --markdown` -->"
END = "<!-- end of the figures -->"


def write(report: Report, said: list[str]) -> None:
    """Replace what stands between the marks; the prose around it stays.

    Raises:
        ValueError: The page has no such marks.
    """
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(replaced(page, [*said, "", *markdown(report.rows)]), encoding="utf-8")
    if "64 in flight, JSON, 128 B: calls/s" in report.runs:
        from benchmarks import plot

        plot.draw(report, PLOT)


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
