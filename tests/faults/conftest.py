"""What the fault tests share: programs, seeds, a table of figures, and how much there shall be."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.processes import Programs
from tests.faults.report import Report, table

_REPORT = pytest.StashKey[Report]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin the table; BUSMICRO_FAULTS_ROWS names a file that gets its rows too."""
    rows = os.environ.get("BUSMICRO_FAULTS_ROWS")
    config.stash[_REPORT] = Report(Path(rows) if rows else None)


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Print the table, whatever is captured."""
    report = config.stash[_REPORT]
    if report.rows and report.file is None:
        terminalreporter.section("faults")
        for line in table(report.rows):
            terminalreporter.write_line(line)


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """The table of this run of the tests."""
    return request.config.stash[_REPORT]


@pytest.fixture
def full() -> bool:
    """Is this the long form of the tests (BUSMICRO_FAULTS=full)?"""
    return os.environ.get("BUSMICRO_FAULTS") == "full"


@pytest.fixture
def seed() -> int:
    """What decides when faults strike; BUSMICRO_FAULTS_SEED repeats a run."""
    given = os.environ.get("BUSMICRO_FAULTS_SEED")
    chosen = int(given) if given else random.SystemRandom().randrange(1_000_000)
    print(f"seed: {chosen}")
    return chosen


@pytest.fixture
async def programs(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Programs]:
    """Programs of the test's folder that do not outlive the test; their logs do."""
    running = Programs(request.path.parent, tmp_path)
    print(f"logs: {tmp_path}")
    yield running
    await running.stop()
