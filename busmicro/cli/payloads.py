"""What a payload says: decoded where it says what it is, else as text that hurts nobody."""

from __future__ import annotations

import base64
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic_core import from_json, to_jsonable_python

from busmicro.codecs import JSON, MSGPACK
from busmicro.headers import CONTENT_TYPE, Headers


@dataclass(frozen=True, slots=True)
class Shown:
    """A payload as it is shown."""

    text: str
    """In one line, for people."""
    decoded: bool
    """Is `body` what it says?"""
    body: object
    """The JSON value that it is; None if it could not be decoded."""
    payload: str | None
    """The bytes in base64, only if it could not be decoded."""


def show(payload: bytes, headers: Mapping[str, str]) -> Shown:
    """Decode a payload by its content type; whatever cannot be decoded is shown as it is.

    Args:
        payload: The bytes.
        headers: What came with them; without a content type they are taken for JSON.
    """
    plain = content_type(headers).partition(";")[0].strip().lower()
    decode = _DECODE.get(plain) or (_text if plain.startswith("text/") else None)
    if decode is not None:
        try:
            body = decode(payload)
            text = json.dumps(body, ensure_ascii=False, allow_nan=False)
            return Shown(_printable(text), decoded=True, body=body, payload=None)
        except (ValueError, TypeError, OverflowError, RecursionError):
            pass  # it is not what it claims to be, and is shown all the same
    encoded = base64.b64encode(payload).decode()
    return Shown(_escaped(payload), decoded=False, body=None, payload=encoded)


def content_type(headers: Mapping[str, str]) -> str:
    """Tell what the bytes are: JSON if nobody says more."""
    return Headers(headers).get(CONTENT_TYPE, "") or JSON


def _json(payload: bytes) -> object:
    found: object = from_json(payload, allow_inf_nan=False)
    return found


def _msgpack(payload: bytes) -> object:
    if importlib.util.find_spec("msgpack") is None:
        raise ValueError("the library is not installed")
    import msgpack

    try:
        found: object = msgpack.unpackb(payload, timestamp=3)
    except msgpack.UnpackException as wrong:
        raise ValueError(str(wrong)) from wrong
    return to_jsonable_python(found, bytes_mode="base64", fallback=str)


def _text(payload: bytes) -> object:
    return payload.decode()


_DECODE: Mapping[str, Callable[[bytes], object]] = {JSON: _json, MSGPACK: _msgpack}


def _printable(text: str) -> str:
    """Escape what could move a cursor, as JSON does it; it stands in texts and nowhere else."""
    return text if text.isprintable() else "".join(map(_as_json, text))


def _as_json(letter: str) -> str:
    return letter if letter.isprintable() else json.dumps(letter)[1:-1]


def _escaped(payload: bytes) -> str:
    """Write bytes as text, with escapes for what is not printable."""
    text = payload.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
