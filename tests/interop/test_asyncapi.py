"""AsyncAPI's own schema, from its own package, says that our documents are AsyncAPI documents."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jsonschema
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from busmicro import Call, Service, Stream, Topic, endpoint_options
from busmicro.asyncapi import asyncapi

pytestmark = pytest.mark.node

SPECS = Path(__file__).parent / "node_modules" / "@asyncapi" / "specs" / "schemas"


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
    rest: tuple[int, ...] = ()
    backup: Annotated[Card, Field(description="If the first one fails.")]
    parts: list[OrderPaid] = []
    tags: dict[str, set[int]] = {}


@dataclass
class Point:
    x: float
    y: Annotated[float, Field(gt=0, examples=[1.5])] = 1.0


class Box(TypedDict):
    corners: list[Point]


class Walk:
    async def corners(self, request: Box) -> AsyncIterator[Point]:
        """Walk around."""
        for point in request["corners"]:
            yield point

    @endpoint_options(timeout=60.0, metadata={"a": "b"})
    async def collect(self, points: AsyncIterator[Point]) -> Box:
        return Box(corners=[point async for point in points])

    async def echo(self, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for part in parts:
            yield part


def shop() -> Service:
    """Make a service with one of everything."""
    service = Service("shop", version="2.0.0-rc.1", namespace="prod", metadata={"region": "eu"})
    stream = Stream("ORDERS", subjects=["orders.>"])
    paid = Topic("orders.paid", OrderPaid, stream=stream)
    regional = Topic("orders.{region}.created", Box)
    service.handle(Walk())
    service.publishes(paid, Topic("text", StringValue, stream=Stream("TEXT", managed=False)))

    @service.rpc("Shop.move", idempotent=True, metadata={"a": "b"})
    async def move(request: Point) -> list[Box]:
        """Move a point."""
        return []

    @service.rpc
    async def ping() -> None: ...

    @service.rpc
    async def size(request: bytes, call: Call) -> int:
        return len(request)

    @service.subscribe(paid, group="billing", max_deliver=3)
    async def on_paid(event: OrderPaid) -> None:
        """Write it down."""

    @service.subscribe(paid, group="mail")
    async def on_many(events: list[OrderPaid]) -> None: ...

    @service.subscribe(regional, group="maps")
    async def on_created(event: Box, region: str) -> None: ...

    @service.subscribe(Topic("raw.>", bytes))
    async def on_raw(event: bytes) -> None: ...

    return service


@pytest.fixture(scope="module")
def official(node_packages: None) -> jsonschema.Draft7Validator:
    """The schema of AsyncAPI 3.0.0."""
    schema = json.loads((SPECS / "3.0.0-without-$id.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema, format_checker=jsonschema.FormatChecker())


@pytest.mark.parametrize("service", [shop(), Service("empty")], ids=lambda s: s.name)
def test_document_is_valid_by_the_official_schema(official, service):
    """A service with one of everything, and one with nothing, make valid documents."""
    document = json.loads(json.dumps(asyncapi(service)))

    faults = [f"{fault.json_path}: {fault.message}" for fault in official.iter_errors(document)]
    assert faults == []


def test_official_schema_would_find_a_fault(official):
    """The check above can fail: a wrong word in any part of the document is noticed."""
    for part in ("info", "channels", "operations", "components"):
        document = json.loads(json.dumps(asyncapi(shop())))
        named = document[part]["messages"] if part == "components" else document[part]
        entry = named if part == "info" else next(iter(named.values()))
        entry["nonsense"] = 1
        assert not official.is_valid(document), part
