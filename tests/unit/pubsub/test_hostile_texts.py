"""Names, ids, schedules and stored letters that nobody meant: refused at once, or taken safely."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busmicro import InvalidArgument, SetupError, Stream, Topic
from busmicro.call import Kind, Side, Spec
from busmicro.errors import NotFound
from busmicro.headers import VERSION_LINE, check
from busmicro.pubsub.deadletters import _lines, _read, _stored, _written
from busmicro.pubsub.envelope import clean_id
from busmicro.pubsub.reader import Reader
from busmicro.pubsub.schedule import Cron
from busmicro.settings import Settings
from busmicro.transport import StoredMessage, may_be_named

TICKS = Topic("events.tick", int, stream=Stream("EVENTS", subjects=["events.>"]))
PIECES = st.sampled_from(
    ["a", ".", "*", ">", "{b}", "{", "}", " ", "$", "é", "\ud800", "\x85", "\n"]
)


@given(st.text(st.characters(), max_size=20) | st.lists(PIECES, max_size=6).map("".join))
def test_topic_that_is_taken_can_be_published_to(subject: str) -> None:
    """What is no subject is refused when the topic is made, not when the first event goes."""
    try:
        topic = Topic(subject, int)
    except SetupError as wrong:
        assert "topic" in str(wrong)  # noqa: PT017 - the other way is below
        return
    concrete = topic.format(**dict.fromkeys(topic.names, "x"))
    if concrete.is_concrete:
        assert may_be_named(concrete.subject)
        assert topic.matches(concrete.subject)


@given(st.text(st.characters(), max_size=30))
def test_any_id_is_taken_or_refused_before_anything_is_sent(id: str) -> None:
    """An id that Unicode does not know is the author's mistake, with a word on why."""
    try:
        assert clean_id(id).isascii()
    except InvalidArgument as wrong:
        assert wrong.not_run  # noqa: PT017 - either way is fine, but no other


def test_half_a_character_is_no_id() -> None:
    """Two ids must not become one by what is replaced in them."""
    with pytest.raises(InvalidArgument, match="half of a character"):
        clean_id("a\ud800")


@given(
    st.text(max_size=20)
    | st.sampled_from(
        ["@every ٣m", "* * * * *\t*", "é * * * * *", "0 0 0 1 1 *\n", "@hourly ", "@every 1h5m"]
    )
)
def test_schedule_that_is_taken_can_be_sent(schedule: str) -> None:
    """What could not stand in a header is refused when the service is written."""
    try:
        cron = Cron.of("tick", schedule, TICKS, 1)
    except SetupError as wrong:
        assert "cron" in str(wrong)  # noqa: PT017 - the other way is below
    else:
        check("Nats-Schedule", cron.schedule)


@given(st.text(max_size=30), st.text(max_size=4), st.integers())
def test_any_setting_is_taken_or_refused_by_name(url: str, seconds: str, number: int) -> None:
    """Whatever stands in the environment, what is wrong with it is said as `SetupError`."""
    try:
        settings = Settings.load(nats_url=url, connect_timeout=seconds, max_running=number)
    except SetupError as wrong:
        assert "BUSMICRO_" in str(wrong)  # noqa: PT017 - the other way is below
    else:
        assert settings.max_running > 0


HEADERS = st.dictionaries(
    st.sampled_from(
        [
            "Bus-Dead-Sequence",
            "Bus-Dead-Time",
            "Bus-Dead-Details",
            "Bus-Dead-Subject",
            "traceparent",
            "X",
        ]
    ),
    st.sampled_from(
        ["²", "9" * 5000, "[" * 999, "2026-01-01", "9999-12-31T23:59:59-23:59", "%ff", "-"]
    )
    | st.text(max_size=12),
).map(
    lambda items: (
        VERSION_LINE
        + "".join(f"{name}: {value}\r\n" for name, value in items.items()).encode(
            "utf-8", "replace"
        )
        + b"\r\n"
    )
)


@given(
    HEADERS | st.binary(max_size=60), st.binary(max_size=8), st.sampled_from(["", "dlq", "dlq.a.b"])
)
def test_any_dead_letter_can_be_listed(header: bytes, payload: bytes, subject: str) -> None:
    """What somebody else has put among the dead letters does not hide the others."""
    stored = StoredMessage(subject=subject, sequence=1, header=header, payload=payload, stored="")
    for letter in (_read(stored), _read(_stored(header, payload))):
        assert letter.died.tzinfo is not None
        assert _lines([*letter.headers.items()]).isascii()
        assert letter.payload == payload


def test_failure_that_json_cannot_say_is_buried_all_the_same() -> None:
    """An event whose failure cannot be written down still gets its dead letter."""
    circle: list[object] = []
    circle.append(circle)

    assert _written([circle]) == b""
    assert _written(NotFound("x", details=["\ud800"]).details) == b""
    assert _written([float("nan")]) == b"[null]"


SPEC = Spec(service="s", endpoint="events.tick", kind=Kind.EVENT, side=Side.HANDLER)


@given(st.binary(max_size=60) | HEADERS, st.binary(max_size=20))
def test_any_event_becomes_a_call_that_fails_inside_its_chain(
    header: bytes, payload: bytes
) -> None:
    """An event that does not decode is counted and buried like any failure."""
    call = Reader(SPEC, TICKS).call(b"events.tick", b"", header, payload)

    try:
        assert isinstance(call.message, int)
    except InvalidArgument as wrong:
        assert str(wrong)  # noqa: PT017 - either way is fine, but no other
