"""Bytes as they are, and nothing at all."""

from __future__ import annotations

from busmicro.codecs.base import JSON, RAW, Coder
from busmicro.errors import CodecError

_NOTHING = (b"", b"null", b"{}")


def _encode_bytes(message: object) -> bytes:
    if not isinstance(message, bytes | bytearray | memoryview):
        raise CodecError(f"a {type(message).__name__} cannot be sent as bytes")
    return bytes(message)


def _encode_nothing(message: object) -> bytes:
    if message is not None:
        raise CodecError(f"a {type(message).__name__} cannot be sent where nothing is declared")
    return b""


def _decode_nothing(payload: bytes) -> object:
    if payload.strip() not in _NOTHING:
        raise CodecError(f"nothing is expected here, but {len(payload)} bytes came")
    return None


class RawCodec:
    """`application/octet-stream`, the default of `bytes`."""

    content_type = RAW

    def takes(self, message_type: object, /) -> bool:
        """Tell whether it is `bytes`."""
        return message_type is bytes

    def coder(self, message_type: object, /) -> Coder:  # noqa: ARG002 - there is one type
        """Build the pair of functions for `bytes`."""
        return Coder(RAW, _encode_bytes, bytes)


NOTHING = Coder(JSON, _encode_nothing, _decode_nothing)
"""How the absence of a message travels: an empty payload; `null` and `{}` are taken too."""
