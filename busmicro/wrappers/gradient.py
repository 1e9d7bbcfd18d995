"""How many may run at once, found out from how long they take.

Where more run than a node can bear, they wait for each other and take longer.  So the limit follows
a ratio: how long they take when the node is at ease, to how long they take now.  If both are alike
it grows, by its square root; if they take much longer it shrinks.

How long they take at ease cannot be seen under load, so once in a while the limit is cut for a
moment, which hurts only if the limit was needed.

Source: Netflix concurrency-limits (Gradient), Envoy's adaptive concurrency filter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from busmicro.errors import SetupError
from busmicro.wrappers.recent import Recent

_SAMPLES: Final = 256
_FEWEST: Final = 10
_SHARE: Final = 0.9
_LEARN: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientOptions:
    """Between which bounds a limit moves, and how."""

    least: int = 3
    """It never falls below; 1 or more."""
    most: int = 1_000
    """It never grows beyond; `least` or more."""
    start: int = 20
    """Where it begins."""
    tolerance: float = 2.0
    """How many times as long as at ease is still all right; 1 or more."""
    every: float = 0.1
    """Seconds between two decisions; more than 0."""
    remeasure: float = 60.0
    """Seconds after which it looks again how long they take at ease; more than 0."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 1 <= self.least <= self.start <= self.most:
            raise SetupError(
                f"least={self.least}, start={self.start}, most={self.most}: "
                "say numbers from 1 up, in this order"
            )
        if not 1 <= self.tolerance < math.inf:
            raise SetupError(f"tolerance={self.tolerance}: say 1 or more")
        if not (0 < self.every < math.inf and 0 < self.remeasure < math.inf):
            raise SetupError(
                f"every={self.every}, remeasure={self.remeasure}: say seconds, more than 0"
            )


class Gradient:
    """A limit that follows how long things take; tell it of each that has ended.

    Args:
        options: Between which bounds it moves, and how.
        now: The moment at which it begins.
    """

    __slots__ = (
        "_busiest",
        "_cut_at",
        "_cut_from",
        "_ease",
        "_next",
        "_options",
        "_remeasure",
        "_took",
        "limit",
    )

    def __init__(self, options: GradientOptions, now: float) -> None:
        self._options = options
        self._took = Recent(_SAMPLES)
        self._busiest = 0
        self._ease = 0.0
        self._cut_from = 0.0
        self._cut_at = float("-inf")
        self._next = now + options.every
        self._remeasure = now + options.remeasure
        self.limit: float = options.start
        """How many may run at once; its whole part counts."""

    def ended(self, now: float, took: float, running: int, *, succeeded: bool) -> None:
        """Learn from one that has ended.

        Args:
            now: When that was.
            took: How many seconds it took.
            running: How many ran at that moment, this one included.
            succeeded: What fails quickly, or is given up, says nothing of how busy a node is.
        """
        if running > self._busiest:  # noqa: PLR1730 - half its cost
            self._busiest = running
        if (succeeded or took > self._ease > 0) and now - took >= self._cut_at:
            self._took.add(took)
        if now >= self._next and len(self._took) >= _FEWEST:
            self._decide(now)

    def _decide(self, now: float) -> None:
        took = max(self._took.quantile(_SHARE), 1e-9)
        if self._cut_from or not self._ease:
            self._ease = took
            self.limit = self._cut_from or self.limit
            self._cut_from = 0.0
            self._cut_at = float("-inf")
        elif took < self._ease:  # not at once: a lucky moment is not the rule
            self._ease += (took - self._ease) * _LEARN
        self._move(took)
        self._took.clear()
        self._busiest = 0
        self._next = now + self._options.every
        if now >= self._remeasure:
            self._cut(now)

    def _move(self, took: float) -> None:
        options = self._options
        ratio = max(0.5, min(2.0, self._ease * options.tolerance / took))
        moved = min(ratio, 1.0) * self.limit + math.sqrt(self.limit)
        if moved > self.limit and self._busiest < self.limit / 2:
            return  # nobody needs more, so nobody knows whether more would do
        self.limit = max(float(options.least), min(float(options.most), moved))

    def _cut(self, now: float) -> None:
        self._cut_from = self.limit
        self._cut_at = now  # what began before this ran under load
        # by more than the tolerance, or a node under load and one at ease would look alike
        self.limit = max(float(self._options.least), self.limit / (2 * self._options.tolerance))
        self._remeasure = now + self._options.remeasure
