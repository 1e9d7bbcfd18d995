"""The AsyncAPI document of a service: what stands in it, and that all of it hangs together."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Literal

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from pydantic import BaseModel, Field

from busmicro import Service, Settings, Stream, Topic
from busmicro.asyncapi import asyncapi


class Card(BaseModel):
    kind: Literal["card"]
    number: str


class Cash(BaseModel):
    kind: Literal["cash"]


class OrderPaid(BaseModel):
    """Somebody has paid."""

    order: str
    means: Annotated[Card | Cash, Field(discriminator="kind")]
    place: tuple[float, float] = (0.0, 0.0)
    second: Card | None = None
    parts: list[OrderPaid] = []


class Quote(BaseModel):
    order: str


STREAM = Stream("ORDERS", subjects=["orders.>"], max_age=3600.0)
PAID = Topic("orders.paid", OrderPaid, stream=STREAM)
CREATED = Topic("orders.created", Quote)
REGIONAL = Topic("orders.{region}.created", Quote)


def billing(**options: object) -> Service:
    service = Service("billing", version="1.2.0", **options)  # type: ignore[arg-type]

    @service.rpc(idempotent=True, timeout=2.5, metadata={"team": "money"})
    async def quote(request: Quote) -> list[Quote]:
        """Say what it costs."""
        return [request]

    @service.subscribe(PAID, group="books", max_deliver=7)
    async def on_paid(event: OrderPaid) -> None:
        """Write it down."""

    @service.subscribe(REGIONAL, group="maps")
    async def on_created(event: Quote, region: str) -> None: ...

    service.publishes(PAID, CREATED)
    return service


def references(value: object) -> Iterator[str]:
    """Yield every `$ref` in a document."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def look_up(document: dict, reference: str) -> dict:
    """Follow a `$ref`."""
    found = document
    for word in reference.removeprefix("#/").split("/"):
        found = found[word]
    return found


def message_of(document: dict, operation: str) -> dict:
    """Return the only message of an operation, by way of its channel."""
    (entry,) = document["operations"][operation]["messages"]
    assert entry["$ref"].startswith(document["operations"][operation]["channel"]["$ref"])
    return look_up(document, look_up(document, entry["$ref"])["$ref"])


def test_document_says_who_and_where():
    """Title, version, description and server are those of the service, which need not run."""
    document = asyncapi(billing(metadata={"description": "Takes money."}))

    assert document["asyncapi"] == "3.0.0"
    assert document["info"] == {
        "title": "billing",
        "version": "1.2.0",
        "description": "Takes money.",
        "x-metadata": {"description": "Takes money."},
    }
    assert document["servers"] == {"nats": {"host": "127.0.0.1:4222", "protocol": "nats"}}


def test_every_part_is_there_and_every_reference_leads_somewhere():
    """Endpoints, handlers and published topics are operations, on one channel a subject."""
    document = asyncapi(billing())

    assert {o: entry["action"] for o, entry in document["operations"].items()} == {
        "receive-rpc.billing.quote": "receive",
        "receive-orders.paid-books": "receive",
        "receive-orders.region.created-maps": "receive",
        "send-orders.paid": "send",
        "send-orders.created": "send",
    }
    assert {entry["address"] for entry in document["channels"].values()} == {
        "rpc.billing.quote",
        None,
        "orders.paid",
        "orders.{region}.created",
        "orders.created",
    }
    for reference in references(document):
        assert look_up(document, reference)


def test_same_code_gives_the_same_document():
    """Nothing in it depends on the process, the order of sets or the moment."""
    assert json.dumps(asyncapi(billing())) == json.dumps(asyncapi(billing()))


def test_endpoint_receives_requests_and_replies():
    """An endpoint has its queue group, its request, and as reply its own message or an error."""
    document = asyncapi(billing())
    endpoint = document["operations"]["receive-rpc.billing.quote"]

    assert endpoint["summary"] == "Say what it costs."
    assert endpoint["bindings"]["nats"] == {"queue": "q", "bindingVersion": "0.1.0"}
    assert endpoint["x-idempotent"] is True
    assert endpoint["x-timeout"] == 2.5
    assert endpoint["x-metadata"] == {"team": "money"}
    assert message_of(document, "receive-rpc.billing.quote")["name"] == "Quote"
    replies = look_up(document, endpoint["reply"]["channel"]["$ref"])
    assert replies["address"] is None
    answers = [
        look_up(document, look_up(document, message["$ref"])["$ref"])
        for message in endpoint["reply"]["messages"]
    ]
    assert [answer["name"] for answer in answers] == ["quote.reply", "error"]
    assert answers[0]["payload"] == {
        "type": "array",
        "items": {"$ref": "#/components/schemas/Quote"},
    }
    assert answers[1]["payload"]["required"] == ["code", "message", "details", "origin"]


def test_endpoint_without_messages_has_messages_without_payload():
    """Where nothing is declared, nothing is described."""
    service = Service("s")

    @service.rpc
    async def ping() -> None: ...

    assert message_of(asyncapi(service), "receive-rpc.s.ping") == {"name": "ping.request"}


def test_endpoint_that_streams_says_which_way():
    """`x-kind` says that a message stands for many; without a word of its author it has no end."""
    service = Service("s")

    @service.rpc
    async def watch(request: Quote) -> AsyncIterator[OrderPaid]:
        yield OrderPaid(order=request.order, means=Cash(kind="cash"))

    @service.rpc(timeout=60.0)
    async def total(orders: AsyncIterator[OrderPaid]) -> Quote:
        return Quote(order=(await anext(orders)).order)

    @service.rpc
    async def talk(lines: AsyncIterator[str]) -> AsyncIterator[str]:
        yield await anext(lines)

    document = asyncapi(service)
    watching, totalling, talking = document["operations"].values()

    assert [o["x-kind"] for o in (watching, totalling, talking)] == [
        "server_stream",
        "client_stream",
        "both",
    ]
    assert ["x-timeout" in o for o in (watching, totalling, talking)] == [False, True, False]
    assert message_of(document, "receive-rpc.s.total")["name"] == "OrderPaid"
    assert watching["reply"]["messages"][0]["$ref"].endswith("/OrderPaid")
    assert "x-kind" not in asyncapi(billing())["operations"]["receive-rpc.billing.quote"]


def test_handler_of_kept_events_tells_group_attempts_and_stream():
    """A durable group is no queue group: it stands in `x-group`, its stream at the channel."""
    document = asyncapi(billing())
    handler = document["operations"]["receive-orders.paid-books"]
    kept = document["channels"]["orders.paid"]["x-stream"]

    assert handler["summary"] == "Write it down."
    assert (handler["x-group"], handler["x-max-deliver"]) == ("books", 7)
    assert "bindings" not in handler
    assert (kept["name"], kept["subjects"], kept["max_age"]) == ("ORDERS", ["orders.>"], 3600.0)


def test_group_on_a_topic_without_stream_is_a_queue_group():
    """NATS itself shares events that are not kept; they have no attempts."""
    handler = asyncapi(billing())["operations"]["receive-orders.region.created-maps"]

    assert handler["bindings"]["nats"]["queue"] == handler["x-group"] == "maps"
    assert "x-max-deliver" not in handler


def test_kept_events_have_the_headers_of_cloudevents():
    """Other programs learn which headers to read, and to send; plain events have none."""
    document = asyncapi(billing())
    headers = message_of(document, "send-orders.paid")["headers"]

    assert set(headers["properties"]) == {
        *("ce-specversion", "ce-id", "ce-source", "ce-type", "ce-time", "ce-datacontenttype"),
        *("Content-Type", "Nats-Msg-Id"),
    }
    assert headers["properties"]["ce-type"]["examples"] == ["OrderPaid"]
    assert "headers" not in message_of(document, "send-orders.created")


def test_names_in_braces_are_parameters():
    """`{region}` stays in the address and is declared."""
    channel = asyncapi(billing())["channels"]["orders.region.created"]

    assert channel["address"] == "orders.{region}.created"
    assert list(channel["parameters"]) == ["region"]


def test_wildcards_have_words_in_ids_and_stay_in_addresses():
    """`*` and `>` are what is listened to; a `$ref` may not have them."""
    service = Service("s")
    for subject in ("a.*", "a.>", "a.any", "a.{any}"):
        service.subscribe(Topic(subject, bytes))(_on_bytes)

    channels = asyncapi(service)["channels"]

    addresses = {name: channel["address"] for name, channel in channels.items()}
    assert addresses == {"a.any": "a.*", "a.all": "a.>", "a.any-2": "a.any", "a.any-3": "a.{any}"}


async def _on_bytes(event: bytes) -> None: ...


async def _on_text(event: StringValue) -> None: ...


def test_bytes_and_protobuf_have_a_content_type_and_no_schema():
    """What JSON Schema cannot say is left out; protobuf is named in full."""
    service = Service("s")
    service.subscribe(Topic("raw", bytes))(_on_bytes)
    service.subscribe(Topic("proto", StringValue))(_on_text)
    service.subscribe(Topic("text", StringValue, content_type="application/json"))(_on_text)

    document = asyncapi(service)

    assert message_of(document, "receive-raw") == {
        "name": "raw",
        "contentType": "application/octet-stream",
    }
    assert message_of(document, "receive-proto") == {
        "name": "StringValue",
        "contentType": "application/protobuf",
        "x-protobuf-type": "google.protobuf.StringValue",
    }
    assert message_of(document, "receive-text")["contentType"] == "application/json"
    assert document["components"]["schemas"] == {}


def _another_quote() -> type:
    class Quote(BaseModel):
        price: int

    return Quote


def test_types_of_one_name_do_not_overwrite_each_other():
    """Two classes called `Quote` keep a schema and a message each."""
    service = Service("s")
    service.publishes(Topic("a", Quote), Topic("b", _another_quote()), Topic("c", Quote))

    document = asyncapi(service)

    fields = [
        list(
            look_up(document, message_of(document, f"send-{name}")["payload"]["$ref"])["properties"]
        )
        for name in ("a", "b", "c")
    ]
    assert fields == [["order"], ["price"], ["order"]]
    assert list(document["components"]["messages"]) == ["Quote", "Quote-2"]
    assert len(document["components"]["schemas"]) == 2


def test_one_type_kept_and_not_kept_is_two_messages():
    """The headers differ, so the messages do; they share the schema."""
    service = Service("s")
    service.publishes(Topic("a", Quote), Topic("b", Quote, stream=Stream("B")))

    document = asyncapi(service)

    assert "headers" not in message_of(document, "send-a")
    assert "headers" in message_of(document, "send-b")
    assert list(document["components"]["schemas"]) == ["Quote"]


def test_one_subject_with_two_types_is_one_channel_with_two_messages():
    """Each operation says which of the messages it means."""
    service = Service("s")
    service.publishes(Topic("a", Quote), Topic("a", Card))

    document = asyncapi(service)

    assert list(document["channels"]["a"]["messages"]) == ["Quote", "Card"]
    assert message_of(document, "send-a")["name"] == "Quote"
    assert message_of(document, "send-a-2")["name"] == "Card"


def test_schemas_speak_draft_07():
    """What pydantic writes in newer words says the same in those that AsyncAPI knows."""
    schema = asyncapi(billing())["components"]["schemas"]["OrderPaid"]["properties"]

    assert schema["means"]["discriminator"] == "kind"
    assert schema["place"]["items"] == [{"type": "number"}, {"type": "number"}]
    assert "prefixItems" not in schema["place"]
    assert schema["parts"]["items"] == {"$ref": "#/components/schemas/OrderPaid"}


class Odd(BaseModel):
    """Fields that are called like words of JSON Schema."""

    discriminator: dict[str, str] = {"propertyName": "x"}
    items: Annotated[Card, Field(description="Not a `$ref` alone.")]
    ref: str = Field(alias="$ref")
    prefixItems: list[int] = Field(examples=[[1], {"prefixItems": 2}])  # noqa: N815


def test_fields_named_like_words_of_json_schema_stay_fields():
    """Only schemas are rewritten, not names, defaults and examples."""
    service = Service("s")
    service.publishes(Topic("a", Odd))

    fields = asyncapi(service)["components"]["schemas"]["Odd"]["properties"]

    assert list(fields) == ["discriminator", "items", "$ref", "prefixItems"]
    assert fields["discriminator"]["default"] == {"propertyName": "x"}
    assert fields["prefixItems"]["examples"] == [[1], {"prefixItems": 2}]
    assert fields["items"] == {
        "allOf": [{"$ref": "#/components/schemas/Card"}],
        "description": "Not a `$ref` alone.",
    }


def test_namespace_stands_before_every_subject():
    """Addresses are what is on the wire; the ids, which programs use, are the same everywhere."""
    document = asyncapi(billing(namespace="prod"))

    addresses = {channel["address"] for channel in document["channels"].values()}
    assert {"prod.rpc.billing.quote", "prod.orders.paid"} <= addresses
    assert list(document["operations"]) == list(asyncapi(billing())["operations"])
    stream = document["channels"]["orders.paid"]["x-stream"]
    assert (stream["name"], stream["subjects"]) == ("prod-ORDERS", ["prod.orders.>"])


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("nats://bob:secret@bus.example:4223", [("bus.example:4223", "nats")]),
        ("bus.example", [("bus.example:4222", "nats")]),
        ("tls://a:1, wss://b", [("a:1", "tls"), ("b:443", "wss")]),
        ("nats://[::1]:4222", [("[::1]:4222", "nats")]),
        ("memory://test", []),
    ],
)
def test_servers_are_told_without_passwords(url, servers):
    """Each URL is a server; who logs in is nobody's business."""
    document = asyncapi(billing(settings=Settings(nats_url=url)))

    told = [(server["host"], server["protocol"]) for server in document["servers"].values()]
    assert told == servers
    assert "secret" not in json.dumps(document)


def test_stream_of_somebody_else_is_named_and_no_more():
    """What busmicro does not manage it cannot describe."""
    service = Service("s")
    service.publishes(Topic("a", Quote, stream=Stream("THEIRS", managed=False)))

    kept = asyncapi(service)["channels"]["a"]["x-stream"]

    assert kept == {"name": "THEIRS", "managed": False}


def test_topic_of_a_schedule_is_published():
    """What the server publishes for a service counts, once, however often it is named."""
    service = Service("s")
    service.publishes(PAID)
    service.cron("@hourly", PAID, OrderPaid(order="1", means=Cash(kind="cash")))

    assert list(asyncapi(service)["operations"]) == ["send-orders.paid"]


def test_handler_of_lists_tells_how_many_at_most():
    """The message is one event; how many a handler gets is its own affair."""
    service = Service("s")

    @service.subscribe(PAID, group="many", batch=50)
    async def on_many(events: list[OrderPaid]) -> None: ...

    document = asyncapi(service)

    assert document["operations"]["receive-orders.paid-many"]["x-batch"] == 50
    assert message_of(document, "receive-orders.paid-many")["name"] == "OrderPaid"
