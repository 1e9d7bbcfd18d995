"""The figures of the fault runs beside their targets, as one table at the end of the tests."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Report:
    """What was measured, in the order in which it was."""

    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Scenario, figure, what was measured, and what it should be."""

    def add(self, scenario: str, figure: str, measured: object, target: str = "") -> None:
        """Add one figure."""
        shown = f"{measured:,.2f}" if isinstance(measured, float) else measured
        shown = f"{shown:,}" if isinstance(shown, int) else str(shown)
        self.rows.append((scenario, figure, shown, target))

    def lines(self) -> list[str]:
        """Lay the table out."""
        rows = [("scenario", "figure", "measured", "target"), *self.rows]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines, previous = [], ""
        for scenario, figure, measured, target in rows:
            name = "" if scenario == previous else scenario
            lines.append(
                f"{name:<{widths[0]}}  {figure:<{widths[1]}}  "
                f"{measured:>{widths[2]}}  {target:>{widths[3]}}"
            )
            previous = scenario
        return lines
