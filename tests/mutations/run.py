"""A test of the tests: put a bug of one line into the package, see that a test fails, and so on.

    python -m tests.mutations.run [--only "half open"] [--beside 2]

First the tests have to pass with the package as it is, or a red one would prove nothing.  Then
each bug gets a copy of the package of its own.  The exit code is 0 if every one was found.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from tests.mutations.bug import Bug
from tests.mutations.catalogue import BUGS
from tests.mutations.trial import Outcome, run_tests

_SHOWN_LINES = 30


def wanted(bug: Bug, only: str) -> bool:
    """Tell whether a bug is meant: a part of its name or file."""
    return only in bug.name or only in bug.file


def pass_without_bugs(bugs: Iterable[Bug]) -> bool:
    """Run every test that is to find something with the package as it is."""
    tests = sorted({test for bug in bugs for test in bug.tests})
    outcome = run_tests(tests)
    if outcome.passed:
        print(f"without a bug: {len(tests)} files pass in {outcome.took:.0f} s", flush=True)
        return True
    print(f"without a bug there is a failure already: {outcome.found_by}", file=sys.stderr)
    print(*outcome.said.splitlines()[-_SHOWN_LINES:], sep="\n", file=sys.stderr)
    return False


def row(bug: Bug, outcome: Outcome) -> str:
    """Write what became of a bug."""
    found = outcome.found_by.removeprefix("tests/") or "NOT FOUND"
    return f"{bug.file:<26} {bug.name:<74.74} {outcome.took:4.0f} s  {found}"


def main() -> int:
    """Try all bugs, print the table, return 0 if every one was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="bugs with this in their name or file")
    parser.add_argument("--beside", type=int, default=os.cpu_count() or 1, help="so many at once")
    given = parser.parse_args()
    began = time.monotonic()
    bugs = [bug for bug in BUGS if wanted(bug, given.only)]
    if not bugs or not pass_without_bugs(bugs):
        return 1
    missed = 0
    with ThreadPoolExecutor(given.beside) as pool:
        outcomes = pool.map(lambda bug: run_tests(bug.tests, bug), bugs)
        for bug, outcome in zip(bugs, outcomes, strict=True):
            print(row(bug, outcome), flush=True)
            missed += not outcome.found_by
    print(f"{len(bugs) - missed} of {len(bugs)} found in {time.monotonic() - began:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
