"""What the fault tests of events share: an observer, and one table of figures."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from busmicro import NatsServer
from tests.faults.events.observer import Observer, observing
from tests.faults.events.report import EventReport

_REPORT = pytest.StashKey[EventReport]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin a table."""
    config.stash[_REPORT] = EventReport()


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Print the table, whatever is captured."""
    report = config.stash[_REPORT]
    if report.rows:
        terminalreporter.section("events under faults")
        for line in report.lines():
            terminalreporter.write_line(line)


@pytest.fixture
def report(request: pytest.FixtureRequest) -> EventReport:
    """The table of this run of the tests."""
    return request.config.stash[_REPORT]


@pytest.fixture
async def observer(server: NatsServer) -> AsyncIterator[Observer]:
    """Sees what the server has, past everything that is tested."""
    async with observing(server.port) as own:
        yield own
