"""However the network cuts what the server sends, the same messages come out of it."""

from __future__ import annotations

import asyncio
import itertools
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busmicro.transport import Subscription
from busmicro.transport.fastpath import FastPath

HEADER = b"NATS/1.0\r\nBus-Timeout: 5\r\n\r\n"
Delivered = tuple[str, bytes, bytes, bytes, bytes]


class Wire:
    """A fast path that is fed by hand, and what came out of it."""

    def __init__(self) -> None:
        self.delivered: list[Delivered] = []
        self.denied: list[str] = []
        subscriptions = {
            sid: Subscription(sid, "x", "", self._note(sid.decode())) for sid in (b"b1", b"b2")
        }
        self.path = FastPath(
            subscriptions,
            on_denied=self.denied.append,
            on_lost=lambda _path: None,
            max_waiting_bytes=1_000_000,
        )
        self.pongs = [self.path.ping() for _ in range(3)]

    def _note(self, sid: str):
        def on_message(subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
            self.delivered.append((sid, subject, reply, header, payload))
            if payload.endswith(b"!"):
                raise ZeroDivisionError

        return on_message

    @property
    def foreign(self) -> bytes:
        return bytes(self.path._reader._buffer)

    @property
    def seen(self) -> object:
        answered = [pong.done() for pong in self.pongs]
        return self.delivered, self.foreign, self.denied, answered


def message(sid: bytes, reply: bytes, header: bytes, payload: bytes) -> bytes:
    words = [b"a.b", sid, *([reply] if reply else [])]
    if header:
        size = b"%d %d" % (len(header), len(header) + len(payload))
        return b"HMSG " + b" ".join([*words, size]) + b"\r\n" + header + payload + b"\r\n"
    return b"MSG " + b" ".join([*words, b"%d" % len(payload)]) + b"\r\n" + payload + b"\r\n"


PAYLOADS = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b"", b"\r\n", b"\r\nMSG a b1 5\r\n", b"PONG\r\n", b"fault!"]),
)
FRAMES = st.one_of(
    st.builds(
        message,
        st.sampled_from([b"b1", b"b2", b"b99", b"7"]),
        st.sampled_from([b"", b"_INBOX.x"]),
        st.sampled_from([b"", HEADER]),
        PAYLOADS,
    ),
    st.sampled_from(
        [
            b"PING\r\n",
            b"PONG\r\n",
            b"+OK\r\n",
            b'INFO {"x":1}\r\n',
            b"-ERR 'Permissions Violation for Publish to \"a\"'\r\n",
        ]
    ),
)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.CRITICAL, "busmicro.transport"):
        yield


def fed(pieces: list[bytes]) -> object:
    async def feed() -> object:
        wire = Wire()
        for piece in pieces:
            wire.path.data_received(piece)
        return wire.seen

    return asyncio.run(feed())


@settings(deadline=None, max_examples=60)
@given(st.lists(FRAMES, min_size=1, max_size=3).map(b"".join))
def test_one_cut_at_any_place_changes_nothing(stream: bytes):
    """A read may end in the middle of anything."""
    whole = fed([stream])

    async def cut_everywhere() -> None:
        for at in range(len(stream) + 1):
            wire = Wire()
            wire.path.data_received(stream[:at])
            wire.path.data_received(stream[at:])
            assert wire.seen == whole, at

    asyncio.run(cut_everywhere())


@settings(deadline=None, max_examples=150)
@given(st.lists(FRAMES, max_size=12).map(b"".join), st.lists(st.integers(0, 300), max_size=20))
def test_any_number_of_cuts_changes_nothing(stream: bytes, cuts: list[int]):
    """What is delivered depends on what was sent, not on how it was read."""
    places = sorted({0, *(min(cut, len(stream)) for cut in cuts), len(stream)})
    pieces = [stream[a:b] for a, b in itertools.pairwise(places)]

    assert fed(pieces) == fed([stream]) == fed([stream[n : n + 1] for n in range(len(stream))])


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            FRAMES,
            st.sampled_from(
                [
                    b"MSG a b1 -9\r\n",
                    b"MSG a b1 -30\r\n",
                    b"MSG\r\n",
                    b"M\r\n",
                    b"HM\r\n",
                    b"H\r\n",
                    b"HMSG a b1 5 2\r\nabcde\r\n",
                    b"HMSG a b1 -7 2\r\nab\r\n",
                    b"MSG a b1 1_0\r\n",
                ]
            ),
        ),
        max_size=8,
    )
)
def test_garbage_never_breaks_the_reader(pieces: list[bytes]):
    """Bytes that are not NATS end the connection; they raise nothing and hang nothing."""
    fed(pieces)


@pytest.mark.parametrize(
    "garbage",
    [
        b"MSG a b1 -30\r\n",
        b"MSG\r\n",
        b"MSG a b1 x\r\n",
        b"HMSG a b1 5 2\r\nabcde\r\n",
        b"HMSG a b1 -1 2\r\nab\r\n",
        b"MSG a b1 99999999999\r\n",
    ],
)
async def test_garbage_ends_the_connection(garbage: bytes):
    """After bytes that are not NATS nothing of that connection is believed any more."""
    wire, aborted = Wire(), []
    wire.path.abort = lambda: aborted.append(1)  # type: ignore[method-assign]

    wire.path.data_received(garbage)

    assert aborted
    assert not wire.delivered


@pytest.mark.parametrize("blank", [b"\x0b", b"\x0c", b"\x1c", b"\x85"])
async def test_subject_cannot_name_another_subscription(blank: bytes):
    """Blanks that NATS lets into a subject do not end it: the message goes where it belongs."""
    wire = Wire()
    subject, reply = b"a" + blank + b"b2", b"r" + blank + b"b2"

    wire.path.data_received(b"MSG %b b1 2\r\nhi\r\n" % subject)
    wire.path.data_received(b"MSG a b1 %b 2\r\nhi\r\n" % reply)

    assert wire.delivered == [("b1", subject, b"", b"", b"hi"), ("b1", b"a", reply, b"", b"hi")]


async def test_line_without_end_does_not_fill_the_memory():
    """A peer that sends a line for ever is left after a megabyte."""
    wire, aborted = Wire(), []
    wire.path.abort = lambda: aborted.append(1)  # type: ignore[method-assign]

    for _ in range(20):
        wire.path.data_received(b"x" * 100_000)

    assert aborted


async def test_message_for_nobody_is_dropped_and_others_go_to_the_client_library():
    """A late message for a subscription that is gone disturbs nobody."""
    wire = Wire()

    wire.path.data_received(message(b"b99", b"", b"", b"late") + message(b"7", b"", b"", b"theirs"))

    assert wire.delivered == []
    assert wire.foreign == message(b"7", b"", b"", b"theirs")


async def test_pong_goes_to_whoever_sent_the_ping():
    """The client library's pings and our own never take each other's answers."""
    wire = Wire()
    wire.path.write(b"PING\r\n")
    ours = wire.path.ping()

    wire.path.data_received(b"PONG\r\n" * 4)

    assert all(pong.done() for pong in wire.pongs)
    assert not ours.done()
    assert wire.foreign == b"PONG\r\n"
    wire.path.data_received(b"PONG\r\n")
    assert ours.done()


async def test_large_payload_in_small_pieces_is_joined_once():
    """32 MB in pieces of a kilobyte arrive in a moment; copied at each piece they take minutes."""
    wire = Wire()
    payload = bytes(32 * 1024 * 1024)
    whole = message(b"b1", b"", b"", payload)

    async with asyncio.timeout(10):
        for at in range(0, len(whole), 1024):
            wire.path.data_received(whole[at : at + 1024])
            if at % (1024 * 1024) == 0:
                await asyncio.sleep(0)  # lets the time-out speak

    assert [delivered[4] == payload for delivered in wire.delivered] == [True]
