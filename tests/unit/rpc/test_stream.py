"""An end of a stream by itself: peers that break the protocol, old frames, gaps and silence."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from busmicro import CallError, Internal
from busmicro.rpc.frames import CANCEL, CREDIT, DATA, PING, REPAIR, STATUS, Window
from busmicro.rpc.stream import Patience, StreamEnd
from busmicro.rpc.wire import ERROR_MARK, decode_error, encode_error

WINDOW = Window(messages=4, size_bytes=1000)


class Statuses:
    """Statuses as any reply says them."""

    def read(self, header: bytes, payload: bytes, /) -> CallError | None:
        return decode_error(header, payload, "chat") if ERROR_MARK in header else None

    def write(self, error: CallError, /) -> tuple[bytes, bytes]:
        return encode_error(error, "chat")


@dataclass
class Peer:
    """An end under test, seen from the other end."""

    serving: bool
    frames: list[tuple[bytes, bytes, bytes]] = field(default_factory=list)
    """Name, payload and header block of what it has sent."""
    now: float = 100.0

    def __post_init__(self) -> None:
        self.end = StreamEnd(
            lambda name, payload, header, _ask: self.frames.append((name, payload, header)),
            lambda: None,
            window=WINDOW,
            patience=Patience(),
            now=self.now,
            serving=self.serving,
            statuses=Statuses(),
        )
        if self.serving:
            self.end.accept(b"", WINDOW)
        else:
            self.say(b"a", b"4 1000 0 0")

    def say(self, name: bytes, payload: bytes = b"", header: bytes = b"") -> None:
        """Send it a frame."""
        self.now += 0.001
        self.end.on_frame(name, header, payload, self.now)

    def sent(self, kind: bytes) -> list[tuple[bytes, bytes, bytes]]:
        return [frame for frame in self.frames if frame[0][:1] == kind]

    @property
    def standing(self) -> tuple[object, ...]:
        """All that a frame could have changed."""
        outgoing, incoming = self.end.outgoing, self.end.incoming
        return (
            (outgoing.sent, outgoing.credit, outgoing.credit_bytes, outgoing.acked),
            (incoming.received, incoming.granted, incoming.granted_bytes, incoming.ended),
            tuple(outgoing.unacked),
            tuple(incoming.waiting),
            (self.end.over, self.end.closed, self.end.holding),
        )


def peer(*, serving: bool) -> Peer:
    """Make an end that has sent two messages and taken none of the two that came."""
    other = Peer(serving)
    for text in (b"one", b"two"):
        other.end.send(DATA, text, b"", other.now)
    other.say(b"d1", b"eins")
    other.say(b"d2", b"zwei")
    return other


VIOLATIONS = {
    "a name without a meaning": [(b"z", b"")],
    "a control frame with a number": [(b"c7", b"4 1000 2 2")],
    "a number that is none": [(b"dx", b"")],
    "the number 0": [(b"d0", b"")],
    "a number below 0": [(b"d-1", b"")],
    "a number far beyond the window": [(b"d8", b"")],
    "a number of many digits": [(b"d" + b"9" * 5000, b"")],
    "a message beyond the window": [(b"d3", b""), (b"d4", b""), (b"d5", b"")],
    "a message beyond the bytes": [(b"d3", bytes(1000)), (b"d4", b"")],
    "a message after the end": [(b"e3", b""), (b"d4", b"")],
    "a piece after the end": [(b"e3", b""), (b"p4", b"")],
    "two ends": [(b"e3", b""), (b"e4", b"")],
    "credit without numbers": [(CREDIT, b"")],
    "credit that is no number": [(CREDIT, b"4 1000 x 2")],
    "credit with a number missing": [(CREDIT, b"4 1000 2")],
    "credit with a number too many": [(CREDIT, b"4 1000 2 2 2")],
    "credit below 0": [(CREDIT, b"-4 1000 2 2")],
    "credit of many digits": [(CREDIT, b"9" * 100 + b" 1000 2 2")],
    "too many messages allowed": [(CREDIT, b"65539 1000 2 2")],
    "too many bytes allowed": [(CREDIT, b"4 999999999999 2 2")],
    "an acknowledgement of what was never sent": [(CREDIT, b"4 1000 3 2")],
    "a repair of what was never sent": [(REPAIR, b"4 1000 3 2")],
    "a ping that acknowledges what was never sent": [(PING, b"4 1000 3 2")],
}


@pytest.mark.parametrize("serving", [True, False], ids=["node", "caller"])
@pytest.mark.parametrize("frames", VIOLATIONS.values(), ids=[*VIOLATIONS])
def test_violation_ends_both_sides_with_internal(frames: list[tuple[bytes, bytes]], serving: bool):
    """What no honest peer sends ends the stream, and the peer is told why."""
    other = peer(serving=serving)

    for name, payload in frames[:-1]:
        other.say(name, payload)
    assert not other.end.over
    other.say(*frames[-1])

    assert isinstance(other.end.outcome, Internal)
    assert "broke the protocol" in str(other.end.outcome)
    [(_name, payload, header)] = other.sent(STATUS if serving else CANCEL)
    assert isinstance(decode_error(header, payload, "chat"), Internal)


def test_status_from_a_caller_ends_both_sides_with_internal():
    """Only a node says how a stream ended."""
    other = peer(serving=True)

    other.say(b"s3")

    assert isinstance(other.end.outcome, Internal)
    [(_name, payload, header)] = other.sent(STATUS)
    assert isinstance(decode_error(header, payload, "chat"), Internal)


@pytest.mark.parametrize("serving", [True, False], ids=["node", "caller"])
@pytest.mark.parametrize(
    "frame",
    [
        (b"d1", b"eins"),
        (b"d2", b"another text"),
        (b"p1", b""),
        (b"e2", b""),
        (CREDIT, b"4 1000 0 0"),
        (CREDIT, b"0 0 0 0"),
        (CREDIT, b"3 5000 1 1"),
        (CREDIT, b"4 1000 1 2"),
        (REPAIR, b"4 1000 0 0"),
        (PING, b"4 1000 1 1"),
        (b"a", b"4 1000 0 0"),
    ],
    ids=lambda frame: f"{frame[0].decode()} {frame[1].decode()}",
)
def test_what_is_old_changes_nothing(frame: tuple[bytes, bytes], serving: bool):
    """Frames that come twice, and standings that others have overtaken, do no harm."""
    other = peer(serving=serving)
    other.say(CREDIT, b"4 5000 2 2")
    before = other.standing

    other.say(*frame)

    assert other.standing == before
    assert not other.sent(DATA)[2:], "what was acknowledged was sent again"


def test_frames_ahead_of_a_gap_are_asked_for_and_not_taken():
    """What is ahead of a gap waits for what is missing; once asked for is enough for a while."""
    other = peer(serving=False)
    before = other.standing

    other.say(b"d4", b"vier")
    other.say(b"d4", b"vier")

    assert other.standing == before
    [(_name, payload, _header)] = other.sent(REPAIR)
    assert payload == b"4 1000 2 2"


def test_repair_sends_again_all_that_is_not_acknowledged():
    """From the first one missing, under the same numbers."""
    other = peer(serving=True)

    other.say(REPAIR, b"4 1000 1 2")

    assert other.sent(DATA)[2:] == [(b"d2", b"two", b"")]


@pytest.mark.parametrize("serving", [True, False], ids=["node", "caller"])
def test_lost_repair_is_asked_for_again(serving: bool):
    """A gap that was seen is not forgotten when nothing more comes."""
    other = peer(serving=serving)
    other.say(b"d4", b"vier")

    other.now = other.end.due(other.now)
    other.end.tick(other.now)

    assert len(other.sent(REPAIR)) == 2


@pytest.mark.parametrize("serving", [True, False], ids=["node", "caller"])
def test_standstill_is_no_silence(serving: bool):
    """Whoever stood still for a minute gives the other end time to answer, three times."""
    other = peer(serving=serving)
    other.now += 60.0

    for _ in range(3):
        assert not other.end.over
        other.end.tick(other.now)
        assert other.end.due(other.now) >= other.now + 0.001
        other.now = other.end.due(other.now)

    assert other.now >= 60.0 + 2 * Patience().ping_every
    assert other.end.over


def test_caller_that_says_nothing_of_itself_is_asked():
    """A stream on which the caller has nothing to say stays open: it is asked if it is there."""
    other = Peer(serving=True)

    other.now = other.end.due(other.now)
    other.end.tick(other.now)

    assert other.sent(PING), "an accept is not answered"
    assert len(other.sent(b"a")) == 2, "the first may be lost"


def test_peer_that_is_there_and_says_nothing_is_given_up():
    """After "nobody listens", silence is not waited out for ever."""
    other = peer(serving=False)
    other.end.on_nobody(other.now)

    ticks = 0
    while not other.end.over:
        other.now = other.end.due(other.now)
        other.end.tick(other.now)
        ticks += 1
        assert ticks < 2000

    assert "silent" in str(other.end.outcome)


names = st.one_of(
    st.binary(min_size=1, max_size=30),
    st.builds(
        lambda kind, number: kind + number,
        st.sampled_from([b"d", b"p", b"o", b"e", b"s", b"a", b"c", b"r", b"q", b"x", b"n"]),
        st.one_of(st.just(b""), st.integers(-1, 9).map(lambda n: b"%d" % n), st.binary(max_size=4)),
    ),
)
standings = st.lists(st.integers(-1, 10).map(str), min_size=3, max_size=5).map(
    lambda parts: " ".join(parts).encode()
)
payloads = st.one_of(st.binary(max_size=60), standings)
headers = st.one_of(
    st.just(b""),
    st.binary(max_size=60),
    st.binary(max_size=60).map(lambda some: b"NATS/1.0\r\n" + ERROR_MARK + b": " + some),
)


@example(True, [(b"\0", b"", b""), (b"x", b"", b""), (b"a", b"0 0 1 0", b"")])
@given(st.booleans(), st.lists(st.tuples(names, payloads, headers), max_size=12))
def test_no_frame_makes_it_raise(serving: bool, frames: list[tuple[bytes, bytes, bytes]]):
    """Whatever comes, an end takes it or is over, and wants no tick at once."""
    other = peer(serving=serving)

    for name, payload, header in frames:
        other.say(name, payload, header)
        if other.end.incoming.waiting:
            other.end.take()
        assert len(other.end.incoming.waiting) <= WINDOW.messages
        assert other.end.due(other.now) > other.now
        other.end.tick(other.now)
