"""The benchmarks as one command: every figure beside its rivals and its target, in one table.

    python -m benchmarks.run [--rounds 3] [--only rpc,events] [--quick] [--json FILE] [--markdown]

Whoever is measured runs in processes of its own; the rounds go round all contenders, so that a
noisy moment of the machine hits each alike.  A missed target is shown, and no failure: the exit
code is 1 only if something broke.  `--markdown` writes the table and the plot into `docs/`.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    document,
    events,
    growth,
    machine,
    registry,
    rpc,
    start,
    streams,
    wrappers,
)
from benchmarks.bench import Bench
from benchmarks.processes import nats_server
from benchmarks.table import Report, table

SUBJECTS: dict[str, Callable[[Bench], None]] = {
    "rpc": rpc.measure,
    "events": events.measure,
    "streams": streams.measure,
    "wrappers": wrappers.measure,
    "registry": registry.measure,
    "start": start.measure,
    "growth": growth.measure,
}


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(SUBJECTS), help="some of " + ", ".join(SUBJECTS))
    parser.add_argument("--quick", action="store_true", help="see that all of it works")
    parser.add_argument("--json", type=Path, help="where the figure of every round goes")
    parser.add_argument(
        "--markdown", action="store_true", help="write docs/benchmarks.md, .json, .svg"
    )
    given = parser.parse_args()
    given.subjects = given.only.split(",")
    if unknown := set(given.subjects) - set(SUBJECTS):
        parser.error(f"--only {', '.join(sorted(unknown))}: choose from {', '.join(SUBJECTS)}")
    if given.markdown and (given.quick or set(given.subjects) != set(SUBJECTS)):
        parser.error("--markdown replaces all figures, so measure all: no --quick and no --only")
    return given


def measure(subjects: list[str], *, rounds: int, quick: bool) -> tuple[Report, list[str]]:
    """Measure, and return the figures and what broke; each subject has a server of its own."""
    report, broken = Report(judged=not quick), []
    began = time.perf_counter()
    for name in subjects:
        try:
            with nats_server() as server:
                SUBJECTS[name](Bench(server.url, server.pid, rounds, quick, report, began))
        except Exception:
            traceback.print_exc()
            broken.append(name)
    return report, broken


def main() -> int:
    """Measure, print the table, and return 0 unless something broke."""
    given = arguments()
    began = time.perf_counter()
    rounds = 1 if given.quick else given.rounds
    report, broken = measure(given.subjects, rounds=rounds, quick=given.quick)
    verdict = "only to see that it works" if given.quick else f"{report.missed} targets missed"
    took = f"{time.perf_counter() - began:.0f} s"
    said = [
        *machine.lines(),
        f"medians of {rounds} rounds, {len(report.rows)} figures, {verdict}, {took}",
    ]
    print("\n".join([*table(report.rows), "", *said]))
    if given.json:
        given.json.write_text(document.as_json(report, said), encoding="utf-8")
    if given.markdown and not broken:
        document.write(report, said)
    for name in broken:
        print(f"{name} BROKE", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
