"""Streams: what JetStream keeps, for how long, and what happens when it is full.

A `Stream` only says what is wanted.  `declare.py` makes it so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Final, Literal

from busmicro.errors import SetupError

WEEK: Final = 7 * 86_400.0
GIB: Final = 1024**3

_NAME = re.compile(r"[A-Za-z0-9_-]{1,200}")


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream that keeps events: bounded, unless you say otherwise, by 7 days and 1 GiB.

    It is made, or brought up to date, when a service that uses it starts or first publishes to it.
    A change that could lose stored events, or another stream of that name, is a `StreamConflict`.
    """

    name: str
    """Letters, digits, `_` and `-`."""
    _: KW_ONLY
    subjects: Sequence[str] = ()
    """What it keeps, wildcards allowed; empty for the subject of each topic that uses it."""
    work_queue: bool = False
    """Is an event deleted once it has been handled? Then each topic can have one group only."""
    max_age: float | None = WEEK
    """Seconds an event is kept; None for ever."""
    max_bytes: int | None = GIB
    """What all events together may weigh; None for no limit."""
    max_events: int | None = None
    """How many events it keeps; None for no limit."""
    discard: Literal["old", "new"] = "old"
    """When it is full: forget the oldest, or refuse the newest (`StreamFull` at the publisher)."""
    storage: Literal["file", "memory"] = "file"
    """Where events lie."""
    replicas: int = 1
    """On how many servers at least: 1, 3 or 5."""
    dedup_window: float = 120.0
    """Seconds in which a second event with the same id is recognised."""
    managed: bool = True
    """Make and update it? If not, it has to be there, and is used as it is."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not _NAME.fullmatch(self.name):
            raise SetupError(f"stream name {self.name!r}: use letters, digits, _ and -")
        if isinstance(self.subjects, str):
            raise SetupError(f"stream {self.name}: subjects is a list, like ['orders.>']")
        object.__setattr__(self, "subjects", tuple(self.subjects))
        self._check_numbers()
        if self.max_age is not None and self.dedup_window > self.max_age:
            object.__setattr__(self, "dedup_window", self.max_age)

    def _check_numbers(self) -> None:
        for field, least in (("max_age", 0.1), ("max_bytes", 1), ("max_events", 1)):
            value = getattr(self, field)
            if value is not None and value < least:
                raise SetupError(
                    f"stream {self.name}: {field}={value}, say {least} or more, or None"
                )
        if self.replicas not in {1, 3, 5}:
            raise SetupError(f"stream {self.name}: replicas={self.replicas}, say 1, 3 or 5")
        if self.dedup_window < 0.1:
            raise SetupError(
                f"stream {self.name}: dedup_window={self.dedup_window}, say 0.1 or more"
            )
        if self.discard not in {"old", "new"} or self.storage not in {"file", "memory"}:
            raise SetupError(
                f"stream {self.name}: discard is 'old' or 'new', storage is 'file' or 'memory'"
            )

    def must_cover(self, pattern: str) -> None:
        """Refuse a topic that this stream would not keep.

        Raises:
            SetupError: None of its subjects covers the pattern.
        """
        if self.subjects and not any(covers(subject, pattern) for subject in self.subjects):
            raise SetupError(
                f"stream {self.name} keeps {', '.join(self.subjects)}, which does not cover "
                f"{pattern}: add it to the stream's subjects"
            )


def covers(wider: str, narrower: str) -> bool:
    """Tell whether every subject under `narrower` is also under `wider`."""
    outer, inner = wider.split("."), narrower.split(".")
    for at, word in enumerate(outer):
        if word == ">":
            return len(inner) > at
        if at >= len(inner) or inner[at] == ">" or (word != "*" and word != inner[at]):
            return False
    return len(outer) == len(inner)
