"""The header block of an event, byte by byte."""

from __future__ import annotations

import re
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from busmicro import InvalidArgument
from busmicro.headers import parse
from busmicro.pubsub.envelope import Envelope, Ids, clean_id, core_lines, durable_lines

FIXED = durable_lines("application/json", "OrderPaid")
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=100)


def test_block_is_what_the_protocol_says():
    """Eight headers, each once, in the form that CloudEvents and JetStream read."""
    block = Envelope(FIXED, "shop", "orders.paid").block("order-17") + b"\r\n"

    assert re.fullmatch(
        rb"NATS/1\.0\r\n"
        rb"Content-Type: application/json\r\n"
        rb"ce-specversion: 1\.0\r\n"
        rb"ce-datacontenttype: application/json\r\n"
        rb"ce-type: OrderPaid\r\n"
        rb"ce-source: /shop/orders\.paid\r\n"
        rb"ce-id: order-17\r\n"
        rb"ce-time: \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\r\n"
        rb"Nats-Msg-Id: shop:orders\.paid:order-17\r\n\r\n",
        block,
    )


@given(texts, texts)
def test_any_id_arrives_as_it_was_given(id, subject):
    """Whatever characters an id or a subject has, the block stays a block and decodes to them."""
    block = Envelope(FIXED, "shop", subject).block(clean_id(id)) + b"\r\n"

    headers = parse(block)
    assert block.isascii()
    assert len(headers) == 8
    assert block.count(b"\r\n") == 10
    assert unquote(headers["ce-id"]) == id
    assert unquote(headers["ce-source"]) == f"/shop/{subject}"


@given(texts, texts)
def test_different_ids_stay_different(one, two):
    """Two events are never taken for one another because of how their ids are written."""
    assert (clean_id(one) == clean_id(two)) is (one == two)


@pytest.mark.parametrize("id", ["", "x" * 513])
def test_id_that_is_none_or_too_long_is_refused(id):
    """An id has 1 to 512 characters."""
    with pytest.raises(InvalidArgument, match="1 to 512"):
        clean_id(id)
    assert clean_id("x" * 512) == "x" * 512


def test_core_events_say_no_more_than_they_must():
    """JSON goes without saying."""
    assert core_lines("application/json") == b""
    assert core_lines("application/protobuf") == b"Content-Type: application/protobuf\r\n"


@given(st.from_regex(r"[!-~]{1,40}", fullmatch=True))
def test_core_event_says_its_content_type_once(content_type):
    """Whatever a codec calls what it writes, a subscriber reads that name; none is JSON."""
    headers = parse(b"NATS/1.0\r\n" + core_lines(content_type) + b"\r\n")

    assert list(headers) == ([] if content_type == "application/json" else ["Content-Type"])
    assert headers.get("Content-Type", "application/json") == content_type


@given(texts, texts, texts, texts)
@example("a:b", "a", "c", "b:c")
@example("a:b", "a%3Ab", "c", "c")
def test_two_events_never_share_a_message_id(subject, other_subject, id, other_id):
    """JetStream takes no event for a second copy of one with another subject or id."""
    one, other = (
        parse(Envelope(FIXED, "shop", where).block(clean_id(what)) + b"\r\n")["Nats-Msg-Id"]
        for where, what in ((subject, id), (other_subject, other_id))
    )

    assert (one == other) is ((subject, id) == (other_subject, other_id))


def test_given_ids_are_never_given_twice():
    """Ids of one process differ, and differ from those of another."""
    one, two = Ids(), Ids()
    given_ = [ids.next() for ids in (one, two) for _ in range(1000)]
    assert len(set(given_)) == 2000
    assert all(clean_id(id) == id for id in given_)
