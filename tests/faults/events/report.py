"""The figures of the fault runs beside their targets, as one table at the end of the tests."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.faults.events.history import History


@dataclass(slots=True)
class Report:
    """What was measured, in the order in which it was."""

    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Scenario, figure, what was measured, and what it should be."""
    acknowledged: int = 0
    """Events that publishers were told are stored, in all histories."""

    def add(self, scenario: str, figure: str, measured: object, target: str = "") -> None:
        """Add one figure."""
        shown = f"{measured:,.2f}" if isinstance(measured, float) else measured
        shown = f"{shown:,}" if isinstance(shown, int) else str(shown)
        self.rows.append((scenario, figure, shown, target))

    def add_history(self, scenario: str, history: History, *, gap: float = 0.0) -> None:
        """Add the figures of a whole history; `gap` is what its longest gap may be, seconds."""
        self.acknowledged += len({ack.id for ack in history.acked})
        for figure, measured, target in (
            ("published", len(set(history.sent)), ""),
            ("acknowledged", len({ack.id for ack in history.acked}), "= published"),
            ("stored", len(history.stored), "= published"),
            ("acknowledged and lost", len(history.lost()), "0"),
            ("stored twice", len(history.stored_twice()), "0"),
            ("never handled", len(history.unhandled()), "0"),
            ("effects missing or twice", len(history.effects_not_once()), "0"),
            ("delivered again", history.redelivered, ""),
            ("errors at publishers", len(history.failed), "0"),
            ("longest time without an ack, s", history.gap, f"≤ {gap:g}" if gap else ""),
        ):
            self.add(scenario, figure, measured, target)

    def lines(self) -> list[str]:
        """Lay the table out."""
        if self.acknowledged:
            self.add("all", "acknowledged", self.acknowledged, "≥ 100,000 (full)")
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
