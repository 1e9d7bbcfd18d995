"""How many calls there were in the last seconds, and how many of them failed."""

from __future__ import annotations

from typing import Final

_BUCKETS: Final = 10


class RollingCount:
    """Counts the calls of the last `seconds`, to a tenth of them.

    Args:
        seconds: How far it looks back, more than 0.
    """

    __slots__ = ("_calls", "_failures", "_slot", "_width", "calls", "failures")

    def __init__(self, seconds: float) -> None:
        self._width = seconds / _BUCKETS
        self._slot = 0
        self._calls = [0] * _BUCKETS
        self._failures = [0] * _BUCKETS
        self.calls = 0
        """Calls in the window, as of the last `count`."""
        self.failures = 0
        """Those of them that failed."""

    def count(self, now: float, *, failed: bool) -> None:
        """Count one that has ended."""
        slot = int(now / self._width)
        if slot != self._slot:
            self._move_to(slot)
        at = slot % _BUCKETS
        self._calls[at] += 1
        self.calls += 1
        if failed:
            self._failures[at] += 1
            self.failures += 1

    def _move_to(self, slot: int) -> None:
        """Empty the buckets that are to be used again."""
        for step in range(1, min(slot - self._slot, _BUCKETS) + 1):
            at = (self._slot + step) % _BUCKETS
            self.calls -= self._calls[at]
            self.failures -= self._failures[at]
            self._calls[at] = self._failures[at] = 0
        self._slot = slot

    def clear(self) -> None:
        """Forget everything."""
        self._calls = [0] * _BUCKETS
        self._failures = [0] * _BUCKETS
        self.calls = self.failures = 0
