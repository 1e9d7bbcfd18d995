"""Time that passes only while everybody waits, so that an input with hours in it takes no time."""

from __future__ import annotations

import asyncio
import selectors
import time


class _Leap(selectors.DefaultSelector):
    """Waits for nothing: the clock is moved by as much as it was to wait."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits and no timer is set")
        self.now += max(timeout, 0.0)
        return super().select(0)


class LeapingLoop(asyncio.SelectorEventLoop):
    """Leaps to the next timer whenever everybody waits."""

    def __init__(self) -> None:
        self._leap = _Leap()
        super().__init__(self._leap)

    def time(self) -> float:
        return self._leap.now


def leaping() -> LeapingLoop:
    """Make the loop of this process; all of it goes by the loop's clock from now on."""
    loop = LeapingLoop()
    time.monotonic = loop.time
    return loop
