"""The figures of a whole history of events."""

from __future__ import annotations

from tests.faults.events.history import History
from tests.faults.events.refusals import Refused, longest_wait
from tests.faults.report import Report

SLACK = 0.5
"""Seconds by which an error may come after the deadline of what was published."""
SLACK_BESIDE_OTHERS = 5.0
"""The same where a machine that is busy with other tests may stand still for a moment."""


def add_history(
    report: Report,
    scenario: str,
    history: History,
    *,
    gap: float = 0.0,
    least: int = 0,
    errors: str = "0",
) -> None:
    """Add the figures of a whole history.

    Args:
        report: Where to.
        scenario: Its number and its name.
        history: What happened.
        gap: What its longest gap may be, seconds; 0 for any.
        least: How many events there have to be; 0 for any.
        errors: How many errors publishers may have got; empty for any.
    """
    published = f"{len(set(history.sent)):,}"
    report.add(scenario, "published", len(set(history.sent)), f"≥ {least:,}" if least else "")
    report.add(scenario, "acknowledged", len({ack.id for ack in history.acked}), published)
    report.add(scenario, "stored", len(history.stored), published)
    report.add(scenario, "acknowledged and lost", len(history.lost()), "0")
    report.add(scenario, "stored twice", len(history.stored_twice()), "0")
    report.add(scenario, "never handled", len(history.unhandled()), "0")
    if history.effects is not None:
        report.add(scenario, "effects missing or twice", len(history.effects_not_once()), "0")
    report.add(scenario, "delivered again", history.redelivered)
    report.add(scenario, "errors at publishers", len(history.failed), errors)
    longest = f"≤ {gap:g}" if gap else ""
    report.add(scenario, "longest time without an ack, s", history.gap, longest)


def judge_refusals(
    report: Report, scenario: str, refusals: list[Refused], *, timeout: float, full: bool
) -> None:
    """Check that publishers were told, in time, that nothing is stored or that nobody knows."""
    codes = sorted({refused.code for refused in refusals})
    over = max(0.0, longest_wait(refusals) - timeout)
    report.add(scenario, "codes of the errors", ", ".join(codes))
    report.add(scenario, "errors after their deadline by up to, s", over, f"≤ {SLACK:g}")
    assert refusals, "publishing has to fail where nothing can be stored"
    assert set(codes) <= {"unknown", "unavailable"}
    assert over <= (SLACK if full else SLACK_BESIDE_OTHERS)
