"""Events that a node still works on when somebody deletes its consumer."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel

from busmicro import Client, Service, Stream, Topic


class Order(BaseModel):
    n: int


PAID = Topic("orders.paid", Order, stream=Stream("ORDERS", subjects=["orders.>"]))


async def test_event_that_fails_after_its_consumer_was_deleted_comes_again(server, until, ask):
    """The new consumer begins with what was not finished, not behind it."""
    began, may_fail = asyncio.Event(), asyncio.Event()
    tried: list[int] = []
    done: list[int] = []
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, concurrency=4, backoff=[0.05])
    async def on_paid(order: Order) -> None:
        tried.append(order.n)
        if order.n == 0 and not began.is_set():
            began.set()
            await may_fail.wait()
            raise ValueError("not yet")
        done.append(order.n)

    async with service, Client(server.url) as client:
        await client.publish_many(PAID, [Order(n=n) for n in range(3)])
        await began.wait()
        await until(lambda: {1, 2} <= set(done))
        for name in (await ask("CONSUMER.NAMES.ORDERS"))["consumers"]:
            await ask(f"CONSUMER.DELETE.ORDERS.{name}")
        await client.publish(PAID, Order(n=3))
        await until(lambda: 3 in done)
        may_fail.set()
        await until(lambda: 0 in done)

    assert set(done) == {0, 1, 2, 3}
    assert tried.count(0) >= 2
