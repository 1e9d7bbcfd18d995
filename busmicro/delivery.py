"""One delivery of one event: which, from where, for the how-manieth time.

JetStream writes all of that into the subject on which it wants its acknowledgement::

    $JS.ACK.<stream>.<consumer>.<attempt>.<stream seq>.<consumer seq>.<time ns>.<pending>
    $JS.ACK.<domain>.<account>.<stream>.<consumer>.<attempt>.…            servers with js_ack_fc_v2

Source: NATS ADR-15 (subjects of acknowledgements).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from busmicro.headers import CE_ID, CE_SOURCE, MSG_ID, Headers

_OLD_TOKENS: Final = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One delivery of an event that a stream keeps."""

    id: str
    """What makes the event this event: the same for every delivery of it, and for no other."""
    stream: str
    """Where it is kept."""
    consumer: str
    """By whose account it was delivered."""
    sequence: int
    """Its number in the stream."""
    attempt: int
    """1 for the first delivery."""
    stored: datetime
    """When it was stored, UTC."""
    pending: int
    """How many more wait behind it."""


def first_attempt(stream: str, consumer: str) -> bytes:
    """Return how the subjects of first attempts begin, on servers that write them the old way."""
    return f"$JS.ACK.{stream}.{consumer}.1.".encode()


def acks_of(stream: str, consumer: str) -> re.Pattern[bytes]:
    """Return what the subjects of a consumer's acknowledgements look like, from first to last byte.

    Whatever else stands where an event says how to acknowledge it, nothing may be published there.
    """
    own = re.escape(f"{stream}.{consumer}".encode())
    numbers, word = rb"\.[1-9][0-9]{0,19}" + rb"\.[0-9]{1,20}" * 4, rb"[!-\-/-~]+"
    old, new = own + numbers, rb"%b\.%b\.%b%b(?:\.%b)*" % (word, word, own, numbers, word)
    return re.compile(rb"\$JS\.ACK\.(?:%b|%b)" % (old, new))


def attempt_of(ack: bytes) -> int:
    """Return the number of the attempt alone; it is needed before every handler."""
    tokens = ack.split(b".")
    return int(tokens[4] if len(tokens) == _OLD_TOKENS else tokens[6])


def sequence_of(ack: bytes) -> int:
    """Return the event's number in its stream alone."""
    tokens = ack.split(b".")
    return int(tokens[5] if len(tokens) == _OLD_TOKENS else tokens[7])


def read_delivery(ack: bytes, headers: Headers, *, tried_here: int = 0) -> Delivery:
    """Read all of it.

    Args:
        ack: The subject for the acknowledgement.
        headers: Those of the event.
        tried_here: Attempts since it was delivered.

    Raises:
        ValueError: This is no such subject.
    """
    tokens = ack.decode().split(".")
    if len(tokens) < _OLD_TOKENS or tokens[:2] != ["$JS", "ACK"]:
        raise ValueError(f"{ack!r} is not the subject of an acknowledgement")
    stream, consumer, attempt, sequence, _own, stored_ns, pending = (
        tokens[2:9] if len(tokens) == _OLD_TOKENS else tokens[4:11]
    )
    return Delivery(
        id=_identity(headers) or f"{stream}:{sequence}",
        stream=stream,
        consumer=consumer,
        sequence=int(sequence),
        attempt=int(attempt) + tried_here,
        stored=datetime.fromtimestamp(int(stored_ns) / 1e9, UTC),
        pending=int(pending),
    )


def _identity(headers: Headers) -> str:
    """Return what CloudEvents goes by, source and id, else what NATS goes by."""
    own = headers.get(CE_ID)
    if own:
        return f"{headers.get(CE_SOURCE, '')}:{own}"
    return headers.get(MSG_ID, "")
