"""The frames of a stream, as they stand on the wire.

A frame is a message whose subject ends in its name: a letter, and a number if it has its place in
the order.  Numbered frames come from one end in one order, so that an end cannot overtake data;
the others say how things stand and are never stuck behind data.

Source: docs/protocol.md (Streams).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from busmicro.errors import InvalidArgument, SetupError

# Numbered frames.
DATA: Final = b"d"
"""A message, or the last piece of one that was cut; then with its checksum in the header block."""
PIECE: Final = b"p"
"""A piece of a message; more follow."""
CLAIM: Final = b"o"
"""A message that lies in the object store: the payload says where."""
END: Final = b"e"
"""No more messages from this end."""
STATUS: Final = b"s"
"""How the stream ended; the node's last frame."""

# Frames without a number: the payload is a `Standing`, but for the last two.
ACCEPT: Final = b"a"
"""The handler has been entered; the reply subject is the node's address."""
CREDIT: Final = b"c"
"""How things stand at this end."""
REPAIR: Final = b"r"
"""The same, and something is missing: send again what comes after `received`."""
PING: Final = b"q"
"""The same, and say how things stand at yours."""
CANCEL: Final = b"x"
"""This end wants no more, out of order; header block and payload may say why, as in an error."""
NO_STREAM: Final = b"n"
"""There is no such stream here."""

_MOST_MESSAGES: Final = 65_536
_MOST_BYTES: Final = 256 * 1024 * 1024
_MOST_DIGITS: Final = 19


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How much one end lets the other send before it has taken any of it."""

    messages: int = 256
    """Messages, or pieces of messages; 1 to 65,536."""
    size_bytes: int = 2 * 1024 * 1024
    """Their payloads together; the last of them may go beyond it. 1 byte to 256 MiB."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 1 <= self.messages <= _MOST_MESSAGES or not 1 <= self.size_bytes <= _MOST_BYTES:
            raise SetupError(
                f"{self}: a window is 1 to {_MOST_MESSAGES:,} messages "
                f"and 1 to {_MOST_BYTES:,} bytes"
            )

    def header(self) -> str:
        """Write it as the value of `Bus-Stream`."""
        return f"{self.messages} {self.size_bytes}"


def read_window(value: str) -> Window:
    """Read the value of `Bus-Stream`.

    Raises:
        InvalidArgument: It is no window.
    """
    parts = value.split(" ")
    if len(parts) == 2 and all(part.isdecimal() and len(part) <= _MOST_DIGITS for part in parts):
        try:
            return Window(messages=int(parts[0]), size_bytes=int(parts[1]))
        except SetupError as wrong:
            raise InvalidArgument(f"Bus-Stream: {wrong}", not_run=True) from wrong
    raise InvalidArgument(f"Bus-Stream: {value[:64]!r} is no window", not_run=True)


class Standing(NamedTuple):
    """How things stand at one end; all four only ever grow, so an old one does no harm."""

    may_send: int
    """So many messages the other end may send, from the first one on."""
    may_send_bytes: int
    """So many bytes it may have sent when it sends another one."""
    received: int
    """So many of its numbered frames are here, without a gap."""
    sent: int
    """So many numbered frames this end has sent."""


def write_standing(standing: Standing) -> bytes:
    """Write how things stand, as a payload."""
    return b"%d %d %d %d" % standing


def read_standing(payload: bytes) -> Standing | None:
    """Read how things stand; None if this payload does not say it."""
    parts = payload.split(b" ")
    if len(parts) != 4 or not all(part.isdigit() and len(part) <= _MOST_DIGITS for part in parts):
        return None
    return Standing(*map(int, parts))


def gives_too_much(standing: Standing, sent_bytes: int) -> bool:
    """Tell whether this would make an end keep more than any end may be asked to."""
    return (
        standing.may_send > standing.received + _MOST_MESSAGES
        or standing.may_send_bytes > sent_bytes + 2 * _MOST_BYTES
    )
