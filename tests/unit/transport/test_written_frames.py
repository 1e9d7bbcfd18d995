"""Whatever is published leaves as frames that a server reads as what was meant."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from busmicro.transport import Subscription
from busmicro.transport.fastpath import FastPath, sub_command

Message = tuple[bytes, bytes, bytes, bytes]

LETTERS = st.characters(codec="utf-8", exclude_categories=["Z", "C"], exclude_characters=".*>")
WORDS = st.text(LETTERS, min_size=1, max_size=6)
SUBJECTS = st.lists(WORDS, min_size=1, max_size=4).map(lambda words: ".".join(words).encode())
NASTY = st.sampled_from([b"", b"\r\n", b"\r\nPUB a 0\r\n\r\n", b"PING\r\n", b"x" * 5_000])
BLOCKS = st.sampled_from([b"", b"NATS/1.0\r\n\r\n", b"NATS/1.0\r\nBus-Timeout: 5\r\n\r\n"])
MESSAGES = st.tuples(SUBJECTS, NASTY | st.binary(max_size=20), st.just(b"") | SUBJECTS, BLOCKS)


class Wire(asyncio.Transport):
    """A socket that takes everything."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


async def written(messages: list[Message]) -> bytes:
    """Publish these in one turn, and return what went out."""
    path = FastPath({}, on_denied=str, on_lost=id, max_waiting_bytes=10**9)
    wire = Wire()
    path.connection_made(wire)
    for message in messages:
        path.publish(*message)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return bytes(wire.written)


def read(stream: bytes) -> list[Message]:
    """Read frames as a server does: a line of words, then as many bytes as it says."""
    found, at = [], 0
    while at < len(stream):
        eol = stream.index(b"\r\n", at)
        verb, subject, *rest = stream[at:eol].split()
        sizes = [int(word) for word in rest[-2 if verb == b"HPUB" else -1 :]]
        reply = b"".join(rest[: len(rest) - len(sizes)])
        cut, end = eol + 2 + sum(sizes[:-1]), eol + 2 + sizes[-1]
        assert stream[end : end + 2] == b"\r\n"
        found.append((subject, stream[cut:end], reply, stream[eol + 2 : cut]))
        at = end + 2
    return found


@settings(deadline=None)
@given(st.lists(MESSAGES, max_size=80))
def test_frames_are_read_as_they_were_written(messages: list[Message]):
    """Every message is there, whole and in its order, whatever its bytes look like."""
    assert read(asyncio.run(written(messages))) == messages


@given(SUBJECTS, st.just(b"") | SUBJECTS)
def test_subscription_is_read_as_it_was_written(subject: bytes, queue: bytes):
    """A line of its own names the subject, the group if there is one, and the number."""
    subscription = Subscription(b"b7", subject.decode(), queue.decode(), lambda *_: None)

    line = sub_command(subscription)

    assert line.endswith(b"\r\n")
    assert line.split() == [b"SUB", subject, *([queue] if queue else []), b"b7"]
