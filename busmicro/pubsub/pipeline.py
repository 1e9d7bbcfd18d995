"""Many events at once: so many under way that the server never waits, each with its own answer.

`publish` waits for one acknowledgement before its caller goes on; that is a round trip an event.
Here a window of events is under way, each answered on its own token, and no future or task belongs
to any of them; that is what makes it 2 to 3 times as quick as a future each
(`benchmarks/events.py`).

What goes unanswered is sent again with the same id, so nothing is stored twice; what is refused
for good stops the rest.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import AsyncIterable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from busmicro.errors import (
    CallError,
    Disconnected,
    NoResponders,
    NotAllPublished,
    PermissionDenied,
    PublishUnknown,
)
from busmicro.headers import NO_RESPONDERS
from busmicro.pubsub.envelope import clean_id
from busmicro.pubsub.publisher import Outlet, Publisher
from busmicro.tasks import Tasks
from busmicro.transport import Subscription, require_allowed

log = logging.getLogger("busmicro.events")

T = TypeVar("T")

_AGAIN_AFTER: Final = 2.0
_LOOK_EVERY: Final = 0.25


@dataclass(frozen=True, slots=True)
class StoredMany:
    """The word that many events are kept."""

    count: int
    """How many."""
    duplicates: int = 0
    """Of these, how many were there already, by their ids."""
    last_sequence: int = 0
    """The highest of their numbers in the stream."""


@dataclass(slots=True)
class _Sent:
    """One event that is under way."""

    index: int
    id: str
    payload: bytes
    block: bytes
    deadline: float
    again_at: float
    unsure: bool = False


@dataclass(slots=True)
class _Tally:
    """What has become of the events so far."""

    count: int = 0
    duplicates: int = 0
    last_sequence: int = 0
    failures: dict[int, CallError] = field(default_factory=dict)


class Pipeline(Generic[T]):
    """One `publish_many`: used once.

    Args:
        publisher: Whose events.
        outlet: Their topic, as its publisher sees it.
        subject: Where to.
        in_flight: How many may be under way.
        timeout: Seconds to try each.
        lines: Header lines that every event gets.
    """

    def __init__(
        self,
        publisher: Publisher,
        outlet: Outlet[T],
        subject: bytes,
        *,
        in_flight: int,
        timeout: float,
        lines: bytes = b"",
    ) -> None:
        self._bus = publisher.bus
        self._publisher = publisher
        self._outlet = outlet
        self._subject = subject
        self._envelope = outlet.envelope(subject)
        self._block_end = lines + b"\r\n"
        self._usual = outlet.usual_ack
        self._in_flight = in_flight
        self._timeout = timeout
        self._inbox = f"{publisher.bus.replies.inbox}.many.{secrets.token_hex(4)}."
        self._token_at = len(self._inbox)
        self._prefix = self._inbox.encode()
        self._tokens = itertools.count()
        self._sent: dict[bytes, _Sent] = {}
        self._refused: dict[bytes, CallError] = {}
        self._tally = _Tally()
        self._moved = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._spent = 0.0

    async def run(
        self, events: Iterable[T] | AsyncIterable[T], id_of: Callable[[T], str] | None
    ) -> StoredMany:
        """Publish all of them; see `Client.publish_many`."""
        transport = self._bus.transport
        subscription = transport.subscribe(f"{self._inbox}*", self._on_answer)
        transport.listen(self)
        tasks = Tasks()
        try:
            began = self._loop.time()
            await self._prepare(subscription)
            self._spent = self._loop.time() - began  # of the time of those that waited for it
            tasks.spawn(self._look_after(), name="publish_many")
            await self._send_all(events, id_of)
            while self._sent:
                await self._move()
        finally:
            transport.unlisten(self)
            transport.unsubscribe(subscription)
            await tasks.cancel()
        tally = self._tally
        if tally.failures:
            raise NotAllPublished(tally.count, tally.failures)
        return StoredMany(tally.count, tally.duplicates, tally.last_sequence)

    async def _prepare(self, subscription: Subscription) -> None:
        """See to answers and stream; what cannot be seen to now is when it is missed.

        Raises:
            CallError: What is in the way for good. Nothing was sent.
        """
        try:
            soon = self._loop.time() + self._timeout / 2
            await self._bus.transport.barrier(timeout=min(1.0, self._timeout / 2))
            require_allowed(subscription)
            await self._publisher.declarations.ensure(self._outlet.topic, deadline=soon)
        except CallError as failure:
            refusal = await self._outlet.refusal(failure)
            if refusal is not None:
                raise refusal from failure
            log.debug("publishing to %s all the same: %s", self._outlet.topic.subject, failure)

    async def _send_all(
        self, events: Iterable[T] | AsyncIterable[T], id_of: Callable[[T], str] | None
    ) -> None:
        index = 0
        if isinstance(events, AsyncIterable):
            async for event in events:
                await self._room()
                if self._tally.failures:
                    return
                self._send_first(index, event, id_of)
                index += 1
            return
        for event in events:
            if len(self._sent) >= self._in_flight or not self._bus.transport.writable:
                await self._room()
            if self._tally.failures:
                return
            self._send_first(index, event, id_of)
            index += 1

    async def _room(self) -> None:
        self._spent = 0.0
        while len(self._sent) >= self._in_flight and not self._tally.failures:
            await self._move()
        if not self._bus.transport.writable:
            await self._bus.transport.drained()

    async def _move(self) -> None:
        """Wait until an answer or a deadline has come."""
        self._moved.clear()
        await self._moved.wait()

    def _send_first(self, index: int, event: T, id_of: Callable[[T], str] | None) -> None:
        outlet = self._outlet
        try:
            event_id = self._publisher.ids.next() if id_of is None else clean_id(id_of(event))
            payload = outlet.encode(event)
            block = self._envelope.block(event_id) + self._block_end
            outlet.check_size(payload, block)
        except CallError as wrong:
            self._tally.failures[index] = wrong
            return
        now = self._loop.time()
        deadline = now + max(0.0, self._timeout - self._spent)
        sent = _Sent(index, event_id, payload, block, deadline, now + _AGAIN_AFTER)
        token = b"%x" % next(self._tokens)
        self._sent[token] = sent
        self._send(token, sent)

    def _send(self, token: bytes, sent: _Sent) -> None:
        transport = self._bus.transport
        try:
            if not transport.connected:
                return  # `_look_after` sends it when the connection is back
            transport.publish(self._subject, sent.payload, self._prefix + token, sent.block)
            sent.unsure = True
        except CallError as refused:
            self._refused[token] = refused

    # --- answers --------------------------------------------------------------------------------

    def _on_answer(self, subject: bytes, _reply: bytes, header: bytes, payload: bytes) -> None:
        token = subject[self._token_at :]
        if token not in self._sent:
            return  # answered before: it had been sent twice
        number = payload[len(self._usual) : -1]
        if payload.startswith(self._usual) and number.isdigit():
            self._done(token, int(number), duplicate=False)
        elif not payload and header.startswith(NO_RESPONDERS):
            self._refused[token] = NoResponders(self._subject.decode())
        else:
            self._read(token, payload)
        if not self._moved.is_set():
            self._moved.set()

    def _read(self, token: bytes, payload: bytes) -> None:
        try:
            stored = self._outlet.stored(payload, self._subject)
        except CallError as refused:
            self._refused[token] = refused
        else:
            self._done(token, stored.sequence, duplicate=stored.duplicate)

    def _done(self, token: bytes, sequence: int, *, duplicate: bool) -> None:
        del self._sent[token]
        tally = self._tally
        tally.count += 1
        tally.duplicates += duplicate
        tally.last_sequence = max(tally.last_sequence, sequence)

    # --- Listener -------------------------------------------------------------------------------

    def on_connected(self) -> None:
        """Send again at once what the lost connection may have swallowed."""
        for sent in self._sent.values():
            sent.again_at = 0.0

    def on_disconnected(self) -> None:
        """Wait: what is under way is sent again when the connection is back."""

    def on_publish_denied(self, subject: str) -> None:
        """Give up: the server does not permit this subject."""
        if subject.casefold() != self._subject.decode().casefold():
            return
        for token in tuple(self._sent):
            self._give_up(
                token,
                PermissionDenied(f"NATS does not permit publishing to {subject}", not_run=True),
            )

    # --- what goes unanswered -------------------------------------------------------------------

    async def _look_after(self) -> None:
        """Decide what becomes of what was refused or has gone unanswered."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            refused, self._refused = self._refused, {}
            for token, failure in refused.items():
                await self._decide(token, failure)
            self._chase()

    async def _decide(self, token: bytes, failure: CallError) -> None:
        sent = self._sent.get(token)
        if sent is None:
            return
        refusal = await self._outlet.refusal(failure)
        if refusal is None:
            sent.again_at = 0.0  # it may be taken in a moment
            try:
                await self._publisher.declarations.ensure(self._outlet.topic)
            except CallError as conflict:
                refusal = await self._outlet.refusal(conflict)
        if refusal is not None:
            self._give_up(token, refusal)

    def _give_up(self, token: bytes, failure: CallError) -> None:
        sent = self._sent.pop(token)
        self._tally.failures[sent.index] = failure
        self._moved.set()

    def _chase(self) -> None:
        """Send again what was not answered in time; give up what has been tried for long enough."""
        now = self._loop.time()
        for token, sent in tuple(self._sent.items()):
            if now >= sent.deadline:
                self._give_up(token, self._unknown(sent))
            elif now >= sent.again_at and self._bus.transport.connected:
                sent.again_at = now + _AGAIN_AFTER
                self._send(token, sent)

    def _unknown(self, sent: _Sent) -> CallError:
        if not sent.unsure:
            return Disconnected("not connected to NATS", not_run=True)
        return PublishUnknown(self._subject.decode(), sent.id, self._timeout)
