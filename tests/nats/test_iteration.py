"""Events as an iteration: `async with client.subscribe(topic) as events`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import BaseModel

from busmicro import Client, NatsServer, PermissionDenied, SetupError, Stream, Topic
from busmicro.pubsub import DeadLetters


class Order(BaseModel):
    n: int


CREATED = Topic("created", Order)
PAID = Topic("orders.paid", Order, stream=Stream("ORDERS", subjects=["orders.>"]))


def orders(count: int, first: int = 0) -> list[Order]:
    return [Order(n=n) for n in range(first, first + count)]


@pytest.fixture
async def client(server) -> AsyncIterator[Client]:
    async with Client(server.url) as client:
        yield client


@pytest.fixture
def pending(ask):
    """Tell which number everything up to is acknowledged, and how many events are held."""

    async def pending(group: str = "billing") -> tuple[int, int]:
        info = await ask(f"CONSUMER.INFO.ORDERS.{group}-orders-paid")
        return info["ack_floor"]["stream_seq"], info["num_ack_pending"]

    return pending


async def numbers(events, most: int) -> list[int]:
    return [order.n for order in await events.collect(most=most, timeout=5.0)]


async def test_core_events_come_as_long_as_the_block_lasts(client):
    """Everybody gets all, a group shares, and nothing comes after the block."""
    async with (
        client.subscribe(CREATED) as one,
        client.subscribe(CREATED) as two,
        client.subscribe(CREATED, group="g") as shared_one,
        client.subscribe(CREATED, group="g") as shared_two,
    ):
        for order in orders(50):
            await client.publish(CREATED, order, headers={"Tenant": "acme"})
        assert await numbers(one, 50) == await numbers(two, 50) == list(range(50))
        shared = [
            *await shared_one.collect(timeout=0.3),
            *await shared_two.collect(timeout=0.3),
        ]
        assert sorted(order.n for order in shared) == list(range(50))
        assert (one.call.subject, one.call.headers["Tenant"]) == ("created", "acme")
        assert one.call.delivery is None


async def test_event_is_acknowledged_when_the_next_is_asked_for(client, pending, until):
    """The body has done with it then; a clean end, by `break` too, acknowledges the last."""
    await client.publish_many(PAID, orders(5))
    async with client.subscribe(PAID, group="billing") as events:
        async for order in events:
            assert events.call.delivery.sequence == order.n + 1

            async def acknowledged(upto: int = order.n) -> bool:
                return (await pending())[0] == upto

            await until(acknowledged)
            if order.n == 2:
                break

    async def left() -> bool:
        return (await pending())[0] == 3

    await until(left)
    async with client.subscribe(PAID, group="billing") as events:
        assert sorted(await numbers(events, 2)) == [3, 4]


async def test_error_gives_back_the_event_at_hand_at_once(server, client):
    """A block that ends with an error has not handled its event: another member gets it now."""
    await client.publish_many(PAID, orders(3))
    with pytest.raises(ZeroDivisionError):
        async with client.subscribe(PAID, group="billing") as events:
            async for order in events:
                if order.n == 1:
                    raise ZeroDivisionError

    began = time.monotonic()
    async with Client(server.url) as other, other.subscribe(PAID, group="billing") as events:
        again = await numbers(events, 2)
    assert sorted(again) == [1, 2]
    assert time.monotonic() - began < 3.0


async def test_cancelled_iteration_gives_back_too(client):
    """Cancelling the task that iterates loses nothing."""
    seen = asyncio.Event()

    async def work() -> None:
        async with client.subscribe(PAID, group="billing") as events:
            async for _ in events:
                seen.set()
                await asyncio.sleep(60)

    await client.publish(PAID, Order(n=1))
    task = asyncio.get_running_loop().create_task(work())
    await seen.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async with client.subscribe(PAID, group="billing") as events:
        assert await numbers(events, 1) == [1]
        assert events.call.delivery.attempt == 2


@pytest.mark.parametrize(
    ("group", "start", "wanted"),
    [
        (None, None, [4]),
        (None, "new", [4]),
        (None, "first", [0, 1, 2, 3, 4]),
        (None, 3, [2, 3, 4]),
        (None, "moment", [2, 3, 4]),
        ("billing", None, [0, 1, 2, 3, 4]),
        ("billing", "new", [4]),
    ],
)
async def test_iteration_begins_where_it_is_told(client, group, start, wanted):
    """Alone from now on, a group from the first; or from a number, or a moment."""
    await client.publish_many(PAID, orders(2))
    await asyncio.sleep(0.01)
    if start == "moment":
        start = datetime.now(UTC)
    await asyncio.sleep(0.01)
    await client.publish_many(PAID, orders(2, 2))
    async with client.subscribe(PAID, group=group, start=start) as events:
        await client.publish(PAID, Order(n=4))
        assert await numbers(events, len(wanted)) == wanted


async def test_onlooker_leaves_nothing_behind(client, ask):
    """A subscription without a group has a consumer of its own, gone with it."""
    await client.publish(PAID, Order(n=1))
    async with client.subscribe(PAID, start="first") as events:
        assert await numbers(events, 1) == [1]
        assert len((await ask("CONSUMER.NAMES.ORDERS"))["consumers"]) == 1
    assert not (await ask("CONSUMER.NAMES.ORDERS")).get("consumers")


async def test_collect_ends_by_number_time_or_stall(client, pending, until):
    """`most` is exact, `timeout` is kept, and `stall` ends early when no more comes."""
    await client.publish_many(PAID, orders(10))
    async with client.subscribe(PAID, group="billing") as events:
        assert [order.n for order in await events.collect(most=4)] == [0, 1, 2, 3]

        began = time.monotonic()
        rest = await events.collect(timeout=10.0, stall=0.2)
        assert [order.n for order in rest] == [4, 5, 6, 7, 8, 9]
        assert time.monotonic() - began < 2.0

        began = time.monotonic()
        assert await events.collect(timeout=0.3) == []
        assert 0.25 < time.monotonic() - began < 1.0
        assert await events.collect(most=0) == []

    async def all_done() -> bool:
        return await pending() == (10, 0)

    await until(all_done)


async def test_event_that_does_not_decode_is_passed_over(client, until):
    """A group buries it; an onlooker passes over it, for it is nobody else's trouble."""
    letters = DeadLetters(client.bus)
    await client.publish(PAID, Order(n=0))
    client.bus.transport.publish(b"orders.paid", b"{")
    await client.publish(PAID, Order(n=1))

    async with client.subscribe(PAID, start="first") as events:
        assert await numbers(events, 2) == [0, 1]
    assert await letters.list() == []
    async with client.subscribe(PAID, group="billing") as events:
        assert await numbers(events, 2) == [0, 1]
    [letter] = await letters.list()
    assert (letter.payload, letter.attempts) == (b"{", 1)


async def test_iteration_outlives_a_restart(server, client):
    """NATS is killed and comes back: the iteration goes on, and loses nothing that is kept."""
    await client.publish_many(PAID, orders(5))
    async with client.subscribe(PAID, group="billing") as events:
        first = await numbers(events, 3)
        server.kill()
        await server.restart()
        for order in orders(5, 5):
            await client.publish(PAID, order)
        rest = set()
        async with asyncio.timeout(20):
            while not rest >= set(range(3, 10)):
                rest |= set(await numbers(events, 1))
    assert first == [0, 1, 2]


async def test_slow_reader_of_core_events_drops_and_counts(client):
    """Memory stays bounded: what comes while too many wait is dropped, and counted."""
    async with client.subscribe(CREATED) as events:
        for order in orders(1500):
            await client.publish(CREATED, order)
        await client.bus.transport.barrier()
        got = await events.collect(timeout=5.0, stall=0.3)

    assert len(got) + events.dropped == 1500
    assert events.dropped >= 400


async def test_misuse_is_named(client):
    """Iterating outside the block, entering twice, or a place to start where nothing is kept."""
    events = client.subscribe(CREATED)
    with pytest.raises(SetupError, match="enter the events first"):
        await anext(events)
    with pytest.raises(SetupError, match="no event at hand"):
        events.call
    async with events:
        pass
    with pytest.raises(SetupError, match="subscribe again"):
        await events.__aenter__()
    with pytest.raises(SetupError, match="nothing is kept to start from"):
        client.subscribe(CREATED, start="first")
    with pytest.raises(SetupError, match="latest"):
        client.subscribe(PAID, start="latest")  # type: ignore[arg-type]


async def test_forbidden_topic_is_named(tmp_path: Path):
    """Who may not listen is told so when the block is entered."""
    config = tmp_path / "nats.conf"
    config.write_text(
        "authorization { users: [ {user: s, password: p, permissions: "
        '{subscribe: {deny: "created"}}} ] }'
    )
    async with (
        NatsServer(config=config) as server,
        Client(server.url.replace("//", "//s:p@")) as client,
    ):
        with pytest.raises(PermissionDenied, match="created"):
            async with client.subscribe(CREATED):
                pass
