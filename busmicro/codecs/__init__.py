"""Objects to bytes and back, by content type."""

from __future__ import annotations

from pydantic import JsonValue, PydanticUserError

from busmicro.codecs.base import JSON, MSGPACK, PROTOBUF, RAW, Codec, Coder
from busmicro.codecs.json import JsonCodec, adapter
from busmicro.codecs.msgpack import MsgpackCodec
from busmicro.codecs.protobuf import ProtobufCodec, ProtobufJsonCodec, is_protobuf
from busmicro.codecs.raw import NOTHING, RawCodec
from busmicro.errors import CodecError, SetupError

CODECS: list[Codec] = [
    RawCodec(),
    ProtobufCodec(),
    ProtobufJsonCodec(),
    JsonCodec(),
    MsgpackCodec(),
]
"""Asked in order; the first that takes a type gives its default content type."""

_MOST_SPELLINGS = 16
"""Callers choose how they write a content type; they must not be able to fill the memory."""

__all__ = [
    "CODECS",
    "JSON",
    "MSGPACK",
    "NOTHING",
    "PROTOBUF",
    "RAW",
    "Codec",
    "Coder",
    "Coders",
    "is_protobuf",
    "json_schema",
]


class Coders:
    """Every way in which messages of one type can travel; each is built once, on first use."""

    def __init__(self, message_type: object) -> None:
        """Prepare for a type.

        Args:
            message_type: What the messages are; `None` for no message at all.

        Raises:
            SetupError: No codec takes it.
        """
        self.message_type = message_type
        self._codecs = {c.content_type: c for c in reversed(CODECS) if c.takes(message_type)}
        if message_type in (None, type(None)):
            self._codecs, self.default = {}, NOTHING
        elif not self._codecs:
            raise SetupError(f"no codec takes messages of type {message_type!r}")
        else:
            self.default = next(c for c in CODECS if c.takes(message_type)).coder(message_type)
        self._built = {self.default.content_type: self.default}

    def find(self, content_type: str) -> Coder | None:
        """Return the coder for a content type, parameters such as `charset` aside; None if none.

        An empty content type means JSON on the wire, and so it does here.
        """
        coder = self._built.get(content_type)
        if coder is None:
            coder = self._find(content_type)
            if coder is not None and len(self._built) < _MOST_SPELLINGS:
                self._built[content_type] = coder
        return coder

    def _find(self, content_type: str) -> Coder | None:
        if self.default is NOTHING or (self.default.content_type == RAW and not content_type):
            return self.default
        plain = content_type.partition(";")[0].strip().lower() or JSON
        codec = self._codecs.get(plain)
        return self._built.get(plain) or (codec.coder(self.message_type) if codec else None)

    def require(self, content_type: str) -> Coder:
        """Return the coder for a content type.

        Raises:
            CodecError: There is none; the text lists those that there are.
        """
        coder = self.find(content_type)
        if coder is None:
            raise CodecError(
                f"content type {content_type!r} is not taken here; send "
                + " or ".join(sorted(self._codecs))
            )
        return coder


def json_schema(message_type: object) -> JsonValue:
    """Describe a type as JSON Schema; None for what has none, such as bytes or protobuf."""
    if message_type in (None, type(None), bytes) or is_protobuf(message_type):
        return None
    try:
        schema: JsonValue = adapter(message_type).json_schema()
    except (
        PydanticUserError
    ):  # a schema is a courtesy; pydantic cannot make one for every valid type
        return None
    return schema
