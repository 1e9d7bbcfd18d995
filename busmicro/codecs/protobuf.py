"""Protobuf messages, as binary and as their canonical JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from busmicro.codecs.base import JSON, PROTOBUF, Coder
from busmicro.errors import CodecError

if TYPE_CHECKING:
    from google.protobuf.message import Message


def is_protobuf(message_type: object) -> bool:
    """Tell whether a type is a generated protobuf message, without importing protobuf."""
    return isinstance(message_type, type) and all(
        hasattr(message_type, name) for name in ("DESCRIPTOR", "SerializeToString", "FromString")
    )


class ProtobufCodec:
    """`application/protobuf`, the default of protobuf messages."""

    content_type = PROTOBUF

    def takes(self, message_type: object, /) -> bool:
        """Tell whether it is a protobuf message."""
        return is_protobuf(message_type)

    def coder(self, message_type: object, /) -> Coder:
        """Build the pair of functions for a type."""
        from google.protobuf.message import DecodeError, EncodeError  # noqa: PLC0415 - slow import

        kind = cast("type[Message]", message_type)

        def decode(payload: bytes) -> object:
            try:
                return kind.FromString(payload)
            except DecodeError as wrong:
                raise CodecError(f"not a {kind.__name__}: {wrong}") from wrong

        def encode(message: object) -> bytes:
            try:
                payload: bytes = _same(message, kind).SerializeToString()
            except EncodeError as wrong:
                raise CodecError(f"{kind.__name__} cannot be sent: {wrong}") from wrong
            return payload

        return Coder(PROTOBUF, encode, decode)


class ProtobufJsonCodec:
    """`application/json` for protobuf messages, so that a person can call with text."""

    content_type = JSON

    def takes(self, message_type: object, /) -> bool:
        """Tell whether it is a protobuf message."""
        return is_protobuf(message_type)

    def coder(self, message_type: object, /) -> Coder:
        """Build the pair of functions for a type."""
        from google.protobuf import json_format  # noqa: PLC0415 - slow import

        kind = cast("type[Message]", message_type)

        def decode(payload: bytes) -> object:
            try:
                return json_format.Parse(payload, kind())
            except (json_format.ParseError, UnicodeDecodeError) as wrong:
                raise CodecError(f"not a {kind.__name__}: {wrong}") from wrong

        def encode(message: object) -> bytes:
            try:
                text: str = json_format.MessageToJson(
                    _same(message, kind), indent=None, preserving_proto_field_name=True
                )
            except (json_format.Error, ValueError) as wrong:
                raise CodecError(f"{kind.__name__} cannot be sent as JSON: {wrong}") from wrong
            return text.encode()

        return Coder(JSON, encode, decode)


def _same(message: object, kind: type[Message]) -> Message:
    if not isinstance(message, kind):
        raise CodecError(f"a {type(message).__name__} cannot be sent as {kind.__name__}")
    return message
