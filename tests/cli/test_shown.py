"""What needs no process: payloads as they are shown, and moments as they are written."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta

import click
import msgpack
import pytest

from busmicro.cli.moments import read_start, read_time, write_time
from busmicro.cli.payloads import show
from busmicro.cli.streams import weight


@pytest.mark.parametrize(
    ("payload", "content_type", "body"),
    [
        (b'{"a": [1, null]}', "", {"a": [1, None]}),
        (b"5", "application/json; charset=utf-8", 5),
        (b"null", "application/json", None),
        (msgpack.packb({"a": b"\xff", 1: 2}, strict_types=True), "Application/MsgPack", None),
        (msgpack.packb({"a": b"\xff\x00"}), "application/msgpack", {"a": "_wA="}),
        ("grüezi".encode(), "text/plain", "grüezi"),
    ],
)
def test_payload_is_decoded_by_its_content_type(payload, content_type, body):
    """JSON, MessagePack and text are shown as the value that they are."""
    shown = show(payload, {"content-type": content_type})

    if body is not None:
        assert (shown.body, shown.payload) == (body, None)
    assert json.dumps(shown.body)


@pytest.mark.parametrize(
    ("payload", "content_type", "text"),
    [
        (b"hello there", "", "hello there"),
        (b"two\nlines\t\x1b[2J", "", r"two\nlines\t\x1b[2J"),
        (b"\xff\x00", "application/octet-stream", r"\xff\x00"),
        (b"\x0a\x03abc", "application/protobuf", r"\n\x03abc"),
        (b"", "", ""),
        (b"NaN", "", "NaN"),
        (b"1e999", "", "1e999"),
        (b'"\\ud800"', "", '"\\ud800"'),
        (b"[" * 100_000, "", "[" * 100_000),
        (b"9" * 5_000, "", "9" * 5_000),
        (b"\xc1", "application/msgpack", r"\xc1"),
        (b"\x92\x01", "application/msgpack", r"\x92\x01"),
        (msgpack.packb({"a": float("nan")}), "application/msgpack", None),
        (b"\xff", "text/plain", r"\xff"),
        (b"{}", "something/else", "{}"),
    ],
    ids=range(15),
)
def test_payload_that_is_not_what_it_says_is_shown_all_the_same(payload, content_type, text):
    """Whatever bytes come, people see printable text in one line, and programs all of them."""
    shown = show(payload, {"Content-Type": content_type} if content_type else {})

    assert not shown.decoded
    assert shown.body is None
    assert base64.b64decode(shown.payload) == payload
    assert shown.text.isprintable()
    assert text is None or shown.text == text


def test_start_is_read_in_every_form():
    """`--from` takes words, numbers, times and so long ago."""
    half_an_hour_ago = datetime.now(UTC) - timedelta(minutes=30)

    assert (read_start("first"), read_start("new"), read_start("17")) == ("first", "new", 17)
    assert read_start("2026-05-01T12:00:00+02:00") == datetime(2026, 5, 1, 10, tzinfo=UTC)
    assert abs(read_start("30m") - half_an_hour_ago) < timedelta(seconds=5)
    assert abs(read_start("0.5h") - half_an_hour_ago) < timedelta(seconds=5)


@pytest.mark.parametrize(
    "text", ["", "last", "0", "30x", "-5", "99999999999d", "2026-13-01", "9" * 30]
)
def test_start_that_cannot_be_is_wrong_usage(text):
    """What is no beginning is refused with the forms that there are."""
    with pytest.raises(click.BadParameter):
        read_start(text)


def test_time_without_a_zone_is_that_of_this_machine():
    """People write their own time; UTC travels."""
    assert read_time("2026-05-01T12:00") == datetime(2026, 5, 1, 12).astimezone(UTC)
    assert write_time(datetime(2026, 5, 1, 12, tzinfo=UTC)) == "2026-05-01T12:00:00.000Z"


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1024**3, "1.0 GiB")]
)
def test_sizes_are_read_at_a_glance(size, text):
    """Bytes become the unit that suits them."""
    assert weight(size) == text
