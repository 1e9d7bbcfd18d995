"""The last few durations of something, and how long most of them took."""

from __future__ import annotations


class Recent:
    """The last `most` numbers; remembering one costs the same however many there were.

    Args:
        most: How many are kept, 1 or more.
    """

    __slots__ = ("_at", "_kept", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: list[float] = []
        self._at = 0

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, number: float) -> None:
        """Remember a number, in place of the oldest if there is no room."""
        if len(self._kept) < self._most:
            self._kept.append(number)
        else:
            self._kept[self._at] = number
            self._at = (self._at + 1) % self._most

    def quantile(self, share: float) -> float:
        """Return the number that `share` of those kept do not exceed; 0.0 if there are none."""
        if not self._kept:
            return 0.0
        ordered = sorted(self._kept)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    def clear(self) -> None:
        """Forget them all."""
        self._kept.clear()
        self._at = 0
