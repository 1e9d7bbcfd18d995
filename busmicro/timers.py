"""Deadlines by the thousand, most of which never come.

Nearly every call ends long before its deadline, so what counts is setting and dropping one.  The
loop's own `call_later` and `cancel` cost 1.5 to 2.3 µs together (uvloop 0.23, asyncio), twice a
call.  Here one timer of the loop is armed, for the earliest, and deadlines lie in two places::

    line   set in the order in which they will come, as calls with one timeout are: an append, and
           what has been dropped leaves as soon as all before it have
    heap   those that come before the last of the line; what has been dropped waits for the sweep

A heap alone costs a call 0.3 µs more, half of it because what has been dropped is let go of late,
in memory that is no longer warm; so owners let go of what is large in them when they drop it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from typing import Protocol, TypeAlias

_SWEEP_AT = 1024
_SHORT_LINE = 16


class Expiring(Protocol):
    """Something with a deadline: what a `Timers` calls when it comes."""

    is_set: bool
    """Is its deadline set, and neither dropped nor come?"""

    def expire(self) -> None:
        """Hear that the deadline has come; must not raise."""
        ...


_Entry: TypeAlias = tuple[float, int, Expiring]
"""When, in which order it was set, and what."""


class Timers:
    """Calls back when a deadline comes; what is dropped costs nothing more."""

    def __init__(self) -> None:
        self._line: deque[_Entry] = deque()
        self._last = 0.0
        """When the last of the line comes."""
        self._heap: list[_Entry] = []
        self._numbers = itertools.count()
        self._dropped = 0
        """Of those that lie here, how many have been dropped."""
        self._armed: asyncio.TimerHandle | None = None
        self._armed_for = float("inf")

    def __len__(self) -> int:
        return len(self._line) + len(self._heap) - self._dropped

    def set(self, what: Expiring, when: float) -> None:
        """Call `what.expire()` at a moment.

        Args:
            what: Has one deadline in its life.
            when: Seconds of the loop's clock.
        """
        what.is_set = True
        if when >= self._last:
            self._last = when
            self._line.append((when, next(self._numbers), what))
        else:
            self._set_earlier((when, next(self._numbers), what))
        if when < self._armed_for:
            self._arm(when)

    def _set_earlier(self, entry: _Entry) -> None:
        """Set a deadline that comes before the last of the line."""
        line = self._line
        if len(line) > _SHORT_LINE:
            heapq.heappush(self._heap, entry)
            return
        while line:  # or one that is an hour away would send all others to the heap for an hour
            heapq.heappush(self._heap, line.popleft())
        self._last = entry[0]
        line.append(entry)

    def drop(self, what: Expiring) -> None:
        """Forget a deadline; not an error if it has come or was never set.

        `what` may lie here until the next sweep, so let go of what is large in it.
        """
        if not what.is_set:
            return
        what.is_set = False
        self._dropped += 1
        line = self._line
        while line and not line[0][2].is_set:
            line.popleft()
            self._dropped -= 1
        if self._dropped > _SWEEP_AT and self._dropped * 2 > len(line) + len(self._heap):
            self._sweep()

    def _sweep(self) -> None:
        self._line = deque(entry for entry in self._line if entry[2].is_set)
        self._heap = [entry for entry in self._heap if entry[2].is_set]
        heapq.heapify(self._heap)
        self._dropped = 0

    def _arm(self, when: float) -> None:
        if self._armed is not None:
            self._armed.cancel()
        self._armed = asyncio.get_running_loop().call_at(when, self._fire)
        self._armed_for = when

    def _fire(self) -> None:
        """Call back whoever is due, and arm for the next."""
        self._armed, self._armed_for = None, float("inf")
        now = asyncio.get_running_loop().time() + 0.0005  # the loop's clock ticks in milliseconds
        while (first := self._first()) is not None and (first[0] <= now or not first[2].is_set):
            what = self._take(first)
            if what.is_set:
                what.is_set = False
                what.expire()
            else:
                self._dropped -= 1
        if first is not None and first[0] < self._armed_for:
            self._arm(first[0])

    def _first(self) -> _Entry | None:
        """Return what comes first of all; it may have been dropped."""
        if self._line and self._heap:
            return min(self._line[0], self._heap[0])
        return self._line[0] if self._line else self._heap[0] if self._heap else None

    def _take(self, first: _Entry) -> Expiring:
        if self._line and self._line[0] is first:
            return self._line.popleft()[2]
        return heapq.heappop(self._heap)[2]

    def close(self) -> None:
        """Forget every deadline."""
        if self._armed is not None:
            self._armed.cancel()
        self._armed, self._armed_for = None, float("inf")
        for _when, _number, what in (*self._line, *self._heap):
            what.is_set = False
        self._line.clear()
        self._heap.clear()
        self._last, self._dropped = 0.0, 0
