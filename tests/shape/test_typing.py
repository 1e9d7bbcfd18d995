"""mypy strict reads the public API as users do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
API = ROOT / "tests" / "typing" / "api.py"


@pytest.mark.timeout(180)
def test_mypy_accepts_the_api_and_rejects_every_planted_error():
    """`stub()` and `call()` have exact types, and misuse is caught before anything runs."""
    planted = {
        (number, found[1])
        for number, line in enumerate(API.read_text(encoding="utf-8").splitlines(), 1)
        if (found := re.search(r"# error: ([a-z-]+)$", line))
    }

    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-incremental", str(API)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    errors = {
        (int(number), code)
        for number, code in re.findall(r"api\.py:(\d+): error: .*\[([a-z-]+)\]", result.stdout)
    }
    assert planted
    assert errors == planted, result.stdout
