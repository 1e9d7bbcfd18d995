"""JSON through pydantic: models, dataclasses, TypedDict and builtins, validated both ways."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Final, cast

from pydantic import (
    BaseModel,
    PydanticSchemaGenerationError,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import PydanticSerializationError

from busmicro.codecs.base import JSON, Coder
from busmicro.codecs.protobuf import is_protobuf
from busmicro.errors import CodecError, SetupError

_MOST_FAULTS: Final = 10_000
"""To describe each costs 3 µs: three seconds for a megabyte in which nothing is right."""


def adapter(message_type: object) -> TypeAdapter[object]:
    """Build pydantic's validator and serializer for a type.

    Raises:
        SetupError: pydantic has no schema for it.
    """
    try:
        return TypeAdapter(message_type)  # type: ignore[arg-type]
    except (PydanticSchemaGenerationError, PydanticUserError) as unknown:
        raise SetupError(
            f"messages cannot be of type {message_type!r}: use a pydantic model, a dataclass, "
            f"a TypedDict, a builtin, a protobuf message or bytes ({unknown})"
        ) from unknown


def required_class(message_type: object) -> type:
    """Tell of which class messages must be; pydantic sends `{}` for a model of another class."""
    is_one = isinstance(message_type, type) and (
        issubclass(message_type, BaseModel) or is_dataclass(message_type)
    )
    return cast("type", message_type) if is_one else object


def invalid(wrong: ValidationError, what: str) -> CodecError:
    """Say what is wrong with a message: in one line, and one detail for each fault."""
    if wrong.error_count() > _MOST_FAULTS:
        return CodecError(f"{what}: {wrong.error_count():,} things are wrong with it")
    faults = wrong.errors(include_url=False, include_context=False, include_input=False)
    details = [
        {"field": ".".join(map(str, f["loc"])), "problem": f["msg"], "type": f["type"]}
        for f in faults[:20]
    ]
    first = details[0]
    where = f"{first['field']}: " if first["field"] else ""
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return CodecError(f"{what}: {where}{first['problem']}{more}", details)


class JsonCodec:
    """`application/json`, the default."""

    content_type = JSON

    def takes(self, message_type: object, /) -> bool:
        """Tell whether pydantic can describe it; protobuf has JSON of its own."""
        return message_type is not bytes and not is_protobuf(message_type)

    def coder(self, message_type: object, /) -> Coder:
        """Build the pair of functions for a type."""
        described = adapter(message_type)
        validate, dump = described.validator.validate_json, described.serializer.to_json
        name = getattr(message_type, "__name__", str(message_type))
        required = required_class(message_type)

        def decode(payload: bytes) -> object:
            try:
                return validate(payload)
            except ValidationError as wrong:
                raise invalid(wrong, f"not a {name}") from wrong

        def encode(message: object) -> bytes:
            try:
                if type(message) is message_type:  # asking for errors costs 0.8 µs (pydantic 2.14)
                    return dump(message, by_alias=True)  # as it is validated, and described
                if not isinstance(message, required):
                    raise CodecError(f"a {type(message).__name__} cannot be sent as {name}")
                return dump(message, by_alias=True, warnings="error")
            except (PydanticSerializationError, UnicodeEncodeError) as wrong:
                raise CodecError(
                    f"a {type(message).__name__} cannot be sent as {name}: {wrong}"
                ) from wrong

        return Coder(JSON, encode, decode)
