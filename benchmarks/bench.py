"""One run of the benchmarks: what every subject is given."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

from benchmarks.table import Report


@dataclass(slots=True)
class Bench:
    """Where to measure, how much, and where the figures go."""

    url: str
    """The nats-server, which nobody else uses."""
    server_pid: int
    rounds: int
    quick: bool
    """Only to see that everything works: the figures mean nothing."""
    report: Report = field(default_factory=Report)
    began: float = field(default_factory=time.perf_counter)

    def seconds(self, usual: float) -> float:
        """Return how long to measure."""
        return usual / 10 if self.quick else usual

    def count(self, usual: int, *, least: int = 1) -> int:
        """Return how many to measure with."""
        return max(least, usual // 50) if self.quick else usual

    def say(self, what: str) -> None:
        """Tell whoever waits what is being measured."""
        print(f"{time.perf_counter() - self.began:6.1f} s  {what}", file=sys.stderr, flush=True)
