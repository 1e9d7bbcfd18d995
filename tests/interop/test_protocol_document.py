"""docs/protocol.md is what the code does: its bytes, its codes, its frames, its headers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import groupby
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic import BaseModel

from busmicro import Code, InvalidArgument, NatsServer, NotFound, Service, headers
from busmicro.errors import TABLE, code_from_http
from busmicro.rpc import frames

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
BLOCKS = [
    re.sub("␍␊\n?", "\r\n", block).encode()
    for block in re.findall(r"^```\w*\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
]


class HelloRequest(BaseModel):
    name: str


class HelloReply(BaseModel):
    greeting: str


class Count(BaseModel):
    to: int


class Number(BaseModel):
    n: int


def block(start: str) -> bytes:
    (found,) = [block for block in BLOCKS if block.startswith(start.encode())]
    return found


def greeter() -> tuple[Service, asyncio.Event, asyncio.Event]:
    service = Service("greeter")
    began, ended = asyncio.Event(), asyncio.Event()

    @service.rpc
    async def hello(request: HelloRequest) -> HelloReply:
        if request.name == "Zoë":
            raise NotFound("no Zoë, 100% sure", details=[{"searched": "here"}], retry_after=0.25)
        if request.name == "nobody":
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
        return HelloReply(greeting=f"Hello {request.name}")

    return service, began, ended


def counter() -> Service:
    service = Service("counter")

    @service.rpc
    async def count(request: Count) -> AsyncIterator[Number]:
        for n in range(request.to):
            yield Number(n=n)

    return service


class Wire:
    """A connection without any client library."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.write = writer.write

    async def reads(self, expected: bytes) -> None:
        """Wait for just these bytes."""
        async with asyncio.timeout(5.0):
            assert await self._reader.readexactly(len(expected)) == expected

    async def line(self) -> bytes:
        """Return the next line."""
        async with asyncio.timeout(5.0):
            return await self._reader.readline()


@asynccontextmanager
async def wire(server: NatsServer) -> AsyncIterator[Wire]:
    where = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        await reader.readline()  # INFO
        writer.write(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\n')
        yield Wire(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_bytes_of_call_error_and_no_responders(busmicro_server, busmicro_start):
    """Sending the document's bytes brings the document's bytes back."""
    await busmicro_start(greeter()[0])
    call = block("SUB _INBOX.a1")
    publish = call.removeprefix(b"SUB _INBOX.a1 1\r\n")
    fails = publish.replace(b"Ada", "Zoë".encode()).replace(b" 31 45", b" 31 46")

    async with wire(busmicro_server) as raw:
        raw.write(call)
        await raw.reads(block("MSG"))
        raw.write(fails)
        await raw.reads(block("HMSG _INBOX.a1 1 133"))
        raw.write(publish.replace(b"greeter.hello", b"greeter.nope"))
        await raw.reads(block("HMSG _INBOX.a1 1 48"))


async def test_bytes_of_a_cancellation(busmicro_server, busmicro_start):
    """The document's cancellation ends the handler of the document's call, without a reply."""
    service, began, ended = greeter()
    await busmicro_start(service)
    call = block("SUB _INBOX.a1")
    hangs = call.replace(b"Ada", b"nobody").replace(b" 31 45", b" 31 48")

    async with wire(busmicro_server) as raw, asyncio.timeout(5.0):
        raw.write(hangs)
        await began.wait()
        raw.write(block("PUB cancel."))
        await ended.wait()
        raw.write(call.removeprefix(b"SUB _INBOX.a1 1\r\n"))
        await raw.reads(block("MSG"))  # so nothing came before it


def conversation(start: str) -> Iterator[tuple[bool, bytes]]:
    """Split a block of two voices into what the caller sends at once and what it is sent."""
    lines = block(start).splitlines(keepends=True)
    for ours, spoken in groupby(lines, lambda line: line.startswith(b"> ")):
        yield ours, b"".join(line[2:] for line in spoken)


async def test_bytes_of_a_stream(busmicro_server, busmicro_start):
    """A caller that sends the document's bytes is sent the document's bytes; then all is over."""
    await busmicro_start(counter())
    spoken = conversation("> SUB _INBOX.c.>")

    async with wire(busmicro_server) as raw:
        raw.write(next(spoken)[1])
        node = await accepted(raw, next(spoken)[1])
        for ours, text in spoken:
            text = text.replace(b"_INBOX.n.4", node)  # noqa: PLW2901 - one address for the other
            if ours:
                raw.write(text)
            else:
                await spoke(raw, text, node)
        raw.write(b"PUB %b.q _INBOX.c.7 15\r\n256 2097152 3 1\r\n" % node)
        await raw.reads(b"MSG _INBOX.c.7.n 1 0\r\n\r\n")


async def accepted(raw: Wire, expected: bytes) -> bytes:
    """Wait for the frame `a` and return the node's address."""
    node = (await raw.line()).split()[3]
    assert re.fullmatch(rb"_INBOX\.[0-9a-f]{16}\.[0-9a-f]{16}", node)
    head, payload = expected.split(b"\r\n", 1)
    assert head.split() == [b"MSG", b"_INBOX.c.7.a", b"1", b"_INBOX.n.4", b"15"]
    await raw.reads(payload)
    return node


async def spoke(raw: Wire, expected: bytes, node: bytes) -> None:
    """Wait for these lines; a `d` more may ask for a sign of life, where the machine was slow."""
    for line in expected.splitlines(keepends=True):
        came = await raw.line()
        if b".d2 " in came:
            came = came.replace(b" %b " % node, b" ")
        assert came == line


def test_table_of_frames():
    """Each frame has its row, under its letter, and those with a number say so."""
    rows = re.findall(r"^\| `([a-z])(<n>)?` \| (?:both|node|caller) \| ", TEXT, re.MULTILINE)

    letters = {
        value.decode()
        for value in vars(frames).values()
        if isinstance(value, bytes) and len(value) == 1
    }
    numbered = {"d", "p", "o", "e", "s"}
    assert len(rows) == 11
    assert set(rows) == {(one, "<n>" if one in numbered else "") for one in letters}


def test_limits_of_windows():
    """A window may be as small and as large as the document says, and no smaller or larger."""
    least, most, most_bytes = 1, 65536, 268435456
    assert f"{least} to {most} messages and {least} to {most_bytes} bytes" in TEXT

    for messages, size_bytes in ((least, least), (most, most_bytes)):
        asked = f"{messages} {size_bytes}"
        assert frames.read_window(asked).header() == asked
    for asked in ("0 1", "1 0", f"{most + 1} 1", f"1 {most_bytes + 1}", "1", "1 2 3", "a b", ""):
        with pytest.raises(InvalidArgument, match="Bus-Stream"):
            frames.read_window(asked)


def test_table_of_codes():
    """Each code has its row, with its number, its HTTP status and whether a retry is safe."""
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \| (yes)? ?\| ", TEXT, re.MULTILINE)

    expected = {
        (code.value, str(m.number), str(m.http_status), "yes" if m.retry_if_idempotent else "")
        for code, m in TABLE.items()
        if code is not Code.OK
    }
    assert len(rows) == 16
    assert set(rows) == expected


def test_table_of_foreign_numbers():
    """Each number of another framework's error means what its row says."""
    section = TEXT.partition("### Errors of other frameworks")[2].partition("\n## ")[0]
    cells = re.findall(r"([\d, ]*\d) \| `(\w+)`", section)

    assert len(cells) == 11
    for numbers, name in cells:
        for number in numbers.split(","):
            assert code_from_http(int(number)) is Code(name)
    assert code_from_http(418) is Code.INVALID_ARGUMENT
    assert code_from_http(0) is code_from_http(599) is Code.UNKNOWN


def test_every_header_and_subject_is_named():
    """The document has every header that busmicro sends, and its three kinds of subjects."""
    ours = [value for value in vars(headers).values() if str(value).startswith(("Bus-", "Nats-"))]
    subjects = [f"<prefix>{kind}.<service>" for kind in ("rpc", "node", "cancel")]

    assert len(ours) >= 8
    assert not [name for name in (*ours, *subjects) if f"`{name}" not in TEXT]
