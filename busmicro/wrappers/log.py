"""Log every exchange: one line with what it was, how it ended and how long it took.

The lines go to the standard library's logging, as fields and as text.  `JsonFormatter` writes them
for programs, `ConsoleFormatter` for people, and `TraceIds` puts the trace into every record of the
process, not only into these lines.  `start_logging` sets all of that up in one call.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Final, TextIO

from busmicro.call import Call, Handler, Kind, Side
from busmicro.clock import SYSTEM_CLOCK, Clock
from busmicro.errors import CallError, Code, SetupError
from busmicro.wrappers import conventions as names
from busmicro.wrappers.count import Count

SECRET: Final = frozenset(
    {"password", "passwd", "secret", "token", "authorization", "api_key", "cookie", "credentials"}
)
"""Names of fields that nobody wants to see in a log."""
HIDDEN: Final = "***"

_SOON: Final = {
    Code.OK: logging.INFO,
    Code.UNKNOWN: logging.ERROR,
    Code.INTERNAL: logging.ERROR,
    Code.DATA_LOSS: logging.ERROR,
    Code.UNIMPLEMENTED: logging.ERROR,
    Code.UNAVAILABLE: logging.WARNING,
    Code.DEADLINE_EXCEEDED: logging.WARNING,
    Code.RESOURCE_EXHAUSTED: logging.WARNING,
    Code.UNAUTHENTICATED: logging.WARNING,
    Code.PERMISSION_DENIED: logging.WARNING,
}
"""What is not here is an answer like any other: INFO."""
_DEEPEST: Final = 8
_MOST_ITEMS: Final = 64
_MOST_TEXT: Final = 1024
_DID: Final = {
    (Kind.UNARY, Side.CLIENT): "called",
    (Kind.UNARY, Side.HANDLER): "answered",
    (Kind.STREAM, Side.CLIENT): "streamed with",
    (Kind.STREAM, Side.HANDLER): "streamed from",
    (Kind.EVENT, Side.CLIENT): "published",
    (Kind.EVENT, Side.HANDLER): "handled",
}


class Log:
    """Logs every exchange when it is over.

    Put it inside `Trace`, so that its lines carry the trace.

    Args:
        logger: Where to.
        levels: Other levels for some codes; left out, `ok` and answers are INFO, what may be better
            in a moment is WARNING, faults of the service are ERROR.
        messages: Log the message, too? Long texts are cut, secrets left out. Of a stream it is the
            one request, if there is one, and how many messages went either way.
        headers: Names of headers to log.
        redact: Names of fields and headers that stay out of the log, besides `SECRET`.
        clock: Where time comes from.

    Raises:
        SetupError: A level is none.
    """

    def __init__(
        self,
        *,
        logger: str = "busmicro.exchange",
        levels: Mapping[Code, int] | None = None,
        messages: bool = False,
        headers: Collection[str] = (),
        redact: Collection[str] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        wrong = [level for level in (levels or {}).values() if not 0 <= level <= 100]
        if wrong:
            raise SetupError(f"Log(levels=…): {wrong[0]} is no level, say 0 to 100")
        self._log = logging.getLogger(logger)
        self._levels = {**_SOON, **(levels or {})}
        self._messages = messages
        self._headers = tuple(headers)
        self._secret = SECRET | {name.lower() for name in redact}
        self._clock = clock

    async def __call__(self, call: Call, call_next: Handler, /) -> object:
        """Run the exchange, then say how it went."""
        began = self._clock.now()
        count = None
        if self._messages and call.spec.kind is Kind.STREAM:
            count = Count()
            call.taps.append(count)
        try:
            reply = await call_next(call)
        except BaseException as failure:
            self._say(call, began, names.code_of(call, failure) or Code.UNKNOWN, failure, count)
            raise
        self._say(call, began, Code.OK, None, count)
        return reply

    def _say(
        self,
        call: Call,
        began: float,
        code: Code,
        failure: BaseException | None,
        count: Count | None,
    ) -> None:
        level = self._levels.get(code, logging.INFO)
        if not self._log.isEnabledFor(level):
            return
        ms = round((self._clock.now() - began) * 1000, 3)
        spec = call.spec
        what = spec.endpoint if spec.kind is Kind.EVENT else names.method(spec)
        fields: dict[str, object] = {
            "service": spec.service,
            "endpoint": spec.endpoint,
            "kind": spec.kind.value,
            "side": spec.side.value,
            "code": code.value,
            "duration_ms": ms,
        }
        why = ""
        if failure is not None:
            why = failure.message if isinstance(failure, CallError) else type(failure).__name__
            fields["error"] = why
        self._add_what_was_said(call, fields)
        text = "%s %s: %s in %.1f ms"
        given: list[object] = [_DID[spec.kind, spec.side], what, code.value, ms]
        if count is not None:
            fields |= {"sent": count.sent, "received": count.received}
            text += ", %d sent, %d received"
            given += [count.sent, count.received]
        if why:
            text += " (%s)"
            given.append(why)
        self._log.log(level, text, *given, extra=fields)

    def _add_what_was_said(self, call: Call, fields: dict[str, object]) -> None:
        """Add headers and message, as far as somebody asked for them."""
        if self._headers and call.has_headers:
            found = {n: call.headers[n] for n in self._headers if n in call.headers}
            fields["headers"] = redacted(found, self._secret)
        readable = call.began or call.spec.side is Side.CLIENT  # else reading could fail again
        if self._messages and readable and not _has_many_requests(call):
            fields["request"] = redacted(call.message, self._secret)


def _has_many_requests(call: Call) -> bool:
    return call.spec.kind is Kind.STREAM and call.message is None


def redacted(value: object, secret: Collection[str], depth: int = 0) -> object:
    """Return a value as JSON has it, short enough for a log and without secrets.

    Args:
        value: Builtins, dataclasses, pydantic models; of anything else only its type is shown.
        secret: Names of fields, in lower case, whose values are left out.
        depth: How deep inside another value it stands.
    """
    fields = _fields(value)
    if fields is not None and depth < _DEEPEST:
        return {
            str(name): HIDDEN if str(name).lower() in secret else redacted(v, secret, depth + 1)
            for name, v in list(fields)[:_MOST_ITEMS]
        }
    if isinstance(value, list | tuple | set | frozenset) and depth < _DEEPEST:
        return [redacted(item, secret, depth + 1) for item in list(value)[:_MOST_ITEMS]]
    return _simple(value)


def _simple(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return value if len(value) <= _MOST_TEXT else f"{value[:_MOST_TEXT]}…"
    if isinstance(value, bytes | bytearray):
        return f"<{len(value)} bytes>"
    return f"<{type(value).__name__}>"


def _fields(value: object) -> Iterable[tuple[object, object]] | None:
    """Return names and values of what has some."""
    if isinstance(value, Mapping):
        return value.items()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    declared = getattr(type(value), "model_fields", None)  # pydantic is not imported for this
    if isinstance(declared, Mapping):
        return [(name, getattr(value, name, None)) for name in declared]
    return None


# --- records ------------------------------------------------------------------------------------


class TraceIds(logging.Filter):
    """Puts `trace_id` and `span_id` into every record; empty where no trace is."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the ids; let every record pass."""
        record.trace_id = record.span_id = ""
        api = sys.modules.get("opentelemetry.trace")  # where nobody imported it, no trace can be
        if api is not None:
            here = api.get_current_span().get_span_context()
            if here.is_valid:
                record.trace_id = f"{here.trace_id:032x}"
                record.span_id = f"{here.span_id:016x}"
        return True


_USUAL: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
"""What every record has; the rest is what somebody said with `extra=`."""


def _extras(record: logging.LogRecord, secret: Collection[str]) -> dict[str, object]:
    said = {k: v for k, v in record.__dict__.items() if k not in _USUAL and v not in ("", None)}
    shown = redacted(said, secret)
    return shown if isinstance(shown, dict) else {}


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON.

    Args:
        redact: Names of fields that stay out of the log, besides `SECRET`.
    """

    def __init__(self, *, redact: Collection[str] = ()) -> None:
        super().__init__()
        self._secret = SECRET | {name.lower() for name in redact}

    def format(self, record: logging.LogRecord) -> str:
        """Write it."""
        line: dict[str, object] = {
            "time": _moment(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record, self._secret),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class ConsoleFormatter(logging.Formatter):
    """Writes a record for people: time, level, text, and the trace it belongs to."""

    def format(self, record: logging.LogRecord) -> str:
        """Write it."""
        trace = getattr(record, "trace_id", "")
        line = (
            f"{_moment(record)[11:23]} {record.levelname:<7} {record.name}  {record.getMessage()}"
        )
        if trace:
            line += f"  trace={trace}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _moment(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def start_logging(
    style: str = "console",
    *,
    level: int = logging.INFO,
    redact: Collection[str] = (),
    stream: TextIO | None = None,
) -> logging.Handler:
    """Have everything that this process logs written in one style, each line with its trace.

    Args:
        style: `json` for programs, `console` for people.
        level: The least that is written.
        redact: Names of fields that stay out of the log, besides `SECRET`.
        stream: Where to; left out, standard error.

    Returns:
        The handler that was added to the root logger.

    Raises:
        SetupError: There is no such style.
    """
    if style not in {"json", "console"}:
        raise SetupError(f"start_logging({style!r}): say 'json' or 'console'")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(redact=redact) if style == "json" else ConsoleFormatter())
    handler.addFilter(TraceIds())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level)
    return handler
