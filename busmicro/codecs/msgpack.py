"""MessagePack: the same types as JSON, smaller, needs the extra `busmicro[msgpack]`."""

from __future__ import annotations

import importlib.util

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from busmicro.codecs.base import MSGPACK, Coder
from busmicro.codecs.json import adapter, invalid, required_class
from busmicro.codecs.protobuf import is_protobuf
from busmicro.errors import CodecError, SetupError


class MsgpackCodec:
    """`application/msgpack`."""

    content_type = MSGPACK

    def takes(self, message_type: object, /) -> bool:
        """Tell whether the type has a schema and the library is installed."""
        return (
            message_type is not bytes
            and not is_protobuf(message_type)
            and importlib.util.find_spec("msgpack") is not None
        )

    def coder(self, message_type: object, /) -> Coder:
        """Build the pair of functions for a type."""
        try:
            import msgpack  # noqa: PLC0415 - an extra
        except ImportError as missing:
            raise SetupError('MessagePack needs: pip install "busmicro[msgpack]"') from missing
        described = adapter(message_type)
        name = getattr(message_type, "__name__", str(message_type))
        required = required_class(message_type)

        def decode(payload: bytes) -> object:
            try:
                return described.validate_python(msgpack.unpackb(payload))
            except ValidationError as wrong:
                raise invalid(wrong, f"not a {name}") from wrong
            except (ValueError, RecursionError, msgpack.UnpackException) as wrong:
                raise CodecError(f"not MessagePack: {wrong}") from wrong

        def encode(message: object) -> bytes:
            if not isinstance(message, required):
                raise CodecError(f"a {type(message).__name__} cannot be sent as {name}")
            try:
                packed: bytes = msgpack.packb(
                    described.dump_python(message, mode="python", by_alias=True, warnings="error"),
                    default=to_jsonable_python,
                )
            except (PydanticSerializationError, ValueError, TypeError, OverflowError) as wrong:
                raise CodecError(
                    f"a {type(message).__name__} cannot be sent as {name}: {wrong}"
                ) from wrong
            return packed

        return Coder(MSGPACK, encode, decode)
