"""What travels in the benchmarks: the same messages for every contender."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from pydantic import BaseModel

_TRACES = 20_000
TYPES = {"json": "application/json", "protobuf": "application/protobuf"}
_TEXT, _INT = 9, 5


class Request(BaseModel):
    name: str


class Reply(BaseModel):
    greeting: str


class Paid(BaseModel):
    order: int
    amount: float = 1.0


class Count(BaseModel):
    to: int


class Tick(BaseModel):
    n: int
    pad: str


def proto(name: str, /, **fields: int) -> type:
    """Make a class of protobuf messages, without a compiler."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{name}.proto", package="bench", syntax="proto3"
    )
    message = file.message_type.add(name=name)
    for number, (field, type_number) in enumerate(fields.items(), start=1):
        message.field.add(name=field, number=number, type=type_number, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"bench.{name}"))


ProtoRequest = proto("ProtoRequest", name=_TEXT)
ProtoReply = proto("ProtoReply", greeting=_TEXT)
ProtoTick = proto("ProtoTick", n=_INT, pad=_TEXT)


def traces() -> Iterator[str]:
    """Make a trace for each call: as in real life none is like the one before."""
    chance = random.Random(7)
    return itertools.cycle(
        [
            f"00-{chance.getrandbits(128):032x}-{chance.getrandbits(64):016x}-01"
            for _ in range(_TRACES)
        ]
    )


def usual_headers(codec: str) -> dict[str, str]:
    """Return the headers, besides a trace, that every contender with headers sends."""
    return {"Content-Type": TYPES[codec], "Bus-Timeout": "5000"}


def greet(name: str) -> str:
    """What every handler does; the reply is as long as the request, or a little longer."""
    return f"Hello {name}"


def json_reply(payload: bytes) -> bytes:
    """Answer a request in JSON, as whoever writes a service by hand does."""
    request = Request.model_validate_json(payload)
    return Reply(greeting=greet(request.name)).model_dump_json().encode()


def proto_reply(payload: bytes) -> bytes:
    """Answer a request in protobuf, by hand."""
    request = ProtoRequest.FromString(payload)
    return ProtoReply(greeting=greet(request.name)).SerializeToString()


BY_HAND = {"json": json_reply, "protobuf": proto_reply}


def request_of(codec: str, size_bytes: int) -> object:
    """Make a request that is so long on the wire, a few bytes more or less."""
    text = "x" * max(1, size_bytes - (11 if codec == "json" else 3))
    return Request(name=text) if codec == "json" else ProtoRequest(name=text)


def encode(codec: str, request: object) -> bytes:
    """Write a request, by hand."""
    if codec == "json":
        return request.model_dump_json().encode()
    return request.SerializeToString()


DECODE = {"json": Reply.model_validate_json, "protobuf": ProtoReply.FromString}
