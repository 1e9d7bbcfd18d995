"""Consumers, streams and servers that go away under a running service: nothing is lost."""

from __future__ import annotations

import asyncio
import shutil

import pytest
from pydantic import BaseModel

from busmicro import Client, NatsServer, Service, Stream, Topic, Unavailable


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


async def make_consumer(ask, name: str) -> None:
    """Make a consumer of ORDERS as any program could."""
    config = {"durable_name": name, "filter_subject": "orders.other", "ack_policy": "explicit"}
    request = {"stream_name": "ORDERS", "config": config}
    assert (await ask(f"CONSUMER.DURABLE.CREATE.ORDERS.{name}", request))["name"] == name


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


async def test_atomic_batch_makes_a_deleted_stream_again(server, ask):
    """An atomic batch makes a stream again that somebody has deleted, and stores all of it."""
    async with Client(server.url) as client:
        await client.publish(PAID, Order(n=1))
        assert (await ask("STREAM.DELETE.ORDERS"))["success"]

        stored = await client.publish_many(PAID, orders(2), atomic=True, timeout=3.0)

    assert stored.last_sequence == 2


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


async def test_deleted_stream_is_not_made_again_while_the_server_still_deletes_it(
    server, until, ask, raw
):
    """Who uses a deleted stream lets the server finish: what is stored then is acknowledged.

    The server takes its time for a stream with many consumers, tells each of them at once, and a
    stream that is made before the end loses its files: it is there and acknowledges nothing.
    """
    got: list[int] = []
    made: list[float] = []
    clock = asyncio.get_running_loop().time

    async def on_create(_request: object) -> None:
        made.append(clock())

    async with recording(server, got), Client(server.url) as client:
        await client.publish(PAID, Order(n=1))
        await until(lambda: got)
        await asyncio.gather(*(make_consumer(ask, f"other-{n}") for n in range(200)))
        await raw.subscribe("$JS.API.STREAM.CREATE.ORDERS", cb=on_create)
        await raw.flush()

        assert (await ask("STREAM.DELETE.ORDERS"))["success"]
        deleted = clock()
        await client.publish(PAID, Order(n=2), timeout=5.0)
        await until(lambda: 2 in got)

    assert min(made) > deleted + 0.5


async def test_event_is_certainly_not_stored_while_its_stream_is_being_deleted(server, ask):
    """A publisher whose time is up before a deleted stream is back knows that nothing is stored."""
    async with Client(server.url) as client:
        await client.publish(PAID, Order(n=1))
        assert (await ask("STREAM.DELETE.ORDERS"))["success"]

        with pytest.raises(Unavailable) as caught:
            await client.publish(PAID, Order(n=2), timeout=0.3)

        assert caught.value.not_run
        assert (await client.publish(PAID, Order(n=3))).sequence == 1


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


async def test_stream_that_acknowledges_nothing_is_named_in_the_log(server, until, ask, caplog):
    """A stream without its files stores nothing: the log says so, and names the way out."""
    async with Client(server.url) as client:
        await client.publish(PAID, Order(n=1))
        server.kill()
        await server.restart()  # so that it has none of the files open
        [files] = server.store.rglob("streams/ORDERS")
        shutil.rmtree(files)

        async def heed_the_log() -> None:
            await until(lambda: "stream ORDERS is there and acknowledges nothing" in caplog.text)
            assert (await ask("STREAM.DELETE.ORDERS"))["success"]

        stored, _ = await asyncio.gather(client.publish(PAID, Order(n=2)), heed_the_log())

    assert stored.sequence == 1
