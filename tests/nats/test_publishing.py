"""Publishing what is to be kept: stored once, or an error that says what happened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from busmicro import (
    AlreadyExists,
    Call,
    Client,
    FailedPrecondition,
    Handler,
    InvalidArgument,
    NatsServer,
    NoJetStream,
    NotAllPublished,
    NotSupported,
    PayloadTooLarge,
    PermissionDenied,
    PublishUnknown,
    Service,
    Stored,
    StoredMany,
    Stream,
    StreamFull,
    StreamMissing,
    Topic,
)

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Order(BaseModel):
    n: int
    note: str = ""


STREAM = Stream("ORDERS", subjects=["orders.>"])
PAID = Topic("orders.paid", Order, stream=STREAM)
SHIPPED = Topic("orders.shipped", Order, stream=STREAM)
FULL = Topic("few.paid", Order, stream=Stream("FEW", max_events=3, discard="new"))


def orders(count: int) -> list[Order]:
    return [Order(n=n) for n in range(count)]


def number(order: Order) -> str:
    return f"order-{order.n}"


@pytest.fixture
async def client(server) -> AsyncIterator[Client]:
    async with Client(server.url) as client:
        yield client


@pytest.fixture
def count(ask):
    """Count the events of a stream."""

    async def count(stream: str = "ORDERS") -> int:
        return (await ask(f"STREAM.INFO.{stream}"))["state"]["messages"]

    return count


async def test_stored_event_is_numbered(client):
    """Publishing returns where the event is kept, in order."""
    assert await client.publish(PAID, Order(n=1)) == Stored("ORDERS", 1)
    assert await client.publish(SHIPPED, Order(n=1)) == Stored("ORDERS", 2)


async def test_same_id_is_stored_once_for_each_subject(server, client, count):
    """An id makes an event on its subject; the same id elsewhere is another event."""
    first = await client.publish(PAID, Order(n=1), id="order-1")
    again = await client.publish(PAID, Order(n=1), id="order-1")
    other = await client.publish(SHIPPED, Order(n=1), id="order-1")
    async with Client(server.url) as elsewhere:
        third = await elsewhere.publish(PAID, Order(n=1), id="order-1")

    assert (first.duplicate, again.duplicate, other.duplicate, third.duplicate) == (
        False,
        True,
        False,
        True,
    )
    assert again.sequence == first.sequence
    assert await count() == 2


async def test_ids_that_are_none_or_too_long_are_refused(client):
    """An id has 1 to 512 characters."""
    for id in ("", "x" * 513):
        with pytest.raises(NotAllPublished, match="say 1 to 512 characters"):
            await client.publish_many(PAID, [Order(n=1)], id=lambda _, id=id: id)
        with pytest.raises(InvalidArgument, match="say 1 to 512 characters"):
            await client.publish_many(PAID, [Order(n=1)], id=lambda _, id=id: id, atomic=True)
    with pytest.raises(InvalidArgument, match="say 1 to 512 characters"):
        await client.publish(PAID, Order(n=1), id="x" * 513)


@pytest.mark.parametrize("what", ["publish", "publish_many", "subscribe", "start"])
async def test_server_without_jetstream_is_named(what):
    """What cannot be kept is an error at once, at the start, at publishing and at subscribing."""
    async with NatsServer(jetstream=False) as server, Client(server.url) as client:
        service = Service("shop", url=server.url)
        service.publishes(PAID)
        attempts = {
            "publish": lambda: client.publish(PAID, Order(n=1)),
            "publish_many": lambda: client.publish_many(PAID, orders(1)),
            "subscribe": lambda: client.subscribe(PAID).__aenter__(),
            "start": service.start,
        }
        async with asyncio.timeout(3):
            with pytest.raises(NoJetStream, match="nats-server with -js"):
                await attempts[what]()


async def test_full_stream_refuses_and_says_so(client, count):
    """A stream that discards the newest refuses, by events and by bytes, and loses none."""
    for n in range(3):
        await client.publish(FULL, Order(n=n))
    with pytest.raises(StreamFull, match=r"FEW is full.*maximum messages"):
        await client.publish(FULL, Order(n=3))

    small = Topic("tiny.paid", Order, stream=Stream("TINY", max_bytes=2000, discard="new"))
    with pytest.raises(StreamFull, match="maximum bytes"):
        for _ in range(20):
            await client.publish(small, Order(n=1))
    assert await count("FEW") == 3


async def test_unmanaged_stream_that_is_missing_is_named(client, ask):
    """With `managed=False` nothing is made; the error says what to do."""
    topic = Topic("theirs.paid", Order, stream=Stream("THEIRS", managed=False))

    with pytest.raises(StreamMissing, match="start a service that declares it"):
        await client.publish(topic, Order(n=1))

    await ask("STREAM.CREATE.THEIRS", {"name": "THEIRS", "subjects": ["theirs.>"]})
    assert await client.publish(topic, Order(n=1)) == Stored("THEIRS", 1)


async def test_subject_of_another_stream_is_named(client, ask):
    """An event that another stream has taken is an error, not a success."""
    await ask("STREAM.CREATE.OTHER", {"name": "OTHER", "subjects": ["theirs.paid"]})
    await ask("STREAM.CREATE.THEIRS", {"name": "THEIRS", "subjects": ["theirs.other"]})
    topic = Topic("theirs.paid", Order, stream=Stream("THEIRS", managed=False))

    with pytest.raises(FailedPrecondition, match="kept by stream OTHER"):
        await client.publish(topic, Order(n=1))


async def test_too_large_is_refused_before_the_wire(client, count):
    """Too large is what leaves no room for a dead letter's reason; just small enough is stored."""
    room = client.bus.transport.max_payload_bytes - 4096
    await client.publish(PAID, Order(n=1, note="x" * (room - 600)))
    for publish in (
        client.publish(PAID, Order(n=1, note="x" * room)),
        client.publish_many(PAID, [Order(n=1, note="x" * room)], atomic=True),
    ):
        with pytest.raises(PayloadTooLarge) as caught:
            await publish
        assert caught.value.limit_bytes == room
    assert await count() == 1
    assert client.bus.transport.reconnects == 0


@pytest.mark.parametrize("many", [False, True])
async def test_forbidden_subject_is_named(tmp_path: Path, many):
    """A publisher that may not write to a subject is told which, at once."""
    config = tmp_path / "nats.conf"
    config.write_text(
        "authorization { users: [ {user: s, password: p, permissions: "
        '{publish: {deny: "orders.paid"}}} ] }'
    )
    async with (
        NatsServer(config=config) as server,
        Client(server.url.replace("//", "//s:p@")) as client,
    ):
        assert await client.publish(SHIPPED, Order(n=1)) == Stored("ORDERS", 1)
        async with asyncio.timeout(4):
            if many:
                with pytest.raises(NotAllPublished, match=r"orders\.paid") as caught:
                    await client.publish_many(PAID, orders(3))
                assert isinstance(caught.value.failures[0], PermissionDenied)
            else:
                with pytest.raises(PermissionDenied, match=r"orders\.paid"):
                    await client.publish(PAID, Order(n=1))


async def test_unknown_outcome_is_neither_success_nor_failure(server, client, count):
    """A server that hangs: PublishUnknown after `timeout`; publishing again stores it once."""
    await client.publish(PAID, Order(n=0))
    server.pause()
    began = time.monotonic()
    with pytest.raises(PublishUnknown, match=r"event order-1 was stored on orders\.paid") as caught:
        await client.publish(PAID, Order(n=1), id="order-1", timeout=0.5)
    took = time.monotonic() - began
    server.resume()
    again = await client.publish(PAID, Order(n=1), id=caught.value.id)

    assert 0.45 < took < 1.5
    assert again.sequence == 2
    assert await count() == 2


@pytest.mark.parametrize("many", [False, True])
async def test_publishing_waits_for_a_server_that_restarts(server, client, until, count, many):
    """Within `timeout` a restart of NATS is nothing that the publisher notices."""
    await client.publish(PAID, Order(n=0))
    server.kill()
    await until(lambda: not client.bus.transport.connected)
    publish = client.publish_many(PAID, orders(1)) if many else client.publish(PAID, Order(n=1))
    publishing = asyncio.get_running_loop().create_task(publish)
    await server.restart()

    stored = await publishing
    assert stored == (StoredMany(1, 0, 2) if many else Stored("ORDERS", 2))
    assert await count() == 2


async def test_trace_and_wrappers_reach_many_events_too(server, until):
    """What `publish_many` sends from a handler belongs to its trace and passes the wrappers."""
    seen: list[str] = []
    traces: list[str | None] = []

    async def audit(call: Call, call_next: Handler) -> object:
        seen.append(call.spec.endpoint)
        return await call_next(call)

    service = Service("shop", url=server.url, client_wrappers=[audit])

    @service.subscribe(PAID, group="billing")
    async def on_paid(order: Order) -> None:
        await service.publish_many(SHIPPED, [order])

    @service.subscribe(SHIPPED, group="billing")
    async def on_shipped(order: Order, call: Call) -> None:
        traces.append(call.headers.get("traceparent"))

    async with service:
        await service.publish(PAID, Order(n=1), headers={"traceparent": TRACE})
        await until(lambda: traces)

    assert traces == [TRACE]
    assert seen == ["orders.paid", "orders.shipped"]


# --- many ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("atomic", [False, True])
async def test_many_events_are_stored_in_order(client, count, raw, atomic):
    """All are stored, in order; the result tells how many and the number of the last."""

    async def produce() -> AsyncIterator[Order]:
        for order in orders(300):
            yield order

    assert await client.publish_many(PAID, orders(300), atomic=atomic) == StoredMany(300, 0, 300)
    assert await client.publish_many(PAID, produce(), atomic=atomic) == StoredMany(300, 0, 600)
    assert await client.publish_many(PAID, [], atomic=atomic) == StoredMany(0)
    assert await count() == 600
    stored = [await raw.jetstream().get_msg("ORDERS", n) for n in (1, 150, 300)]
    assert [message.data for message in stored] == [
        b'{"n":0,"note":""}',
        b'{"n":149,"note":""}',
        b'{"n":299,"note":""}',
    ]


async def test_many_events_with_ids_are_stored_once(client, count):
    """Ids hold for `publish_many` too, and beside `publish`."""
    await client.publish(PAID, Order(n=3), id="order-3")

    first = await client.publish_many(PAID, orders(10), id=number)
    again = await client.publish_many(PAID, orders(10), id=number, in_flight=1)

    assert (first.count, first.duplicates) == (10, 1)
    assert (again.count, again.duplicates, again.last_sequence) == (10, 10, 10)
    assert await count() == 10


async def test_failures_are_told_by_position(client, count):
    """What was refused is named by position and reason, and nothing after the first is begun."""
    with pytest.raises(NotAllPublished, match="3 events were stored") as caught:
        await client.publish_many(FULL, orders(5), in_flight=1)
    assert caught.value.stored == 3
    assert list(caught.value.failures) == [3]
    assert isinstance(caught.value.failures[3], StreamFull)

    wrong = [Order(n=1), "no order", Order(n=2)]
    with pytest.raises(NotAllPublished, match="event 1: invalid_argument") as caught:
        await client.publish_many(PAID, wrong)
    assert (caught.value.stored, list(caught.value.failures)) == (1, [1])
    assert await count() == 1


async def test_restart_in_the_middle_loses_and_doubles_nothing(server, client, count):
    """NATS is killed while thousands of events are under way: each is stored once."""

    async def produce() -> AsyncIterator[Order]:
        for order in orders(5000):
            if order.n == 2000:
                server.kill()
                await server.restart()
            yield order

    stored = await client.publish_many(PAID, produce(), id=number)

    assert (stored.count, await count()) == (5000, 5000)


async def test_batch_is_stored_whole_or_not_at_all(client, count):
    """One event that does not encode, or one too many, and none is stored."""
    for wrong in ([Order(n=1), "no order"], orders(1001)):
        with pytest.raises(InvalidArgument):
            await client.publish_many(PAID, wrong, atomic=True)
    with pytest.raises(StreamFull):
        await client.publish_many(FULL, orders(4), atomic=True)

    assert await client.publish_many(PAID, orders(2), atomic=True) == StoredMany(2, 0, 2)
    assert await count("FEW") == 0


async def test_batch_with_an_id_that_is_there_is_not_taken_for_stored(client, count):
    """A batch with one id that is stored already is refused, or what is new is stored."""
    await client.publish(PAID, Order(n=0), id="order-0")

    try:
        stored = await client.publish_many(PAID, orders(2), id=number, atomic=True)
    except Exception:
        assert await count() == 1
    else:
        assert await count() == stored.count


async def test_whole_batch_again_is_stored_once(client, count):
    """The same batch a second time, as after an unknown outcome, is there already."""
    await client.publish_many(PAID, orders(5), id=number, atomic=True)

    with pytest.raises(AlreadyExists, match="none was stored"):
        await client.publish_many(PAID, orders(5), id=number, atomic=True)

    assert await count() == 5


async def test_unknown_outcome_of_many_comes_in_time(server, client):
    """A server that hangs: many events end after `timeout` too, unknown or not sent."""
    await client.publish(PAID, Order(n=0))
    server.pause()
    async with asyncio.timeout(4):
        with pytest.raises(NotAllPublished) as caught:
            await client.publish_many(PAID, orders(3), timeout=1.0)
    server.resume()

    assert set(caught.value.failures) == {0, 1, 2}


async def test_older_server_has_no_atomic_batches(older):
    """Before 2.12: a clear error, and events one by one go on."""
    async with older(1) as url, Client(url) as client:
        with pytest.raises(NotSupported, match=r"atomic=True.*2\.12"):
            await client.publish_many(PAID, orders(2), atomic=True)
        assert (await client.publish_many(PAID, orders(2))).count == 2
