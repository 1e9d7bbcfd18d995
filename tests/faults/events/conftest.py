"""What the fault tests of events share: programs, seeds, and one table of figures."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from busmicro import NatsServer
from tests.faults.events.observer import Observer, observing
from tests.faults.events.processes import Programs
from tests.faults.events.report import Report

_REPORT = pytest.StashKey[Report]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin a table."""
    config.stash[_REPORT] = Report()


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Print the table, whatever is captured."""
    report = config.stash[_REPORT]
    if report.rows:
        terminalreporter.section("events under faults")
        for line in report.lines():
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
async def programs(tmp_path: Path) -> AsyncIterator[Programs]:
    """Programs that do not outlive the test; their logs do."""
    running = Programs(tmp_path)
    print(f"logs: {tmp_path}")
    yield running
    await running.stop()


@pytest.fixture
async def observer(server: NatsServer) -> AsyncIterator[Observer]:
    """Sees what the server has, past everything that is tested."""
    async with observing(server.port) as own:
        yield own
