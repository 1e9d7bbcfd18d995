"""One line for each exchange, readable by people or by programs, with no secrets in it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from pydantic import BaseModel

from busmicro.call import Call, Handler, Kind, Side, Spec
from busmicro.errors import CallError, Code, NotFound, SetupError
from busmicro.headers import Headers
from busmicro.testing import FakeClock
from busmicro.wrappers.log import (
    HIDDEN,
    ConsoleFormatter,
    JsonFormatter,
    Log,
    TraceIds,
    redacted,
    start_logging,
)


class Login(BaseModel):
    user: str
    password: str


@dataclass
class Card:
    number: str
    holder: Login


def call_of(
    kind: Kind = Kind.UNARY, side: Side = Side.HANDLER, message: object = None, endpoint: str = "in"
) -> Call:
    spec = Spec(service="users", endpoint=endpoint, kind=kind, side=side)
    call = Call(spec, message, headers=Headers({"Bus-Caller": "shop", "Authorization": "hunter2"}))
    call.began = True
    return call


def ending(clock: FakeClock, failure: BaseException | None = None, after: float = 0.25) -> Handler:
    async def end(_call: Call) -> object:
        await clock.advance(after)
        if failure is not None:
            raise failure
        return "hello"

    return end


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "busmicro.exchange")
    return caplog


async def test_line_says_what_it_was_how_it_ended_and_how_long_it_took(
    logged: pytest.LogCaptureFixture, clock: FakeClock
):
    """A successful exchange is one line, as text and as fields."""
    assert await Log(clock=clock)(call_of(), ending(clock)) == "hello"

    (record,) = logged.records
    assert record.getMessage() == "answered users/in: ok in 250.0 ms"
    line = json.loads(JsonFormatter().format(record))
    assert line["level"] == "INFO"
    assert (line["service"], line["endpoint"], line["kind"]) == ("users", "in", "unary")
    assert (line["side"], line["code"], line["duration_ms"]) == ("handler", "ok", 250.0)


@pytest.mark.parametrize(
    ("kind", "side", "did"),
    [
        (Kind.UNARY, Side.CLIENT, "called users/in"),
        (Kind.STREAM, Side.CLIENT, "streamed with users/in"),
        (Kind.EVENT, Side.CLIENT, "published in"),
        (Kind.EVENT, Side.HANDLER, "handled in"),
    ],
)
async def test_every_kind_and_side_is_told_apart(
    logged: pytest.LogCaptureFixture, clock: FakeClock, kind: Kind, side: Side, did: str
):
    """The words say whether it was a call, a stream or an event, and which end this is."""
    await Log(clock=clock)(call_of(kind, side), ending(clock))

    assert logged.records[0].getMessage().startswith(did)


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
async def test_level_follows_from_the_code(
    logged: pytest.LogCaptureFixture, clock: FakeClock, code: Code
):
    """Faults of the service are errors, trouble that may pass warns, an answer is information."""
    failure = CallError.of(code, "no bob")

    with pytest.raises(CallError):
        await Log(clock=clock)(call_of(), ending(clock, failure))

    (record,) = logged.records
    faults = {Code.UNKNOWN, Code.INTERNAL, Code.DATA_LOSS, Code.UNIMPLEMENTED}
    answers = {Code.NOT_FOUND, Code.INVALID_ARGUMENT, Code.CANCELLED, Code.ALREADY_EXISTS}
    if code in faults:
        assert record.levelno == logging.ERROR
    if code in answers:
        assert record.levelno == logging.INFO
    assert f"{code.value} in 250.0 ms (no bob)" in record.getMessage()


async def test_levels_can_be_chosen(logged: pytest.LogCaptureFixture, clock: FakeClock):
    """Whoever wants failures only makes `ok` a DEBUG."""
    wrapper = Log(levels={Code.OK: logging.DEBUG, Code.NOT_FOUND: logging.CRITICAL}, clock=clock)
    await wrapper(call_of(), ending(clock))
    with pytest.raises(NotFound):
        await wrapper(call_of(), ending(clock, NotFound("x")))

    assert [record.levelname for record in logged.records] == ["DEBUG", "CRITICAL"]
    with pytest.raises(SetupError, match="0 to 100"):
        Log(levels={Code.OK: -1})


async def test_what_an_exception_says_stays_out(logged: pytest.LogCaptureFixture, clock: FakeClock):
    """A fault is named by its class; its text may hold secrets, and `Recover` logs it."""
    with pytest.raises(ValueError, match="hunter2"):
        await Log(clock=clock)(call_of(), ending(clock, ValueError("hunter2")))

    assert "hunter2" not in logged.records[0].getMessage()
    assert "ValueError" in logged.records[0].getMessage()


async def test_messages_are_logged_without_secrets(
    logged: pytest.LogCaptureFixture, clock: FakeClock
):
    """Named fields are left out at any depth, of models, dataclasses and headers."""
    message = Card("4111", Login(user="bob", password="hunter2"))
    wrapper = Log(
        messages=True, headers=["Bus-Caller", "authorization"], redact=["number"], clock=clock
    )
    await wrapper(call_of(message=message), ending(clock))

    line = JsonFormatter().format(logged.records[0])
    assert json.loads(line)["request"] == {
        "number": HIDDEN,
        "holder": {"user": "bob", "password": HIDDEN},
    }
    assert json.loads(line)["headers"] == {"Bus-Caller": "shop", "authorization": HIDDEN}
    assert "hunter2" not in line
    assert "4111" not in line


NESTED = st.recursive(
    st.none() | st.text(max_size=5) | st.integers() | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["Token", "a", "password"]), inner, max_size=3)
    ),
)


@given(NESTED)
def test_no_secret_gets_through_whatever_the_message(value: object):
    """However a message is nested, what stands under a secret name is hidden, and it is JSON."""
    shown = redacted(
        {"password": "hunter2", "rest": [{"TOKEN": "hunter2"}, value]}, {"password", "token"}
    )

    text = json.dumps(shown)
    assert "hunter2" not in text


def test_endless_messages_are_cut():
    """A message that contains itself, or megabytes, makes a short line."""
    endless: list[object] = []
    endless.append(endless)

    assert len(json.dumps(redacted(endless, ()))) < 100
    assert len(str(redacted("x" * 1_000_000, ()))) < 2_000
    assert len(str(redacted(list(range(100_000)), ()))) < 2_000


def test_every_record_carries_the_trace_it_belongs_to():
    """Lines of any logger can be found by their trace; where there is none, nothing is added."""
    record = logging.makeLogRecord({"msg": "hello", "levelname": "INFO", "name": "shop"})
    with trace.use_span(TracerProvider().get_tracer("x").start_span("s")) as span:
        TraceIds().filter(record)
    other = logging.makeLogRecord({"msg": "hello"})
    TraceIds().filter(other)

    wanted = f"{span.get_span_context().trace_id:032x}"
    assert json.loads(JsonFormatter().format(record))["trace_id"] == wanted
    assert ConsoleFormatter().format(record).endswith(f"INFO    shop  hello  trace={wanted}")
    assert "trace" not in JsonFormatter().format(other)


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    own = logging.getLogger()
    level, handlers = own.level, own.handlers[:]
    yield own
    own.setLevel(level)
    own.handlers[:] = handlers


def test_one_call_sets_logging_up(root: logging.Logger):
    """All loggers write JSON lines; tracebacks and fields of their own are in it, secrets not."""
    written = io.StringIO()
    start_logging("json", stream=written, redact=["pin"])
    try:
        {}["gone"]
    except LookupError:
        logging.getLogger("x").exception("lost %d", 7, extra={"pin": "1234", "token": "t", "n": 1})

    line = json.loads(written.getvalue())
    assert line["message"] == "lost 7"
    assert "KeyError: 'gone'" in line["exception"]
    assert (line["pin"], line["token"], line["n"]) == (HIDDEN, HIDDEN, 1)
    with pytest.raises(SetupError, match="'json' or 'console'"):
        start_logging("xml")
