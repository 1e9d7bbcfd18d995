"""What the fault tests of streams share: one table of figures."""

from __future__ import annotations

import pytest

from tests.faults.report import Report

_REPORT = pytest.StashKey[Report]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin a table."""
    config.stash[_REPORT] = Report()


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Print the table, whatever is captured."""
    report = config.stash[_REPORT]
    if report.rows:
        terminalreporter.section("streams under faults")
        for line in report.lines():
            terminalreporter.write_line(line)


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """The table of this run of the tests."""
    return request.config.stash[_REPORT]
