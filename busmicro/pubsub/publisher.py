"""The publisher's end of an event.

An event's way: `Publisher.publish` → the composed wrappers → `Outlet.send`: encode, stamp headers
→ the subject.  Without a stream that is all.  With one, `store` waits for the acknowledgement and
tries again, with the same id, until it is there, until the server says no for good, or until the
time is up; then nobody knows, and `PublishUnknown` says so.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast

from busmicro.bus import Bus
from busmicro.call import Call, Handler, Kind, Side, Spec, Wrapper, compose, current_call
from busmicro.clock import SYSTEM_CLOCK
from busmicro.codecs import Coder
from busmicro.errors import (
    CallError,
    Code,
    CodecError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NoJetStream,
    NoResponders,
    PayloadTooLarge,
    PermissionDenied,
    PublishUnknown,
    StreamFull,
    StreamMissing,
    Unavailable,
)
from busmicro.headers import (
    CE_ID,
    CE_SOURCE,
    CE_TIME,
    CE_TYPE,
    CONTENT_TYPE,
    MSG_ID,
    VERSION_LINE,
    Headers,
    encode_lines,
)
from busmicro.pubsub.declare import Declarations
from busmicro.pubsub.envelope import Envelope, Ids, clean_id, core_lines, durable_lines
from busmicro.pubsub.schedule import check_moment, schedule_lines
from busmicro.pubsub.topic import Topic
from busmicro.transport import JetStream, err_code, matches, read_answer

T = TypeVar("T")

DEFAULT_TIMEOUT: Final = 15.0
"""A new leader of a stream on three servers is found within 5 to 8 seconds."""
_ATTEMPT: Final = 2.0
_TELLING: Final = 2
"""Attempts without an answer that may be more than bad luck."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
ROOM_FOR_DEAD_LETTER: Final = 4096
"""Bytes that a durable event leaves free, so that its copy among the dead letters, which says why
it died, is not too large."""
_MOST_OUTLETS: Final = 10_000
_FURTHEST: Final = 3_650 * 86_400.0
_TOO_MANY_REQUESTS: Final = 10167
_STORE_FAILED: Final = 10077
_IN_PROCESS: Final = 10158
"""An attempt before this one, with the same id, is still on its way through the cluster."""
_NO_SPACE: Final = frozenset({10023, 10047})


@dataclass(frozen=True, slots=True)
class Stored:
    """The word that an event is kept."""

    stream: str
    """Where, as the server calls it."""
    sequence: int
    """Its number there."""
    duplicate: bool = False
    """Was an event with this id there already? Then this one was not stored once more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishOptions:
    """What a publisher says of one event."""

    id: str = ""
    """What makes it this event; empty for an id of its own."""
    at: datetime | None = None
    """When it shall be published; None for now."""
    timeout: float = DEFAULT_TIMEOUT
    """Seconds to try."""


class _Done(Coroutine[object, object, None]):
    """What publishing without a stream returns when nothing has to be waited for.

    A coroutine for `await`, `create_task` and `gather` alike, but one for all: it has no state.
    """

    __slots__ = ()

    def send(self, _value: object, /) -> object:
        """End at once."""
        raise StopIteration

    def throw(self, *error: Any) -> object:
        """End with the error."""
        raise error[0]

    def close(self) -> None:
        """Do nothing: there is nothing to end."""

    def __await__(self) -> Generator[object, None, None]:
        return iter(())  # type: ignore[return-value]


DONE: Final = _Done()
SendPlain: TypeAlias = Callable[[object, Mapping[str, str] | None], Awaitable[object]]


_OWN: Final = frozenset(
    name.casefold() for name in (CONTENT_TYPE, MSG_ID, CE_ID, CE_SOURCE, CE_TYPE, CE_TIME)
) | {"ce-specversion", "ce-datacontenttype"}


@lru_cache(maxsize=1024)
def _is_own(name: str) -> bool:
    return name.casefold() in _OWN


def _refuse_own(headers: Iterable[str]) -> None:
    """Refuse headers that would stand there twice."""
    for name in headers:
        if _is_own(name):
            raise InvalidArgument(
                f"header {name} is written by busmicro: say id=, or content_type= of the topic",
                not_run=True,
            )


def _unfit(wrong: CodecError) -> InvalidArgument:
    return InvalidArgument(str(wrong), details=wrong.details, not_run=True)


class Publisher:
    """Publishes the events of one service or client.

    Args:
        bus: The connection.
        wrappers: Put around every event, the first one outermost.
        producer: Who publishes, as CloudEvents and JetStream see it.
    """

    def __init__(self, bus: Bus, *, wrappers: Sequence[Wrapper], producer: str) -> None:
        self.bus = bus
        self.producer = producer or "client"
        self.declarations = Declarations(JetStream(bus.transport, bus.replies), bus.subjects)
        """The streams that this process has seen to."""
        self.ids = Ids()
        self._wrappers = tuple(wrappers)
        self._service = producer
        self._outlets: dict[int, Outlet[Any]] = {}
        self.plain: dict[int, SendPlain] = {}
        """By topic: how to publish where nothing wraps an event and no stream keeps it."""

    def outlet(self, topic: Topic[T]) -> Outlet[T]:
        """Return what is fixed for a topic, made on first use."""
        outlet = self._outlets.get(id(topic.family))
        if outlet is None:
            if len(self._outlets) >= _MOST_OUTLETS:  # somebody makes a topic for every event
                self._outlets.clear()
                self.plain.clear()
            outlet = Outlet(self, topic.family, self._service, self._wrappers)
            self._outlets[id(topic.family)] = outlet  # it holds the topic, so the id stays its own
            if outlet.subject and outlet.stream is None and not self._wrappers:
                self.plain[id(topic.family)] = outlet.plain()
        return outlet

    def publish(
        self,
        topic: Topic[T],
        event: T,
        options: PublishOptions | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Awaitable[object]:
        """Publish one event through the wrappers; see `Client.publish`."""
        outlet = self.outlet(topic)
        call = Call(
            outlet.spec,
            event,
            headers=Headers(headers) if headers else None,
            subject=outlet.subject_of(topic),
        )
        parent = current_call()
        if parent is not None:
            parent.pass_on_trace(call)
        if outlet.stream is None:
            if options is not None and (options.at is not None or options.id):
                raise InvalidArgument(
                    f"topic {topic.subject} has no stream: id=, at= and after= need one",
                    not_run=True,
                )
            return outlet.chain(call)
        return outlet.chain_for(options or PublishOptions())(call)

    async def through_wrappers(
        self, outlet: Outlet[Any], subject: bytes, message: object, send: Handler
    ) -> object:
        """Publish many events as one exchange: the wrappers see it once, from end to end."""
        call = Call(outlet.spec, message, subject=subject)
        parent = current_call()
        if parent is not None:
            parent.pass_on_trace(call)
        return await compose(self._wrappers, send)(call)


class Outlet(Generic[T]):
    """A topic as its publisher sees it: everything about it that no event changes."""

    def __init__(
        self, publisher: Publisher, topic: Topic[T], service: str, wrappers: Sequence[Wrapper]
    ) -> None:
        self.topic = topic
        self.stream = topic.stream
        self.spec = Spec(service=service, endpoint=topic.subject, kind=Kind.EVENT, side=Side.CLIENT)
        self._publisher = publisher
        self._bus = publisher.bus
        self._wrappers = wrappers
        self._prefix = publisher.bus.subjects.prefix
        self.subject = b""
        """Where its events go, if that is one subject."""
        if topic.is_concrete:
            self.subject = self.subject_of(topic)
        coder: Coder = topic.coder
        self._encode = coder.encode
        self.fixed = (
            core_lines(coder.content_type)
            if self.stream is None
            else durable_lines(coder.content_type, topic.event_type)
        )
        self._core_block = VERSION_LINE + self.fixed + b"\r\n" if self.fixed else b""
        self._envelope: Envelope | None = None
        self._stream_name = publisher.bus.subjects.stream(topic.stream.name) if topic.stream else ""
        self.usual_ack = b'{"stream":"%b","seq":' % self._stream_name.encode()
        """How an acknowledgement begins that says nothing but the number."""
        self.chain: Handler = compose(wrappers, self._send)

    def subject_of(self, topic: Topic[T]) -> bytes:
        """Return where events of this topic go.

        Raises:
            InvalidArgument: That is not one subject.
        """
        if topic is self.topic and self.subject:
            return self.subject
        topic.require_concrete()
        return f"{self._prefix}{topic.subject}".encode()

    def chain_for(self, options: PublishOptions) -> Handler:
        """Return the chain that stores an event with these options."""

        async def store(call: Call) -> object:
            return await self._store(call, options)

        return compose(self._wrappers, store) if self._wrappers else store

    def encode(self, event: object) -> bytes:
        """Turn an event into bytes.

        Raises:
            InvalidArgument: It is not what the topic's events are.
        """
        try:
            return self._encode(event)
        except CodecError as wrong:
            raise _unfit(wrong) from wrong

    async def _send(self, call: Call) -> object:
        """Publish an event that no stream keeps; the innermost of its chain."""
        payload = self.encode(call.message)
        transport = self._bus.transport
        if not transport.writable:
            await transport.drained()
        given = call.headers.items_by_name if call.has_headers else None
        transport.publish(call.subject_bytes, payload, b"", self._block_of(given))
        return None

    def plain(self) -> SendPlain:
        """Return a function that publishes an event where there is nothing to do but to encode.

        No wrappers, no call being served, room on the connection: then nothing has to be waited
        for, and there is nobody to make a `Call` for. That saves half of the cost.
        """
        transport, encode, subject = self._bus.transport, self._encode, self.subject
        usual, block_of = self._core_block, self._block_of

        def send(event: object, headers: Mapping[str, str] | None) -> Awaitable[object]:
            if current_call() is not None or not transport.writable:
                return self._publisher.publish(self.topic, cast("T", event), None, headers)
            try:
                payload = encode(event)
            except CodecError as wrong:
                raise _unfit(wrong) from wrong
            transport.publish(subject, payload, b"", block_of(headers) if headers else usual)
            return DONE

        return send

    def _block_of(self, headers: Mapping[str, str] | None) -> bytes:
        """Write the header block of a core event."""
        if not headers:
            return self._core_block
        _refuse_own(headers)
        return b"%b%b%b\r\n" % (VERSION_LINE, self.fixed, encode_lines(headers.items()))

    async def _store(self, call: Call, options: PublishOptions) -> Stored:
        """Publish an event that a stream keeps; the innermost of its chain."""
        deadline = asyncio.get_running_loop().time() + self.patience(options.timeout)
        subject = call.subject_bytes
        event_id = clean_id(options.id) if options.id else self._publisher.ids.next()
        block = self.envelope(subject).block(event_id)
        payload = self.encode(call.message)
        block += self.lines_of(call)
        if options.at is not None:
            subject, lines = await self._schedule(subject, event_id, options.at)
            block += lines
        return await self.store(subject, payload, block + b"\r\n", event_id, deadline)

    def lines_of(self, call: Call) -> bytes:
        """Write the headers that the publisher adds.

        Raises:
            InvalidArgument: One of them is written by busmicro itself.
        """
        if not call.has_headers:
            return b""
        given = call.headers.items_by_name
        _refuse_own(given)
        return encode_lines(given.items())

    def envelope(self, subject: bytes) -> Envelope:
        """Return what writes the header blocks of durable events on a subject of this topic."""
        if self._envelope is not None and subject == self.subject:
            return self._envelope
        bare = subject[len(self._prefix) :].decode()
        envelope = Envelope(self.fixed, self._publisher.producer, bare)
        if subject == self.subject:
            self._envelope = envelope
        return envelope

    async def _schedule(self, target: bytes, id: str, at: datetime) -> tuple[bytes, bytes]:
        """Return where an event waits for its moment, and the headers that say when that is."""
        level = await self._publisher.declarations.level()
        if self.stream is None:
            raise InvalidArgument(f"topic {self.topic.subject} has no stream", not_run=True)
        if self.stream.discard == "new":
            raise InvalidArgument(
                f"stream {self.stream.name} discards the newest, and nats-server keeps no events "
                "for later in such streams: say discard='old'",
                not_run=True,
            )
        name, lines = schedule_lines(target.decode(), self._publisher.producer, id, at, level)
        return self._bus.subjects.schedule(self.stream.name, name).encode(), lines

    # --- storing --------------------------------------------------------------------------------

    async def store(
        self,
        subject: bytes,
        payload: bytes,
        block: bytes,
        id: str,
        deadline: float,
    ) -> Stored:
        """Publish until it is stored, refused for good, or the deadline has come.

        Raises:
            PublishUnknown: The deadline came and it may or may not be stored.
            StreamMissing, StreamFull, NoJetStream, PayloadTooLarge, PermissionDenied: Not stored.
            Unavailable: The deadline came and it certainly was not stored.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.check_size(payload, block)
        unsure, unanswered = False, 0
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self._attempt(subject, payload, block, deadline)
            except CallError as failure:
                refusal = await self.refusal(failure)
                if refusal is not None:
                    raise refusal from failure
                unsure = unsure or not failure.not_run
                last = failure
            silent = isinstance(last, DeadlineExceeded)
            unanswered += silent
            if silent and unanswered == _TELLING:
                await self._publisher.declarations.tell_of_silence(self._stream_name, deadline)
            wait = pause * (0.5 + random.random() / 2)  # noqa: S311 - jitter
            if loop.time() + wait >= deadline:
                break
            await asyncio.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)
        if unsure:
            raise PublishUnknown(subject.decode(), id, loop.time() - began) from last
        raise last

    async def _attempt(
        self, subject: bytes, payload: bytes, block: bytes, deadline: float
    ) -> Stored:
        """Publish once, to a stream that is there.

        Raises:
            CallError: It is not stored, or nobody knows; `not_run` tells which.
        """
        await self._publisher.declarations.ensure(self.topic, deadline=deadline)
        now = asyncio.get_running_loop().time()
        if now > deadline:
            raise Unavailable(f"stream {self._stream_name} was not there in time", not_run=True)
        _header, answer = await self._bus.replies.request(
            subject, payload, block, deadline=min(deadline, now + _ATTEMPT)
        )
        return self.stored(answer, subject)

    def patience(self, timeout: float) -> float:
        """Return for how long an event may be sent again: no longer than its id is remembered."""
        return timeout if self.stream is None else min(timeout, self.stream.dedup_window)

    def check_size(self, payload: bytes, block: bytes) -> None:
        """Refuse what would be too large as a dead letter.

        Raises:
            PayloadTooLarge: Nothing was sent.
        """
        room = self._bus.transport.max_payload_bytes - ROOM_FOR_DEAD_LETTER
        if len(payload) + len(block) > room:
            raise PayloadTooLarge(len(payload) + len(block), room)

    def stored(self, answer: bytes, subject: bytes) -> Stored:
        """Read an acknowledgement.

        Raises:
            CallError: It is a refusal; nothing was stored.
            FailedPrecondition: Another stream has stored it.
        """
        fields = read_answer(answer, subject.decode())
        stream = str(fields.get("stream", ""))
        if stream != self._stream_name:
            raise FailedPrecondition(
                f"subject {subject.decode()} is kept by stream {stream}, "
                f"not by {self._stream_name} as topic {self.topic.subject} has it"
            )
        return Stored(stream, int(fields.get("seq", 0)), bool(fields.get("duplicate")))

    async def refusal(self, failure: CallError) -> CallError | None:
        """Tell whether trying again is pointless: the error to raise then, else None."""
        if isinstance(failure, NoResponders):
            return await self._why_nobody(failure)
        if isinstance(
            failure, PermissionDenied | PayloadTooLarge | FailedPrecondition | NoJetStream
        ):
            return failure
        number = err_code(failure)
        if number == _STORE_FAILED and "maximum" in failure.message:
            return self._full(failure)
        if number in _NO_SPACE:
            return self._full(failure)
        passing = {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.INTERNAL, Code.UNKNOWN}
        if number in {_TOO_MANY_REQUESTS, _IN_PROCESS} or failure.code in passing:
            # a refusal is certain, unless an attempt before is in process: it may be stored yet
            failure.not_run = failure.not_run or number not in {0, _IN_PROCESS}
            return None
        return failure

    def _full(self, failure: CallError) -> StreamFull:
        limit = failure.message.rpartition(": ")[2].partition(" (")[0]
        return StreamFull(self.stream.name if self.stream else "", limit)

    async def _why_nobody(self, nobody: NoResponders) -> CallError | None:
        """Find out why no stream took an event; None if it may take it in a moment."""
        stream = self.stream
        if stream is None:
            return nobody
        declarations = self._publisher.declarations
        name = self._stream_name
        try:
            if not await declarations.jetstream.available():
                return NoJetStream()
            info = await declarations.find(name)
        except CallError:
            return None  # nobody can tell at the moment
        if not stream.managed:
            return self._unmanaged(nobody, info)
        declarations.forget(stream)  # it was in memory, or somebody deleted it: make it again
        return None

    def _unmanaged(self, nobody: NoResponders, info: Mapping[str, Any] | None) -> CallError | None:
        """Say what is wrong with a stream that is not ours to mend; None if nothing is."""
        if info is None:
            return StreamMissing(self._stream_name)
        kept = info["config"].get("subjects") or []
        if any(matches(pattern, nobody.subject) for pattern in kept):
            return None
        return FailedPrecondition(
            f"stream {self._stream_name} does not keep {nobody.subject}, only {', '.join(kept)}",
            not_run=True,
        )


def moment(after: float | None, at: datetime | None) -> datetime | None:
    """Return when an event shall be published; None for now.

    Raises:
        InvalidArgument: Both are given, `after` is negative, or `at` has no time zone.
    """
    if after is None:
        return None if at is None else check_moment(at)
    if at is not None:
        raise InvalidArgument("say after= or at=, not both", not_run=True)
    if not 0 <= after <= _FURTHEST:
        raise InvalidArgument(f"after={after}: say seconds, 0 to {_FURTHEST:,}", not_run=True)
    return SYSTEM_CLOCK.wall() + timedelta(seconds=after)
