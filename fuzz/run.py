"""Run every target for a while, guided by coverage.

    python fuzz/run.py [--seconds 60] [--jobs 1] [target …]

Each runs in a process of its own that begins with its corpus (`fuzz/corpus/<target>`) and the words
of the protocol (`fuzz/words.dict`).  What makes one fail is left in `fuzz/found`, and the exit code
is 1.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
FOUND = HERE / "found"
TARGETS = sorted(path.stem for path in (HERE / "targets").glob("*.py"))
SLOWEST = 10
"""Seconds that one input may take before it is a hang."""
STARTS_WITHIN = 60
"""Seconds that a process gets to start and to stop, on a machine that has more to do."""
MOST_BYTES = 4096


@dataclass
class Outcome:
    """How a run of a target went."""

    target: str
    executions: int
    seconds: float
    features: int
    crashes: int
    hangs: int
    told: str
    """What to say of a failure."""


def run(target: str, seconds: int) -> Outcome:
    """Run a target in a process of its own."""
    FOUND.mkdir(exist_ok=True)
    before = set(FOUND.glob(f"{target}-*"))
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as grown:
        command = [
            *(sys.executable, str(HERE / "target.py"), target, grown),
            str(HERE / "corpus" / target),
            f"-dict={HERE / 'words.dict'}",
            f"-max_total_time={seconds}",
            f"-max_len={MOST_BYTES}",
            f"-timeout={SLOWEST}",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
            f"-artifact_prefix={FOUND}/{target}-",
        ]
        try:
            done = subprocess.run(
                command,
                check=False,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=seconds + STARTS_WITHIN,
            )
            output, code = done.stdout, done.returncode
        except subprocess.TimeoutExpired as late:
            output, code = late.stdout or b"", None
    left = sorted(set(FOUND.glob(f"{target}-*")) - before)
    return _outcome(target, output.decode("utf-8", "replace"), code, left, time.monotonic() - began)


def _outcome(
    target: str, output: str, code: int | None, left: list[Path], seconds: float
) -> Outcome:
    hung = code is None or any("-timeout-" in path.name for path in left)
    executions = _last(r"stat::number_of_executed_units: (\d+)", output) or _last(
        r"^#(\d+)\t", output
    )
    return Outcome(
        target=target,
        executions=executions,
        seconds=seconds,
        features=_last(r"ft: (\d+)", output),
        crashes=int(code != 0 and not hung),
        hangs=int(hung),
        told="" if code == 0 else _told(target, output, left),
    )


def _last(pattern: str, output: str) -> int:
    found = re.findall(pattern, output, re.MULTILINE)
    return int(found[-1]) if found else 0


def _told(target: str, output: str, left: list[Path]) -> str:
    lines = [line for line in output.splitlines() if not line.startswith(("INFO", "#", "WARNING"))]
    replays = [f"replay it: {sys.executable} fuzz/target.py {target} {path}" for path in left]
    return "\n".join([f"--- {target}", *lines[:40], *replays])


def main() -> int:
    """Run what the command line says; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="all, if none is named")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--jobs", type=int, default=1, help="targets at once")
    given = parser.parse_args()
    print(f"{'target':10} {'executions':>10} {'/s':>7} {'features':>8} {'crashes':>7} {'hangs':>5}")
    with ThreadPoolExecutor(given.jobs) as pool:
        outcomes = []
        for one in pool.map(lambda name: run(name, given.seconds), given.targets or TARGETS):
            outcomes.append(one)
            print(
                f"{one.target:10} {one.executions:10,} {one.executions / one.seconds:7,.0f}"
                f" {one.features:8,} {one.crashes:7} {one.hangs:5}",
                flush=True,
            )
    failed = [one for one in outcomes if one.told]
    for one in failed:
        print(one.told)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
