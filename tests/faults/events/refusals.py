"""The errors that publishers got, and when."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Refused:
    """A publisher was told that its event, or one of many, was not stored, or that nobody knows."""

    id: str
    error: str
    """The class."""
    code: str
    took: float
    """Seconds from `publish` to the error."""


def read_refusals(log: Path) -> list[Refused]:
    """Return every error that a publisher has logged."""
    lines = [line for line in log.read_text("utf-8").splitlines(keepends=True) if line[-1] == "\n"]
    words = [line.split() for line in lines if line.startswith("failed ")]
    return [Refused(id_, error, code, float(took)) for _, id_, error, code, took, *_ in words]


def longest_wait(refusals: list[Refused]) -> float:
    """Return how long the slowest of these errors took to come."""
    return max((refused.took for refused in refusals), default=0.0)
