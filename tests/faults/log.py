"""What the programs of the fault tests write down, and the clock they share."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TextIO


class Log:
    """A file to which whole lines are added at once, and which a SIGKILL does not take along."""

    def __init__(self, path: str) -> None:
        self._file: TextIO = Path(path).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115

    def write(self, *words: object) -> None:
        """Add a line."""
        self._file.write(" ".join(map(str, words)) + "\n")

    def write_all(self, lines: list[str]) -> None:
        """Add many lines with one system call."""
        self._file.write("".join(f"{line}\n" for line in lines))


def now() -> float:
    """Seconds of a clock that all processes of this machine share."""
    return time.monotonic()
