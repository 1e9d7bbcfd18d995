"""Events that cannot be handled: kept, with the reason, until somebody decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import BaseModel

from busmicro import Call, Client, Handler, NotFound, Reject, Service, Stream, Topic
from busmicro.pubsub import DeadLetter, DeadLetters

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Order(BaseModel):
    n: int


STREAM = Stream("ORDERS", subjects=["orders.>"])
PAID = Topic("orders.paid", Order, stream=STREAM)
JOBS = Topic("jobs.todo", Order, stream=Stream("JOBS", subjects=["jobs.>"], work_queue=True))
IN_MEMORY = Topic("fast.paid", Order, stream=Stream("FAST", storage="memory"))


@pytest.fixture
async def client(server) -> AsyncIterator[Client]:
    async with Client(server.url) as client:
        yield client


@pytest.fixture
def letters(client: Client) -> DeadLetters:
    return DeadLetters(client.bus)


@pytest.fixture
def buried(letters, until):
    """Wait for so many dead letters, and return them."""

    async def wait(count: int) -> list[DeadLetter]:
        async def enough() -> bool:
            return len(await letters.list()) >= count

        await until(enough, timeout=5.0)
        return await letters.list()

    return wait


async def pass_on(call: Call, call_next: Handler) -> object:
    return await call_next(call)


@pytest.mark.parametrize("wrappers", [[], [pass_on]])
async def test_event_that_does_not_decode_dies_at_once(
    server, client, letters, buried, until, wrappers
):
    """It is not tried again; its letter says what is wrong, and the consumer goes on."""
    got: list[int] = []
    service = Service("shop", url=server.url, handler_wrappers=wrappers)

    @service.subscribe(PAID, group="billing", backoff=[60])
    async def on_paid(order: Order) -> None:
        got.append(order.n)

    async with service:
        client.bus.transport.publish(b"orders.paid", b'{"n": "seven"}')
        await client.publish(PAID, Order(n=1))
        await until(lambda: got)
        [letter] = await buried(1)

    assert got == [1]
    assert (letter.code, letter.attempts) == ("invalid_argument", 1)
    assert (letter.stream, letter.consumer) == ("ORDERS", "billing-orders-paid")
    assert (letter.subject, letter.sequence, letter.payload) == (
        "orders.paid",
        1,
        b'{"n": "seven"}',
    )
    assert "n" in letter.details[0]["field"]
    assert "integer" in letter.details[0]["problem"]


async def test_unknown_content_type_dies_at_once(server, client, buried):
    """Bytes of a kind that the topic's type cannot come in are never taken for another kind."""
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, group="billing")
    async def on_paid(order: Order) -> None: ...

    async with service:
        header = b"NATS/1.0\r\nContent-Type: image/png\r\n\r\n"
        client.bus.transport.publish(b"orders.paid", b'{"n":1}', b"", header)
        [letter] = await buried(1)

    assert "image/png" in letter.reason


async def test_word_of_the_subject_that_does_not_fit_dies_at_once(server, client, buried):
    """A placeholder that does not validate will not validate later."""
    topic = Topic("orders.{shelf}.placed", Order, stream=STREAM)
    service = Service("shop", url=server.url)

    @service.subscribe(topic, group="billing", backoff=[60])
    async def on_placed(order: Order, shelf: int) -> None: ...

    async with service:
        await client.publish(topic.format(shelf="none"), Order(n=1))
        [letter] = await buried(1)

    assert letter.consumer == "billing-orders-any-placed"
    assert "shelf='none'" in letter.reason


async def test_event_that_fails_for_the_last_time_dies_with_its_story(server, client, buried):
    """The letter has cause, attempts, trace and headers: enough to find out and to try again."""
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, group="billing", max_deliver=3, backoff=[0.01])
    async def on_paid(order: Order) -> None:
        raise ValueError("the ledger is locked: ü")

    began = datetime.now(UTC) - timedelta(seconds=1)
    async with service:
        headers = {"traceparent": TRACE, "Tenant": "acme"}
        await client.publish(PAID, Order(n=1), id="order-1", headers=headers)
        [letter] = await buried(1)

    assert letter.attempts == 3
    assert letter.code == "internal"
    assert letter.reason.startswith("ValueError: the ledger is locked: ü")
    assert letter.trace_id == TRACE.split("-")[1]
    assert letter.event_id == "/client/orders.paid:order-1"
    assert letter.headers["Tenant"] == "acme"
    assert letter.headers["ce-id"] == "order-1"
    assert not [name for name in letter.headers if name.startswith(("Nats-", "Bus-"))]
    assert began <= letter.died <= datetime.now(UTC)


@pytest.mark.parametrize("key", [None, lambda order: order.n])
async def test_rejected_event_is_never_tried_again(server, client, buried, until, key):
    """`Reject(reason)` ends it at the first attempt, with the reason."""
    tried: list[int] = []
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, group="billing", key=key)
    async def on_paid(order: Order) -> None:
        tried.append(order.n)
        raise Reject(f"order {order.n} was cancelled")

    async with service:
        await client.publish(PAID, Order(n=7))
        [letter] = await buried(1)

    assert tried == [7]
    assert (letter.reason, letter.code) == ("order 7 was cancelled", "failed_precondition")
    assert letter.attempts == 1


async def test_one_attempt_is_one_attempt(server, client, buried):
    """`max_deliver=1` buries what fails once."""
    tried: list[int] = []
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, group="billing", max_deliver=1)
    async def on_paid(order: Order) -> None:
        tried.append(order.n)
        raise ValueError("no")

    async with service:
        await client.publish(PAID, Order(n=1))
        [letter] = await buried(1)

    assert (tried, letter.attempts) == ([1], 1)


async def test_event_whose_handlers_died_without_a_word_is_buried(server, client, raw, buried):
    """Attempts that ended in silence count: the next delivery makes the letter, and says so."""
    ran: list[int] = []
    service = Service("shop", url=server.url)

    @service.subscribe(JOBS, group="billing", max_deliver=1, ack_wait=0.5)
    async def on_job(order: Order) -> None:
        ran.append(order.n)

    async with service:
        pass
    await client.publish(JOBS, Order(n=1))
    crashing = await raw.jetstream().pull_subscribe_bind("billing-jobs-todo", "JOBS")
    await crashing.fetch(1)
    async with service:
        [letter] = await buried(1)

    assert ran == []
    assert letter.attempts == 1
    assert "1 attempts ended without a word" in letter.reason


async def test_work_queue_keeps_nothing_of_a_dead_event(server, client, buried, ask, until):
    """One copy among the dead letters, none left behind in the queue."""
    service = Service("shop", url=server.url)

    @service.subscribe(JOBS, group="billing")
    async def on_job(order: Order) -> None:
        raise Reject("poison")

    async with service:
        await client.publish(JOBS, Order(n=1))
        await buried(1)

        async def empty() -> bool:
            return (await ask("STREAM.INFO.JOBS"))["state"]["messages"] == 0

        await until(empty)


async def test_replay_goes_back_to_its_subject_and_is_dropped(
    server, client, letters, buried, until
):
    """A replayed event is the same event, with its own headers; its letter is gone."""
    got: list[tuple[int, str, str | None, str]] = []
    broken = True
    service = Service("shop", url=server.url, namespace="")

    @service.subscribe(PAID, group="billing", max_deliver=1)
    async def on_paid(order: Order, call: Call) -> None:
        if broken:
            raise ValueError("not yet")
        got.append((order.n, call.delivery.id, call.headers.get("Tenant"), call.subject))

    async with service:
        await client.publish(PAID, Order(n=1), id="order-1", headers={"Tenant": "acme"})
        [letter] = await buried(1)
        broken = False
        stored = await letters.replay(letter.number)
        await until(lambda: got)

    assert (stored.stream, stored.sequence, stored.duplicate) == ("ORDERS", 2, False)
    assert got == [(1, "/client/orders.paid:order-1", "acme", "orders.paid")]
    assert await letters.list() == []
    for gone in (letters.get, letters.replay, letters.drop):
        with pytest.raises(NotFound, match=f"no dead letter {letter.number}"):
            await gone(letter.number)


async def test_replayed_event_may_die_again(server, client, letters, buried):
    """A second death is a second letter."""
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, group="billing")
    async def on_paid(order: Order) -> None:
        raise Reject("still wrong")

    async with service:
        await client.publish(PAID, Order(n=1))
        [letter] = await buried(1)
        await letters.replay(letter.number)
        [again] = await buried(1)

    assert again.number > letter.number
    assert (again.event_id, again.sequence) == (letter.event_id, 2)


async def test_replay_without_a_stream_leaves_the_letter(server, client, letters, buried, ask):
    """When no stream keeps the subject any more nothing is lost."""
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, group="billing")
    async def on_paid(order: Order) -> None:
        raise Reject("wrong")

    async with service:
        await client.publish(PAID, Order(n=1))
        [letter] = await buried(1)
    await ask("STREAM.DELETE.ORDERS")

    with pytest.raises(NotFound, match=r"orders\.paid"):
        await letters.replay(letter.number)
    assert await letters.get(letter.number) == letter


async def test_letters_are_listed_by_stream_and_consumer(server, client, letters, buried):
    """Newest last, and only those that were asked for; every group buries for itself."""
    service = Service("shop", url=server.url)

    async def refuse(order: Order) -> None:
        raise Reject(str(order.n))

    for topic, group in ((PAID, "billing"), (PAID, "stock"), (JOBS, "billing")):
        service.subscribe(topic, group=group, concurrency=1)(refuse)
    async with service:
        for n in range(3):
            await client.publish(PAID, Order(n=n))
        await client.publish(JOBS, Order(n=9))
        every = await buried(7)

    def reasons(found: list[DeadLetter]) -> list[str]:
        return [letter.reason for letter in found]

    assert [letter.number for letter in every] == list(range(1, 8))
    assert reasons(await letters.list(stream="JOBS")) == ["9"]
    assert reasons(await letters.list(consumer="stock-orders-paid")) == ["0", "1", "2"]
    assert reasons(await letters.list(consumer="stock-orders-paid", most=2)) == ["1", "2"]
    await letters.drop(every[0].number)
    assert [letter.number for letter in await letters.list()] == list(range(2, 8))


async def test_namespaces_have_dead_letters_of_their_own(server, until):
    """What dies in one namespace is not seen in another."""
    async with Client(server.url, namespace="prod") as prod, Client(server.url) as plain:
        service = Service("shop", url=server.url, namespace="prod")

        @service.subscribe(PAID, group="billing")
        async def on_paid(order: Order) -> None:
            raise Reject("wrong")

        async with service:
            await prod.publish(PAID, Order(n=1))

            async def one() -> bool:
                return len(await DeadLetters(prod.bus).list()) == 1

            await until(one)
        [letter] = await DeadLetters(prod.bus).list()
        assert (letter.stream, letter.subject) == ("prod-ORDERS", "prod.orders.paid")
        assert (await DeadLetters(prod.bus).replay(letter.number)).stream == "prod-ORDERS"
        assert await DeadLetters(plain.bus).list() == []


async def test_interrupted_burial_leaves_one_copy(server, client, letters, raw, buried):
    """The copy is stored, the event not yet given up, the node dies: still one copy."""
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, group="billing")
    async def on_paid(order: Order) -> None:
        raise Reject("wrong")

    await client.publish(PAID, Order(n=1))
    async with service:
        [letter] = await buried(1)
    # As after a crash: the event is delivered once more to a consumer that knows of no end.
    await raw.jetstream().delete_consumer("ORDERS", "billing-orders-paid")
    async with service:
        await asyncio.sleep(0.3)

    assert await letters.list() == [letter]


async def test_dead_letters_of_a_new_stream_are_not_taken_for_old_ones(server, client, buried, ask):
    """A stream that was made again counts from 1; its dead events are others, and are all kept."""
    service = Service("shop", url=server.url)

    @service.subscribe(IN_MEMORY, group="billing")
    async def on_paid(order: Order) -> None:
        raise Reject(f"order {order.n} is wrong")

    for n in range(2):
        async with service:
            await client.publish(IN_MEMORY, Order(n=n))
            await buried(n + 1)
        await ask("STREAM.DELETE.FAST")


async def test_stream_of_dead_letters_is_made_again(server, client, buried, ask):
    """Somebody deletes it under a running service: the next dead event is kept all the same."""
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, group="billing")
    async def on_paid(order: Order) -> None:
        raise Reject("wrong")

    async with service:
        assert (await ask("STREAM.DELETE.DEAD-LETTERS"))["success"]
        await client.publish(PAID, Order(n=1))
        [letter] = await buried(1)

    assert letter.reason == "wrong"


async def test_own_time_out_of_a_handler_is_told_as_what_it_is(server, client, buried):
    """`TimeoutError` from inside is the handler's failure; the node's limit names its seconds."""
    service = Service("shop", url=server.url)

    @service.subscribe(PAID, group="billing", max_deliver=1, timeout=0.2)
    async def on_paid(order: Order) -> None:
        if order.n == 0:
            raise TimeoutError("the bank did not answer")
        await asyncio.sleep(60)

    async with service:
        for n in range(2):
            await client.publish(PAID, Order(n=n))
            await buried(n + 1)
        own, limit = await buried(2)

    assert limit.code == "deadline_exceeded"
    assert "not handled within 0.2 s" in limit.reason
    assert "the bank did not answer" in own.reason
