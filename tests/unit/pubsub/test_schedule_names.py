"""Which events for later are one and the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from busmicro import InvalidArgument
from busmicro.headers import parse
from busmicro.pubsub import moment
from busmicro.pubsub.schedule import schedule_lines

AT = datetime(2026, 1, 1, tzinfo=UTC)
ZONES = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
YEARS = [AT.replace(year=year, tzinfo=None) for year in (2, 9999)]
SUBJECTS = st.from_regex(r"[!-)+-=?-~]{1,12}", fullmatch=True)
"""Printable ASCII without `*` and `>`: what a subject may be made of, and more."""
EVENTS = st.tuples(
    SUBJECTS | st.sampled_from(["a", "a:b"]),
    st.sampled_from(["shop", "till"]),
    st.from_regex(r"[!-~]{1,12}", fullmatch=True) | st.sampled_from(["c", "b:c"]),
)
"""A subject, a producer and an id, as they get there."""


@pytest.mark.parametrize(
    "other",
    [("orders.sent", "shop", "17"), ("orders.paid", "till", "17"), ("orders.paid", "shop", "18")],
)
def test_events_for_later_take_one_anothers_place_only_if_all_is_the_same(
    other: tuple[str, str, str],
):
    """The same id on another subject, or of another producer, is another event."""
    target, producer, id = other
    name, _lines = schedule_lines("orders.paid", "shop", "17", AT, 4)

    assert schedule_lines("orders.paid", "shop", "17", AT, 4)[0] == name
    assert schedule_lines(target, producer, id, AT, 4)[0] != name


@given(EVENTS, EVENTS)
@example(("a:b", "shop", "c"), ("a", "shop", "b:c"))
def test_two_events_for_later_never_share_a_name(
    one: tuple[str, str, str], other: tuple[str, str, str]
):
    """No subject, producer and id look like others once put together: none takes their place."""
    same = schedule_lines(*one, AT, 4)[0] == schedule_lines(*other, AT, 4)[0]

    assert same is (one == other)


@given(SUBJECTS, st.datetimes(*YEARS, timezones=ZONES))
def test_any_moment_is_read_as_it_was_written(target: str, at: datetime):
    """In whatever time zone, the server reads the moment to the millisecond, and the subject."""
    lines = parse(b"NATS/1.0\r\n" + schedule_lines(target, "shop", "17", at, 4)[1] + b"\r\n")

    assert list(lines) == ["Nats-Schedule", "Nats-Schedule-Target", "Nats-TTL"]
    assert lines["Nats-Schedule-Target"] == target
    read = datetime.fromisoformat(lines["Nats-Schedule"].removeprefix("@at "))
    assert timedelta(0) <= at - read < timedelta(milliseconds=1)


@pytest.mark.parametrize(
    "at",
    [
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-7))),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=7))),
    ],
)
def test_moment_that_no_calendar_has_in_utc_is_refused(at: datetime):
    """At the ends of time, another time zone has a year that nobody can write."""
    with pytest.raises(InvalidArgument, match="years 1 to 9999"):
        moment(None, at)
