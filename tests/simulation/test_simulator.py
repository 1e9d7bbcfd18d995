"""The simulator finds bugs: each of these, put into a copy of the package, turns it red."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.bugs import BUGS, Bug

ROOT = Path(__file__).parent.parent.parent
SEEDS = 400


def simulate(package_in: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the simulator with the package that lies in a directory."""
    command = [sys.executable, "-P", "-m", "tests.simulation.replay", *arguments]
    given = {**os.environ, **env, "PYTHONPATH": f"{package_in}{os.pathsep}{ROOT}"}
    return subprocess.run(
        command, env=given, cwd=package_in, capture_output=True, text=True, timeout=50, check=False
    )


def put(bug: Bug, package: Path) -> None:
    """Put a bug into a copy of the package."""
    file = package / bug.file
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    at = [number for number, line in enumerate(lines) if line.strip() == bug.line]
    assert len(at) == 1, f"{bug.file} has {len(at)} times: {bug.line}"
    indent = lines[at[0]][: -len(bug.line)]
    lines[at[0]] = indent + bug.instead
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_bug_is_found(bug: Bug, tmp_path: Path):
    """A few hundred seeds find it."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "busmicro", tmp_path / "busmicro", ignore=ignored)
    put(bug, tmp_path / "busmicro")

    result = simulate(tmp_path, "0", str(SEEDS))

    assert f"busmicro of {tmp_path}" in result.stdout, result.stderr
    assert result.returncode == 1, f"{SEEDS} seeds did not find that it {bug.name}"


def test_seed_decides_everything(tmp_path: Path):
    """The same seed is the same run, to the last message, in whatever process."""
    given = ("0", "12", "--digests")
    one, other = (simulate(ROOT, *given, PYTHONHASHSEED=number) for number in ("1", "2"))

    assert one.returncode == 0, one.stdout + one.stderr
    assert one.stdout.splitlines()[:-1] == other.stdout.splitlines()[:-1]
