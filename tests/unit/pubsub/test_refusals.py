"""What a publisher makes of the word of JetStream, and of its silence, in virtual time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import BaseModel

from busmicro import Client, Service, Stream, Topic
from busmicro.errors import DeadlineExceeded, NotAllPublished, PublishUnknown, Unavailable
from busmicro.pubsub.consumers import Consumer, ConsumerPlan
from busmicro.pubsub.declare import Declarations
from busmicro.transport import JetStream
from tests.unit.transport.leaping import leaping


class Order(BaseModel):
    n: int


WINDOW = 5.0
STREAM = Stream("ORDERS", subjects=["orders.>"], managed=False, dedup_window=WINDOW)
PAID = Topic("orders.paid", Order, stream=STREAM)
INFO = {"config": {"name": "ORDERS", "subjects": ["orders.>"]}, "created": "2026-01-01T00:00:00Z"}
TOO_MANY = {"error": {"code": 429, "err_code": 10167, "description": "too many requests"}}
IN_PROCESS = {"error": {"code": 409, "err_code": 10158, "description": "duplicate in process"}}
Said = dict[str, object] | None
"""An answer; None for silence."""


def stored(number: int) -> Said:
    return {"stream": "ORDERS", "seq": number}


def with_server(
    answers: list[Said],
    use: Callable[[Client], Coroutine[object, object, None]],
    *,
    leaderless: int = 0,
    consumers: Callable[[str], dict[str, object]] = lambda _subject: {},
) -> int:
    """Use a client on a bus where a server answers so, one event after another; count those.

    So many questions about the stream come before it has a leader; those about consumers have
    answers of their own.
    """
    came = asked = 0

    async def run() -> None:
        async with Client("memory://jet") as server, Client("memory://jet") as client:
            wire = server.bus.transport

            def on_api(subject: bytes, reply: bytes, _header: bytes, _payload: bytes) -> None:
                nonlocal asked
                if b".CONSUMER." in subject:
                    said = consumers(subject.decode())
                    wire.publish(reply, json.dumps(said).encode())
                    return
                about_stream = not subject.endswith(b"API.INFO")
                asked += about_stream
                if not about_stream or asked > leaderless:
                    said = INFO if about_stream else {"api": {"level": 4}}
                    wire.publish(reply, json.dumps(said).encode())

            def on_event(_subject: bytes, reply: bytes, _header: bytes, _payload: bytes) -> None:
                nonlocal came
                said = answers[min(came, len(answers) - 1)]
                came += 1
                if said is not None:
                    wire.publish(reply, json.dumps(said, separators=(",", ":")).encode())

            wire.subscribe("$JS.API.>", on_api)
            wire.subscribe("orders.paid", on_event)
            await wire.barrier()
            await use(client)

    leaping(run())
    return came


def test_service_starts_while_its_stream_is_just_being_made():
    """Until a stream has its first leader nobody answers for it: whoever starts then asks again."""

    async def start(client: Client) -> None:
        service = Service("shop", url=client.bus.settings.nats_url)
        service.publishes(PAID)
        async with service:
            assert (await service.publish(PAID, Order(n=1))).sequence == 7

    assert with_server([stored(7)], start, leaderless=2) == 1


@pytest.mark.parametrize(("age", "deleted"), [(0.0, True), (1.0, False)])
def test_consumer_that_was_made_a_while_ago_is_not_taken_for_what_a_power_cut_left(
    age: float, deleted: bool
):
    """It has delivered events, to others, and the server that leads it now does not know when.

    Deleting it would take the whole group back to the first event.
    """
    asked: list[str] = []
    now = datetime(2026, 1, 1, tzinfo=UTC)
    made = {
        "config": {},
        "created": (now - timedelta(seconds=age)).isoformat(),
        "ts": now.isoformat(),
        "delivered": {"consumer_seq": 5, "stream_seq": 5},
    }

    def answer(subject: str) -> dict[str, object]:
        asked.append(subject)
        if ".INFO." in subject:
            return {"error": {"code": 404, "err_code": 10014, "description": "none"}}
        return {"success": True} if ".DELETE." in subject else made

    async def start(client: Client) -> None:
        bus = client.bus
        declarations = Declarations(JetStream(bus.transport, bus.replies), bus.subjects)
        plan = ConsumerPlan(topic=PAID, group="billing", owner="billing")
        assert await Consumer(plan, declarations, bus.subjects).ensure()

    with_server([], start, consumers=answer)
    assert any("CONSUMER.DELETE" in subject for subject in asked) is deleted


def test_service_says_which_stream_does_not_answer():
    """Where nobody ever answers for a stream, a service says so after some seconds and ends."""

    async def start(client: Client) -> None:
        service = Service("shop", url=client.bus.settings.nats_url)
        service.publishes(PAID)
        began = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineExceeded, match=r"STREAM\.INFO\.ORDERS"):
            await service.start()
        assert asyncio.get_running_loop().time() - began < 22.0

    assert with_server([], start, leaderless=1000) == 0


def test_publishing_keeps_its_deadline_where_nobody_answers_for_the_stream():
    """One event or many: their time is up when it is up, also before the stream has been seen."""

    async def publish(client: Client) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        with pytest.raises(Unavailable) as failed:
            await client.publish(PAID, Order(n=1), timeout=1.5)
        assert failed.value.not_run
        assert clock() - began < 1.6
        began = clock()
        with pytest.raises(NotAllPublished):
            await client.publish_many(PAID, [Order(n=1), Order(n=2)], timeout=1.0)
        assert clock() - began < 1.7

    assert with_server([None], publish, leaderless=1000) > 0


@pytest.mark.parametrize("refusal", [TOO_MANY, IN_PROCESS], ids=["too many", "in process"])
def test_event_is_sent_again_when_the_server_has_too_much_to_do(refusal: Said):
    """A refusal that will pass costs its publisher a moment, not the event."""

    async def publish(client: Client) -> None:
        assert (await client.publish(PAID, Order(n=1))).sequence == 7

    assert with_server([refusal, stored(7)], publish) == 2


def test_one_silence_is_enough_for_nobody_to_know():
    """That the last attempt was refused says nothing of the one that was never answered."""

    async def publish(client: Client) -> None:
        with pytest.raises(PublishUnknown) as unknown:
            await client.publish(PAID, Order(n=1), id="17", timeout=4.0)
        assert unknown.value.id == "17"
        assert not unknown.value.not_run

    assert with_server([None, TOO_MANY], publish) > 2


def test_event_that_is_in_process_may_yet_be_stored():
    """The server has an attempt in its hands: nobody may say that the event is not stored."""

    async def publish(client: Client) -> None:
        with pytest.raises(PublishUnknown) as unknown:
            await client.publish(PAID, Order(n=1), id="17", timeout=4.0)
        assert not unknown.value.not_run

    assert with_server([IN_PROCESS], publish) > 2


def test_event_is_not_sent_again_when_its_id_is_forgotten():
    """After the time for which the stream recognises it, another attempt could store it twice."""

    async def publish(client: Client) -> None:
        began = asyncio.get_running_loop().time()
        with pytest.raises(PublishUnknown):
            await client.publish(PAID, Order(n=1), timeout=3600.0)
        assert asyncio.get_running_loop().time() - began <= WINDOW

    with_server([None], publish)


def test_many_tell_the_highest_number_whatever_the_order_of_the_answers():
    """Whoever reads on from the last number misses none of them."""

    async def publish(client: Client) -> None:
        many = await client.publish_many(PAID, [Order(n=1), Order(n=2)])
        assert (many.count, many.last_sequence) == (2, 9)

    with_server([stored(9), stored(8)], publish)


def test_many_do_not_say_of_what_was_sent_that_it_was_not():
    """Events that nobody has acknowledged may be stored, and the failure says so."""

    async def publish(client: Client) -> None:
        with pytest.raises(NotAllPublished) as failed:
            await client.publish_many(PAID, [Order(n=1)], timeout=3.0)
        assert isinstance(failed.value.failures[0], PublishUnknown)

    with_server([None], publish)
