"""The simulator finds bugs: each of these, put into a copy of the package, turns it red."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.environment import PYTHONPATH
from tests.mutations.bug import ROOT, Bug, copy_package, unmeasured
from tests.simulation.bugs import BUGS

SEEDS = 400


def simulate(package_in: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the simulator with the package that lies in a directory."""
    command = [sys.executable, "-P", "-m", "tests.simulation.replay", *arguments]
    given = {**unmeasured(), **env, "PYTHONPATH": f"{package_in}{os.pathsep}{PYTHONPATH}"}
    return subprocess.run(
        command, env=given, cwd=package_in, capture_output=True, text=True, timeout=50, check=False
    )


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_bug_is_found(bug: Bug, tmp_path: Path):
    """A few hundred seeds find it."""
    copy_package(tmp_path, bug)

    result = simulate(tmp_path, "0", str(SEEDS))

    assert f"busmicro of {tmp_path}" in result.stdout, result.stderr
    assert result.returncode == 1, f"{SEEDS} seeds did not find that it {bug.name}"


def test_seed_decides_everything(tmp_path: Path):
    """The same seed is the same run, to the last message, in whatever process."""
    given = ("0", "12", "--digests")
    one, other = (simulate(ROOT, *given, PYTHONHASHSEED=number) for number in ("1", "2"))

    assert one.returncode == 0, one.stdout + one.stderr
    assert one.stdout.splitlines()[:-1] == other.stdout.splitlines()[:-1]
