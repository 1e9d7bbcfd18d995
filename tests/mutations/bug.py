"""A bug of one line, and a copy of the project that has it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "busmicro"
_IGNORED = shutil.ignore_patterns("__pycache__")


@dataclass(frozen=True, slots=True)
class Bug:
    """A line of the package, and what a tired author might have written."""

    name: str
    file: str
    """Below the package."""
    line: str
    """Without its indentation; occurs exactly once."""
    instead: str
    tests: tuple[str, ...] = ()
    """Files or tests, below `tests`, of which one has to fail; empty for the simulator's bugs."""


def mutated(bug: Bug) -> str:
    """Write the bug's file as it would be with the bug.

    Raises:
        AssertionError: The line is not there exactly once.
    """
    lines = (PACKAGE / bug.file).read_text(encoding="utf-8").splitlines()
    at = [number for number, line in enumerate(lines) if line.strip() == bug.line]
    assert len(at) == 1, f"{bug.file} has {len(at)} times: {bug.line}"
    indent = lines[at[0]][: -len(bug.line)]
    lines[at[0]] = indent + bug.instead
    return "\n".join(lines) + "\n"


def copy_package(folder: Path, bug: Bug | None = None) -> None:
    """Copy the package into a folder, with a bug in it or as it is."""
    shutil.copytree(PACKAGE, folder / "busmicro", ignore=_IGNORED)
    if bug is not None:
        (folder / "busmicro" / bug.file).write_text(mutated(bug), encoding="utf-8")


def copy_project(folder: Path, bug: Bug | None = None) -> None:
    """Copy package and tests into a folder, with a bug in the package or as it is."""
    copy_package(folder, bug)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=_IGNORED)
    shutil.copy(ROOT / "pyproject.toml", folder)


def unmeasured() -> dict[str, str]:
    """Return the environment of a program that runs a copy, which no coverage shall count."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
