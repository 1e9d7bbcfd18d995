"""The one seam for time: everything that waits, expires or measures asks a `Clock`."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Tells time and waits; tests bring one that they move by hand."""

    def now(self) -> float:
        """Seconds on a clock that never jumps; it compares with `loop.time()`."""
        ...

    def wall(self) -> datetime:
        """The date and time, UTC, for people and for the wire."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds."""
        ...


class SystemClock:
    """The clocks of this machine."""

    def now(self) -> float:
        """Seconds since some fixed moment, CLOCK_MONOTONIC."""
        return time.monotonic()

    def wall(self) -> datetime:
        """The date and time, UTC."""
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds of the event loop."""
        await asyncio.sleep(seconds)


SYSTEM_CLOCK: Clock = SystemClock()


class Stamps:
    """The date and time as text, cheap enough for every event: a third of `isoformat`'s cost."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def now(self) -> str:
        """Return the moment, UTC, as RFC 3339 with microseconds."""
        second, ns = divmod(time.time_ns(), 1_000_000_000)
        if second != self._second:
            self._second = second
            self._text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._text}.{ns // 1000:06d}Z"
