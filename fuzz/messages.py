"""Inputs that are messages: a few separators, so that bytes of any kind read as some of them."""

from __future__ import annotations

from typing import Final, NamedTuple

BETWEEN_MESSAGES: Final = b"\x1e"
BETWEEN_PARTS: Final = b"\x1d"


class Message(NamedTuple):
    """What a stranger can put on the bus."""

    subject: bytes = b""
    reply: bytes = b""
    header: bytes = b""
    payload: bytes = b""


def read(data: bytes) -> list[Message]:
    """Read an input; the separators cannot be part of anything."""
    return [Message(*text.split(BETWEEN_PARTS, 3)) for text in data.split(BETWEEN_MESSAGES) if text]


def write(messages: list[Message]) -> bytes:
    """Write an input."""
    return BETWEEN_MESSAGES.join(BETWEEN_PARTS.join(message) for message in messages)


def word(text: bytes) -> bytes:
    """Take out what cannot be part of a subject on the wire."""
    return text.translate(None, b" \t\r\n")
