"""Events with one key are handled in order, on one node at a time (`key=`)."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter

import pytest
from pydantic import BaseModel

from busmicro import Client, Service, Stream, Topic
from busmicro.pubsub import DeadLetters


class Order(BaseModel):
    n: int
    customer: int = 0


STREAM = Stream("ORDERS", subjects=["orders.>"])
PAID = Topic("orders.paid", Order, stream=STREAM)
CREATED = Topic("created", Order)


def orders(count: int, customers: int, first: int = 0) -> list[Order]:
    return [Order(n=n, customer=n % customers) for n in range(first, first + count)]


def in_order(got: list[Order]) -> bool:
    """Is every customer's order of events the one of publishing?"""
    customers = {order.customer for order in got}
    lanes = [[order.n for order in got if order.customer == customer] for customer in customers]
    return all(lane == sorted(lane) for lane in lanes)


@pytest.mark.parametrize("topic", [PAID, CREATED])
async def test_one_key_in_order_and_many_side_by_side(server, until, topic):
    """Under concurrency, one customer's events never overlap and never overtake each other."""
    done: list[Order] = []
    running: Counter[int] = Counter()
    most = 0
    jitter = random.Random(7)
    service = Service("shop", url=server.url)

    group = "billing" if topic is PAID else ""

    @service.subscribe(topic, group=group, key=lambda order: order.customer, concurrency=8)
    async def on_event(order: Order) -> None:
        nonlocal most
        running[order.customer] += 1
        assert running[order.customer] == 1
        most = max(most, running.total())
        await asyncio.sleep(jitter.random() / 200)
        running[order.customer] -= 1
        done.append(order)

    async with service:
        for order in orders(200, 20):
            await service.publish(topic, order)
        await until(lambda: len(done) == 200)

    assert in_order(done)
    assert most == 8


async def test_failing_event_holds_back_its_own_key_only(server, until):
    """An event that fails is tried again before those behind it; other keys go on meanwhile."""
    done: list[Order] = []
    tries: list[float] = []
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, group="billing", key=lambda order: order.customer, backoff=[0.3])
    async def on_paid(order: Order) -> None:
        if order.n == 0:
            tries.append(time.monotonic())
            if len(tries) < 3:
                raise ValueError("not yet")
        done.append(order)

    async with service:
        await service.publish_many(PAID, orders(20, 2))
        await until(lambda: len(done) == 20)

    assert in_order(done)
    assert [order.customer for order in done[:10]] == [1] * 10
    assert all(0.295 <= after - before < 1 for before, after in itertools.pairwise(tries))


async def test_event_that_dies_makes_way_for_those_behind_it(server, until):
    """After its last attempt an event goes to the dead letters, and its key goes on."""
    done: list[Order] = []
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, group="billing", key=lambda _: 0, backoff=[0.01], max_deliver=3)
    async def on_paid(order: Order) -> None:
        if order.n == 0:
            raise ValueError("never")
        done.append(order)

    async with service:
        await service.publish_many(PAID, orders(5, 1))
        await until(lambda: len(done) == 4)
        [letter] = await DeadLetters(service.bus).list()

    assert in_order(done)
    assert (letter.attempts, letter.payload) == (3, b'{"n":0,"customer":0}')


async def test_key_that_cannot_be_made_stops_nobody(server, until, caplog):
    """A key function that fails is logged, and the event is handled all the same."""
    done: list[int] = []
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, group="billing", key=lambda order: 1 // order.n)
    async def on_paid(order: Order) -> None:
        done.append(order.n)

    async with service:
        await service.publish_many(PAID, orders(3, 1))
        await until(lambda: len(done) == 3)

    assert "no key" in caplog.text


def node(server, name: str, got: list[tuple[str, Order]], gate: asyncio.Event) -> Service:
    service = Service("shop", url=server.url)

    @service.subscribe(
        PAID, group="billing", key=lambda order: order.customer, concurrency=4, ack_wait=1
    )
    async def on_paid(order: Order) -> None:
        got.append((name, order))
        await gate.wait()

    return service


async def test_stopping_node_hands_over_in_order(server, until):
    """What a stopping node gives back is handled elsewhere at once, still in order."""
    got: list[tuple[str, Order]] = []
    shut, open_ = asyncio.Event(), asyncio.Event()
    open_.set()
    first = node(server, "first", got, shut)
    async with Client(server.url) as client:
        await first.start()
        await client.publish_many(PAID, orders(40, 2))
        await until(lambda: len(got) == 2)
        async with node(server, "second", got, open_):
            began = time.monotonic()
            await first.stop(grace=0.1)  # the two that run are ended, and come again
            await until(
                lambda: {order.n for name, order in got if name == "second"} == set(range(40))
            )
            took = time.monotonic() - began

    assert took < 3.0
    assert in_order([order for name, order in got if name == "second"])


async def test_stopping_does_not_wait_for_the_next_attempt(server, until):
    """An event that waits for its next attempt is given back at once; nothing of it runs."""
    tried: list[Order] = []
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, group="billing", key=lambda _: 0, backoff=[60])
    async def on_paid(order: Order) -> None:
        tried.append(order)
        raise ValueError("not yet")

    await service.start()
    await service.publish(PAID, Order(n=1))
    await until(lambda: tried)
    async with asyncio.timeout(2.0):
        await service.stop(grace=30)


_NODE = """
import asyncio, sys
from pydantic import BaseModel
from busmicro import Service, Stream, Topic

class Order(BaseModel):
    n: int
    customer: int = 0

PAID = Topic("orders.paid", Order, stream=Stream("ORDERS", subjects=["orders.>"]))
service = Service("shop")

@service.subscribe(PAID, group="billing", key=lambda order: order.customer, ack_wait=1)
async def on_paid(order: Order) -> None:
    print(order.n, flush=True)
    if order.n == 2:
        await asyncio.sleep(600)

service.run()
"""


async def test_killed_node_is_replaced_and_order_is_kept(server, until, start_program):
    """After a kill another node goes on within 13 s, in order, with the dead one's events first."""
    got: list[tuple[str, Order]] = []
    gate = asyncio.Event()
    gate.set()
    program = start_program("-c", _NODE, url=server.url)
    lines: list[bytes] = []
    async with Client(server.url) as client:
        await client.publish_many(PAID, orders(1, 1))
        lines.append(await asyncio.to_thread(program.stdout.readline))
        async with node(server, "second", got, gate):
            await client.publish_many(PAID, orders(39, 1, first=1))
            lines.append(await asyncio.to_thread(program.stdout.readline))
            lines.append(await asyncio.to_thread(program.stdout.readline))
            assert got == []
            program.kill()
            program.wait()
            began = time.monotonic()
            await client.publish_many(PAID, orders(5, 1, first=40))
            await until(lambda: {order.n for _, order in got} >= set(range(2, 45)), timeout=15.0)
            took = time.monotonic() - began

    assert [int(line) for line in lines] == [0, 1, 2]
    assert took < 13
    assert in_order([order for _, order in got])


async def test_slow_node_stays_the_one(server, until):
    """A node whose handler takes longer than a dead one is waited for keeps the key's events."""
    got: list[tuple[str, Order]] = []
    shut, open_ = asyncio.Event(), asyncio.Event()
    open_.set()
    async with Client(server.url) as client, node(server, "first", got, shut):
        await client.publish_many(PAID, orders(2, 1))
        await until(lambda: got)
        async with node(server, "second", got, open_):
            await asyncio.sleep(7.0)  # ack_wait, 5 s more, and one to spare
            await client.publish(PAID, Order(n=2))
            await asyncio.sleep(0.5)  # for what must not come to the second one
            meanwhile = [(name, order.n) for name, order in got]
            shut.set()
            await until(lambda: len(got) == 3)

    assert meanwhile == [("first", 0)]
    assert [(name, order.n) for name, order in got] == [("first", 0), ("first", 1), ("first", 2)]


async def test_restarted_server_leaves_the_keys_with_whoever_has_them(server, until):
    """A nats-server that restarts forgets who worked; that node goes on before all others."""
    got: list[tuple[str, Order]] = []
    shut, open_ = asyncio.Event(), asyncio.Event()
    open_.set()
    async with Client(server.url) as client, node(server, "first", got, shut):
        await client.publish_many(PAID, orders(2, 1))
        await until(lambda: got)
        async with node(server, "second", got, open_):
            await server.restart()
            await client.publish_many(PAID, orders(3, 1, first=2))
            await asyncio.sleep(2.0)  # for what must not come to the second one
            meanwhile = [name for name, _order in got]
            shut.set()
            await until(lambda: len({order.n for _name, order in got}) == 5, timeout=15.0)

    assert meanwhile == ["first"]
    assert list(dict.fromkeys(order.n for _name, order in got)) == [0, 1, 2, 3, 4]
