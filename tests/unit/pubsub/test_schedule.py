"""Schedules: what a server would understand, checked before any I/O."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from busmicro import InvalidArgument, NotSupported, Service, SetupError, Stream, Topic
from busmicro.headers import parse
from busmicro.pubsub import moment
from busmicro.pubsub.schedule import schedule_lines

TICKS = Topic("orders.tick", int, stream=Stream("ORDERS", subjects=["orders.>"]))
WHEN = datetime(2030, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)


@pytest.mark.parametrize(
    "schedule", ["0 */5 * * * *", "@hourly", "@daily", "@every 5m", "@every 1h30m", "0 0 9 * * MON"]
)
def test_schedules_that_servers_understand_are_taken(schedule):
    """Six fields, shortcuts, and intervals."""
    Service("shop").cron(schedule, TICKS, 1)


@pytest.mark.parametrize(
    "schedule", ["", "*/5 * * * *", "* * * * * * *", "@sometimes", "@every", "@every five minutes"]
)
def test_schedules_that_nobody_understands_are_refused(schedule):
    """Five fields are the commonest mistake; the error shows how to write six."""
    with pytest.raises(SetupError, match="six fields, seconds first"):
        Service("shop").cron(schedule, TICKS, 1)


@pytest.mark.parametrize(
    ("topic", "says"),
    [
        (Topic("ticks", int), "needs a stream"),
        (Topic("orders.*", int, stream=TICKS.stream), "is not one subject"),
        (Topic("orders.{a}", int, stream=TICKS.stream), "is not one subject"),
    ],
)
def test_recurring_event_needs_one_subject_of_a_stream(topic, says):
    """The server publishes only into a stream, to one subject."""
    with pytest.raises(SetupError, match=says):
        Service("shop").cron("@hourly", topic, 1)


def test_two_schedules_of_one_name_are_refused():
    """Two that would take each other's place need names of their own."""
    service = Service("shop")
    service.cron("@hourly", TICKS, 1)

    with pytest.raises(SetupError, match="orders-tick"):
        service.cron("@daily", TICKS, 2)
    service.cron("@daily", TICKS, 2, name="daily")


@pytest.mark.parametrize("name", ["a.b", "a b", "*", ">", "$a"])
def test_name_of_a_schedule_is_one_word(name):
    """It is a word of a subject; anything else would reach into other schedules."""
    with pytest.raises(SetupError, match="name"):
        Service("shop").cron("@hourly", TICKS, 1, name=name)


def test_moment_is_written_in_utc():
    """Whatever the time zone, to the millisecond; the same event has the same place to wait."""
    there = WHEN.astimezone(timezone(timedelta(hours=-7)))
    name, lines = schedule_lines("orders.paid", "shop", "order-1", there, 5)

    assert parse(b"NATS/1.0\r\n" + lines + b"\r\n") == {
        "Nats-Schedule": "@at 2030-01-02T03:04:05.678Z",
        "Nats-Schedule-Target": "orders.paid",
        "Nats-TTL": "never",
    }
    assert schedule_lines("orders.paid", "shop", "order-1", WHEN, 5)[0] == name
    assert schedule_lines("orders.paid", "shop", "order-2", WHEN, 5)[0] != name
    with pytest.raises(NotSupported, match=r"2\.12"):
        schedule_lines("orders.paid", "shop", "order-1", WHEN, 1)


def test_moments_that_make_no_sense_are_refused():
    """Not both, not negative, not without a time zone, and a number that is one."""
    assert moment(None, None) is None
    assert moment(None, WHEN) == WHEN
    soon = moment(60.0, None)
    assert soon is not None
    assert 59 < (soon - datetime.now(UTC)).total_seconds() < 61
    for after, at in ((1.0, WHEN), (-1.0, None), (1e12, None), (float("nan"), None)):
        with pytest.raises(InvalidArgument):
            moment(after, at)
    with pytest.raises(InvalidArgument, match="time zone"):
        moment(None, WHEN.replace(tzinfo=None))
