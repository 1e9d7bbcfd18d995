"""What comes where events are awaited: each event is settled, nothing else makes anybody publish.

Input: a digit that says who listens, then messages, sent to where that listener awaits its events.
"""

from __future__ import annotations

import asyncio
import re
from typing import Final

from pydantic import BaseModel

from busmicro import NotFound, Reject, Service, Settings, Stream, Topic
from busmicro.pubsub.declare import Declarations
from busmicro.pubsub.listeners import StreamListener
from busmicro.pubsub.subscriptions import Subscriptions
from busmicro.transport import JetStream, MemoryTransport
from fuzz import messages
from fuzz.clock import leaping
from fuzz.wrong import listen_for_complaints, require

_ORDERS: Final = Stream("ORDERS", subjects=["orders.>"])
_NEXT: Final = re.compile(rb"\$JS\.API\.CONSUMER\.(MSG\.NEXT|INFO)\.ORDERS\.[a-z]+-orders-any-paid")
_NUMBERS: Final = rb"\.[1-9][0-9]{0,19}(?:\.[0-9]{1,20}){4}"
_WORD: Final = rb"[!-\-/-~]+"
_WORDS: Final = re.compile(rb"\+ACK|\+TERM|\+WPI|-NAK( \{\"delay\": ?[0-9]+\})?")
_DEAD: Final = re.compile(rb"dlq\.ORDERS\.[a-z]+-orders-any-paid")
_DELETE: Final = b"$JS.API.STREAM.MSG.DELETE.DEAD-LETTERS"
_GROUPS: Final = ("plain", "keyed", "lists")
_PATIENCE: Final = 2000


def _acks(group: bytes) -> re.Pattern[bytes]:
    consumer = rb"ORDERS\.%b-orders-any-paid%b" % (group, _NUMBERS)
    new = rb"%b\.%b\.%b(\.%b)*" % (_WORD, _WORD, consumer, _WORD)
    return re.compile(rb"\$JS\.ACK\.(?:%b|%b)" % (consumer, new))


_ACKS: Final = {group: _acks(group.encode()) for group in _GROUPS}


class Paid(BaseModel):
    """An event."""

    order: int
    note: str = ""


PAID: Final = Topic("orders.{region}.paid", Paid, stream=_ORDERS)
service = Service("shop", settings=Settings(nats_url="memory://fuzz"))


def _judge(event: Paid) -> None:
    if event.order == 1:
        raise Reject(event.note)
    if event.order == 2:
        raise NotFound(event.note)


@service.subscribe(PAID, group="plain", max_deliver=2, concurrency=2)
async def plain(event: Paid, region: str) -> None:
    """Handle one event."""
    _judge(event if region != "nowhere" else Paid(order=1))


@service.subscribe(PAID, group="keyed", key=lambda event: event.order, max_deliver=3)
async def keyed(event: Paid) -> None:
    """Handle one event of a lane."""
    _judge(event)


@service.subscribe(PAID, group="lists", batch=3)
async def lists(events: list[Paid]) -> None:
    """Handle several."""
    for event in events:
        _judge(event)


class _Server:
    """What the listeners need of JetStream, and what they say to it."""

    def __init__(self) -> None:
        self.raw = MemoryTransport(service.bus.settings)
        self.inboxes: dict[str, bytes] = {}
        self.published: list[tuple[bytes, bytes]] = []
        self.listeners: dict[str, StreamListener] = {}

    async def start(self) -> None:
        """Start the listeners, beside the service's own start, which wants all of JetStream."""
        await self.raw.connect()
        self.raw.subscribe("$JS.API.CONSUMER.MSG.NEXT.>", self._on_next)
        self.raw.subscribe("dlq.>", self._on_stored)
        self.raw.subscribe(_DELETE.decode(), self._on_stored)
        await self.raw.barrier()
        bus = service.bus
        publish = bus.transport.publish

        def watched(
            subject: bytes, payload: bytes, reply: bytes = b"", header: bytes = b""
        ) -> None:
            self.published.append((subject, payload))
            publish(subject, payload, reply, header)

        bus.transport.publish = watched
        declarations = Declarations(JetStream(bus.transport, bus.replies), bus.subjects)
        subscriptions = Subscriptions("shop", service._subscribers, bus, declarations)
        declarations.ensure_stream = _nothing  # type: ignore[method-assign]
        for subscriber in service._subscribers:
            listener = subscriptions._listener(subscriber, ())
            listener._intake.consumer.ensure = _nothing
            await listener.start()
            self.listeners[subscriber.options.group] = listener
        await bus.transport.barrier()

    def _on_next(self, subject: bytes, reply: bytes, _header: bytes, _payload: bytes) -> None:
        consumer = subject.rpartition(b".")[2].decode()
        self.inboxes[consumer.partition("-")[0]] = reply

    def _on_stored(self, _subject: bytes, reply: bytes, _header: bytes, payload: bytes) -> None:
        answer = b'{"stream":"DEAD-LETTERS","seq":1,"duplicate":%b,"success":true}'
        self.raw.publish(reply, answer % (b"true" if b"again" in payload else b"false"))


async def _nothing(*_args: object, **_options: object) -> bool:
    return False


async def _start() -> None:
    subscribers, service._subscribers = service._subscribers, type(service._subscribers)("shop")
    await service.start()
    service._subscribers = subscribers
    global server  # noqa: PLW0603
    server = _Server()
    await server.start()


server: _Server
complaints = listen_for_complaints()
loop = leaping()
loop.run_until_complete(_start())
complaints.require_none()


def one(data: bytes) -> None:
    """Send what an input holds, and see that all of it is settled."""
    if data[:1].isdigit():
        group = _GROUPS[int(data[:1]) % len(_GROUPS)]
        loop.run_until_complete(_one(group, messages.read(data[1:])[:40]))
        complaints.require_none(
            *(f"busmicro.events: {PAID.subject} {name}: an" for name in _GROUPS)
        )


async def _one(group: str, given: list[messages.Message]) -> None:
    inbox, listener = server.inboxes[group], server.listeners[group]
    server.published.clear()
    expected = set()
    for message in given:
        reply = messages.word(message.reply)
        if _ACKS[group].fullmatch(reply):
            expected.add(reply)
        subject = messages.word(message.subject)
        if not PAID.matches(subject.decode("utf-8", "replace")):
            subject = b"orders.eu.paid"  # JetStream delivers what the consumer's filter covers
        pull = listener._intake._pull
        require(pull is not None, "there is no pull")
        pull._on_message(subject, reply, message.header, message.payload)
    for _ in range(_PATIENCE):
        if not len(listener._intake) and not listener.running:
            break
        await asyncio.sleep(0.5)
    require(not len(listener._intake), "an event is never settled", list(listener._intake._held))
    require(inbox.startswith(service.bus.replies.inbox.encode()), "an inbox of somebody else")
    _look(expected)


def _look(expected: set[bytes]) -> None:
    """See what was published, and that nobody is forgotten."""
    settled = set()
    for subject, payload in server.published:
        if subject in expected:
            require(_WORDS.fullmatch(payload), "a word that JetStream does not know", payload)
            settled.add(subject)
            continue
        own = _NEXT.fullmatch(subject) or _DEAD.fullmatch(subject) or subject in _OWN
        require(own, "published where it must not", subject)
    require(expected <= settled, "not settled", expected - settled)


_OWN: Final = {_DELETE, b"$JS.API.INFO", b"$JS.API.STREAM.LIST"}
