"""What was measured, beside rivals and targets, as one table for a terminal or for Markdown."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass, field

_TARGET = re.compile(r"(≤|≥)\s*([\d,]+(?:\.\d+)?)")
_HEAD = ("figure", "of", "median", "beside", "from-to", "target", "")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure."""

    subject: str
    figure: str
    """What was measured, with its unit."""
    of: str
    """Whose figure it is."""
    measured: str
    beside: str = ""
    """How many times that of the rival which everybody is compared with."""
    spread: str = ""
    target: str = ""
    met: bool | None = None
    """None where there is nothing to meet."""
    why: str = ""
    """The measured reason of a miss, or why there is no figure."""

    @property
    def verdict(self) -> str:
        """`met`, `MISSED` with its reason, or the reason alone."""
        if self.met is None:
            return self.why
        return "met" if self.met else f"MISSED {self.why}".rstrip()

    @property
    def cells(self) -> tuple[str, ...]:
        """As it stands in the table."""
        return (
            self.figure,
            self.of,
            self.measured,
            self.beside,
            self.spread,
            self.target,
            self.verdict,
        )


@dataclass(slots=True)
class Report:
    """The rows so far, and the figure of every round by itself."""

    judged: bool = True
    """Do the figures mean enough to hold them against targets?"""
    rows: list[Row] = field(default_factory=list)
    runs: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """By figure, then by whose it is."""

    def add(
        self,
        subject: str,
        figure: str,
        of: str,
        runs: float | list[float],
        *,
        target: str = "",
        why: str = "",
        beside: str = "",
        note: str = "",
    ) -> None:
        """Add a figure.

        Args:
            subject: The part of the table.
            figure: What was measured, with its unit.
            of: Whose it is.
            runs: What came out, once a round.
            target: `≥ 2.5` or `≤ 1.3`, or nothing.
            why: The measured reason, shown if the target is missed.
            beside: How it stands beside a rival's.
            note: What else has to be known of it, shown where there is no target.
        """
        runs = runs if isinstance(runs, list) else [runs]
        self.runs.setdefault(figure, {})[of] = runs
        middle = statistics.median(runs)
        spread = f"{shown(min(runs))}-{shown(max(runs))}" if len(runs) > 1 else ""
        met = judge(middle, target) if self.judged else None
        why = note if met is None else why
        self.rows.append(Row(subject, figure, of, shown(middle), beside, spread, target, met, why))

    def add_all(
        self,
        subject: str,
        figure: str,
        found: dict[str, list[float]],
        base: str,
        notes: dict[str, str] | None = None,
    ) -> None:
        """Add a figure of several, each beside that of the base, and a note where there is one."""
        self.runs.setdefault(figure, {}).update(found)
        for of, runs in found.items():
            beside = ""
            if base in found and of != base:
                beside = f"{statistics.median(self.ratios(figure, of, base)):.2f} × {base}"
            note = (notes or {}).get(of, "")
            self.add(subject, figure, of, runs, beside=beside, note=note)

    def ratios(self, figure: str, of: str, base: str) -> list[float]:
        """Return how many times another's a figure is, once for every round.

        What is measured within a round is close in time: a slow minute of the machine hits both.

        Raises:
            KeyError: One of them was not added before.
        """
        found = self.runs[figure]
        return [ours / theirs for ours, theirs in zip(found[of], found[base], strict=False)]

    def absent(self, subject: str, figure: str, of: str, why: str) -> None:
        """Say why there is no figure."""
        self.rows.append(Row(subject, figure, of, "-", why=why))

    def median(self, figure: str, of: str) -> float:
        """Return the median of a figure that was added before.

        Raises:
            KeyError: It was not.
        """
        return statistics.median(self.runs[figure][of])

    @property
    def missed(self) -> int:
        """How many targets were missed."""
        return sum(row.met is False for row in self.rows)


def shown(figure: float) -> str:
    """Write a number with the digits that mean something."""
    if abs(figure) >= 100:
        return f"{figure:,.0f}"
    return f"{figure:.1f}" if abs(figure) >= 10 else f"{figure:.2f}"


def judge(measured: float, target: str) -> bool | None:
    """Tell whether a number meets a target; None if there is none."""
    found = _TARGET.fullmatch(target)
    if found is None:
        return None
    limit = float(found[2].replace(",", ""))
    return measured <= limit if found[1] == "≤" else measured >= limit


def table(rows: list[Row]) -> list[str]:
    """Lay figures out for a terminal."""
    cells = [_HEAD, *(row.cells for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(6)]
    lines, subject, figure = [_line(_HEAD, widths)], "", ""
    for row in rows:
        if row.subject != subject:
            lines += ["", row.subject]
            subject, figure = row.subject, ""
        name = "" if row.figure == figure else row.figure
        lines.append(_line((name, *row.cells[1:]), widths))
        figure = row.figure
    return lines


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    figure, of, measured, beside, spread, target, verdict = cells
    return (
        f"{figure:<{widths[0]}}  {of:<{widths[1]}}  {measured:>{widths[2]}}  "
        f"{beside:>{widths[3]}}  {spread:>{widths[4]}}  {target:>{widths[5]}}  {verdict}"
    ).rstrip()


def markdown(rows: list[Row]) -> list[str]:
    """Lay figures out as a table of Markdown for each subject."""
    lines, subject, figure = [], "", ""
    for row in rows:
        if row.subject != subject:
            lines += ["", f"### {row.subject}", "", f"| {' | '.join(_HEAD)} |"]
            lines.append("|---|---|--:|--:|--:|--:|---|")
            subject, figure = row.subject, ""
        name = "" if row.figure == figure else row.figure
        cells = (cell.replace("|", "\\|") for cell in (name, *row.cells[1:]))
        lines.append(f"| {' | '.join(cells)} |")
        figure = row.figure
    return lines[1:]
