"""What both ends of a call read and write, at the limits that the protocol names."""

from __future__ import annotations

import json

import pytest

from busmicro.errors import NotFound
from busmicro.headers import VERSION_LINE
from busmicro.rpc.answering import read_asked
from busmicro.rpc.wire import decode_error, encode_error


@pytest.mark.parametrize(
    ("said", "seconds"), [("1500", 1.5), ("86400000", 86_400.0), ("9999999999", 86_400.0)]
)
def test_caller_waits_a_day_at_most(said: str, seconds: float):
    """Whoever asks for more time than a day gets a day."""
    header = VERSION_LINE + f"Bus-Timeout: {said}\r\n\r\n".encode()

    assert read_asked(header)[1] == seconds


@pytest.mark.parametrize("size_bytes", [100, 60_000])
def test_details_that_fit_are_told(size_bytes: int):
    """Up to 64 KiB the caller gets all of the details."""
    header, payload = encode_error(NotFound("no", details=["x" * size_bytes]), "greeter")

    assert decode_error(header, payload, "greeter").details == ["x" * size_bytes]


def test_details_that_are_too_long_are_left_out_and_the_rest_is_told():
    """An error is never so large that it could not be sent; code and message are there."""
    header, payload = encode_error(NotFound("no", details=["x" * 70_000]), "greeter")
    told = decode_error(header, payload, "other")

    assert len(payload) < 64 * 1024
    assert json.loads(payload)["details"] == []
    assert (type(told), told.message, told.details) == (NotFound, "no", [])
    assert told.origin == "greeter"
