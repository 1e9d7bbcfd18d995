"""An even pace with room for bursts: the generic cell rate algorithm, one number for each key.

The number is the moment at which all that has passed so far would be due if it had come evenly.
Something may pass as long as that moment lies no further ahead than the burst allows.  So there is
no timer, no bucket to refill, and it is exact for any schedule: in no `t` seconds do more than
`rate * t + burst` pass.

Source: ATM Forum Traffic Management 4.0, the generic cell rate algorithm in its virtual form.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

_REST: Final = object()
"""The key that all share who came when there was no room for keys of their own."""


def _slack(interval: float, burst: int) -> float:
    """Return by how many seconds the sum may run ahead.

    It is a millionth more than it should be, or rounding would take away the last of a burst.
    """
    return interval * (burst - 1 + burst * 1e-6)


class Pace:
    """One pace for everything.

    Args:
        interval: Seconds between two that pass evenly.
        burst: How many may pass at once after a rest, 1 or more.
    """

    __slots__ = ("_due", "_interval", "_slack")

    def __init__(self, interval: float, burst: int) -> None:
        self._interval = interval
        self._slack = _slack(interval, burst)
        self._due = float("-inf")

    def take(self, now: float, patience: float = 0.0) -> float:
        """Take a place, if there is one within `patience` seconds.

        Returns:
            Seconds to wait until it may pass: 0 or less for now. More than `patience`: no place
            was taken.
        """
        due = self._due
        wait = due - self._slack - now
        if wait <= patience:
            self._due = (due if due > now else now) + self._interval  # noqa: FURB136 - half its cost
        return wait


class PaceByKey:
    """One pace for each key, for at most so many keys.

    A key whose time has come is the same as one that was never seen, so it is forgotten. When
    there is no room all the same, newcomers share one pace: nobody gets more by using many keys.

    Args:
        interval: Seconds between two of one key that pass evenly.
        burst: How many of one key may pass at once after a rest, 1 or more.
        most_keys: How many keys it remembers, 1 or more.
    """

    def __init__(self, interval: float, burst: int, most_keys: int) -> None:
        self._interval = interval
        self._slack = _slack(interval, burst)
        self._most_keys = most_keys
        self._dues: OrderedDict[Hashable, float] = OrderedDict()  # the last used one is last

    def __len__(self) -> int:
        return len(self._dues)

    def take(self, key: Hashable, now: float, patience: float = 0.0) -> float:
        """Take a place for a key, as `Pace.take` does."""
        dues = self._dues
        due = dues.get(key)
        if due is None:
            key = self._admit(key, now)
            due = dues.get(key, now)
        wait = due - self._slack - now
        if wait <= patience:
            dues[key] = (due if due > now else now) + self._interval  # noqa: FURB136 - half its cost
            dues.move_to_end(key)
        return wait

    def _admit(self, key: Hashable, now: float) -> Hashable:
        """Forget up to two keys that have rested, and find a place for a new one."""
        dues = self._dues
        for _ in range(2):  # two for each that comes: so it shrinks, at a fixed cost
            oldest = next(iter(dues), None)
            if oldest is None or dues[oldest] > now:
                break
            del dues[oldest]
        return key if len(dues) < self._most_keys else _REST
