"""Deliveries: read from the subject on which JetStream wants its acknowledgement."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busmicro.delivery import Delivery, attempt_of, read_delivery
from busmicro.headers import Headers

OLD = b"$JS.ACK.ORDERS.billing-orders-paid.3.17.42.1767225600123456789.5"
NEW = b"$JS.ACK.hub.ACCHASH.ORDERS.billing-orders-paid.3.17.42.1767225600123456789.5"
NEWER = NEW + b".random"
numbers = st.integers(0, 2**63)
names = st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True)


@pytest.mark.parametrize("ack", [OLD, NEW, NEWER])
def test_all_forms_say_the_same(ack):
    """Old servers write nine words, newer ones eleven or more: domain and account come first."""
    assert read_delivery(ack, Headers({})) == Delivery(
        id="ORDERS:17",
        stream="ORDERS",
        consumer="billing-orders-paid",
        sequence=17,
        attempt=3,
        stored=datetime(2026, 1, 1, 0, 0, 0, 123457, tzinfo=UTC),
        pending=5,
    )
    assert attempt_of(ack) == 3


@given(names, names, numbers, numbers, numbers, st.integers(0, 2**62), numbers, st.booleans())
def test_whatever_the_numbers_both_forms_agree(
    stream, consumer, attempt, sequence, own, stored, pending, late
):
    """Reading never mixes the words up."""
    rest = f"{stream}.{consumer}.{attempt}.{sequence}.{own}.{stored}.{pending}"
    old = f"$JS.ACK.{rest}".encode()
    new = f"$JS.ACK._.HASH.{rest}{'.token' if late else ''}".encode()

    assert read_delivery(old, Headers({})) == read_delivery(new, Headers({}))
    assert attempt_of(old) == attempt_of(new) == attempt


@pytest.mark.parametrize(
    ("headers", "id"),
    [
        (
            {"ce-id": "1", "ce-source": "/shop/orders.paid", "Nats-Msg-Id": "x"},
            "/shop/orders.paid:1",
        ),
        ({"ce-id": "1"}, ":1"),
        ({"Nats-Msg-Id": "x"}, "x"),
        ({}, "ORDERS:17"),
    ],
)
def test_event_goes_by_what_tells_it_from_all_others(headers, id):
    """CloudEvents' source and id, else the message id, else its place in the stream."""
    assert read_delivery(OLD, Headers(headers)).id == id


@pytest.mark.parametrize(
    "ack", [b"", b"_INBOX.a", b"$JS.ACK.a.b.1.2.3.4", b"$JS.API.a.b.1.2.3.4.5"]
)
def test_other_subjects_are_refused(ack):
    """What is no subject of an acknowledgement is an error, not a wrong number."""
    with pytest.raises(ValueError, match="not the subject of an acknowledgement"):
        read_delivery(ack, Headers({}))
