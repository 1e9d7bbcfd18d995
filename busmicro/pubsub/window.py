"""The window: how many events a node holds, those it works on and those that wait for it.

Too small, and every few events cost a request to the server; too large, and a slow node sits on
events that another could handle.  So it follows the pace: a window should last about a quarter of
a second.
"""

from __future__ import annotations

from typing import Final

_SHORT: Final = 0.1
_LONG: Final = 0.5


class Window:
    """A number that doubles while events fly through and halves while they crawl.

    Args:
        least: What keeps every worker busy.
        most: What this process may hold.
    """

    def __init__(self, least: int, most: int) -> None:
        self._least = min(least, most)
        self._most = most
        self.size = self._least
        """How many events may be here now."""
        self.left = self._least
        """How many more events have to leave before its size is looked at."""
        self._since = 0.0

    def turned(self, now: float) -> None:
        """Note that a whole window of events has left, at this moment, seconds of any clock."""
        lasted = now - self._since
        if lasted < _SHORT:
            self.size = min(self._most, 2 * self.size)
        elif lasted > _LONG:
            self.size = max(self._least, self.size // 2)
        self.left, self._since = self.size, now
