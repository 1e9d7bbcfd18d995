"""Errors on the wire: whatever anybody sends as one is an error to raise, and ours arrive whole."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busmicro.errors import CallError, Code, InvalidArgument, NotFound
from busmicro.headers import VERSION_LINE, parse
from busmicro.rpc.answering import read_asked
from busmicro.rpc.wire import ERROR_MARK, decode_error, encode_error

CODES = st.sampled_from([code for code in Code if code is not Code.OK])
TEXTS = st.text(max_size=60)
DETAILS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
LINES = st.lists(
    st.tuples(
        st.sampled_from(
            ["Nats-Service-Error", "Nats-Service-Error-Code", "Bus-Status", "Bus-Retry-After", "X"]
        ),
        st.sampled_from(["²", "٣", "1e3", "-1", "404", "9" * 30, "not_found", "%ZZ%ff"]) | TEXTS,
    ),
    max_size=5,
).map(
    lambda lines: (
        VERSION_LINE
        + "".join(f"{name}: {value}\r\n" for name, value in lines).encode("utf-8", "replace")
        + b"\r\n"
    )
)


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@given(
    LINES | st.binary(max_size=80),
    st.binary(max_size=80) | DETAILS.map(lambda d: repr(d).encode("utf-8", "replace")),
)
def test_any_reply_is_an_error_to_raise(header: bytes, payload: bytes) -> None:
    """A caller never gets anything but a `CallError` out of an error reply, whoever wrote it."""
    error = decode_error(header, payload, "greeter")

    assert isinstance(error, CallError)
    assert str(error)
    assert error.origin
    assert error.retry_after is None or error.retry_after >= 0


@given(
    CODES, TEXTS, st.lists(DETAILS, max_size=3), st.none() | st.integers(0, 10**9), st.booleans()
)
def test_error_arrives_as_it_was_raised(
    code: Code, text: str, details: list[object], after_ms: int | None, not_run: bool
) -> None:
    """Code, text, pause and whether it ran are those of the service; the body is strict JSON."""
    error = CallError.of(code, text, details=details)
    error.retry_after = None if after_ms is None else after_ms / 1000
    error.not_run = not_run

    header, payload = encode_error(error, "greeter")
    told = decode_error(header, payload, "other")

    assert header.isascii()
    assert ERROR_MARK in header
    assert len(parse(header)) == header.count(b"\r\n") - 2
    assert json.loads(payload, parse_constant=refuse)["code"] == code.value
    assert (type(told), told.origin, told.not_run) == (type(error), "greeter", not_run)
    assert told.message == text.encode("utf-8", "replace").decode()
    assert told.retry_after == error.retry_after


def test_error_that_json_cannot_say_is_told_all_the_same() -> None:
    """Half a surrogate pair, or details that hold themselves, do not leave the caller waiting."""
    circle: list[object] = []
    circle.append(circle)

    header, payload = encode_error(NotFound("no \ud800", details=[circle, "\ud800"]), "greeter")
    told = decode_error(header, payload, "greeter")

    assert isinstance(told, NotFound)
    assert told.message == "no ?"
    assert told.details == []


@pytest.mark.parametrize("name", ["Bus-Retry-After", "Nats-Service-Error-Code"])
@pytest.mark.parametrize("number", ["²", "٣", "1_0", "+1", " 1 1", "9" * 5000])
def test_number_that_is_none_is_left_aside(name: str, number: str) -> None:
    """Digits that are not ASCII are no number, and no crash either."""
    header = VERSION_LINE + f"Nats-Service-Error: x\r\n{name}: {number}\r\n\r\n".encode()

    told = decode_error(header, b"", "greeter")

    assert (told.code, told.retry_after) == (Code.UNKNOWN, None)


@given(
    st.lists(
        st.sampled_from(
            [
                b"NATS/1.0",
                b"\r\n",
                b"bus-TIMEOUT:",
                b" 5",
                b"Bus-Stream:",
                b"\xb2",
                b"Content-Type: x",
                b"9" * 11,
            ]
        )
        | st.binary(max_size=8),
        max_size=8,
    ).map(b"".join)
)
def test_any_request_header_is_read_or_refused(header: bytes) -> None:
    """What a caller says in headers is taken, or answered as `invalid_argument`, never more."""
    try:
        content_type, timeout, window = read_asked(header)
    except InvalidArgument as wrong:
        assert wrong.not_run  # noqa: PT017 - either way is fine, but no other
        return
    assert isinstance(content_type, str)
    assert timeout is None or 0 <= timeout <= 86_400
    assert window is None or isinstance(window, str)
