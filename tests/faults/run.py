"""The fault suite as one command: every scenario, and one table of figures beside their targets.

    python -m tests.faults.run [--short] [--seed 17] [--only "killed or frozen"] [--write]

The long form runs one scenario at a time, so that none spoils the figures of another; the short
form, for CI, runs two at a time with less of everything.  What strikes when depends on the seed
alone, which every run prints.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.report import Row, markdown, read_rows, table

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "faults.md"
MARK, END_MARK = "<!-- figures -->", "<!-- end of figures -->"
SEEDS = 10_000
"""Worlds that the simulator of streams goes through in the long form."""


def pytest_run(env: dict[str, str], *args: str) -> int:
    """Run tests, and return their exit code."""
    return subprocess.call([sys.executable, "-m", "pytest", *args], cwd=ROOT, env=env)


def run_scenarios(env: dict[str, str], *, short: bool, only: str) -> int:
    """Run all scenarios on real servers and processes, and return an exit code."""
    beside = ["-n", "2", "--dist", "loadfile", "--timeout", "120"] if short else ["-s"]
    return pytest_run(env, "tests/faults", *beside, *(["-k", only] if only else []))


def simulate_streams(env: dict[str, str]) -> tuple[int, Row]:
    """Run the simulator of streams, and return an exit code and what the table says of it."""
    began = time.perf_counter()
    code = pytest_run(env, "tests/simulation/test_streams.py", "-n", "auto")
    took = f"seeds with a violation, of {SEEDS:,} in {time.perf_counter() - began:.0f} s"
    broken = "some" if code else "0"
    return code, Row("S31 lost, late, double and reordered frames", took, broken, "0", not code)


def write_down(lines: list[str]) -> None:
    """Put lines between the marks in the document."""
    before, _mark, rest = DOCUMENT.read_text("utf-8").partition(MARK)
    after = rest[rest.index(END_MARK) :]
    text = "\n".join([f"{before}{MARK}", "", *lines, "", after])
    DOCUMENT.write_text(text, encoding="utf-8")


def main() -> int:
    """Run the suite, print its table, and return 0 if every promise was kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="three minutes instead of thirty")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--only", default="", help="tests whose names match, as pytest -k")
    parser.add_argument("--write", action="store_true", help="put the table into docs/faults.md")
    given = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows"
        file.touch()
        env = {
            **os.environ,
            "BUSMICRO_FAULTS": "short" if given.short else "full",
            "BUSMICRO_FAULTS_SEED": str(given.seed),
            "BUSMICRO_FAULTS_ROWS": str(file),
        }
        print(f"seed {given.seed}", flush=True)
        codes = [run_scenarios(env, short=given.short, only=given.only)]
        rows = read_rows(file)
    if not given.only and not given.short:  # the short form of the simulator is in `make test`
        code, row = simulate_streams(env)
        codes.append(code)
        rows.append(row)
    summary = (
        f"{len(rows)} figures, {sum(row.met is False for row in rows)} missed, "
        f"{time.perf_counter() - began:.0f} s, seed {given.seed}, Python "
        f"{platform.python_version()}, {os.cpu_count()} cores"
    )
    print("\n".join(["", *table(rows), "", summary]))
    if given.write:
        write_down([summary + ".", "", *markdown(rows)])
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
