"""The figures of a whole history of events."""

from __future__ import annotations

from tests.faults.events.history import History
from tests.faults.report import Report


def add_history(report: Report, scenario: str, history: History, *, gap: float = 0.0) -> None:
    """Add the figures of a whole history; `gap` is what its longest gap may be, seconds."""
    published = len(set(history.sent))
    for figure, measured, target in (
        ("published", published, ""),
        ("acknowledged", len({ack.id for ack in history.acked}), str(published)),
        ("stored", len(history.stored), str(published)),
        ("acknowledged and lost", len(history.lost()), "0"),
        ("stored twice", len(history.stored_twice()), "0"),
        ("never handled", len(history.unhandled()), "0"),
        ("effects missing or twice", len(history.effects_not_once()), "0"),
        ("delivered again", history.redelivered, ""),
        ("errors at publishers", len(history.failed), "0"),
        ("longest time without an ack, s", history.gap, f"≤ {gap:g}" if gap else ""),
    ):
        report.add(scenario, figure, measured, target)
