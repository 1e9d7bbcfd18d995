"""What a server has lost, named event by event, and whether everything else is well."""

from __future__ import annotations

from dataclasses import replace

from tests.faults.events.history import History


def without(history: History, lost: set[str]) -> History:
    """Return the history of all other events."""
    return replace(
        history,
        sent=[id_ for id_ in history.sent if id_ not in lost],
        acked=[ack for ack in history.acked if ack.id not in lost],
        handled=[id_ for id_ in history.handled if id_ not in lost],
        effects=history.effects and [id_ for id_ in history.effects if id_ not in lost],
    )
