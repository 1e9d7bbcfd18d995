"""Dead letters: events that could not be handled, why, and the way back.

A dead letter is a copy of the event, with its own headers, in a stream that all consumers share,
on ``dlq.<stream>.<consumer>``.  The copy is stored before the event is given up, and its id is that
of the event for this consumer, so a crash between the two leaves one copy, not two, and never none.

When the stream is full it refuses: events then stay where they are and are tried again.
"""

from __future__ import annotations

import builtins
from collections import deque
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

from pydantic_core import PydanticSerializationError, from_json, to_json

from busmicro.bus import Bus
from busmicro.call import Call
from busmicro.clock import SYSTEM_CLOCK
from busmicro.delivery import Delivery
from busmicro.errors import CallError, FailedPrecondition, Internal, NoResponders, NotFound
from busmicro.headers import (
    MSG_ID,
    TRACE,
    VERSION_LINE,
    Headers,
    decode_text,
    encode_text,
    parse,
)
from busmicro.headers import check as check_header
from busmicro.pubsub.declare import Declarations
from busmicro.pubsub.publisher import Stored
from busmicro.pubsub.stream import Stream
from busmicro.transport import JetStream, StoredMessage, err_code, may_be_named, read_answer

DEAD_LETTERS: Final = Stream(
    "DEAD-LETTERS",
    subjects=["dlq.>"],
    max_age=30 * 86_400.0,
    discard="new",
    dedup_window=3_600.0,
)
"""Where they are kept: 30 days, 1 GiB; when it is full it takes no more, and loses none."""

_PREFIX: Final = "Bus-Dead-"
_NO_MESSAGE: Final = frozenset({10037, 10043, 10057})
_MOST_REASON: Final = 200
_MOST_DETAILS_BYTES: Final = 1024
"""Both fit into the room that publishers leave, `ROOM_FOR_DEAD_LETTER`."""
_PLAIN: Final = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
_TIMEOUT: Final = 10.0
_PAGE: Final = 256
_MOST_DIGITS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An event that could not be handled."""

    number: int
    """Its number among the dead letters."""
    stream: str
    """Where the event was kept, as the server calls it."""
    consumer: str
    """Who could not handle it."""
    subject: str
    """Where it had been published."""
    sequence: int
    """Its number in its stream."""
    code: str
    """How the last attempt ended."""
    reason: str
    """The same, for people."""
    details: builtins.list[object]
    """More of it, such as what did not validate."""
    attempts: int
    """How often it was tried."""
    died: datetime
    """When it was given up, UTC."""
    event_id: str
    """What made it this event."""
    trace_id: str
    """The trace it belongs to; empty if it has none."""
    headers: dict[str, str]
    """Its own headers."""
    payload: bytes
    """Its own payload."""


class DeadLetters:
    """The dead letters of this account and namespace.

    Args:
        bus: The connection.
        declarations: The streams that this process has seen to.
        replicas: On how many servers they have to be: as many as the events that become some, or
            nothing could be given up when one server is down.
    """

    def __init__(
        self, bus: Bus, declarations: Declarations | None = None, *, replicas: int = 1
    ) -> None:
        self._bus = bus
        self._jetstream = JetStream(bus.transport, bus.replies)
        self._declarations = declarations or Declarations(self._jetstream, bus.subjects)
        self._stream = bus.subjects.stream(DEAD_LETTERS.name)
        self._declared = replace(DEAD_LETTERS, replicas=replicas)

    async def prepare(self) -> None:
        """See to it that dead letters can be kept; raises as `Declarations.ensure`."""
        await self._declarations.ensure_stream(self._declared)

    async def bury(self, call: Call, failure: CallError, *, consumer: str, attempts: int) -> Stored:
        """Store a copy of an event that is given up; a second copy of it is not stored.

        Args:
            call: The event, with its delivery.
            failure: Why.
            consumer: Who could not handle it.
            attempts: How often it was tried.

        Returns:
            Where the copy is; a duplicate if it was there before.

        Raises:
            CallError: The copy is not stored, so the event must not be given up.
        """
        delivery = call.delivery
        if delivery is None:
            raise Internal("an event without a stream cannot become a dead letter")
        subject = self._bus.subjects.dead_letters(delivery.stream, consumer)
        block = _block(call, delivery, failure, consumer, attempts)
        await self.prepare()
        try:
            return await self._store(subject, call.payload, block)
        except NoResponders:
            self._declarations.forget(DEAD_LETTERS)  # somebody deleted it
            await self.prepare()
            return await self._store(subject, call.payload, block)

    async def _store(self, subject: str, payload: bytes, block: bytes) -> Stored:
        _header, answer = await self._bus.replies.ask(
            subject.encode(), payload, block, timeout=_TIMEOUT
        )
        fields = read_answer(answer, subject)
        return Stored(
            str(fields.get("stream", "")), int(fields["seq"]), bool(fields.get("duplicate"))
        )

    async def list(
        self, *, stream: str = "", consumer: str = "", most: int = 100
    ) -> builtins.list[DeadLetter]:
        """List dead letters, the oldest first.

        Args:
            stream: Only those of this stream, as the server calls it.
            consumer: Only those of this consumer.
            most: How many at most; the newest are listed.

        Raises:
            CallError: As `JetStream.api`.
        """
        pattern = self._bus.subjects.dead_letters(stream or "*", consumer or "*")
        found: deque[DeadLetter] = deque(maxlen=most)
        number = 1
        while number:
            page, number = await self._page(number, pattern)
            found.extend(page)
        return [*found]

    async def _page(self, number: int, pattern: str) -> tuple[builtins.list[DeadLetter], int]:
        """Read some dead letters from a number on; return them, and where the next begin, or 0."""
        request = {"seq": number, "next_by_subj": pattern, "batch": _PAGE}
        try:
            _status, replies, end = await self._jetstream.get_many(self._stream, request)
        except NoResponders:
            return [], 0  # there never was a dead letter
        page = [_read(_stored(header, payload)) for header, payload in replies]
        more = bool(page) and _number(end.get("Nats-Num-Pending", "")) > 0
        return page, page[-1].number + 1 if more else 0

    async def get(self, number: int) -> DeadLetter:
        """Return one dead letter.

        Raises:
            NotFound: There is none of that number.
        """
        return _read(await self._message(number))

    async def _message(self, number: int) -> StoredMessage:
        try:
            return await self._jetstream.message(self._stream, {"seq": number})
        except NotFound as missing:
            raise NotFound(f"there is no dead letter {number}") from missing

    async def replay(self, number: int) -> Stored:
        """Publish an event again where it was first published, and drop its dead letter.

        Its headers and its identity stay; it gets a new number in its stream. Every group of its
        subject gets it again, not only the one that could not handle it.

        Raises:
            NotFound: There is no such dead letter, or no stream keeps its subject any more. The
                dead letter stays.
            FailedPrecondition: It does not say where it is from. It stays.
            CallError: It was not stored. The dead letter stays.
        """
        letter = await self.get(number)
        if not may_be_named(letter.subject):
            raise FailedPrecondition(
                f"dead letter {number} says it is from {letter.subject!r}, which cannot be",
                not_run=True,
            )
        lines = [(name, value) for name, value in letter.headers.items() if name != MSG_ID]
        died = int(letter.died.timestamp() * 1e6)
        lines.append((MSG_ID, f"replay:{self._stream}:{number}:{died}"))
        block = VERSION_LINE + _lines(lines) + b"\r\n"
        try:
            _header, answer = await self._bus.replies.ask(
                letter.subject.encode(), letter.payload, block, timeout=_TIMEOUT
            )
        except NoResponders as nobody:
            raise NotFound(f"no stream keeps {letter.subject} any more") from nobody
        fields = read_answer(answer, letter.subject)
        await self.drop(number)
        return Stored(
            str(fields.get("stream", "")), int(fields["seq"]), bool(fields.get("duplicate"))
        )

    async def drop(self, number: int) -> None:
        """Delete a dead letter; the event is gone then.

        Raises:
            NotFound: There is none of that number.
        """
        try:
            await self._jetstream.api(f"STREAM.MSG.DELETE.{self._stream}", {"seq": number})
        except CallError as failure:
            if err_code(failure) in _NO_MESSAGE:
                raise NotFound(f"there is no dead letter {number}") from failure
            raise


def _block(
    call: Call, delivery: Delivery, failure: CallError, consumer: str, attempts: int
) -> bytes:
    """Write the header block of a dead letter: the event's own headers, then why it died."""
    own = [(name, value) for name, value in call.headers.items() if not name.startswith("Nats-")]
    details = quote(_written(failure.details), safe=_PLAIN)
    about = {
        "Subject": call.subject,
        "Stream": delivery.stream,
        "Consumer": consumer,
        "Sequence": str(delivery.sequence),
        "Code": failure.code.value,
        "Reason": encode_text(_reason(failure)[:_MOST_REASON]),
        "Details": details if len(details) <= _MOST_DETAILS_BYTES else "",
        "Attempts": str(attempts),
        "Time": SYSTEM_CLOCK.wall().isoformat().replace("+00:00", "Z"),
        "Id": delivery.id,
        "Msg-Id": call.headers.get(MSG_ID, ""),
    }
    lines = [*own, *((_PREFIX + name, value) for name, value in about.items() if value)]
    stored = int(delivery.stored.timestamp() * 1e6)  # numbers begin again in a stream made anew
    lines.append((MSG_ID, f"dlq:{delivery.stream}:{consumer}:{delivery.sequence}:{stored}"))
    return VERSION_LINE + _lines(lines) + b"\r\n"


def _written(details: builtins.list[object]) -> bytes:
    """Write details as JSON; nothing, if they hold themselves or what Unicode does not know."""
    try:
        return to_json(details, fallback=repr, inf_nan_mode="null")
    except PydanticSerializationError:
        return b""


def _reason(failure: CallError) -> str:
    """Say why, for whoever looks after the dead letters: they may know what callers must not."""
    cause = failure.__cause__
    if isinstance(failure, Internal) and cause is not None:
        return f"{type(cause).__name__}: {cause} ({failure.message})"
    return failure.message


def _lines(items: builtins.list[tuple[str, str]]) -> bytes:
    """Write headers as lines; what was received but cannot be sent on is percent-encoded."""
    lines = []
    for name, value in items:
        try:
            check_header(name, value)
            lines.append(f"{name}: {value}\r\n")
        except CallError:
            lines.append(f"{encode_text(name).replace(' ', '')}: {encode_text(value)}\r\n")
    return "".join(lines).encode("ascii", "replace")


def _stored(header: bytes, payload: bytes) -> StoredMessage:
    """Read a message that came directly, with its whereabouts in its headers."""
    fields = parse(header)
    return StoredMessage(
        subject=fields.get("Nats-Subject", ""),
        sequence=_number(fields.get("Nats-Sequence", "")),
        header=header,
        payload=payload,
        stored=fields.get("Nats-Time-Stamp", ""),
    )


def _read(message: StoredMessage) -> DeadLetter:
    fields = Headers(parse(message.header))

    def about(name: str) -> str:
        return fields.get(_PREFIX + name, "")

    words = message.subject.split(".")
    trace = fields.get(TRACE[0], "").split("-")
    return DeadLetter(
        number=message.sequence,
        stream=about("Stream") or words[-2:][0],
        consumer=about("Consumer") or words[-1],
        subject=about("Subject"),
        sequence=_number(about("Sequence")),
        code=about("Code"),
        reason=decode_text(about("Reason")),
        details=_details(about("Details")),
        attempts=_number(about("Attempts")),
        died=_moment(about("Time") or message.stored),
        event_id=about("Id"),
        trace_id=trace[1] if len(trace) == 4 else "",
        headers={
            name: value for name, value in fields.items() if not name.startswith((_PREFIX, "Nats-"))
        },
        payload=message.payload,
    )


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else 0


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _details(text: str) -> builtins.list[object]:
    try:
        details = from_json(decode_text(text)) if text else []
    except ValueError:
        return [decode_text(text)]
    return details if isinstance(details, list) else [details]
