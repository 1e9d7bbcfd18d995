"""What a hostile service answers: a call or a stream ends, with what is documented, and in time.

Input: a digit that says what the client does, then messages.  For a call, the first of them is the
reply; for a stream each is a frame, its subject the frame's name, empty for the address itself; for
a call that nobody answers, each payload is an answer to `$SRV.INFO`.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Final

from google.protobuf.struct_pb2 import Struct
from pydantic import BaseModel

from busmicro import CallError, Client, Settings
from busmicro.transport import MemoryTransport
from fuzz import messages
from fuzz.clock import leaping
from fuzz.messages import Message
from fuzz.replies import KEPT, may_publish
from fuzz.wrong import listen_for_complaints, require

_OWN: Final = re.compile(rb"rpc\.h\.(call|gone|stream)|cancel\.h|\$SRV\.INFO\.h")
_ONE_SUBJECT: Final = re.compile(
    r"(?!\$|_INBOX\.)[^\s.*>\x00-\x1f\x7f]+(\.[^\s.*>\x00-\x1f\x7f]+)*"
)
_SETTINGS: Final = Settings(nats_url="memory://fuzz", stream_window=8, stream_window_bytes=4096)
_PATIENCE: Final = 60.0


class Hello(BaseModel):
    """A reply."""

    name: str
    tags: list[int] = []


_EXPECTED: Final = (None, Hello, bytes, Struct)


class _Hostile:
    """A service that answers with what the input holds, and notes what the client publishes."""

    def __init__(self) -> None:
        self.client = Client(settings=_SETTINGS)
        self.raw = MemoryTransport(_SETTINGS)
        self.given: list[Message] = []
        self.published: list[bytes] = []

    async def start(self) -> None:
        """Listen."""
        await self.client.__aenter__()
        await self.raw.connect()
        transport = self.client.bus.transport
        publish = transport.publish

        def watched(
            subject: bytes, payload: bytes, reply: bytes = b"", header: bytes = b""
        ) -> None:
            self.published.append(subject)
            publish(subject, payload, reply, header)

        transport.publish = watched
        self.raw.subscribe("rpc.h.call", self._on_call)
        self.raw.subscribe("rpc.h.stream", self._on_stream)
        self.raw.subscribe("$SRV.INFO.h", self._on_lookup)
        await self.raw.barrier()
        self.client.bus.replies_allowed.protect(KEPT)

    def _send(self, subject: bytes, message: Message) -> None:
        reply = messages.word(message.reply)
        self.raw.publish(subject, message.payload, reply, message.header)

    def _on_call(self, _subject: bytes, reply: bytes, _header: bytes, _payload: bytes) -> None:
        for message in self.given[:2]:
            self._send(reply, message)

    def _on_stream(self, _subject: bytes, reply: bytes, _header: bytes, _payload: bytes) -> None:
        for message in self.given:
            name = messages.word(message.subject)
            self._send(b"%b.%b" % (reply, name) if name else reply, message)

    def _on_lookup(self, _subject: bytes, reply: bytes, _header: bytes, _payload: bytes) -> None:
        for message in self.given:
            self._send(reply, message)


complaints = listen_for_complaints()
loop = leaping()
hostile = _Hostile()
loop.run_until_complete(hostile.start())
complaints.require_none()


def one(data: bytes) -> None:
    """Let the client do something, and see what it makes of the answers."""
    if not data[:1].isdigit():
        return
    hostile.given = messages.read(data[1:])[:40]
    loop.run_until_complete(_one(int(data[:1])))
    _look()
    complaints.require_none()


async def _one(what: int) -> None:
    began = loop.time()
    client = Client.on(hostile.client.bus, wrappers=(), name="")  # one that knows no way yet
    try:
        if what < len(_EXPECTED):
            await client.call("h", "call", None, returns=_EXPECTED[what], timeout=1.0)
        elif what == len(_EXPECTED):
            await client.call("h", "gone", None, timeout=1.0)
        else:
            await _stream(client, what)
    except CallError as failure:
        require(str(failure), "an error that says nothing")
    require(loop.time() - began <= _PATIENCE, "it took too long", loop.time() - began)
    for _ in range(4):
        await asyncio.sleep(0)
    bus = hostile.client.bus
    require(not len(bus.replies), "a reply is still awaited")
    require(not len(bus.frames), "a stream is still open")


async def _stream(client: Client, what: int) -> None:
    returns = (Hello, bytes, None)[what % 3]
    sends = Hello if what % 2 else bytes
    opened = client.stream(
        "h", "stream", sends=sends, returns=returns, timeout=20.0, idle_timeout=5.0
    )
    async with opened as stream:
        await stream.send(Hello(name="a") if what % 2 else b"a")
        await stream.close_send()
        async for _message in stream:
            pass


def _look() -> None:
    """See where the client has published."""
    published, hostile.published = hostile.published, []
    asked = {messages.word(message.reply) for message in hostile.given}
    found = {subject for message in hostile.given for subject in _subjects(message.payload)}
    for subject in published:
        fine = _OWN.fullmatch(subject) or may_publish(subject, asked) or subject in found
        require(fine, "published where it must not", subject)


def _subjects(payload: bytes) -> set[bytes]:
    """Find the subjects that an answer to `$SRV.INFO` may send a client to."""
    try:
        endpoints = json.loads(payload)["endpoints"]
        return {
            endpoint["subject"].encode()
            for endpoint in endpoints
            if endpoint["name"] == "gone" and _ONE_SUBJECT.fullmatch(endpoint["subject"])
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return set()
