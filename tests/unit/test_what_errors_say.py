"""Errors of events and streams read as sentences, keep what a program needs, and end a command."""

from __future__ import annotations

import pickle

import pytest

from busmicro.errors import (
    BusmicroError,
    CallError,
    Code,
    Disconnected,
    NoJetStream,
    NotAllPublished,
    NotFound,
    NotSupported,
    PublishUnknown,
    Reject,
    SetupError,
    StreamConflict,
    StreamFull,
    StreamMissing,
    exit_code,
)

NOTHING_STORED = [
    NoJetStream(),
    NotSupported("publishing later", "2.12"),
    StreamMissing("ORDERS"),
    StreamFull("ORDERS", "maximum bytes"),
    StreamConflict("stream ORDERS", ["max_age is 1 and should be 2"]),
]


@pytest.mark.parametrize("error", NOTHING_STORED, ids=lambda error: type(error).__name__)
def test_an_event_that_was_refused_may_be_published_again(error: CallError):
    """Where a stream certainly took nothing, the error says so, also in another process."""
    assert error.not_run
    assert pickle.loads(pickle.dumps(error)).not_run


def test_missing_parts_are_named_with_what_to_do():
    """Whoever reads the error learns what is missing and what to do next."""
    assert "start nats-server with -js" in str(NoJetStream())
    assert str(NotSupported("a recurring event", "2.14")).endswith(
        "a recurring event needs nats-server 2.14 or newer"
    )
    assert "there is no stream ORDERS: start a service that declares it" in str(
        StreamMissing("ORDERS")
    )


def test_programs_can_ask_an_error_what_it_is_about():
    """The names stand in fields of their own, so that nobody has to take the text apart."""
    too_old = NotSupported("a recurring event", "2.14")
    full = StreamFull("ORDERS", "maximum bytes exceeded")

    assert (too_old.what, too_old.version) == ("a recurring event", "2.14")
    assert StreamMissing("ORDERS").stream == "ORDERS"
    assert full.stream == "ORDERS"
    assert "stream ORDERS is full (maximum bytes exceeded)" in str(full)


def test_conflict_lists_every_difference():
    """All differences are told at once, in the text and as details, with the advice at the end."""
    differences = ["max_age is 1 and should be 2", "storage is 'file' and should be 'memory'"]
    error = StreamConflict("stream ORDERS", differences, "declare it as it is")

    assert error.message == (
        "stream ORDERS exists with other settings: max_age is 1 and should be 2; "
        "storage is 'file' and should be 'memory'; declare it as it is"
    )
    assert error.name == "stream ORDERS"
    assert error.differences == differences
    assert [detail["problem"] for detail in error.details if isinstance(detail, dict)] == (
        differences
    )


def test_conflict_without_advice_ends_with_the_differences():
    """No empty advice hangs at the end of the sentence."""
    error = StreamConflict("consumer billing", ["ack_wait is 1 and should be 2"])

    assert error.message.endswith("ack_wait is 1 and should be 2")


def test_unknown_end_of_a_publish_names_the_id_to_try_again_with():
    """Nobody knows whether it is stored, so the error may not say that it is not."""
    error = PublishUnknown("orders.paid", "17", 1.5)

    assert not error.not_run
    assert (error.subject, error.id) == ("orders.paid", "17")
    assert "within 1.5 s on whether event 17 was stored on orders.paid" in str(error)


def test_partly_published_tells_how_many_and_why_the_first_was_not():
    """The first failure by position gives code and reason, whatever the order they came in."""
    late, early = NotFound("gone"), Reject("bad")
    error = NotAllPublished(7, {9: late, 3: early})

    assert error.code is Code.FAILED_PRECONDITION
    assert error.stored == 7
    assert error.failures == {9: late, 3: early}
    assert "7 events were stored, 2 were not; event 3: " in str(error)


def test_rejected_event_keeps_its_reason():
    """The reason that a handler gives is what its dead letter will say."""
    assert Reject("no such customer").reason == "no such customer"
    assert Reject("no such customer").message == "no such customer"


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (Disconnected("down", not_run=True), 3),
        (Disconnected("dropped", not_run=False), 64 + 14),
        (NotFound("gone"), 64 + 5),
        (SetupError("wrong"), 2),
        (BusmicroError("something else"), 1),
    ],
    ids=["no server", "lost server", "an answer", "wrong settings", "the rest"],
)
def test_scripts_can_tell_failures_apart_by_exit_code(failure: BusmicroError, expected: int):
    """No server, a wrong setting and an answer of the service end a command differently."""
    assert exit_code(failure) == expected
