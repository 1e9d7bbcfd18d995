"""Many events at once: as many as come, or all or none.

Source: NATS ADR-50 (atomic batches).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any, Final, TypeVar, cast

from busmicro.call import Call
from busmicro.errors import AlreadyExists, CallError, InvalidArgument, NotSupported, PublishUnknown
from busmicro.pubsub.declare import BATCH_LEVEL
from busmicro.pubsub.envelope import clean_id
from busmicro.pubsub.pipeline import Pipeline, StoredMany
from busmicro.pubsub.publisher import Outlet, Publisher, Stored
from busmicro.pubsub.topic import Topic
from busmicro.transport import err_code

T = TypeVar("T")

MOST_IN_BATCH: Final = 1000
MOST_IN_FLIGHT: Final = 100_000
_DUPLICATE_IN_BATCH: Final = 10201
_PAUSE: Final = 0.5


async def publish_many(
    publisher: Publisher,
    topic: Topic[T],
    events: Iterable[T] | AsyncIterable[T],
    *,
    id_of: Callable[[T], str] | None,
    in_flight: int,
    atomic: bool,
    timeout: float,
) -> StoredMany:
    """Publish many events; see `Client.publish_many`."""
    if topic.stream is None:
        raise InvalidArgument(f"topic {topic.subject} has no stream: use publish", not_run=True)
    if not 1 <= in_flight <= MOST_IN_FLIGHT:
        raise InvalidArgument(f"in_flight={in_flight}: say 1 to {MOST_IN_FLIGHT:,}", not_run=True)
    outlet = publisher.outlet(topic)
    subject = outlet.subject_of(topic)

    async def send(call: Call) -> object:
        lines = outlet.lines_of(call)
        if atomic:
            chosen = await _chosen(publisher, outlet, events, id_of)
            return await publish_atomic(
                publisher, outlet, subject, chosen, timeout=timeout, lines=lines
            )
        pipeline = Pipeline(
            publisher,
            outlet,
            subject,
            in_flight=in_flight,
            timeout=outlet.patience(timeout),
            lines=lines,
        )
        return await pipeline.run(events, id_of)

    return cast("StoredMany", await publisher.through_wrappers(outlet, subject, events, send))


async def _chosen(
    publisher: Publisher,
    outlet: Outlet[T],
    events: Iterable[T] | AsyncIterable[T],
    id_of: Callable[[T], str] | None,
) -> list[tuple[str, bytes]]:
    """Return id and payload of each event of an atomic batch."""
    chosen: list[tuple[str, bytes]] = []
    async for event in _each(events):
        event_id = publisher.ids.next() if id_of is None else clean_id(id_of(event))
        chosen.append((event_id, outlet.encode(event)))
        if len(chosen) > MOST_IN_BATCH:
            raise InvalidArgument(
                f"an atomic batch has at most {MOST_IN_BATCH:,} events", not_run=True
            )
    return chosen


async def _each(events: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(events, AsyncIterable):
        async for event in events:
            yield event
        return
    for event in events:
        yield event


async def publish_atomic(
    publisher: Publisher,
    outlet: Outlet[Any],
    subject: bytes,
    events: list[tuple[str, bytes]],
    *,
    timeout: float,
    lines: bytes = b"",
) -> StoredMany:
    """Store all of some events or none of them.

    Args:
        publisher: Whose events.
        outlet: Their topic, as its publisher sees it.
        subject: Where to.
        events: Id and payload of each, at most 1,000.
        timeout: Seconds to try.
        lines: Header lines that every event gets.

    Raises:
        NotSupported: The server is older than 2.12.
        PublishUnknown: The time is up and all may be stored, or none.
        CallError: None was stored.

    Source: NATS ADR-50.
    """
    timeout = outlet.patience(timeout)
    deadline = asyncio.get_running_loop().time() + timeout
    if await publisher.declarations.level(patience=timeout) < BATCH_LEVEL:
        raise NotSupported("publish_many(atomic=True)", "2.12")
    if not events:
        return StoredMany(0)
    unsure = False
    while True:
        try:
            # it may have been deleted meanwhile
            await publisher.declarations.ensure(outlet.topic, deadline=deadline)
            return await _one_batch(publisher, outlet, subject, events, deadline, lines)
        except CallError as failure:
            if err_code(failure) == _DUPLICATE_IN_BATCH:
                if unsure:  # an earlier try has got through
                    return StoredMany(len(events), duplicates=len(events))
                raise AlreadyExists(
                    "an event of this batch is stored already, by its id; an atomic batch takes "
                    "none that is, so none was stored",
                    not_run=True,
                ) from failure
            unsure = unsure or not failure.not_run
            await _require_hope(outlet, failure, deadline, timeout)
        await asyncio.sleep(_PAUSE)


async def _require_hope(
    outlet: Outlet[Any], failure: CallError, deadline: float, timeout: float
) -> None:
    """Raise what ends the batch, unless another try may go better."""
    refusal = await outlet.refusal(failure)
    if refusal is not None:
        raise refusal from failure
    if asyncio.get_running_loop().time() + 2 * _PAUSE < deadline:
        return
    if failure.not_run:
        raise failure
    raise PublishUnknown(outlet.topic.subject, "of a batch", timeout) from failure


async def _one_batch(
    publisher: Publisher,
    outlet: Outlet[Any],
    subject: bytes,
    events: list[tuple[str, bytes]],
    deadline: float,
    lines: bytes,
) -> StoredMany:
    """Send a batch; the last event carries the commit, and its answer is that of them all."""
    batch = secrets.token_hex(8)
    transport = publisher.bus.transport
    replies = publisher.bus.replies
    envelope = outlet.envelope(subject)
    stored = Stored("", 0)
    for number, (event_id, payload) in enumerate(events, 1):
        last = number == len(events)
        place = f"Nats-Batch-Id: {batch}\r\nNats-Batch-Sequence: {number}\r\n"
        if last:
            place += "Nats-Batch-Commit: 1\r\n"
        block = envelope.block(event_id) + place.encode() + lines + b"\r\n"
        outlet.check_size(payload, block)
        if not last and number > 1:
            transport.publish(subject, payload, b"", block)
            continue
        _header, answer = await replies.request(subject, payload, block, deadline=deadline)
        if last or answer:  # the first one is answered with nothing if the batch may go on
            stored = outlet.stored(answer, subject)
    return StoredMany(len(events), 0, stored.sequence)
