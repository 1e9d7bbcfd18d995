"""Moments on the command line mean the same wherever the command runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from busmicro.cli.moments import read_start, read_time
from busmicro.clock import SYSTEM_CLOCK


@pytest.fixture
def east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be three hours ahead of UTC."""
    monkeypatch.setenv("TZ", "EAST-3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("east")
def test_time_without_a_zone_is_that_of_this_machine():
    """What a person reads off the clock on the wall is what they may type."""
    assert read_time("2026-05-01T12:00:00") == datetime(2026, 5, 1, 9, tzinfo=UTC)
    assert read_time("2026-05-01T12:00:00Z") == datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("90s", timedelta(seconds=90)),
        ("30m", timedelta(minutes=30)),
        ("1.5h", timedelta(minutes=90)),
        ("2d", timedelta(days=2)),
    ],
)
def test_so_long_ago_is_so_long_ago(text: str, ago: timedelta):
    """Seconds, minutes, hours and days are what they are called."""
    before = SYSTEM_CLOCK.wall()
    start = read_start(text)
    after = SYSTEM_CLOCK.wall()

    assert isinstance(start, datetime)
    assert before - ago <= start <= after - ago
