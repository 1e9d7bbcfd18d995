"""Answers of JetStream, as anybody may forge them: read, or refused as `CallError`."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busmicro.errors import CallError, DataLoss, NotFound
from busmicro.headers import parse
from busmicro.transport import StoredMessage, err_code, read_answer
from busmicro.transport.buckets import _number, _seconds, is_gone
from busmicro.transport.errors import denied_subject, hide_secrets
from busmicro.transport.jetstream import read_stored, server_error, status_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "error",
                    "err_code",
                    "code",
                    "description",
                    "message",
                    "subject",
                    "seq",
                    "hdrs",
                    "data",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=10,
)


@given(VALUES.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=50))
def test_any_answer_is_read_or_refused(payload: bytes) -> None:
    """Whatever stands where an answer should, only a `CallError` comes of it."""
    try:
        answer = read_answer(payload, "$JS.API.INFO")
        assert isinstance(answer, dict)
        assert isinstance(read_stored(answer, "ORDERS"), StoredMessage)
    except CallError as failure:
        err_code(failure)  # cannot fail either


@pytest.mark.parametrize("number", ["x", None, float("inf"), [], {}, "²"], ids=str)
def test_error_without_its_number_is_an_error_all_the_same(number: object) -> None:
    """A number that is none is left aside; the description is still told."""
    error = {"err_code": number, "code": number, "description": "stream not found"}

    told = server_error(error, "$JS.API.INFO")

    assert "stream not found" in str(told)
    assert err_code(told) == 0


def test_error_of_the_server_keeps_its_number() -> None:
    """What the server says is known by its number."""
    with pytest.raises(NotFound, match="10059") as told:
        read_answer(b'{"error":{"code":404,"err_code":10059,"description":"none"}}', "INFO")

    assert err_code(told.value) == 10059


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        {},
        {"subject": "a"},
        {"subject": "a", "seq": "x"},
        {"subject": "a", "seq": 1, "data": "é"},
    ],
    ids=str,
)
def test_answer_without_a_message_says_so(message: object) -> None:
    """A message that cannot be read is lost data, not a `KeyError`."""
    with pytest.raises(DataLoss, match="holds no message"):
        read_stored({"message": message}, "ORDERS")


@given(st.binary(max_size=40) | st.binary(max_size=6).map(lambda rest: b"NATS/1.0 " + rest))
def test_status_is_a_number_of_three_digits(header: bytes) -> None:
    """The first line of a header block is a status or a message's, whatever it holds."""
    assert 0 <= status_of(header) <= 999
    assert is_gone(header, b"") is True


@given(st.text(max_size=30), st.binary(max_size=60))
def test_entry_of_a_bucket_is_read_whatever_its_headers_say(moment: str, header: bytes) -> None:
    """A time or a number that is none is taken for none."""
    fields = parse(b"NATS/1.0\r\nNats-Sequence: " + header + b"\r\n\r\n")

    assert _seconds(moment, 5.0) == float(_seconds(moment, 5.0))
    assert _number(fields, "Nats-Sequence") >= 0


@given(st.text(max_size=60))
def test_no_secret_of_a_url_is_shown(text: str) -> None:
    """Whatever follows, user and password are not in what is logged."""
    host = text.replace("@", "").replace("/", "").replace(",", "")

    assert "hunter2" not in hide_secrets(f"nats://me:hunter2@{host}")
    assert denied_subject(text) is None or "iolation" in text.lower()
