r"""Headers: the names on the wire, and a mapping that finds them without regard to case.

A header block is what NATS carries before a payload::

    NATS/1.0\r\n
    Bus-Timeout: 4998\r\n
    traceparent: 00-…\r\n
    \r\n

`Headers` parses a block only when somebody asks, because most handlers never do.

Source: NATS ADR-4 (block, case-preserving names), W3C Trace Context (lower-case names).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from functools import lru_cache
from urllib.parse import quote, unquote

from busmicro.errors import InvalidArgument

CONTENT_TYPE = "Content-Type"
TIMEOUT = "Bus-Timeout"
CALLER = "Bus-Caller"
ATTEMPT = "Bus-Attempt"
STATUS = "Bus-Status"
RETRY_AFTER = "Bus-Retry-After"
NOT_RUN = "Bus-Not-Run"
STREAM = "Bus-Stream"
CHECKSUM = "Bus-Checksum"
ERROR = "Nats-Service-Error"
ERROR_CODE = "Nats-Service-Error-Code"
MSG_ID = "Nats-Msg-Id"
CE_ID = "ce-id"
CE_SOURCE = "ce-source"
CE_TYPE = "ce-type"
CE_TIME = "ce-time"
TRACE = ("traceparent", "tracestate", "baggage")

FIND_TIMEOUT = b"\r\nbus-timeout:"
FIND_CONTENT_TYPE = b"\r\ncontent-type:"
FIND_STREAM = b"\r\nbus-stream:"
FIND_CE_DATA_TYPE = b"\r\nce-datacontenttype:"

VERSION_LINE = b"NATS/1.0\r\n"
NO_RESPONDERS = b"NATS/1.0 503"

_NAME = re.compile(r"[!#-9;-~]+")  # printable ASCII but blank, colon and the double quote
_VALUE = re.compile(r"([!-~]([\t -~]*[!-~])?)?")  # blanks at its ends would not arrive


def check(name: str, value: str) -> None:
    """Refuse a header that would not arrive as it was sent.

    Raises:
        InvalidArgument: The name is not a token, or the value is not printable ASCII, or
            begins or ends with a blank. Nothing was sent.
    """
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"header name {name!r} must be printable ASCII without blanks or colons", not_run=True
        )
    if not _VALUE.fullmatch(value):
        raise InvalidArgument(
            f"the value of header {name} must be printable ASCII without blanks at its ends; "
            "encode it first, for example with urllib.parse.quote",
            not_run=True,
        )


def encode_line(name: str, value: str) -> bytes:
    """Write one header as a line of a block, checked."""
    return _line(name, value).encode("ascii")


def _line(name: str, value: str) -> str:
    start = _start(name)
    if not value.isascii() or not value.isprintable() or " " in value:
        check(name, value)  # takes 0.5 µs longer
    return f"{start}{value}\r\n"


@lru_cache(maxsize=1024)  # names are few; values, such as traces, are not, and may be secrets
def _start(name: str) -> str:
    check(name, "")
    return f"{name}: "


def encode_lines(items: Iterable[tuple[str, str]]) -> bytes:
    r"""Write headers as the lines of a block, checked.

    Args:
        items: Names and values.

    Returns:
        `Name: value\r\n` for each, without the version line and the closing blank line.

    Raises:
        InvalidArgument: A header cannot be sent as it is. Nothing was sent.
    """
    lines = ""
    for name, value in items:  # most often one or two: a list to join would take twice as long
        lines += _line(name, value)
    return lines.encode("ascii")


def encode_text(text: str) -> str:
    """Percent-encode a text for a header value, as gRPC does for its status message."""
    safe = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
    encoded = quote(text[:512], safe=safe, errors="replace")
    if encoded[:1] == " ":  # a blank at an end would not arrive
        encoded = "%20" + encoded[1:]
    return encoded[:-1] + "%20" if encoded[-1:] == " " else encoded


def decode_text(value: str) -> str:
    """Read what `encode_text` wrote; what is not percent-encoded stays as it is."""
    return unquote(value, errors="replace")


def parse(block: bytes) -> dict[str, str]:
    """Read a header block; what is not a header is skipped, never an error.

    Args:
        block: From `NATS/1.0` to the blank line, or empty.

    Returns:
        Name to value in the order of arrival; the last one wins where a name repeats.
    """
    found: dict[str, str] = {}
    for line in block.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            found[name.strip().decode("utf-8", "replace")] = value.strip().decode(
                "utf-8", "replace"
            )
    return found


def find(block: bytes, lowered: bytes, name: bytes) -> bytes:
    """Find one header's value without parsing the rest of the block.

    Args:
        block: The header block.
        lowered: `block.lower()`, made once for several searches.
        name: `FIND_TIMEOUT` or `FIND_CONTENT_TYPE`.

    Returns:
        The value, stripped; empty where the header is missing.
    """
    at = lowered.rfind(name)  # the last one wins, as in `parse`
    if at < 0:
        return b""
    at += len(name)
    end = block.find(b"\r\n", at)
    return block[at : end if end >= 0 else None].strip()


class Headers(MutableMapping[str, str]):
    """Header names and values; `headers["bus-caller"]` finds `Bus-Caller`."""

    __slots__ = ("_block", "_folded", "_items")

    def __init__(self, source: bytes | Mapping[str, str] = b"") -> None:
        self._folded: dict[str, str] | None = None
        if isinstance(source, bytes):
            self._block = source
            self._items: dict[str, str] | None = None
        else:
            self._block = b""
            self._items = dict(source)

    @property
    def items_by_name(self) -> dict[str, str]:
        """The headers as they came, parsed on first use."""
        items = self._items
        if items is None:
            items = self._items = parse(self._block)
        return items

    def copy(self) -> Headers:
        """Make another one; changing it leaves this one alone."""
        other = Headers.__new__(Headers)
        other._block, other._folded = self._block, None
        other._items = None if self._items is None else self._items.copy()
        return other

    def _stored_name(self, name: str) -> str | None:
        items = self.items_by_name
        if name in items:
            return name
        folded = self._folded
        if folded is None:  # not a search each time: a stranger's block may hold 100,000 names
            folded = self._folded = {}
            for stored in items:
                folded.setdefault(stored.casefold(), stored)
        return folded.get(name.casefold())

    def __getitem__(self, name: str) -> str:
        stored = self._stored_name(name)
        if stored is None:
            raise KeyError(name)
        return self.items_by_name[stored]

    def __setitem__(self, name: str, value: str) -> None:
        stored = self._stored_name(name)
        if stored is not None and stored != name:
            del self.items_by_name[stored]
        self.items_by_name[name] = value
        if self._folded is not None:
            self._folded[name.casefold()] = name

    def __delitem__(self, name: str) -> None:
        stored = self._stored_name(name)
        if stored is None:
            raise KeyError(name)
        del self.items_by_name[stored]
        self._folded = None  # another spelling of it may be there

    def __iter__(self) -> Iterator[str]:
        return iter(self.items_by_name)

    def __len__(self) -> int:
        return len(self.items_by_name)

    def __bool__(self) -> bool:
        return bool(self._block if self._items is None else self._items)

    def __repr__(self) -> str:
        return f"Headers({list(self.items_by_name)})"
