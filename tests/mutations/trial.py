"""The trial of one bug: its tests, run in a copy of the project that has it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutations.bug import Bug, copy_project, unmeasured
from tests.mutations.copied import FOLDER, FOUND

LONGEST = 240.0
"""Seconds for the tests of one bug."""
_FAILED = 1
"""What pytest returns when tests ran and some of them failed; no other end finds a bug."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the tests said."""

    passed: bool
    """Was every test green?"""
    found_by: str
    """The first test that failed; empty if none did."""
    said: str
    """What pytest printed."""
    took: float
    """Seconds."""


def run_tests(tests: Sequence[str], bug: Bug | None = None) -> Outcome:
    """Run tests in a copy of the project, until the first one fails.

    Args:
        tests: Files or tests, below `tests`.
        bug: Put into the copy; left out, the copy is as the package is.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="busmicro-bug-") as name:
        folder = Path(name).resolve()
        copy_project(folder, bug)
        try:
            ended = _pytest(folder, tests)
        except subprocess.TimeoutExpired:
            return Outcome(
                passed=False, found_by="", said="the tests hang", took=time.monotonic() - began
            )
        failed = (folder / FOUND).read_text("utf-8") if (folder / FOUND).exists() else ""
    return Outcome(
        passed=ended.returncode == 0,
        found_by=failed if ended.returncode == _FAILED else "",
        said=ended.stdout + ended.stderr,
        took=time.monotonic() - began,
    )


def _pytest(folder: Path, tests: Sequence[str]) -> subprocess.CompletedProcess[str]:
    command = [
        *(sys.executable, "-P", "-m", "pytest", "-x", "--tb=short", "--timeout=20"),
        *("-p", "tests.mutations.copied", "-p", "no:cacheprovider", "-p", "no:xdist"),
        *("--hypothesis-profile=ci", *(f"tests/{test}" for test in tests)),
    ]
    given = {
        **unmeasured(),
        FOLDER: str(folder),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis"),
        "PYTHONPATH": str(folder),
    }
    return subprocess.run(
        command, env=given, cwd=folder, capture_output=True, text=True, timeout=LONGEST, check=False
    )
