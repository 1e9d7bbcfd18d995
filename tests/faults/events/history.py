"""The history of a run, as its logs and its stream have it, and the verdict on all of it.

Publishers log an event before they send it and once it is acknowledged, consumers when it is
delivered and when it has been handled; the stream is read back from its first event to its last,
and effects are the rows of a table.  Nothing is sampled.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.history import Operations, complain, logged, only_broken, repeated


@dataclass(frozen=True, slots=True)
class Ack:
    """A publisher was told that its event is stored."""

    id: str
    sequence: int
    """Where, if it was told; else 0."""
    at: float
    """Seconds of this machine's monotonic clock."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An event as it lies in the stream."""

    sequence: int
    id: str
    msg_id: str
    """What the server tells duplicates by."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """An event came to a consumer."""

    id: str
    attempt: int
    at: float
    consumer: str


@dataclass(slots=True)
class History:
    """Everything that happened in a run."""

    sent: list[str] = field(default_factory=list)
    acked: list[Ack] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    """Ids and the errors that their publisher got; it tried again."""
    stored: list[Stored] = field(default_factory=list)
    delivered: list[Delivered] = field(default_factory=list)
    handled: list[str] = field(default_factory=list)
    """One entry for each time that a handler ran to its end."""
    effects: list[str] | None = None
    """One entry for each effect; None where there are none to count."""

    def read_publisher(self, log: Path) -> None:
        """Add what a publisher has logged."""
        for words in logged(log):
            if words[0] == "sent":
                self.sent.append(words[1])
            elif words[0] == "acked":
                self.acked.append(Ack(words[1], int(words[2]), float(words[3])))
            elif words[0] == "failed":
                self.failed.append((words[1], words[2]))

    def read_consumer(self, log: Path) -> None:
        """Add what a consumer has logged."""
        for words in logged(log):
            if words[0] == "delivered":
                self.delivered.append(Delivered(words[1], int(words[2]), float(words[3]), log.stem))
            elif words[0] == "handled":
                self.handled.append(words[1])

    def read_effects(self, database: Path) -> None:
        """Add the effects that handlers had in a database."""
        with contextlib.closing(sqlite3.connect(database, timeout=10.0)) as opened:
            rows = opened.execute("SELECT id FROM effects").fetchall()
        self.effects = [row[0] for row in rows]

    @property
    def redelivered(self) -> int:
        """How many deliveries were not the first one of their event."""
        return sum(delivery.attempt > 1 for delivery in self.delivered)

    @property
    def gap(self) -> float:
        """The longest time without any acknowledgement, seconds."""
        times = sorted(ack.at for ack in self.acked)
        return max((late - early for early, late in itertools.pairwise(times)), default=0)

    def operations(self) -> Operations:
        """Return it as what was asked for, and what was seen of it in the stream."""
        stored = [event.id for event in self.stored]
        return Operations(
            invoked=list(dict.fromkeys(self.sent)),  # whoever starts over sends all again
            ok=list(dict.fromkeys(ack.id for ack in self.acked)),
            begun=stored,
            done=stored,
        )

    def lost(self) -> list[str]:
        """Acknowledged, but not in the stream, or not where the acknowledgement says."""
        at = {event.sequence: event.id for event in self.stored}
        elsewhere = [
            ack.id for ack in self.acked if ack.sequence and at.get(ack.sequence) != ack.id
        ]
        return list(dict.fromkeys([*self.operations().lost(), *elsewhere]))

    def stored_twice(self) -> list[str]:
        """In the stream more than once, by their own id or by what the server goes by."""
        twice = self.operations().done_twice()
        return twice + [
            msg_id
            for msg_id in repeated(event.msg_id for event in self.stored)
            if not any(msg_id.endswith(id_) for id_ in twice)
        ]

    def unhandled(self) -> list[str]:
        """In the stream, but no handler ran to its end for them."""
        handled = set(self.handled)
        return [event.id for event in self.stored if event.id not in handled]

    def made_up(self) -> list[str]:
        """In the stream though nobody sent them, or handled though they are not in the stream."""
        stored = {event.id for event in self.stored}
        return self.operations().made_up() + [id_ for id_ in self.handled if id_ not in stored]

    def effects_not_once(self) -> list[str]:
        """Stored events whose effect is missing or there twice, and effects of nothing."""
        if self.effects is None:
            return []
        stored = {event.id for event in self.stored}
        return repeated(self.effects) + sorted(stored ^ set(self.effects))

    def never_acknowledged(self) -> list[str]:
        """Sent, but given up."""
        return self.operations().open()

    def faults(self) -> dict[str, list[str]]:
        """Return every broken promise and the events that it was broken for; empty for none."""
        if not self.acked or not self.stored:
            return {"nothing happened": [f"{len(self.acked)} acked, {len(self.stored)} stored"]}
        rules = {
            "acknowledged and lost": self.lost(),
            "stored twice": self.stored_twice(),
            "never handled": self.unhandled(),
            "made up": self.made_up(),
            "effect not once": self.effects_not_once(),
            "given up by their publisher": self.never_acknowledged(),
        }
        return only_broken(rules)

    def must_be_clean(self, *, where: Path, seed: int) -> None:
        """Fail, saying what was broken, where the logs are and how to have the same run again.

        Raises:
            AssertionError: Some promise was broken.
        """
        complain(self.faults(), where=where, seed=seed)
