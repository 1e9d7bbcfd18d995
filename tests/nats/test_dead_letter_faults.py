"""Dead letters by the hundred, those that cannot be stored, and events that end their node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from busmicro import Client, NatsServer, Reject, Service, Stream, Topic
from busmicro.pubsub import DeadLetters


class Order(BaseModel):
    n: int


PAID = Topic("orders.paid", Order, stream=Stream("ORDERS", subjects=["orders.>"]))
JOBS = Topic("jobs.todo", Order, stream=Stream("JOBS", subjects=["jobs.>"], work_queue=True))


@pytest.fixture
async def client(server) -> AsyncIterator[Client]:
    async with Client(server.url) as client:
        yield client


async def test_all_dead_letters_are_listed_however_many(client, raw):
    """A list asks for a page after the other, and the last letter is on it."""
    letters = DeadLetters(client.bus)
    await letters.prepare()
    for _ in range(600):
        await raw.publish("dlq.ORDERS.billing", b"{}")
    await raw.jetstream().publish("dlq.ORDERS.billing", b"{}")

    listed = [letter.number for letter in await letters.list(most=1000)]

    assert listed == list(range(1, 602))


async def test_every_replayed_event_comes(server, client, until):
    """Replaying one dead letter does not make the next one look like it."""
    letters, got, broken = DeadLetters(client.bus), [], True
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, group="billing")
    async def on_paid(order: Order) -> None:
        if broken:
            raise Reject("not yet")
        got.append(order.n)

    async def dead() -> bool:
        return len(await letters.list()) == 3

    async with service:
        await client.publish_many(PAID, [Order(n=n) for n in range(3)])
        await until(dead)
        broken = False
        for letter in await letters.list():
            assert not (await letters.replay(letter.number)).duplicate
        await until(lambda: len(got) == 3)

    assert sorted(got) == [0, 1, 2]


async def test_event_stays_where_it_is_when_its_dead_letter_cannot_be_stored(
    tmp_path: Path, until, caplog
):
    """Nothing is given up before the copy is kept: the queue has it, and a replacement gets it."""
    config = tmp_path / "nats.conf"
    config.write_text(
        "authorization { users: [ {user: all, password: p},"
        ' {user: shop, password: p, permissions: {publish: {deny: "dlq.>"}}} ] }'
    )
    async with NatsServer(config=config) as server:
        way = server.url.replace("nats://", "nats://{}:p@")
        service = Service("shop", url=way.format("shop"))

        @service.subscribe(JOBS, group="billing")
        async def on_job(order: Order) -> None:
            raise Reject("poison")

        async with Client(way.format("all")) as client, service:
            await client.publish(JOBS, Order(n=1))
            await until(lambda: "a dead letter could not be stored" in caplog.text)
            info = await client.publisher.declarations.find("JOBS")
            assert info is not None
            assert info["state"]["messages"] == 1


async def test_event_that_ended_its_node_by_itself_is_not_tried_again(server, client, raw, until):
    """The second node finds the letter of the first one there, and leaves the event alone."""
    ran: list[str] = []

    def node(name: str) -> Service:
        service = Service("shop", url=server.url)

        @service.subscribe(PAID, group="billing", max_deliver=2, ack_wait=0.5)
        async def on_paid(order: Order) -> None:
            ran.append(name)
            await asyncio.Event().wait()

        return service

    letters = DeadLetters(client.bus)
    async with node("makes the consumer"):
        pass
    await client.publish(PAID, Order(n=1))
    crashing = await raw.jetstream().pull_subscribe_bind("billing-orders-paid", "ORDERS")
    for _ in range(2):
        await crashing.fetch(1)
        await asyncio.sleep(0.6)  # what was fetched is not held, and comes again

    first = node("first")
    await first.start()
    await until(lambda: ran == ["first"])
    await first.stop(grace=0.01)
    async with node("second") as second:

        async def settled() -> bool:
            info = await raw.jetstream().consumer_info("ORDERS", "billing-orders-paid")
            return info.num_ack_pending == 0 and info.num_pending == 0

        await until(settled)
        assert second.id

    assert ran == ["first"]
    assert len(await letters.list()) == 1
