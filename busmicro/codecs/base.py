"""The promise: typed messages to bytes and back, by content type.

Every codec promises:
- what it encodes it decodes to an equal message;
- bytes that are not what they claim raise `CodecError`, with one detail for each thing wrong;
- a message that does not fit the type raises `CodecError`, it is never sent half right;
- a pair of functions is built once for a type and then costs no look-up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

JSON = "application/json"
PROTOBUF = "application/protobuf"
MSGPACK = "application/msgpack"
RAW = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Coder:
    """How messages of one type travel as one content type."""

    content_type: str
    """What the bytes are."""
    encode: Callable[[object], bytes]
    """Message to bytes; raises `CodecError`."""
    decode: Callable[[bytes], object]
    """Bytes to message; raises `CodecError`."""


class Codec(Protocol):
    """Makes coders for one content type."""

    content_type: str
    """Which."""

    def takes(self, message_type: object, /) -> bool:
        """Tell whether messages of this type can travel this way."""
        ...

    def coder(self, message_type: object, /) -> Coder:
        """Build the pair of functions for a type.

        Raises:
            SetupError: The type cannot be described; the text says why.
        """
        ...
