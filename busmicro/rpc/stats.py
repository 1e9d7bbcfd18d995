"""What an endpoint has done so far: the figures behind `$SRV.STATS` and `Debug.Stats`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Figures:
    """The running totals of one endpoint."""

    requests: int = 0
    """Answered or given up, good or bad."""
    errors: int = 0
    """Of these, how many did not succeed."""
    last_error: str = ""
    """What the latest failure said."""
    processing_time_ns: int = 0
    """Nanoseconds spent in all, wrappers included."""

    def count(self, elapsed: float, error: str = "") -> None:
        """Add one request that took so many seconds."""
        self.requests += 1
        self.processing_time_ns += int(elapsed * 1e9)
        if error:
            self.errors += 1
            self.last_error = error

    @property
    def average_ns(self) -> int:
        """Nanoseconds a request, on average."""
        return self.processing_time_ns // self.requests if self.requests else 0
