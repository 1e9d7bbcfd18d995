"""What a codec encodes it decodes to an equal message; bytes that are none raise `CodecError`."""

from __future__ import annotations

import datetime as dt
import enum
import uuid
from dataclasses import dataclass
from decimal import Decimal

import pytest
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import Int64Value
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from typing_extensions import TypedDict

from busmicro.codecs import JSON, MSGPACK, PROTOBUF, RAW, Coders
from busmicro.errors import CodecError

TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)


class Color(enum.Enum):
    RED = "red"
    GREEN = "green"


class Line(BaseModel):
    name: str
    price: Decimal
    tags: set[str] = set()


class Other(BaseModel):
    value: int = 1


@dataclass
class Order:
    id: uuid.UUID
    at: dt.datetime
    lines: list[Line]
    color: Color | None = None
    takes: dt.timedelta = dt.timedelta()


class Size(TypedDict):
    width: int
    height: float


LINES = st.builds(
    Line,
    name=TEXTS,
    price=st.decimals(allow_nan=False, allow_infinity=False, places=2, max_value=10**9),
    tags=st.sets(TEXTS, max_size=3),
)
ORDERS = st.builds(
    Order,
    id=st.uuids(),
    at=st.datetimes(timezones=st.just(dt.UTC)),
    lines=st.lists(LINES, max_size=3),
    color=st.none() | st.sampled_from(Color),
    takes=st.timedeltas(dt.timedelta(0), dt.timedelta(days=99)),
)
SIZES = st.builds(
    lambda width, height: Size(width=width, height=height),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
)
MESSAGES = st.one_of(
    st.tuples(st.just(Line), LINES),
    st.tuples(st.just(Order), ORDERS),
    st.tuples(st.just(Size), SIZES),
    st.tuples(
        st.just(dict[str, int | None]), st.dictionaries(TEXTS, st.none() | st.integers(0, 9))
    ),
    st.tuples(st.just(str), TEXTS),
    st.tuples(st.just(bool), st.booleans()),
    st.tuples(st.just(int | str), TEXTS | st.integers(-(2**63), 2**63)),
)


@pytest.mark.parametrize("content_type", [JSON, MSGPACK])
@given(pair=MESSAGES)
def test_typed_message_arrives_as_it_was_sent(content_type: str, pair: tuple[object, object]):
    """A model, a dataclass, a TypedDict or a builtin is the same object at the other end."""
    kind, message = pair
    coder = Coders(kind).require(content_type)

    assert coder.decode(coder.encode(message)) == message


@given(message=st.binary(max_size=50), name=st.sampled_from([RAW, "application/octet-stream", ""]))
def test_bytes_travel_as_they_are(message: bytes, name: str):
    """A handler of `bytes` gets the payload untouched."""
    coder = Coders(bytes).require(name)

    assert coder.decode(coder.encode(message)) == message == coder.encode(message)


@pytest.mark.parametrize("content_type", [PROTOBUF, JSON])
@given(fields=st.dictionaries(TEXTS, st.none() | TEXTS | st.booleans(), max_size=4))
def test_protobuf_message_arrives_as_it_was_sent(content_type: str, fields: dict[str, object]):
    """A protobuf message is the same as binary and as JSON."""
    message = Struct()
    message.update(fields)
    coder = Coders(Struct).require(content_type)

    assert coder.decode(coder.encode(message)) == message


def test_bytes_inside_a_message_travel_in_msgpack():
    """MessagePack carries bytes that JSON cannot."""
    coder = Coders(dict[str, bytes]).require(MSGPACK)

    assert coder.decode(coder.encode({"a": b"\xff"})) == {"a": b"\xff"}


KINDS = [Line, Order, Size, int, list[Line], object, Struct, Int64Value, None]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@given(payload=st.binary(max_size=60) | st.sampled_from([b"[" * 99_999, b"\x91" * 99_999]))
def test_bytes_that_are_something_else_raise_codec_error_only(kind: object, payload: bytes):
    """Garbage from another client is answered `invalid_argument`, whatever it is."""
    coders = Coders(kind)

    for content_type in (JSON, MSGPACK, PROTOBUF):
        coder = coders.find(content_type)
        if coder is not None:
            try:
                coder.decode(payload)
            except CodecError as wrong:
                assert str(wrong)  # noqa: PT017 - either way is fine, but no other


@pytest.mark.parametrize("content_type", [JSON, MSGPACK])
def test_each_fault_of_a_message_has_a_detail(content_type: str):
    """A caller reads every field that is wrong, where it is and why."""
    coder = Coders(list[Line]).require(content_type)
    payload = Coders(list[dict[str, object]]).require(content_type).encode([{"name": 5}])

    with pytest.raises(CodecError, match=r"0\.name: .*and 1 more") as wrong:
        coder.decode(payload)

    assert [detail["field"] for detail in wrong.value.details] == ["0.name", "0.price"]


def test_text_of_a_fault_does_not_repeat_the_input():
    """A password in a message that does not validate does not end up in logs."""
    with pytest.raises(CodecError) as wrong:
        Coders(Line).default.decode(b'{"name": "x", "price": "hunter2"}')

    assert "hunter2" not in str(wrong.value)
    assert "hunter2" not in str(wrong.value.details)


def test_details_of_very_many_faults_stay_few():
    """A message wrong in a thousand places is not answered with a thousand details."""
    with pytest.raises(CodecError, match="999 more") as wrong:
        Coders(list[int]).default.decode(b"[" + b",".join([b'"x"'] * 1000) + b"]")

    assert len(wrong.value.details) == 20


def test_message_in_which_nothing_is_right_is_refused_at_once():
    """Who sends a megabyte of faults is told how many, not which: to list them takes seconds."""
    with pytest.raises(CodecError, match="100,000 things are wrong") as wrong:
        Coders(list[int]).default.decode(b"[" + b",".join([b'"x"'] * 100_000) + b"]")

    assert wrong.value.details == []


CIRCLE: list[object] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    ("kind", "message", "content_types"),
    [
        (Line, "not a line", (JSON, MSGPACK)),
        (Line, Other(), (JSON, MSGPACK)),
        (Order, Line(name="a", price=Decimal(1)), (JSON, MSGPACK)),
        (Line, Order(uuid.UUID(int=1), dt.datetime.now(dt.UTC), []), (JSON, MSGPACK)),
        (list[object], [object()], (JSON, MSGPACK)),
        (list[object], CIRCLE, (JSON, MSGPACK)),
        (str, "\ud800", (JSON, MSGPACK)),
        (int, 2**64, (MSGPACK,)),
        (dict[str, bytes], {"a": b"\xff"}, (JSON,)),
        (bytes, "text", (RAW,)),
        (None, "text", (JSON,)),
        (Struct, {"a": 1}, (JSON, PROTOBUF)),
        (Struct, Int64Value(value=1), (JSON, PROTOBUF)),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_message_that_does_not_fit_is_not_sent(
    kind: object, message: object, content_types: tuple[str, ...]
):
    """A handler that returns something else than it declares is told so, and nobody gets half."""
    for content_type in content_types:
        with pytest.raises(CodecError, match="cannot be sent"):
            Coders(kind).require(content_type).encode(message)


def test_subclass_of_a_message_type_is_sent():
    """A handler may return a more special model than it declares."""

    class Special(Line):
        extra: int = 1

    for content_type in (JSON, MSGPACK):
        coder = Coders(Line).require(content_type)
        assert coder.decode(coder.encode(Special(name="a", price=Decimal(1)))) == Line(
            name="a", price=Decimal(1)
        )


def test_number_that_json_does_not_have_is_not_sent():
    """A protobuf message with NaN is refused as JSON and travels as binary."""
    message = Struct()
    message["a"] = float("nan")

    with pytest.raises(CodecError, match="as JSON"):
        Coders(Struct).require(JSON).encode(message)
    assert Coders(Struct).default.encode(message)
