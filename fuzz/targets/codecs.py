"""Payloads of anybody: a message, or `CodecError`; what was read is written and read alike.

Input: a byte that says which type and content type, then the payload.
"""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from google.protobuf import (
    any_pb2,
    duration_pb2,
    field_mask_pb2,
    struct_pb2,
    timestamp_pb2,
    type_pb2,
    wrappers_pb2,
)
from google.protobuf.message import Message
from pydantic import BaseModel

from busmicro.codecs import JSON, MSGPACK, PROTOBUF, RAW, Coder, Coders
from busmicro.errors import CodecError
from fuzz.wrong import require


class Line(BaseModel):
    """A model."""

    name: str
    price: Decimal = Decimal(0)
    tags: set[str] = set()
    child: Line | None = None


@dataclass
class Order:
    """A dataclass."""

    id: uuid.UUID
    at: dt.datetime | None = None
    lines: list[Line] = field(default_factory=list)
    takes: dt.timedelta = dt.timedelta()
    note: bytes | int | None = None


TYPES: Final = (
    *((kind, name) for kind in (Line, Order, dict[str, int | float]) for name in (JSON, MSGPACK)),
    (object, JSON),
    *(
        (kind, name)
        for kind in (
            struct_pb2.Struct,
            struct_pb2.Value,
            timestamp_pb2.Timestamp,
            duration_pb2.Duration,
            field_mask_pb2.FieldMask,
            any_pb2.Any,
            wrappers_pb2.DoubleValue,
            wrappers_pb2.Int64Value,
            wrappers_pb2.BytesValue,
            type_pb2.Type,
        )
        for name in (JSON, PROTOBUF)
    ),
    (bytes, RAW),
    (None, JSON),
)
"""What the first byte of an input stands for."""
CODERS: Final = [Coders(kind).require(name) for kind, name in TYPES]

_LINE: Final = Line(name="a", price=Decimal("1.5"), tags={"x"}, child=Line(name="b"))
_ORDER: Final = Order(
    id=uuid.UUID(int=7),
    at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    lines=[_LINE],
    takes=dt.timedelta(seconds=90),
    note=5,
)


def _proto(kind: type[Message]) -> Message:
    message = kind()
    if isinstance(message, struct_pb2.Struct):
        message.update({"a": 1, "b": [True, None, "x"]})
    elif isinstance(message, struct_pb2.Value):
        message.string_value = "x"
    elif isinstance(message, timestamp_pb2.Timestamp | duration_pb2.Duration):
        message.seconds, message.nanos = 1_767_225_600, 5_000_000
    elif isinstance(message, field_mask_pb2.FieldMask):
        message.paths.extend(["a.b_c", "d"])
    elif isinstance(message, any_pb2.Any):
        message.Pack(duration_pb2.Duration(seconds=5))
    elif isinstance(message, wrappers_pb2.BytesValue):
        message.value = b"\x00\xff"
    elif isinstance(message, type_pb2.Type):
        message.name = "t"
        message.fields.add(name="f", number=1)
    else:
        message.value = 5
    return message


_BUILTINS: Final = {Line: _LINE, Order: _ORDER, dict[str, int | float]: {"a": 1, "b": 0.5}}
SAMPLES: Final = [
    _BUILTINS.get(kind)
    or (b"\x00\xff" if kind is bytes else [1, "x"] if kind is object else None)
    or (kind and _proto(kind))
    for kind, _name in TYPES
]
"""A message of each."""


def one(data: bytes) -> None:
    """Read a payload."""
    if not data:
        return
    coder = CODERS[data[0] % len(CODERS)]
    try:
        message = coder.decode(data[1:])
    except CodecError as wrong:
        require(str(wrong), "an error that says nothing")
        require(len(wrong.details) <= 20, "too many details", len(wrong.details))
        return
    _write(coder, message)


def _write(coder: Coder, message: object) -> None:
    try:
        written = coder.encode(message)
    except CodecError:
        # JSON and MessagePack cannot say all that they let in: NaN, long whole numbers, bytes
        require(coder.content_type != RAW, "bytes that cannot be sent", message)
        return
    if _has_nan(message):
        return  # pydantic lets it in as JSON and writes `null`
    again = coder.decode(written)
    same = again == message or repr(again) == repr(message)
    require(same, "read otherwise than written", message, again)


def _has_nan(message: object) -> bool:
    text = str(message) if isinstance(message, Message) else repr(message)
    return "nan" in text.lower() or "inf" in text.lower()
