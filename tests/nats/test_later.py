"""Events for later and events that recur: kept and published by the server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import BaseModel

from busmicro import (
    Call,
    Client,
    InvalidArgument,
    NotSupported,
    Service,
    SetupError,
    Stream,
    Topic,
)
from busmicro.clock import SYSTEM_CLOCK


class Order(BaseModel):
    n: int = 0


STREAM = Stream("ORDERS", subjects=["orders.>"])
PAID = Topic("orders.paid", Order, stream=STREAM)
TICK = Topic("orders.tick", Order, stream=STREAM)


@pytest.fixture
def schedules(ask):
    """List what waits in the stream for its moment."""

    async def schedules() -> set[str]:
        info = await ask("STREAM.INFO.ORDERS", {"subjects_filter": "*schedules.>"})
        info = await ask("STREAM.INFO.ORDERS", {"subjects_filter": ">"})
        return {s for s in info["state"].get("subjects") or {} if "schedules." in s}

    return schedules


def recording(server, got: list[tuple[float, Order, Call]], **options: str) -> Service:
    service = Service("shop", url=server.url, **options)

    @service.subscribe(PAID, group="billing")
    async def on_paid(order: Order, call: Call) -> None:
        got.append((SYSTEM_CLOCK.now(), order, call))

    return service


async def test_events_come_when_they_were_asked_for(server, until, schedules):
    """`after` and `at` are kept within a second, never early, and the event is as published."""
    got: list[tuple[float, Order, Call]] = []
    async with recording(server, got, namespace="prod") as service:
        began = SYSTEM_CLOCK.now()
        await service.publish(PAID, Order(n=1), after=1.2, id="order-1", headers={"Tenant": "acme"})
        await service.publish(PAID, Order(n=2), at=datetime.now(UTC) + timedelta(seconds=0.6))
        await until(lambda: len(got) == 2)

    assert [order.n for _, order, _ in got] == [2, 1]
    assert 0.55 <= got[0][0] - began < 1.6
    assert 1.15 <= got[1][0] - began < 2.2
    call = got[1][2]
    assert call.subject == "prod.orders.paid"
    assert call.delivery.id == "/shop/orders.paid:order-1"
    assert call.headers["Tenant"] == "acme"


async def test_what_is_due_comes_at_once(server, until):
    """A moment that has passed is now, not never."""
    got: list[tuple[float, Order, Call]] = []
    async with recording(server, got) as service:
        await service.publish(PAID, Order(n=1), after=0)
        await service.publish(PAID, Order(n=2), at=datetime.now(UTC) - timedelta(days=1))
        await until(lambda: len(got) == 2, timeout=3.0)


async def test_event_for_later_survives_a_restart_of_everything(server, until):
    """Neither publisher nor server has to be awake until then."""
    got: list[tuple[float, Order, Call]] = []
    async with Client(server.url) as client:
        await client.publish(PAID, Order(n=1), after=1.0)
    server.kill()
    await server.restart()
    async with recording(server, got):
        await until(lambda: got)
    assert got[0][1] == Order(n=1)


async def test_schedules_outlive_the_age_of_their_stream(server, until):
    """A stream forgets events after `max_age`, but not what is still to come."""
    short = Topic("brief.paid", Order, stream=Stream("BRIEF", max_age=0.5))
    got: list[int] = []
    service = Service("shop", url=server.url)

    @service.subscribe(short, group="billing")
    async def on_paid(order: Order) -> None:
        got.append(order.n)

    async with service:
        await service.publish(short, Order(n=1), after=1.5)
        await until(lambda: got, timeout=4.0)


async def test_two_replicas_fire_once(server, until, schedules):
    """A recurring event comes once each time, however many nodes the service has."""
    got: list[str] = []

    def node() -> Service:
        service = Service("shop", url=server.url)

        @service.cron("* * * * * *", TICK, Order(n=7))
        async def on_tick(order: Order, call: Call) -> None:
            assert order == Order(n=7)
            got.append(call.delivery.stored.replace(microsecond=0).isoformat())

        return service

    async with node(), node():
        await until(lambda: len(got) >= 3)

    assert len(set(got)) == len(got)
    assert await schedules() == {"schedules.ORDERS.cron.shop.orders-tick"}


@pytest.mark.parametrize("uses_stream", [True, False])
async def test_schedule_that_was_removed_from_the_code_stops(server, schedules, uses_stream):
    """At its next start a service deletes the schedules that its code does not have any more."""
    service = Service("shop", url=server.url)
    service.cron("@hourly", TICK, Order(n=1), name="stays")
    service.cron("@hourly", TICK, Order(n=2), name="goes") if uses_stream else None
    other = Service("other", url=server.url)
    other.cron("@hourly", TICK, Order(n=3), name="mine")
    async with service, other:
        pass

    service = Service("shop", url=server.url)
    if uses_stream:
        service.cron("@hourly", TICK, Order(n=1), name="stays")
    async with service:
        left = await schedules()

    mine = {"schedules.ORDERS.cron.other.mine"}
    assert left == ({"schedules.ORDERS.cron.shop.stays"} | mine if uses_stream else mine)


async def test_changed_schedule_takes_the_place_of_the_old_one(server, ask, raw, schedules):
    """A new time or event under the same name replaces the old; an unchanged one is left alone."""
    sequences = []
    for schedule in ("@hourly", "@hourly", "@daily"):
        service = Service("shop", url=server.url)
        service.cron(schedule, TICK, Order(n=1))
        async with service:
            pass
        info = await ask("STREAM.INFO.ORDERS")
        sequences.append(info["state"]["last_seq"])

    assert sequences[0] == sequences[1] < sequences[2]
    last = await raw.jetstream().get_last_msg("ORDERS", "schedules.ORDERS.cron.shop.orders-tick")
    assert last.headers["Nats-Schedule"] == "@daily"
    assert len(await schedules()) == 1


async def test_moments_that_make_no_sense_are_refused(server):
    """No time zone, both `at` and `after`, a negative pause, or a stream that cannot hold it."""
    naive = datetime(2030, 1, 1)  # noqa: DTZ001 - that is the point
    full = Topic("few.paid", Order, stream=Stream("FEW", discard="new"))
    async with Client(server.url) as client:
        for given, says in (
            ({"at": naive}, "needs a time zone"),
            ({"at": datetime.now(UTC), "after": 1.0}, "not both"),
            ({"after": -1.0}, "after=-1.0"),
        ):
            with pytest.raises(InvalidArgument, match=says):
                await client.publish(PAID, Order(n=1), **given)
        with pytest.raises(InvalidArgument, match="discard='old'"):
            await client.publish(full, Order(n=1), after=1.0)


async def test_schedule_that_the_server_does_not_understand_is_named(server):
    """Six fields that mean nothing to the server are an error at the start."""
    service = Service("shop", url=server.url)
    service.cron("61 61 61 61 61 61", TICK, Order(n=1))

    with pytest.raises(SetupError, match="61 61 61 61 61 61"):
        await service.start()


@pytest.mark.parametrize("level", [0, 1])
async def test_server_before_2_12_has_no_events_for_later(older, level):
    """The error names the version that it takes; nothing was published."""
    async with older(level) as url, Client(url) as client:
        await client.publish(PAID, Order(n=1))
        with pytest.raises(NotSupported, match=r"after=, at=.* 2\.12"):
            await client.publish(PAID, Order(n=1), after=1.0)


@pytest.mark.parametrize("level", [1, 3])
async def test_server_before_2_14_has_no_recurring_events(older, level):
    """The service does not start, and says which version it takes."""
    async with older(level) as url:
        service = Service("shop", url=url)
        service.cron("@hourly", TICK, Order(n=1))
        with pytest.raises(NotSupported, match=r"recurring event.* 2\.14"):
            await service.start()
