"""What needs no process: whatever is typed or arrives, people get a word of explanation."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import click
import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from busmicro.cli.body import parse, parse_headers
from busmicro.cli.moments import read_start, read_time, write_time
from busmicro.cli.payloads import show

WORDS = st.one_of(
    st.text(st.characters(), max_size=20),
    st.sampled_from(
        ["a=1", "a:=1", "a.b=1", "a:=[", "{}", "[1]", "\udcff", "a=\udcff", "[" * 99_999]
    ),
).filter(lambda word: word != "-" and not word.startswith("@"))
CONTENT_TYPES = st.sampled_from(
    ["", "application/json", "application/msgpack", "text/plain", "x/y"]
)


@given(st.lists(WORDS, max_size=4), st.booleans())
def test_any_words_are_a_request_or_wrong_usage(words: list[str], raw: bool) -> None:
    """Nobody sees a traceback for what they have typed."""
    try:
        parse(words, raw=raw)
    except click.UsageError as wrong:
        assert str(wrong)  # noqa: PT017 - either way is fine, but no other


def test_bytes_that_are_no_text_are_taken_as_they_were_typed() -> None:
    """A shell passes bytes that are not UTF-8; for an endpoint of bytes they are the request."""
    typed = b"\xff\xfe".decode("utf-8", "surrogateescape")

    assert parse([typed], raw=True) == b"\xff\xfe"
    with pytest.raises(click.UsageError, match="not even UTF-8"):
        parse([typed])


def test_json_that_is_too_deep_is_wrong_usage() -> None:
    """A hundred thousand brackets are refused like any other request that is no JSON."""
    with pytest.raises(click.UsageError, match="not JSON"):
        parse(["[" * 100_000])


@given(st.lists(st.text(max_size=12), max_size=3))
def test_any_header_lines_are_headers_or_wrong_usage(lines: list[str]) -> None:
    """A header has a name and a value, or the line is shown."""
    try:
        found = parse_headers(lines)
    except click.UsageError as wrong:
        assert "write 'Name: value'" in str(wrong)  # noqa: PT017 - the other way is below
    else:
        assert all(name == name.strip() and name for name in found)


@given(
    st.text(max_size=12)
    | st.from_regex(r"[0-9]{1,25}(\.[0-9]{1,3})?[smhd]?", fullmatch=True)
    | st.from_regex(
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}(Z|[+-][0-9]{2}:[0-9]{2}))?", fullmatch=True
    )
)
def test_any_text_is_a_moment_or_a_wrong_one(text: str) -> None:
    """However far away a moment is, it is understood or refused with what can be said."""
    for read in (read_start, read_time):
        try:
            read(text)
        except click.BadParameter as wrong:
            assert text in str(wrong) or repr(text) in str(wrong)  # noqa: PT017


@given(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.timezones()))  # noqa: DTZ001
def test_moment_is_read_as_it_was_written(moment: datetime) -> None:
    """To the millisecond, in UTC."""
    again = read_time(write_time(moment))

    assert abs((again - moment).total_seconds()) <= 0.001
    assert again.tzinfo is UTC


@given(
    st.binary(max_size=30)
    | st.text(max_size=20).map(
        lambda text: json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ),
    CONTENT_TYPES,
)
def test_any_payload_is_shown_in_one_printable_line(payload: bytes, content_type: str) -> None:
    """No message can move the cursor, colour the terminal or write the line backwards."""
    shown = show(payload, {"content-type": content_type})

    assert shown.text.isprintable()
    assert shown.decoded is (shown.payload is None)
    if shown.decoded:
        assert json.loads(shown.text) == shown.body


@pytest.mark.parametrize("letter", ["\x9b", "\u202e", "\u2028", "\x7f", "\ud7ff\u0085"])
def test_letters_that_move_the_cursor_are_escaped(letter: str) -> None:
    """They are shown as JSON writes them, so that the line still says what was sent."""
    shown = show(json.dumps({"a": letter}, ensure_ascii=False).encode(), {})

    assert letter not in shown.text
    assert json.loads(shown.text) == {"a": letter} == shown.body


def test_moment_beyond_the_calendar_is_shown_as_bytes() -> None:
    """A MessagePack time that no calendar has is no reason to end."""
    far = msgpack.packb(msgpack.Timestamp(2**62, 0))

    assert not show(far, {"content-type": "application/msgpack"}).decoded
