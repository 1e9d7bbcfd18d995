"""The floor: two bare asyncio protocols that speak just enough NATS, and do nothing else.

No deadlines, no reconnect, no errors, no limits, no choice of codec: a request is framed, found
again by its token, and decoded.  What busmicro needs more than this is what its promises cost.

The handler is a coroutine as everywhere.  `serve` drives it to its end in the turn that read the
request, which only a handler that never waits allows; `serve_tasks` gives each a task of its own,
as whoever serves more than one request at a time must.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

from benchmarks.contenders.base import Ask, Caller, Contender
from benchmarks.messages import BY_HAND, DECODE, encode, traces, usual_headers

BATCH, LARGEST_BATCH = 32, 512
"""Messages a write, doubled within a turn, as busmicro: while the peer works on them this process
makes the next."""
CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true}\r\n'


class Wire(asyncio.Protocol):
    """Frames out, messages in; everything else the server says is skipped."""

    def __init__(self, on_message: Callable[[bytes, bytes, bytes], None]) -> None:
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._batch = BATCH
        self._buf = b""
        self._pieces: list[bytes] = []
        self._missing = 0

    def connection_made(self, transport) -> None:
        self._transport = transport
        transport.write(CONNECT)

    def write(self, frame: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._end_turn)
        self._out.append(frame)
        if len(self._out) >= self._batch:
            self._batch = min(2 * self._batch, LARGEST_BATCH)
            self._flush()

    def _end_turn(self) -> None:
        self._batch = BATCH
        self._flush()

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out:
            self._transport.write(b"".join(out))

    def data_received(self, data: bytes) -> None:
        if self._missing > 0:  # in the middle of a large message: collect, do not copy
            self._pieces.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data, self._pieces = b"".join(self._pieces), []
        self._split(self._buf + data if self._buf else data)

    def _split(self, buf: bytes) -> None:
        self._buf, self._missing = b"", 0
        at, size = 0, len(buf)
        while (eol := buf.find(b"\r\n", at)) >= 0:
            if buf.startswith((b"MSG ", b"HMSG "), at):
                args = buf[at:eol].split(b" ")
                end = eol + 4 + int(args[-1])
                if end > size:
                    self._missing = end - size
                    break
                if len(args) >= 5 and buf[at] == 72:  # H
                    body, reply = eol + 2 + int(args[-2]), args[3]
                else:
                    body, reply = eol + 2, args[3] if len(args) == 5 else b""
                self._on_message(args[1], reply, buf[body : end - 2])
                at = end
            else:
                if buf.startswith(b"PING", at):
                    self.write(b"PONG\r\n")
                at = eol + 2
        if self._missing > 0:
            self._pieces = [buf[at:]]
        else:
            self._buf = buf[at:]


async def open_wire(stack: AsyncExitStack, url: str, on_message) -> Wire:
    address = urlsplit(url)
    loop = asyncio.get_running_loop()
    transport, wire = await loop.create_connection(
        lambda: Wire(on_message), address.hostname, address.port
    )
    stack.callback(transport.abort)
    return wire


def handlers() -> dict[bytes, Callable[[bytes], Coroutine[object, object, bytes]]]:
    async def json_hello(payload: bytes) -> bytes:
        return BY_HAND["json"](payload)

    async def proto_hello(payload: bytes) -> bytes:
        return BY_HAND["protobuf"](payload)

    return {b"json": json_hello, b"protobuf": proto_hello}


async def serve(stack: AsyncExitStack, url: str) -> None:
    by_codec = handlers()

    def on_message(subject: bytes, reply: bytes, payload: bytes) -> None:
        try:
            by_codec[subject[5:]](payload).send(None)
        except StopIteration as done:
            answer = done.value
            wire.write(b"PUB %b %d\r\n%b\r\n" % (reply, len(answer), answer))

    wire = await open_wire(stack, url, on_message)
    wire.write(b"SUB bare.* q 1\r\n")


async def serve_tasks(stack: AsyncExitStack, url: str) -> None:
    by_codec = handlers()
    running: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()

    async def answer(subject: bytes, reply: bytes, payload: bytes) -> None:
        answered = await by_codec[subject[5:]](payload)
        wire.write(b"PUB %b %d\r\n%b\r\n" % (reply, len(answered), answered))

    def on_message(subject: bytes, reply: bytes, payload: bytes) -> None:
        task = loop.create_task(answer(subject, reply, payload))
        running.add(task)
        task.add_done_callback(running.discard)

    wire = await open_wire(stack, url, on_message)
    wire.write(b"SUB task.* q 1\r\n")


def caller_of(prefix: str) -> Callable[[AsyncExitStack, str], Awaitable[Caller]]:
    async def connect(stack: AsyncExitStack, url: str) -> Caller:
        waiting: dict[bytes, asyncio.Future[bytes]] = {}
        inbox = b"_INBOX.%b." % secrets.token_hex(8).encode()
        loop = asyncio.get_running_loop()
        tokens = iter(range(2**62))

        def on_message(subject: bytes, _reply: bytes, payload: bytes) -> None:
            waiting.pop(subject[len(inbox) :]).set_result(payload)

        wire = await open_wire(stack, url, on_message)
        wire.write(b"SUB %b* 1\r\n" % inbox)

        def caller(codec: str, *, headers: bool) -> Ask:
            subject, decode = f"{prefix}.{codec}".encode(), DECODE[codec]
            start, trace = block_start(codec), traces()

            async def ask(request: object) -> object:
                payload = encode(codec, request)
                token = b"%x" % next(tokens)
                waiting[token] = future = loop.create_future()
                if headers:
                    block = b"%b%b\r\n\r\n" % (start, next(trace).encode())
                    size = len(block) + len(payload)
                    wire.write(
                        b"HPUB %b %b%b %d %d\r\n%b%b\r\n"
                        % (subject, inbox, token, len(block), size, block, payload)
                    )
                else:
                    wire.write(
                        b"PUB %b %b%b %d\r\n%b\r\n" % (subject, inbox, token, len(payload), payload)
                    )
                return decode(await future)

            return ask

        return caller

    return connect


def block_start(codec: str) -> bytes:
    """The headers, written once, as far as they are the same for every call."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in usual_headers(codec).items())
    return f"NATS/1.0\r\n{lines}traceparent: ".encode()


BARE = Contender("bare protocol", serve, caller_of("bare"))
WITH_TASKS = Contender("bare, a task a request", serve_tasks, caller_of("task"))
