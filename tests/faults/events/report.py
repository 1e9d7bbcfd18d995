"""The figures of the runs with events: those of every history, and of all of them together."""

from __future__ import annotations

from dataclasses import dataclass

from tests.faults.events.history import History
from tests.faults.report import Report


@dataclass(slots=True)
class EventReport(Report):
    """What was measured of events."""

    acknowledged: int = 0
    """Events that publishers were told are stored, in all histories."""

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
        return Report.lines(self)
