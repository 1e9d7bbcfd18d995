"""Blanks at the ends of a text, and reply headers that come as they stood on the wire."""

from __future__ import annotations

import pytest

from busmicro.call import Call, Kind, Side, Spec
from busmicro.headers import check, decode_text, encode_text


@pytest.mark.parametrize("text", [" begins", "ends ", " both ", " ", "", "in side"])
def test_blanks_at_the_ends_of_a_text_arrive(text: str):
    """A server strips the ends of a header value, so the blanks there travel in another way."""
    check("Nats-Service-Error", encode_text(text))

    assert decode_text(encode_text(text).strip()) == text


def test_reply_headers_are_read_from_the_block_that_came():
    """What a node put on its reply is there for whoever asks, and only then is it read."""
    call = Call(Spec(service="s", endpoint="m", kind=Kind.UNARY, side=Side.CLIENT))
    assert not call.has_reply_headers

    call.replied_with(b"NATS/1.0\r\nNode: 7\r\n\r\n")

    assert call.has_reply_headers
    assert call.reply_headers["node"] == "7"
