"""How a failure looks on the wire, both ways.

Source: docs/protocol.md (Reply); NATS ADR-32 (the two `Nats-Service-Error` headers), Connect (the
JSON body).
"""

from __future__ import annotations

from typing import Final

from pydantic_core import PydanticSerializationError, from_json, to_json

from busmicro.errors import TABLE, CallError, Code, code_from_http
from busmicro.headers import (
    ERROR,
    ERROR_CODE,
    NOT_RUN,
    RETRY_AFTER,
    STATUS,
    VERSION_LINE,
    Headers,
    decode_text,
    encode_text,
)

ERROR_MARK: Final = b"\r\nNats-Service-Error"
"""In the header block of every failure, at the beginning of a line."""
_MAX_BODY_BYTES: Final = 64 * 1024
_MAX_MESSAGE_CHARS: Final = 4096


def encode_error(error: CallError, origin: str) -> tuple[bytes, bytes]:
    """Write a failure.

    Args:
        error: What happened.
        origin: The service that says so, unless the error comes from further down.

    Returns:
        Header block and payload; details that would make it longer than 64 KiB are left out.
    """
    meaning = TABLE[error.code]
    lines = [
        f"{ERROR_CODE}: {meaning.http_status}",
        f"{ERROR}: {encode_text(error.message or error.code.value)}",
        f"{STATUS}: {error.code.value}",
    ]
    if error.retry_after is not None:
        lines.append(f"{RETRY_AFTER}: {max(0, round(error.retry_after * 1000))}")
    if error.not_run:
        lines.append(f"{NOT_RUN}: 1")
    header = VERSION_LINE + "\r\n".join(lines).encode() + b"\r\n\r\n"
    return header, _body(error, error.origin or origin)


def _body(error: CallError, origin: str) -> bytes:
    body = {
        "code": error.code.value,
        "message": error.message[:_MAX_MESSAGE_CHARS],
        "details": error.details,
        "origin": origin,
    }
    try:
        payload = to_json(body, fallback=repr, inf_nan_mode="null")
        if len(payload) <= _MAX_BODY_BYTES:
            return payload
    except PydanticSerializationError:  # half a surrogate pair, or details that hold themselves
        body["message"] = error.message[:_MAX_MESSAGE_CHARS].encode("utf-8", "replace").decode()
    return to_json({**body, "details": []})


def decode_error(header: bytes, payload: bytes, service: str) -> CallError:
    """Read a failure, busmicro's or that of any other ADR-32 service.

    Args:
        header: The header block of the reply.
        payload: Its payload: our JSON, or any text.
        service: Who was asked; the origin, if the reply names none.

    Returns:
        The error to raise.
    """
    headers = Headers(header)
    body = _json_object(payload)
    code = _code(headers)
    text = body.get("message")
    message = text if isinstance(text, str) else decode_text(headers.get(ERROR, ""))
    details = body.get("details")
    origin = body.get("origin")
    error = CallError.of(
        code,
        message,
        details=details if isinstance(details, list) else [],
        origin=origin if isinstance(origin, str) and origin else service,
    )
    error.not_run = headers.get(NOT_RUN) == "1"
    after = _number(headers.get(RETRY_AFTER, ""), most_digits=10)
    error.retry_after = None if after is None else after / 1000
    return error


def _number(text: str, *, most_digits: int) -> int | None:
    """Read a number as the wire has it: ASCII digits, where `str.isdigit` would take `²` too."""
    plain = text.isascii() and text.isdigit() and len(text) <= most_digits
    return int(text) if plain else None


def _json_object(payload: bytes) -> dict[str, object]:
    try:
        body = from_json(payload)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _code(headers: Headers) -> Code:
    try:
        return Code(headers.get(STATUS, ""))
    except ValueError:
        return code_from_http(_number(headers.get(ERROR_CODE, ""), most_digits=4) or 0)
