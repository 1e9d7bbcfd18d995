"""What both ends of a call read and write, at the limits that the protocol names."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


LINES = st.lists(
    st.sampled_from(
        [
            "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "traceparent:",
            "Traceparent: none",
            "content-type: application/msgpack",
            "Content-Type: application/json; charset=utf-8",
            "bus-timeout: 250",
            "Bus-Timeout:4000 ",
            "Bus-Stream: 256 65536",
            "x-traceparent: Bus-Timeout: 1",
            "x-long: " + "y" * 300,
        ]
    ),
    max_size=6,
)


@given(LINES)
def test_trace_and_length_of_a_block_change_nothing_of_what_is_asked(lines: list[str]):
    """A request is understood alike with a trace before, between or behind, read before or not."""
    header = VERSION_LINE + "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"
    said = {}
    for line in lines:
        name, _colon, value = line.partition(":")
        said[name.lower()] = value.strip()
    timeout = said.get("bus-timeout")

    assert read_asked(header) == (
        said.get("content-type", ""),
        None if timeout is None else int(timeout) / 1000,
        said.get("bus-stream"),
    )


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
