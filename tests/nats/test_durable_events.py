"""Events that a stream keeps: each is handled at least once, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import nats
import pytest
from pydantic import BaseModel

from busmicro import (
    Call,
    Client,
    NatsServer,
    Reject,
    ResourceExhausted,
    Service,
    Stream,
    StreamConflict,
    Topic,
)
from busmicro.pubsub import DeadLetters


class Order(BaseModel):
    n: int


STREAM = Stream("ORDERS", subjects=["orders.>"])
PAID = Topic("orders.paid", Order, stream=STREAM)
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


async def test_nodes_of_a_group_share_and_others_get_everything(server, until):
    """Each event goes to one node of a group, and to every subscription without one."""
    shared: list[tuple[int, int]] = []
    alone: list[tuple[int, int]] = []

    def node(number: int) -> Service:
        service = Service("shop", url=server.url)

        @service.subscribe(PAID, group="billing", waiting=4, concurrency=2)
        async def bill(order: Order) -> None:
            await asyncio.sleep(0.001)
            shared.append((number, order.n))

        @service.subscribe(PAID)
        async def look(order: Order) -> None:
            alone.append((number, order.n))

        return service

    async with node(1), node(2), Client(server.url) as client:
        await client.publish_many(PAID, orders(100))
        await until(lambda: len(shared) >= 100 and len(alone) >= 200)

    assert sorted(n for _, n in shared) == list(range(100))
    assert {number for number, _ in shared} == {1, 2}
    assert sorted(alone) == [(number, n) for number in (1, 2) for n in range(100)]


async def test_service_goes_on_where_it_was(server, until):
    """A service that was away handles what came meanwhile, and nothing twice."""
    got: list[int] = []
    async with Client(server.url) as client:
        for round_ in range(3):
            async with recording(server, got):
                await client.publish_many(PAID, orders(10, 20 * round_))
                await until(lambda want=20 * round_ + 10: len(got) >= want)
            await client.publish_many(PAID, orders(10, 20 * round_ + 10))

    assert sorted(got) == list(range(50))


@pytest.mark.parametrize(
    ("start", "wanted"),
    [
        (None, [0, 1, 2, 3, 4]),
        ("first", [0, 1, 2, 3, 4]),
        ("new", [4]),
        (3, [2, 3, 4]),
        ("moment", [2, 3, 4]),
    ],
)
async def test_group_begins_where_it_is_told(server, until, start, wanted):
    """A new group begins at the first event, unless it asks for another place."""
    got: list[int] = []
    async with Client(server.url) as client:
        await client.publish_many(PAID, orders(2))
        await asyncio.sleep(0.01)
        if start == "moment":
            start = datetime.now(UTC)
        await asyncio.sleep(0.01)
        await client.publish_many(PAID, orders(2, 2))
        async with recording(server, got, start=start):
            await client.publish(PAID, Order(n=4))
            await until(lambda: 4 in got)

    assert sorted(got) == wanted


async def test_delivery_says_which_event_this_is(server, until):
    """`call.delivery` tells id, stream, number and attempt; the namespace shows in the names."""
    calls: list[Call] = []
    service = Service("shop", url=server.url, namespace="prod")

    @service.subscribe(PAID, group="billing", backoff=[0])
    async def on_paid(order: Order, call: Call) -> None:
        calls.append(call)
        if len(calls) == 1:
            raise ValueError("once")

    began = datetime.now(UTC)
    async with service:
        await service.publish(PAID, Order(n=1), id="order-1")
        await until(lambda: len(calls) == 2)

    first, second = (call.delivery for call in calls)
    assert (first.attempt, second.attempt) == (1, 2)
    assert first.id == second.id == "/shop/orders.paid:order-1"
    assert (first.stream, first.consumer) == ("prod-ORDERS", "billing-orders-paid")
    assert (first.sequence, first.pending) == (1, 0)
    assert abs((first.stored - began).total_seconds()) < 5
    assert calls[0].subject == "prod.orders.paid"


async def test_failed_event_comes_again_by_the_table(server, until):
    """The pauses between attempts are those of `backoff`, the last one for the rest."""
    at: list[float] = []
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, group="billing", backoff=[0.1, 0.3], max_deliver=4)
    async def on_paid(order: Order) -> None:
        at.append(time.monotonic())
        raise ValueError("no")

    async with service:
        await service.publish(PAID, Order(n=1))
        await until(lambda: len(at) == 4)

    pauses = [after - before for before, after in itertools.pairwise(at)]
    for pause, asked in zip(pauses, [0.1, 0.3, 0.3], strict=True):
        assert asked - 0.005 <= pause < asked + 0.5


async def test_handler_may_say_when_to_try_again(server, until):
    """`retry_after` of an error takes the place of the table."""
    at: list[float] = []
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, group="billing", backoff=[60])
    async def on_paid(order: Order) -> None:
        at.append(time.monotonic())
        if len(at) == 1:
            raise ResourceExhausted("the bank is busy", retry_after=0.3)

    async with service:
        await service.publish(PAID, Order(n=1))
        await until(lambda: len(at) == 2)

    assert 0.295 <= at[1] - at[0] < 1.0


async def _cancelled() -> None:
    task = asyncio.get_running_loop().create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    task.cancel()
    await task


async def _leave() -> None:
    raise SystemExit(1)


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("end", [_cancelled, _leave])
async def test_handler_that_ends_oddly_has_failed(server, until, end, keyed):
    """A task that was cancelled inside a handler, or SystemExit, costs one attempt and no event."""
    got: list[int] = []
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, group="billing", backoff=[0.05], key=(lambda _: 0) if keyed else None)
    async def on_paid(order: Order) -> None:
        got.append(order.n)
        if got == [0]:
            await end()

    async with service:
        await service.publish_many(PAID, orders(3))
        await until(lambda: got.count(0) == 2 and {1, 2} <= set(got), timeout=5.0)

    assert sorted(got) == [0, 0, 1, 2]


async def test_handler_may_take_longer_than_ack_wait(server, until):
    """A handler of five times `ack_wait` runs once: the node says that it is at work."""
    got: list[int] = []
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, group="billing", ack_wait=0.5, concurrency=1)
    async def on_paid(order: Order) -> None:
        got.append(order.n)
        await asyncio.sleep(2.5 if order.n == 0 else 0)

    async with service:
        await service.publish_many(PAID, orders(2))  # the second one waits as long
        await until(lambda: len(got) >= 2)
        await asyncio.sleep(0.6)

    assert got == [0, 1]


async def test_stopping_gives_back_what_waits_and_finishes_what_runs(server, until):
    """Another node has the waiting events at once, long before `ack_wait`; none is done twice."""
    got: list[tuple[str, int]] = []
    gate = asyncio.Event()

    def node(name: str, wait: Callable[[], object]) -> Service:
        service = Service("shop", url=server.url)

        @service.subscribe(PAID, group="billing", concurrency=2)
        async def on_paid(order: Order) -> None:
            got.append((name, order.n))
            if name == "first":
                await gate.wait()

        return service

    first, second = node("first", gate.wait), node("second", gate.wait)
    async with Client(server.url) as client:
        await first.start()
        await client.publish_many(PAID, orders(50))
        await until(lambda: len(got) == 2)
        async with second:
            began = time.monotonic()
            stopping = asyncio.get_running_loop().create_task(first.stop())
            await until(lambda: len(got) == 50)
            took = time.monotonic() - began
            assert not stopping.done()
            gate.set()
            await stopping

    assert took < 2.0
    assert sorted(n for _, n in got) == list(range(50))


async def test_what_outlasts_the_grace_period_is_given_back_at_once(server, until):
    """A handler that is ended has its event given to another node, not after `ack_wait`."""
    got: list[str] = []

    def node(name: str) -> Service:
        service = Service("shop", url=server.url)

        @service.subscribe(PAID, group="billing")
        async def on_paid(order: Order) -> None:
            got.append(name)
            await asyncio.sleep(60 if name == "first" else 0)

        return service

    first = node("first")
    async with Client(server.url) as client:
        await first.start()
        await client.publish(PAID, Order(n=1))
        await until(lambda: got)
        async with node("second"):
            await first.stop(grace=0.1)
            await until(lambda: got == ["first", "second"], timeout=3.0)


@pytest.mark.parametrize("frozen", [False, True])
async def test_stopping_needs_no_server(server, until, frozen):
    """A service stops within seconds when NATS is gone, and when it hangs."""
    got: list[int] = []
    service = recording(server, got)
    await service.start()
    if frozen:
        server.pause()
    else:
        server.kill()
        await until(lambda: not service.bus.transport.connected)

    async with asyncio.timeout(10 if frozen else 1):
        await service.stop()


async def test_lists_are_full_or_have_waited(server, until):
    """A handler of lists gets full lists, and what there is after `batch_wait`."""
    lists: list[list[int]] = []
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, group="billing", batch=10, batch_wait=0.2, concurrency=1)
    async def on_paid(paid: list[Order]) -> None:
        lists.append([order.n for order in paid])

    async with service:
        await service.publish_many(PAID, orders(25))
        await until(lambda: sum(map(len, lists)) == 25)

    assert lists == [list(range(10)), list(range(10, 20)), list(range(20, 25))]


async def test_one_bad_event_does_not_take_its_list_with_it(server, until):
    """When a list fails its events are tried one by one, and only the bad one dies."""
    handled: list[int] = []
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, group="billing", batch=5, batch_wait=0.3, max_deliver=2, backoff=[0])
    async def on_paid(paid: list[Order]) -> None:
        if any(order.n == 2 for order in paid):
            raise Reject("no such order")
        handled.extend(order.n for order in paid)

    async with service:
        letters = DeadLetters(service.bus)
        await service.publish_many(PAID, orders(4))
        service.bus.transport.publish(b"orders.paid", b"{")
        await until(lambda: len(handled) == 3)

        async def both() -> bool:
            return len(await letters.list()) == 2

        await until(both)
        dead = {letter.payload: letter.code for letter in await letters.list()}

    assert sorted(handled) == [0, 1, 3]
    assert dead == {b'{"n":2}': "failed_precondition", b"{": "invalid_argument"}


async def test_only_so_many_run_at_once(server, until):
    """`concurrency` is kept, and used to the full, by events and by lists."""
    running, most, done = 0, 0, 0
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, group="billing", concurrency=5)
    async def on_paid(order: Order) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1
        done += 1

    async with service:
        await service.publish_many(PAID, orders(100))
        await until(lambda: done == 100)

    assert most == 5


async def test_consumer_of_somebody_else_is_left_alone(server, raw, ask):
    """A durable consumer of that name that does something else is a conflict, and untouched."""
    async with Client(server.url) as client:
        await client.publish(PAID, Order(n=1))
    config = {"durable_name": "billing-orders-paid", "ack_policy": "none"}
    before = await ask(
        "CONSUMER.CREATE.ORDERS.billing-orders-paid", {"stream_name": "ORDERS", "config": config}
    )

    with pytest.raises(StreamConflict, match="ack_policy is 'none' and should be 'explicit'"):
        await recording(server, []).start()

    after = await ask("CONSUMER.INFO.ORDERS.billing-orders-paid")
    assert after["config"] == before["config"]


async def test_work_queue_forgets_what_was_handled_and_takes_one_group(server, until, ask):
    """An event in a work queue is gone once handled; a second group would starve, and is told."""
    topic = Topic("jobs.done", Order, stream=Stream("JOBS", subjects=["jobs.>"], work_queue=True))
    got: list[int] = []
    async with recording(server, got, topic) as service:
        await service.publish_many(topic, orders(10))
        await until(lambda: len(got) == 10)

        async def empty() -> bool:
            return (await ask("STREAM.INFO.JOBS"))["state"]["messages"] == 0

        await until(empty)
        with pytest.raises(StreamConflict, match="another group of work queue JOBS"):
            await recording(server, [], topic, group="stock").start()


async def test_newer_subjects_of_acknowledgements_are_understood(tmp_path: Path, until):
    """A server that writes domain and account into them changes nothing for anybody."""
    config = tmp_path / "nats.conf"
    config.write_text("feature_flags { js_ack_fc_v2: true }")
    calls: list[Call] = []
    async with NatsServer(config=config) as server:
        service = Service("shop", url=server.url)

        @service.subscribe(PAID, group="billing", backoff=[0])
        async def on_paid(order: Order, call: Call) -> None:
            calls.append(call)
            if len(calls) == 1:
                raise ValueError("once")

        async with service:
            await service.publish(PAID, Order(n=1))
            await until(lambda: len(calls) == 2)
            raw = await nats.connect(server.url)

            async def acknowledged() -> bool:
                info = await raw.jetstream().consumer_info("ORDERS", "billing-orders-paid")
                return info.ack_floor.stream_seq == 1

            await until(acknowledged)
            await raw.close()

    assert calls[0].ack_bytes.count(b".") > 8
    assert [call.delivery.attempt for call in calls] == [1, 2]
    assert calls[1].delivery.sequence == 1
