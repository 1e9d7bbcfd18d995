"""Messages from strangers to a running node: each is answered or refused, none misuses it.

Input: messages.  A subject that begins with `@0`, `@1`, … is the address of that stream at the
node, so that frames reach streams which the same input has opened.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from busmicro import Settings
from busmicro.transport import MemoryTransport
from fuzz import messages
from fuzz.messages import Message
from fuzz.replies import KEPT, may_answer, may_publish
from fuzz.served import NODE, UNARY, served
from fuzz.wrong import WrongError, listen_for_complaints, require

_OWN = {b"$JS.API.INFO", b"$JS.API.STREAM.LIST"}
"""What the node asks by itself now and then, with a reply subject of its own."""
_TURNS = 200


service = served(Settings(nats_url="memory://fuzz", max_running=64))


class _Stranger:
    """Sends the messages of an input, and keeps what the node publishes."""

    def __init__(self) -> None:
        self.raw = MemoryTransport(Settings(nats_url="memory://fuzz"))
        self.published: list[tuple[bytes, bytes]] = []
        self.asked: set[bytes] = set()
        self.addresses: list[bytes] = []

    async def start(self) -> None:
        """Begin to listen to what the node publishes."""
        await service.start()
        await self.raw.connect()
        transport = service.bus.transport
        publish = transport.publish

        def watched(
            subject: bytes, payload: bytes, reply: bytes = b"", header: bytes = b""
        ) -> None:
            self.published.append((subject, reply))
            publish(subject, payload, reply, header)

        transport.publish = watched

    async def send(self, message: Message) -> None:
        """Send one message."""
        subject, reply = messages.word(message.subject), messages.word(message.reply)
        number = subject[1:2]
        if subject[:1] == b"@" and number.isdigit() and int(number) < len(self.addresses):
            subject = self.addresses[int(number)] + subject[2:]
        if not subject:
            return
        if reply:
            self.asked.add(reply)
        self.raw.publish(subject, message.payload, reply, message.header)
        await self.let_it_work()

    async def let_it_work(self) -> None:
        """Return when the node has nothing to do but to wait for streams."""
        for _ in range(4):
            await asyncio.sleep(0)
        server = service._running.server
        for _ in range(_TURNS):
            if len(server._running) <= len(service.bus.frames):
                break
            await asyncio.sleep(0)
        else:
            raise WrongError(f"a request does not end: {list(server._running)}")
        self.addresses = [
            reply
            for subject, reply in self.published
            if subject.endswith(b".a") and reply.startswith(b"_INBOX.")
        ]

    async def clean_up(self) -> None:
        """End what is open."""
        service._running.server.end_all()
        for end in tuple(service.bus.frames._ends.values()):
            end.on_closing()
        await self.let_it_work()
        require(not service._running.server._running, "a request has survived its end")
        require(not len(service.bus.frames), "a stream has survived its end")
        require(not service._running.server.callers._streams, "a caller is still counted")
        self.published.clear()
        self.asked.clear()
        self.addresses.clear()


complaints = listen_for_complaints()
loop = asyncio.new_event_loop()
stranger = _Stranger()
loop.run_until_complete(stranger.start())
complaints.require_none()


def one(data: bytes) -> None:
    """Send the messages of an input, and look at what the node has published."""
    loop.run_until_complete(_one(messages.read(data)[:40]))
    complaints.require_none("busmicro.rpc: reply headers of")  # a header that cannot be sent back


async def _one(given: list[Message]) -> None:
    service.bus.replies_allowed.protect(KEPT)
    for message in given:
        await stranger.send(message)
    asked = stranger.asked
    own = service.bus.replies.inbox.encode() + b"."
    for subject, reply in stranger.published:
        if reply.startswith(own) and subject in _OWN:
            continue
        require(may_publish(subject, asked), "published where it must not", subject, asked)
    _require_answers(given)
    await stranger.clean_up()


def _require_answers(given: list[Message]) -> None:
    """See that whoever may be answered was, once."""
    owed: Counter[bytes] = Counter()
    unclear: set[bytes] = set()
    for message in given:
        subject, reply = messages.word(message.subject), messages.word(message.reply)
        if subject == b"cancel.fuzz":
            unclear.add(message.payload)
        elif subject.decode("latin-1") in _CALLS and may_answer(reply):
            owed[reply] += 1
        elif reply:
            unclear.add(reply)
    got = Counter(subject for subject, _reply in stranger.published)
    for reply, number in owed.items():
        if reply not in unclear:
            answers = got[reply]
            require(answers == number, "answers and requests", reply, answers, number)


_CALLS = {
    where.format(name) for where in ("rpc.fuzz.{}", f"node.fuzz.{NODE}.{{}}") for name in UNARY
}
