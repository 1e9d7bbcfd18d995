r"""The header block of an event: CloudEvents 1.0 in binary mode, for what a stream keeps.

A durable event is a CloudEvent whose attributes are headers and whose data is the payload, so that
any CloudEvents SDK can read it::

    NATS/1.0\r\n
    Content-Type: application/json\r\n
    ce-specversion: 1.0\r\n
    ce-datacontenttype: application/json\r\n
    ce-type: OrderPaid\r\n
    ce-source: /orders/orders.paid\r\n                  producer, then subject
    ce-id: 17\r\n
    ce-time: 2026-01-01T12:00:00.000000Z\r\n
    Nats-Msg-Id: orders:orders.paid:17\r\n
    \r\n

JetStream recognises duplicates by `Nats-Msg-Id`, for a whole stream and not for a subject; so the
subject is part of it.  An event without a stream carries a content type if it is not JSON, and
nothing else.

Source: CloudEvents 1.0.2, and the binary mode of the draft of its NATS binding; ADR 0012.
"""

from __future__ import annotations

import itertools
import re
import secrets
from typing import Final
from urllib.parse import quote

from busmicro.clock import Stamps
from busmicro.codecs import JSON
from busmicro.errors import InvalidArgument
from busmicro.headers import (
    CE_ID,
    CE_SOURCE,
    CE_TIME,
    CE_TYPE,
    CONTENT_TYPE,
    MSG_ID,
    VERSION_LINE,
    encode_line,
    encode_text,
)

_LONGEST_ID: Final = 512
_SAFE: Final = "!#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
_PLAIN: Final = re.compile(r"[!#$&-~]*")
"""What needs no percent-encoding: printable ASCII but blank, double quote and percent."""


class Ids:
    """Ids for events whose author gives none: unlike any other's, and cheap."""

    def __init__(self) -> None:
        self._prefix = ""
        self._numbers = itertools.count(1)

    def next(self) -> str:
        """Return an id that was not used before."""
        if not self._prefix:  # on first use, not before: a forked child must not share it
            self._prefix = secrets.token_hex(8)
        return f"{self._prefix}-{next(self._numbers):x}"


def clean_id(id: str) -> str:
    """Return an id as it stands in headers.

    Raises:
        InvalidArgument: It is empty or too long, or Unicode does not know it.
    """
    if not 0 < len(id) <= _LONGEST_ID:
        raise InvalidArgument(f"id {id[:40]!r}: say 1 to {_LONGEST_ID} characters", not_run=True)
    try:
        return _clean(id)
    except UnicodeEncodeError as wrong:
        text = f"id {id[:40]!r}: it has half of a character that Unicode writes in two"
        raise InvalidArgument(text, not_run=True) from wrong


def _clean(text: str) -> str:
    """Percent-encode what a CloudEvents attribute must not hold in a header."""
    return text if _PLAIN.fullmatch(text) else quote(text, safe=_SAFE)


def core_lines(content_type: str) -> bytes:
    """Return the fixed lines of an event that no stream keeps."""
    return b"" if content_type == JSON else encode_line(CONTENT_TYPE, content_type)


def durable_lines(content_type: str, event_type: str) -> bytes:
    """Return those lines of a durable event's block that are the same for every event."""
    return (
        encode_line(CONTENT_TYPE, content_type)
        + encode_line("ce-specversion", "1.0")
        + encode_line("ce-datacontenttype", content_type)
        + encode_line(CE_TYPE, encode_text(event_type))
    )


class Envelope:
    """Writes the header blocks of durable events on one subject.

    Args:
        fixed: What `durable_lines` returned.
        producer: Who publishes.
        subject: Where, without the namespace.
    """

    def __init__(self, fixed: bytes, producer: str, subject: str) -> None:
        where = _clean(subject)
        source = f"{CE_SOURCE}: /{producer}/{where}\r\n{CE_ID}: "
        self._start = VERSION_LINE + fixed + source.encode()
        self._time = f"\r\n{CE_TIME}: "
        # what follows a colon of the subject could be the beginning of another's id
        apart = where.replace(":", "%3A")
        self._message_id = f"\r\n{MSG_ID}: {producer}:{apart}:"

    def block(self, id: str) -> bytes:
        """Write the block of the event with this clean id, without its closing blank line."""
        rest = f"{id}{self._time}{_stamps.now()}{self._message_id}{id}\r\n"
        return self._start + rest.encode()


_stamps: Final = Stamps()
