"""Messages in pieces: whatever fits a frame, they arrive as they were sent, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from zlib import crc32

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from busmicro import CallError, Client, DataLoss, ResourceExhausted, Service, Settings
from busmicro.rpc.frames import DATA, PIECE, Window
from busmicro.rpc.halves import Frame, Incoming
from busmicro.rpc.pieces import Join, checksum_line, header_block
from busmicro.transport import MemoryBroker

MOST = 10_000
contents = st.binary(min_size=2, max_size=200)
Damage = Callable[[list[Frame]], object]


def cut(whole: bytes, at: set[int], lines: bytes = b"") -> list[Frame]:
    """Cut a message at these places."""
    places = [0, *sorted(place for place in at if 0 < place < len(whole)), len(whole)]
    frames = [(PIECE, b"", whole[begin:end]) for begin, end in pairwise(places)]
    block = header_block(lines + checksum_line(crc32(whole)))
    return [*frames[:-1], (DATA, block, frames[-1][2])]


def join(frames: list[Frame], most: int = MOST) -> Frame:
    """Join pieces as a receiver does."""
    joined = Join(most)
    for frame in frames[:-1]:
        joined.add(frame)
    return joined.finish(frames[-1])


@given(contents, st.sets(st.integers(1, 199)))
def test_joined_is_what_was_cut(whole: bytes, at: set[int]) -> None:
    """Wherever it was cut; of the checksum nothing is left."""
    assert join(cut(whole, at)) == (DATA, b"", whole)


def test_headers_of_the_application_are_kept() -> None:
    """They come with the last piece, before or after the checksum."""
    kept = b"NATS/1.0\r\nX-Before: 1\r\nX-After: 2\r\n\r\n"
    checksum = b"bus-CHECKSUM: %08x\r\n" % crc32(b"ab")
    block = header_block(b"X-Before: 1\r\n" + checksum + b"X-After: 2\r\n")

    assert join([(PIECE, b"", b"a"), (DATA, block, b"b")]) == (DATA, kept, b"ab")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda frames: frames.pop(0), id="first piece missing"),
        pytest.param(lambda frames: frames.pop(1), id="piece in the middle missing"),
        pytest.param(lambda frames: frames.insert(1, frames[0]), id="a piece twice"),
        pytest.param(lambda frames: frames.insert(0, frames.pop(1)), id="other order"),
        pytest.param(lambda frames: frames.append((DATA, b"", frames.pop()[2])), id="no checksum"),
        pytest.param(
            lambda frames: frames.append((DATA, frames.pop()[1], b"last!")), id="last one changed"
        ),
        pytest.param(
            lambda frames: frames.append((DATA, header_block(checksum_line(7)), frames.pop()[2])),
            id="other checksum",
        ),
    ],
)
def test_what_is_not_whole_is_lost_and_said_so(damage: Damage) -> None:
    """A message never arrives otherwise than it was sent."""
    frames = cut(b"first middle last", {6, 13})
    damage(frames)

    with pytest.raises(DataLoss, match="checksum"):
        join(frames)


@given(contents, st.sets(st.integers(1, 199)), st.integers(1, 200))
def test_what_is_too_large_is_refused_before_it_is_kept(
    whole: bytes, at: set[int], most: int
) -> None:
    """The limit is for the pieces together, and the error names the setting."""
    if len(whole) <= most:
        assert join(cut(whole, at), most)[2] == whole
    else:
        with pytest.raises(ResourceExhausted, match="BUSMICRO_MAX_MESSAGE_BYTES"):
            join(cut(whole, at), most)


def test_a_message_that_was_joined_counts_once() -> None:
    """Whoever joins pieces gives the credit of the pieces, not that of the whole as well."""
    incoming = Incoming(Window(messages=8, size_bytes=100))
    for frame in cut(bytes(90), {40, 80}):
        assert incoming.add(*frame)
    whole = join([incoming.take() for _ in range(3)])
    incoming.put_back(whole)

    assert incoming.take() == whole
    incoming.grant()
    assert (incoming.granted, incoming.granted_bytes) == (3 + 8, 90 + 100)


async def _echoed(messages: list[bytes], *, frame_bytes: int, window_bytes: int) -> list[bytes]:
    """Send messages there and back on a bus that takes so many bytes at once."""
    broker = MemoryBroker.named("pieces")
    broker.max_payload_bytes = frame_bytes
    options = Settings.load(nats_url="memory://pieces", stream_window_bytes=window_bytes)
    service = Service("echo", settings=options)

    @service.rpc
    async def echo(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk

    async def send() -> None:
        for message in messages:
            await stream.send(message)
        await stream.close_send()

    async with service, Client(settings=options) as client:
        opened = client.stream("echo", "echo", sends=bytes, returns=bytes)
        async with opened as stream, asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            return [message async for message in stream]


@hypothesis.settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), max_size=4),
    st.integers(400, 5000),
    st.integers(1, 6000),
)
def test_any_size_arrives_through_any_size_of_frame(
    messages: list[tuple[int, int]], frame_bytes: int, window_bytes: int
) -> None:
    """Also empty ones, and where the window is smaller than a piece."""
    sent = [bytes([fill]) * size for size, fill in messages]

    received = asyncio.run(_echoed(sent, frame_bytes=frame_bytes, window_bytes=window_bytes))

    assert received == sent


@pytest.mark.parametrize("limited", ["node", "caller"])
async def test_both_ends_hear_that_a_message_is_too_large(
    busmicro_memory: str, limited: str
) -> None:
    """Whichever end has the limit, the other one is told which setting it is."""
    broker = MemoryBroker.named(busmicro_memory.removeprefix("memory://"))
    broker.max_payload_bytes = 1000
    usual = Settings.load(nats_url=busmicro_memory)
    small = usual.model_copy(update={"max_message_bytes": 5000})
    service = Service("echo", settings=small if limited == "node" else usual)
    heard: list[CallError] = []

    @service.rpc
    async def echo(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            async for _chunk in chunks:
                yield bytes(5001)
                yield b"more"
        except CallError as told:
            heard.append(told)
            raise

    async with service, Client(settings=small if limited == "caller" else usual) as client:
        with pytest.raises(ResourceExhausted, match=r"5,000 bytes.*BUSMICRO_MAX_MESSAGE_BYTES"):
            opened = client.stream("echo", "echo", sends=bytes, returns=bytes, timeout=10.0)
            async with opened as stream:
                await stream.send(bytes(5001 if limited == "node" else 5000))
                async for _reply in stream:
                    pass
    if limited == "node":
        assert [type(told) for told in heard] == [ResourceExhausted]
