"""The fuzz targets work, without atheris: each takes what its corpus begins with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
CORPORA = ROOT / "fuzz" / "corpus"
TARGETS = sorted(path.stem for path in (ROOT / "fuzz" / "targets").glob("*.py"))
TAKE_ALL = """
import importlib, pathlib, sys
target = importlib.import_module(f"fuzz.targets.{sys.argv[1]}")
for path in sorted(pathlib.Path(sys.argv[2]).iterdir()):
    print(path.name, flush=True)
    target.one(path.read_bytes())
"""
"""A process of its own for each, because targets change the clock, the loop and the logs of it."""


def test_every_target_has_a_corpus_and_every_corpus_a_target() -> None:
    """A target that begins with nothing would find little, and a corpus without one nothing."""
    assert sorted(path.name for path in CORPORA.iterdir()) == TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_target_finds_nothing_wrong_with_its_corpus(target: str) -> None:
    """`make fuzz` begins with inputs that pass, so what it finds is news."""
    command = [sys.executable, "-c", TAKE_ALL, target, str(CORPORA / target)]
    done = subprocess.run(
        command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=50
    )

    taken = done.stdout.split()
    assert done.returncode == 0, f"input {taken[-1:]}:\n{done.stderr[-2000:]}"
    assert taken == sorted(path.name for path in (CORPORA / target).iterdir())
    assert taken
