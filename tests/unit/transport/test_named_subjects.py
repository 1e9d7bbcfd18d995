"""Subjects that strangers name: where nobody must be made to publish, nobody does."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busmicro.delivery import acks_of, attempt_of, read_delivery, sequence_of
from busmicro.headers import Headers
from busmicro.settings import Settings
from busmicro.transport import MemoryTransport, Pull, ReplyPolicy, matches, may_be_named

WORDS = st.sampled_from(["a", "b", "orders", "d1"])
PATTERNS = st.builds(
    lambda words, tail: ".".join([*words, *tail]),
    st.lists(WORDS | st.just("*"), min_size=1, max_size=3),
    st.sampled_from([[], [">"]]),
)
FRAMES = ("a", "b", "c", "d1", "d2", "e9", "s3", "n", "orders")
ACK = b"$JS.ACK.ORDERS.billing.1.17.42.1767225600123456789.5"


@given(PATTERNS, st.lists(WORDS, min_size=1, max_size=3).map(".".join))
def test_frames_of_a_stream_go_into_no_other_stream(pattern: str, address: str) -> None:
    """An address is refused if a subject below it is one that JetStream keeps, and only then."""
    policy = ReplyPolicy("", "_INBOX", strict=False)
    policy.protect([pattern])

    allowed = policy.allows_below(address.encode())

    below = [f"{address}.{frame}" for frame in FRAMES]
    kept = [subject for subject in (address, *below) if matches(pattern, subject)]
    assert allowed is not bool(kept)


@given(st.binary(max_size=40))
def test_address_is_judged_whatever_it_is(address: bytes) -> None:
    """No address of a stream makes the node fail; none is allowed that an answer is not."""
    policy = ReplyPolicy("", "_INBOX", strict=False)
    policy.protect(["events.*", "a.>"])

    assert policy.allows_below(address) in {True, False}
    assert policy.allows(address) or not policy.allows_below(address)


@given(
    st.text(max_size=30)
    | st.lists(st.sampled_from(["a", ".", "$", " ", "*", "\n", "\ud800"])).map("".join)
)
def test_subject_that_may_be_named_is_one_subject(subject: str) -> None:
    """It cannot end the line that it stands in, nor reach the server's own subjects."""
    if may_be_named(subject):
        wire = subject.encode()
        assert wire.split() == [wire]
        assert wire.isascii() is subject.isascii()
        assert not subject.startswith(("$", "_INBOX."))
        assert all(word and word not in {"*", ">"} for word in subject.split("."))


@pytest.mark.parametrize(
    "subject",
    [
        "",
        ".",
        "a.",
        "a b",
        "a\r\nPUB x 0\r\n",
        "$JS.API.STREAM.DELETE.X",
        "_INBOX.a",
        "a.*",
        ">",
        "a\x0bb",
    ],
)
def test_subject_that_would_be_misused_may_not_be_named(subject: str) -> None:
    """What a stranger says of an endpoint is not believed blindly."""
    assert not may_be_named(subject)


@pytest.mark.parametrize("subject", ["orders.eu.paid", "svc.add-1", "bücher", "v1.x$y"])
def test_subject_of_any_service_may_be_named(subject: str) -> None:
    """Services of other frameworks choose their own subjects."""
    assert may_be_named(subject)


@given(
    st.lists(
        st.sampled_from(
            [
                b"$JS",
                b"ACK",
                b"ORDERS",
                b"billing",
                b"1",
                b"0",
                b"17",
                b"9" * 20,
                b"9" * 21,
                b"x",
                b"\xb2",
                b"",
            ]
        ),
        min_size=5,
        max_size=13,
    ).map(b".".join)
    | st.binary(max_size=30).map(lambda rest: ACK + rest)
)
def test_acknowledgement_that_is_one_can_be_read(ack: bytes) -> None:
    """Whatever passes for where to acknowledge an event is of its consumer and has its numbers."""
    if acks_of("ORDERS", "billing").fullmatch(ack):
        delivery = read_delivery(ack, Headers({}))
        assert (delivery.stream, delivery.consumer) == ("ORDERS", "billing")
        assert (delivery.attempt, delivery.sequence) == (attempt_of(ack), sequence_of(ack))


async def test_who_knows_the_inbox_cannot_forge_an_event() -> None:
    """Something that wants its acknowledgement elsewhere is no event, and nothing is published."""
    transport = MemoryTransport(Settings(nats_url="memory://forged"))
    await transport.connect()
    published: list[bytes] = []
    events: list[bytes] = []
    pull = Pull(
        transport,
        "_INBOX.me",
        "ORDERS",
        "billing",
        on_event=lambda _subject, ack, _header, _payload: events.append(ack),
        on_gone=lambda _reason: None,
        room=lambda: 10,
    )
    inbox = pull.start().subject
    await transport.barrier()
    transport.subscribe("other.>", lambda subject, *_rest: published.append(subject))

    for reply in (
        b"other.a",
        b"$JS.API.STREAM.DELETE.ORDERS",
        ACK.replace(b"billing", b"mine"),
        ACK,
    ):
        transport.publish(inbox.encode(), b"{}", reply)
    await transport.barrier()
    await asyncio.sleep(0)

    assert events == [ACK]
    assert published == []
    assert inbox.removeprefix("_INBOX.me.pull.") not in {"1", "2", "3"}
    pull.stop()
    await transport.close()
