"""Consumers, streams and servers that go away under a running service: nothing is lost."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import BaseModel

from busmicro import Client, NatsServer, Service, Stream, Topic


class Order(BaseModel):
    n: int


PAID = Topic("orders.paid", Order, stream=Stream("ORDERS", subjects=["orders.>"]))
IN_MEMORY = Topic("fast.paid", Order, stream=Stream("FAST", subjects=["fast.>"], storage="memory"))


def orders(count: int, first: int = 0) -> list[Order]:
    return [Order(n=n) for n in range(first, first + count)]


def recording(server: NatsServer, got: list[int], topic=PAID, **options: object) -> Service:
    """Make a service whose one handler notes the numbers of its events."""
    service = Service("shop", url=server.url)

    @service.subscribe(topic, **{"group": "billing", **options})
    async def on_paid(order: Order) -> None:
        got.append(order.n)

    return service


@pytest.mark.parametrize("group", ["billing", ""])
async def test_deleted_consumer_is_made_again_where_it_was(server, until, ask, group):
    """Somebody deletes the consumer of a running service: it goes on, and loses nothing.

    What a group has handled lately may come again: nobody can know how far its other nodes were.
    """
    got: list[int] = []
    async with recording(server, got, group=group), Client(server.url) as client:
        await client.publish_many(PAID, orders(20))
        await until(lambda: len(got) == 20)

        for name in (await ask("CONSUMER.NAMES.ORDERS"))["consumers"]:
            assert (await ask(f"CONSUMER.DELETE.ORDERS.{name}"))["success"]
        await client.publish_many(PAID, orders(20, 20))
        await until(lambda: set(got) >= set(range(40)))

    assert set(got) == set(range(40))
    assert group or got == list(range(40))


async def test_deleted_consumer_costs_the_other_nodes_nothing(server, until, ask):
    """One node makes the consumer again while another works: what that one fails at comes again."""
    got: list[int] = []
    gate = asyncio.Event()

    def node() -> Service:
        service = Service("shop", url=server.url)

        @service.subscribe(PAID, group="billing", concurrency=1, waiting=1, backoff=[0.05])
        async def on_paid(order: Order) -> None:
            got.append(order.n)
            if order.n == 0 and got.count(0) == 1:
                await gate.wait()
                raise ValueError("failed after the consumer was made again")

        return service

    async with node(), node(), Client(server.url) as client:
        await client.publish_many(PAID, orders(10))
        await until(lambda: len(got) == 10)
        await ask("CONSUMER.DELETE.ORDERS.billing-orders-paid")
        await client.publish_many(PAID, orders(10, 10))
        await until(lambda: set(got) == set(range(20)))
        gate.set()

        await until(lambda: got.count(0) >= 2, timeout=5.0)


async def test_publisher_makes_a_deleted_stream_again(server, ask):
    """Publishing makes a stream again that somebody has deleted, and stores the event."""
    async with Client(server.url) as client:
        await client.publish(PAID, Order(n=1))
        assert (await ask("STREAM.DELETE.ORDERS"))["success"]

        stored = await client.publish(PAID, Order(n=2))

        assert stored is not None
        assert (await ask("STREAM.INFO.ORDERS"))["state"]["messages"] == 1


async def test_deleted_stream_is_made_again(server, until, ask):
    """A subscriber makes a stream again that somebody has deleted, and handles what comes then."""
    got: list[int] = []
    async with recording(server, got), Client(server.url) as client:
        await client.publish_many(PAID, orders(20))
        await until(lambda: len(got) == 20)

        assert (await ask("STREAM.DELETE.ORDERS"))["success"]

        async def is_there() -> bool:
            return "ORDERS" in ((await ask("STREAM.NAMES"))["streams"] or [])

        await until(is_there)
        for order in orders(10, 100):
            await client.publish(PAID, order)
        await until(lambda: len(got) == 30, timeout=5.0)

    assert sorted(got[20:]) == list(range(100, 110))


async def test_stream_in_memory_starts_over_when_the_server_does(server, until):
    """A stream in memory is gone with its server; what is published afterwards is handled."""
    got: list[int] = []
    async with recording(server, got, IN_MEMORY), Client(server.url) as client:
        await client.publish_many(IN_MEMORY, orders(20))
        await until(lambda: len(got) == 20)

        server.kill()
        await server.restart()
        for order in orders(10, 100):
            await client.publish(IN_MEMORY, order)
        await until(lambda: len(got) == 30, timeout=5.0)

    assert sorted(got[20:]) == list(range(100, 110))


async def test_restarted_server_costs_no_event(server, until):
    """NATS is killed in the middle of consuming: every event is handled."""
    got: list[int] = []
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, group="billing", concurrency=4, ack_wait=1)
    async def on_paid(order: Order) -> None:
        await asyncio.sleep(0.001)
        got.append(order.n)

    async with service, Client(server.url) as client:
        await client.publish_many(PAID, orders(1000))
        await until(lambda: len(got) > 200)
        server.kill()
        await server.restart()
        await until(lambda: len(set(got)) == 1000)


async def test_frozen_server_costs_no_event_and_floods_nobody(server, until):
    """NATS hangs for longer than two heartbeats: all is handled, and no node holds too much."""
    got: list[int] = []
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, group="billing", concurrency=2, waiting=16)
    async def on_paid(order: Order) -> None:
        await asyncio.sleep(0.001)
        got.append(order.n)

    async with service, Client(server.url) as client:
        await client.publish_many(PAID, orders(100))
        await until(lambda: len(got) == 100)
        server.pause()
        await asyncio.sleep(6.5)
        server.resume()
        await client.publish_many(PAID, orders(300, 100))
        [listener] = service._life.subscriptions._listeners
        most = 0

        def all_are_there() -> bool:
            nonlocal most
            most = max(most, len(listener._intake))
            return len(set(got)) == 400

        await until(all_are_there)

    assert most <= 2 * 16
