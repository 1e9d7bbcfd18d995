"""What frames carry: written and read alike; whatever else stands there is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busmicro.errors import CallError, Internal, InvalidArgument
from busmicro.rpc.frames import Standing, Window, read_standing, read_window, write_standing
from busmicro.rpc.large import read_claim, write_claim
from busmicro.rpc.link import _Statuses
from busmicro.rpc.stream import Patience, StreamEnd
from busmicro.transport import Claim

COUNTS = st.integers(0, 10**18)
STANDINGS = st.builds(Standing, COUNTS, COUNTS, COUNTS, COUNTS)
NAMES = st.one_of(
    st.builds(lambda kind, n: b"%c%d" % (kind, n), st.sampled_from(b"dpoes"), st.integers(0, 9)),
    st.sampled_from(
        [b"a", b"c", b"r", b"q", b"x", b"n", b"d", b"d1_0", b"d+1", b"d" + b"9" * 5000]
    ),
    st.binary(min_size=1, max_size=3),
)
SMALL = st.integers(0, 12)
PAYLOADS = st.one_of(
    st.builds(Standing, SMALL, SMALL, SMALL, SMALL).map(write_standing),
    STANDINGS.map(write_standing),
    st.binary(max_size=12),
)
HEADERS = st.sampled_from(
    [b"", b"NATS/1.0\r\nNats-Service-Error: x\r\n\r\n", b"NATS/1.0\r\nA: b\r\n\r\n", b"\xff"]
)
HAPPENINGS = st.one_of(
    st.tuples(NAMES, HEADERS, PAYLOADS),
    st.sampled_from(["send", "take", "end", "tick", "nobody", "lost", "back", "fail"]),
)


@given(STANDINGS)
def test_standing_is_read_as_it_was_written(standing: Standing) -> None:
    """What one end says of itself, the other understands."""
    assert read_standing(write_standing(standing)) == standing


@given(st.integers(1, 65_536), st.integers(1, 2**28))
def test_window_is_read_as_it_was_written(messages: int, size_bytes: int) -> None:
    """What a caller allows is what the node reads."""
    window = Window(messages=messages, size_bytes=size_bytes)

    assert read_window(window.header()) == window


@given(
    st.binary(max_size=40)
    | st.lists(st.sampled_from([b"1", b" ", b"\xb2", b"-", b"_"])).map(b"".join)
)
def test_no_standing_is_none(payload: bytes) -> None:
    """Bytes that are not four numbers are no standing; what is one says the same again."""
    standing = read_standing(payload)

    assert standing is None or read_standing(write_standing(standing)) == standing


@given(st.text(max_size=30) | st.sampled_from(["0 1", "1 0", "65537 1", "1 1 1", "² 1", "1  1"]))
def test_no_window_is_refused(value: str) -> None:
    """A window that is none is the caller's mistake, and nothing ran."""
    try:
        window = read_window(value)
    except InvalidArgument as wrong:
        assert wrong.not_run  # noqa: PT017 - either way is fine, but no other
    else:
        assert 1 <= window.messages <= 65_536


TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)


@given(TEXTS, TEXTS, st.integers(0, 2**62), TEXTS)
def test_claim_is_read_as_it_was_written(bucket: str, name: str, size: int, digest: str) -> None:
    """Where a large message lies is said without loss."""
    claim = Claim(bucket=bucket, name=name, size_bytes=size, digest=digest)

    assert read_claim(write_claim(claim)) == claim


@given(st.binary(max_size=60) | st.sampled_from([b"[" * 9999, b'{"bucket":1}', b'{"size":-1}']))
def test_no_claim_ends_the_stream_as_internal(payload: bytes) -> None:
    """What is no claim breaks the protocol, and does nothing else."""
    with pytest.raises(Internal, match="claim"):
        read_claim(payload)


@given(
    serving=st.booleans(),
    messages=st.integers(1, 4),
    size_bytes=st.integers(1, 20),
    happenings=st.lists(HAPPENINGS, max_size=25),
)
def test_whatever_comes_an_end_keeps_its_window_and_ends_once(
    serving: bool, messages: int, size_bytes: int, happenings: list[object]
) -> None:
    """No frame of any other end raises, fills the memory or changes an outcome that is known."""
    window = Window(messages=messages, size_bytes=size_bytes)
    now, outcome = 0.0, None
    end = StreamEnd(
        lambda _name, _payload, _header, _ask: None,
        lambda: None,
        window=window,
        patience=Patience(),
        now=now,
        serving=serving,
        statuses=_Statuses("peer"),
    )
    if serving:
        end.accept(b"", window)
    for happening in happenings:
        if end.closed:
            break
        now += 0.03
        was_over = end.over
        _let(end, happening, now)
        if was_over:
            assert end.over
            assert end.outcome is outcome
        outcome = end.outcome
        waiting = [len(frame[2]) for frame in end.incoming.waiting]
        assert len(waiting) <= messages
        assert sum(waiting[:-1]) < size_bytes
        assert end.outgoing.sent <= end.outgoing.credit + 2
        assert end.due(now) > now
    assert end.over or not end.closed


def _let(end: StreamEnd, happening: object, now: float) -> None:
    if isinstance(happening, tuple):
        name, header, payload = happening
        end.on_frame(name, header, payload, now)
    elif happening == "send" and end.may_send and not (end.over or end.outgoing.ended):
        end.send(b"d", b"x", b"", now)
    elif happening == "take" and end.incoming.waiting:
        end.take()
    elif happening == "fail":
        end.fail(CallError("as it happens"))
    else:
        does = {
            "end": end.end,
            "tick": lambda: end.tick(now + 5.0),
            "nobody": lambda: end.on_nobody(now),
            "lost": lambda: end.on_disconnected(now),
            "back": lambda: end.on_connected(now),
        }
        does.get(str(happening), lambda: None)()
