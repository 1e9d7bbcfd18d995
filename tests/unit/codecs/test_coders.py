"""Which content types a message may travel as, and how they are told apart."""

from __future__ import annotations

import pytest
from google.protobuf.struct_pb2 import Struct
from pydantic import BaseModel, Field

from busmicro.codecs import JSON, MSGPACK, NOTHING, PROTOBUF, RAW, Coders, json_schema
from busmicro.errors import CodecError, SetupError


class Hello(BaseModel):
    name: str


@pytest.mark.parametrize(
    ("kind", "default", "others"),
    [
        (Hello, JSON, {MSGPACK}),
        (dict[str, int], JSON, {MSGPACK}),
        (bytes, RAW, set()),
        (Struct, PROTOBUF, {JSON}),
        (None, JSON, {MSGPACK, PROTOBUF, RAW}),
    ],
    ids=["model", "dict", "bytes", "protobuf", "nothing"],
)
def test_type_of_a_message_decides_how_it_may_travel(kind: object, default: str, others: set[str]):
    """A model is JSON unless the caller says MessagePack, protobuf is protobuf or JSON."""
    coders = Coders(kind)
    taken = {name for name in (JSON, MSGPACK, PROTOBUF, RAW) if coders.find(name) is not None}

    assert coders.default.content_type == default
    assert taken == {default} | others


@pytest.mark.parametrize(
    "spelt", ["", "application/json", "Application/JSON", "application/json; charset=utf-8"]
)
def test_content_type_is_read_without_case_and_parameters(spelt: str):
    """A caller in any language is understood however it spells JSON, or if it says nothing."""
    assert Coders(Hello).require(spelt).decode(b'{"name":"John"}') == Hello(name="John")


def test_unknown_content_type_is_refused_with_those_there_are():
    """A caller that sends XML reads what it could have sent."""
    with pytest.raises(CodecError, match="application/json or application/msgpack"):
        Coders(Hello).require("application/xml")


def test_callers_cannot_fill_the_memory_with_spellings():
    """A million ways to write a content type are not remembered."""
    coders = Coders(Hello)

    for number in range(1000):
        coders.require(f"application/json; n={number}")
        assert coders.find(f"x/{number}") is None

    assert len(coders._built) <= 16


def test_coder_is_built_once():
    """A pair of functions costs a look-up after its first use."""
    coders = Coders(Hello)

    assert coders.require(MSGPACK) is coders.require(MSGPACK) is coders.require(MSGPACK + ";a=b")


@pytest.mark.parametrize("payload", [b"", b"null", b"{}", b" {} \n"])
def test_nothing_is_taken_in_every_common_spelling(payload: bytes):
    """A handler without a request may be called with an empty payload, null or {}."""
    assert NOTHING.decode(payload) is None


def test_something_where_nothing_is_expected_is_refused():
    """A caller that sends a message to a handler that takes none is told."""
    with pytest.raises(CodecError, match="nothing is expected here, but 12 bytes came"):
        NOTHING.decode(b'{"name":"J"}')


def test_type_without_a_codec_is_refused_at_registration():
    """A message type that nothing can send is told before any call, with the ways out."""
    with pytest.raises(SetupError, match="use a pydantic model"):
        Coders(object.__init__)


def test_schema_is_there_for_what_has_one():
    """Who looks a service up sees the shape of its messages."""
    schema = json_schema(Hello)

    assert isinstance(schema, dict)
    assert schema["required"] == ["name"]
    assert json_schema(bytes) is json_schema(Struct) is json_schema(None) is None


def test_type_whose_schema_cannot_be_made_has_none():
    """A type that works as a message works without a schema too."""

    class Odd(BaseModel):
        model_config = {"arbitrary_types_allowed": True}
        value: int
        kept: memoryview | None = None

    assert json_schema(Odd) is None
    assert Coders(Odd).default.encode(Odd(value=1)) == b'{"value":1,"kept":null}'


class Aliased(BaseModel):
    order_id: int = Field(alias="orderId")


@pytest.mark.parametrize("content_type", [JSON, MSGPACK])
def test_field_with_an_alias_arrives(content_type: str):
    """What is sent under the name that the schema shows is understood at the other end."""
    coder = Coders(Aliased).require(content_type)

    assert coder.decode(coder.encode(Aliased(orderId=3))) == Aliased(orderId=3)
