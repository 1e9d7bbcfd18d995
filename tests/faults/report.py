"""The figures of the fault runs beside their targets, as one table at the end of the tests.

A scenario has a number, S1 to S53, by which `docs/faults.md` says what it promises; its figures
stand together in the table, in the order of the numbers.  Where a target is not met the table says
so, and why: a target that this machine misses is no reason to hide the figure.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

_WIDEST = 44
"""Letters of a column; what is longer pushes the rest of its own line aside."""
_TARGET = re.compile(r"(≤|≥|=)?\s*([\d,]+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure."""

    scenario: str
    """Begins with its number: `S28 node killed while the caller sends`."""
    figure: str
    measured: str
    target: str = ""
    met: bool | None = None
    """None where there is nothing to meet."""
    why: str = ""
    """The measured reason of a miss."""

    @property
    def verdict(self) -> str:
        """`met`, `MISSED` with its reason, or nothing."""
        if self.met is None:
            return ""
        return "met" if self.met else f"MISSED {self.why}".rstrip()


@dataclass(slots=True)
class Report:
    """What was measured, in the order in which it was.

    Args:
        file: Where each row is written down too, a line of JSON each, or None.
    """

    file: Path | None = None
    rows: list[Row] = field(default_factory=list)

    def add(
        self,
        scenario: str,
        figure: str,
        measured: object,
        target: str = "",
        *,
        met: bool | None = None,
        why: str = "",
    ) -> None:
        """Add one figure.

        Args:
            scenario: Its number and its name.
            figure: What was measured, with its unit.
            measured: What came out.
            target: What should have: `0`, `≤ 4`, `≥ 3,000`, or words.
            met: Did it?  None finds out from the target, where that is a number.
            why: The measured reason, shown if it did not.
        """
        if met is None:
            met = _judge(measured, target)
        row = Row(scenario, figure, _shown(measured), target, met, why)
        self.rows.append(row)
        if self.file:
            with self.file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")


def table(rows: list[Row]) -> list[str]:
    """Lay figures out for a terminal, below their scenarios, in the order of the numbers."""
    cells = _cells(rows)
    widths = [max((len(row[column]) for row in cells), default=0) for column in range(1, 4)]
    widths = [min(width, _WIDEST) for width in widths]
    lines = []
    for scenario, figure, measured, target, verdict in cells:
        if scenario:
            lines += ["", scenario]
        line = f"  {figure:<{widths[0]}}  {measured:>{widths[1]}}  {target:>{widths[2]}}  {verdict}"
        lines.append(line.rstrip())
    return lines


def markdown(rows: list[Row]) -> list[str]:
    """Lay figures out as a table of Markdown, in the order of the scenarios' numbers."""
    head = ["| Scenario | Figure | Measured | Target | |", "|---|---|--:|--:|---|"]
    return head + [f"| {' | '.join(cell)} |" for cell in _cells(rows)]


def read_rows(file: Path) -> list[Row]:
    """Read back what reports have written down."""
    return [Row(**json.loads(line)) for line in file.read_text("utf-8").splitlines()]


def _cells(rows: list[Row]) -> list[tuple[str, str, str, str, str]]:
    cells, previous = [], ""
    for row in sorted(rows, key=lambda row: _number(row.scenario)):
        name = "" if row.scenario == previous else row.scenario
        cells.append((name, row.figure, row.measured, row.target, row.verdict))
        previous = row.scenario
    return cells


def _number(scenario: str) -> int:
    """Return the number of a scenario; those without one come last."""
    found = re.match(r"S(\d+) ", scenario)
    return int(found[1]) if found else 1000


def _shown(measured: object) -> str:
    if isinstance(measured, float):
        return f"{measured:,.2f}" if measured >= 0.1 else f"{measured:,.4f}"
    return f"{measured:,}" if isinstance(measured, int) else str(measured)


def _judge(measured: object, target: str) -> bool | None:
    """Return whether a number meets a target that is one; None for words."""
    found = _TARGET.fullmatch(target)
    if not found or not isinstance(measured, int | float):
        return None
    limit = float(found[2].replace(",", ""))
    if found[1] == "≤":
        return measured <= limit
    if found[1] == "≥":
        return measured >= limit
    return measured == limit
