"""Durable events are CloudEvents: the SDK of CloudEvents reads ours, and we read the SDK's.

In the NATS binding attributes are headers that begin with `ce-`, as in HTTP's; so the SDK's reader
and writer of HTTP messages do for NATS, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import nats
import pytest
from cloudevents.core.bindings.http import (
    HTTPMessage,
    from_binary_event,
    to_binary_event,
)
from cloudevents.core.v1.event import CloudEvent
from google.protobuf.wrappers_pb2 import StringValue
from pydantic import BaseModel

from busmicro import Call, Service, Stream, Topic


class OrderPaid(BaseModel):
    order: str
    cents: int


STREAM = Stream("ORDERS", subjects=["orders.>"])
PAID = Topic("orders.paid", OrderPaid, stream=STREAM)
NAMED = Topic("orders.named", StringValue, stream=STREAM)


@pytest.fixture
async def raw(server) -> AsyncIterator[nats.NATS]:
    """A client that knows nothing of busmicro."""
    client = await nats.connect(server.url)
    yield client
    await client.close()


async def kept(raw: nats.NATS, number: int = 1) -> CloudEvent:
    """Read an event from the stream as any program with an SDK would."""
    message = await raw.jetstream().get_msg("ORDERS", number)
    return from_binary_event(HTTPMessage(dict(message.headers), message.data))


async def test_sdk_reads_an_event_of_ours(server, raw):
    """Id, source, type, time, content type and data arrive where an SDK looks for them."""
    began = datetime.now(UTC) - timedelta(seconds=1)
    service = Service("billing", url=server.url)
    service.publishes(PAID)
    async with service:
        await service.publish(PAID, OrderPaid(order="17", cents=1250), id="order-17")

    event = await kept(raw)

    assert event.get_specversion() == "1.0"
    assert event.get_id() == "order-17"
    assert event.get_source() == "/billing/orders.paid"
    assert event.get_type() == "OrderPaid"
    assert event.get_datacontenttype() == "application/json"
    assert began <= event.get_time() <= datetime.now(UTC)
    assert event.get_data() == {"order": "17", "cents": 1250}


async def test_sdk_reads_bytes_that_are_not_json(server, raw):
    """A protobuf event names its content type, and its data is the bytes as they are."""
    name = StringValue(value="Ada" * 50)  # so long that no SDK can take its bytes for text
    service = Service("billing", url=server.url)
    service.publishes(NAMED)
    async with service:
        await service.publish(NAMED, name)

    event = await kept(raw)

    assert event.get_datacontenttype() == "application/protobuf"
    assert event.get_data() == name.SerializeToString()


@pytest.mark.parametrize("id", ["17", "50%25 off", 'a"b', "a b/c:d"])
async def test_sdk_reads_the_id_that_was_given(server, raw, id):
    """An id survives the way through headers, whatever printable characters it has."""
    service = Service("billing", url=server.url)
    service.publishes(PAID)
    async with service:
        await service.publish(PAID, OrderPaid(order="17", cents=1), id=id)

    assert (await kept(raw)).get_id() == id


async def test_sdk_reads_the_source_whatever_the_subject(server, raw):
    """A subject need not be ASCII, but headers have to be."""
    topic = Topic("orders.bücher", OrderPaid, stream=STREAM)
    service = Service("billing", url=server.url)
    service.publishes(topic)
    async with service:
        await service.publish(topic, OrderPaid(order="17", cents=1))

    assert (await kept(raw)).get_source() == "/billing/orders.bücher"


def listening(server, got: asyncio.Queue[Call]) -> Service:
    """Make a service that hands on every call of its handler of events."""
    service = Service("shipping", url=server.url)

    @service.subscribe(PAID, group="parcels")
    async def on_paid(event: OrderPaid, call: Call) -> None:
        await got.put(call)

    return service


def written(**attributes: object) -> HTTPMessage:
    """Let the SDK write an event in binary mode."""
    about = {"id": "e-1", "source": "https://shop.example/tills", "type": "com.example.paid"}
    about |= {"datacontenttype": "application/json", **attributes}
    return to_binary_event(CloudEvent(about, {"order": "17", "cents": 1250}))


async def test_event_of_the_sdk_is_handled(server, raw):
    """A plain NATS client publishes what the SDK wrote, and the handler gets it, typed."""
    got: asyncio.Queue[Call] = asyncio.Queue()
    async with asyncio.timeout(10.0), listening(server, got):
        message = written(subject="17")
        await raw.jetstream().publish("orders.paid", message.body, headers=message.headers)
        call = await got.get()

    assert call.message == OrderPaid(order="17", cents=1250)
    assert call.headers["ce-type"] == "com.example.paid"
    assert call.headers["ce-subject"] == "17"
    assert call.delivery.id == "https://shop.example/tills:e-1"


async def test_event_with_the_content_type_of_the_nats_binding_is_handled(server, raw):
    """The NATS binding has `ce-datacontenttype` where HTTP has `Content-Type`."""
    got: asyncio.Queue[StringValue] = asyncio.Queue()
    service = Service("shipping", url=server.url)

    @service.subscribe(NAMED, group="parcels")
    async def on_named(event: StringValue) -> None:
        await got.put(event)

    headers = {
        "ce-specversion": "1.0",
        "ce-id": "e-1",
        "ce-source": "/tills",
        "ce-type": "named",
        "ce-datacontenttype": "application/protobuf",
    }
    async with asyncio.timeout(10.0), service:
        name = StringValue(value="Ada")
        await raw.jetstream().publish("orders.named", name.SerializeToString(), headers=headers)
        assert await got.get() == name
