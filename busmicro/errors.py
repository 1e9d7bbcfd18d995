"""Every way a call can end, and what each way means to whoever has to act on it.

BusmicroError
├── CallError(code, message, details, origin)   crosses the wire: same class at the caller
│   ├── Cancelled · InvalidArgument · DeadlineExceeded · AlreadyExists · PermissionDenied
│   ├── Unauthenticated · Aborted · OutOfRange · Internal · DataLoss · NotFound (StreamMissing)
│   ├── Unknown (PublishUnknown) · Unimplemented (NotSupported)
│   ├── FailedPrecondition (StreamConflict, Reject)
│   ├── ResourceExhausted (PayloadTooLarge, StreamFull)
│   └── Unavailable (NoResponders, Disconnected, NoJetStream)
├── CodecError      bytes that are not what they claim, or a message that cannot become bytes
└── SetupError      your code or configuration is wrong; raised before any I/O; names the fix

`TABLE` is the one place where a code meets its HTTP status, its exit code and its retry rule.

Source: gRPC doc/statuscodes.md (names, numbers), Connect protocol (HTTP statuses), NATS ADR-32.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class Code(enum.Enum):
    """How a call ended; the value is the name on the wire."""

    OK = "ok"
    """It worked."""
    CANCELLED = "cancelled"
    """The caller gave up."""
    UNKNOWN = "unknown"
    """The handler failed in a way nobody named."""
    INVALID_ARGUMENT = "invalid_argument"
    """The request is wrong, whatever the state of the service."""
    DEADLINE_EXCEEDED = "deadline_exceeded"
    """Time ran out; the handler may have run."""
    NOT_FOUND = "not_found"
    """What was asked for does not exist."""
    ALREADY_EXISTS = "already_exists"
    """What was to be made is there already."""
    PERMISSION_DENIED = "permission_denied"
    """Known, but not allowed."""
    RESOURCE_EXHAUSTED = "resource_exhausted"
    """A limit was reached: rate, queue, quota or size."""
    FAILED_PRECONDITION = "failed_precondition"
    """Right request, wrong state; fix the state first."""
    ABORTED = "aborted"
    """Lost a race; read again and start over."""
    OUT_OF_RANGE = "out_of_range"
    """Past the end of what there is."""
    UNIMPLEMENTED = "unimplemented"
    """The service lives and does not have this endpoint."""
    INTERNAL = "internal"
    """A promise of the software itself was broken."""
    UNAVAILABLE = "unavailable"
    """Nobody is there to answer now."""
    DATA_LOSS = "data_loss"
    """Messages are gone and cannot be had again."""
    UNAUTHENTICATED = "unauthenticated"
    """Nobody knows who is calling."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What follows from a code."""

    number: int
    """The gRPC number."""
    http_status: int
    """The HTTP status, also sent as `Nats-Service-Error-Code`."""
    retry_if_idempotent: bool = False
    """May a call that is safe to run twice be tried again after this?"""

    @property
    def exit_code(self) -> int:
        """The exit code of a command that ended this way, as grpcurl has it."""
        return 64 + self.number if self.number else 0


TABLE: dict[Code, Meaning] = {
    Code.OK: Meaning(0, 200),
    Code.CANCELLED: Meaning(1, 499),
    Code.UNKNOWN: Meaning(2, 500, retry_if_idempotent=True),
    Code.INVALID_ARGUMENT: Meaning(3, 400),
    Code.DEADLINE_EXCEEDED: Meaning(4, 504, retry_if_idempotent=True),
    Code.NOT_FOUND: Meaning(5, 404),
    Code.ALREADY_EXISTS: Meaning(6, 409),
    Code.PERMISSION_DENIED: Meaning(7, 403),
    Code.RESOURCE_EXHAUSTED: Meaning(8, 429),
    Code.FAILED_PRECONDITION: Meaning(9, 400),
    Code.ABORTED: Meaning(10, 409),
    Code.OUT_OF_RANGE: Meaning(11, 400),
    Code.UNIMPLEMENTED: Meaning(12, 501),
    Code.INTERNAL: Meaning(13, 500),
    Code.UNAVAILABLE: Meaning(14, 503, retry_if_idempotent=True),
    Code.DATA_LOSS: Meaning(15, 500),
    Code.UNAUTHENTICATED: Meaning(16, 401),
}

_FROM_HTTP = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    405: Code.UNIMPLEMENTED,
    408: Code.DEADLINE_EXCEEDED,
    409: Code.ABORTED,
    413: Code.RESOURCE_EXHAUSTED,
    422: Code.INVALID_ARGUMENT,
    429: Code.RESOURCE_EXHAUSTED,
    499: Code.CANCELLED,
    500: Code.INTERNAL,
    501: Code.UNIMPLEMENTED,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}


def code_from_http(status: int) -> Code:
    """Read the error number of a service that is not busmicro's as the nearest code."""
    if status in _FROM_HTTP:
        return _FROM_HTTP[status]
    return Code.INVALID_ARGUMENT if 400 <= status < 500 else Code.UNKNOWN


class BusmicroError(Exception):
    """Whatever busmicro raises on purpose."""


class SetupError(BusmicroError, ValueError):
    """Your code or configuration is wrong: nothing was sent, the text names the fix."""


class CodecError(BusmicroError, ValueError):
    """These bytes are not what they claim to be, or this message cannot become bytes."""

    def __init__(self, message: str, details: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.details = list(details)
        """One entry for each thing that is wrong, as JSON values."""


class CallError(BusmicroError):
    """A call that did not succeed; raised by a handler, it reaches the caller as the same class."""

    code: Code = Code.UNKNOWN
    _class_of: ClassVar[dict[Code, type[CallError]]] = {}

    def __init__(
        self,
        message: str = "",
        *,
        details: Sequence[object] = (),
        origin: str = "",
        retry_after: float | None = None,
        not_run: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        """What happened, for people."""
        self.details = list(details)
        """More of it, for programs: JSON values."""
        self.origin = origin
        """The service that raised it; empty when it was raised in this process."""
        self.retry_after = retry_after
        """Seconds to leave the service alone, if it asked for that."""
        self.not_run = not_run
        """True when the handler certainly did not run, so that trying again is always safe."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "code" in cls.__dict__:
            CallError._class_of.setdefault(cls.code, cls)

    def __str__(self) -> str:
        at = f" [{self.origin}]" if self.origin else ""
        text = f"{self.code.value}: {self.message}{at}" if self.message else self.code.value + at
        # half a character, as JSON may hold it, cannot be sent on in figures nor written to a log
        return text if text.isascii() else text.encode("utf-8", "replace").decode()

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (type(self), self.args, self.__dict__)

    @staticmethod
    def of(
        code: Code, message: str = "", *, details: Sequence[object] = (), origin: str = ""
    ) -> CallError:
        """Make the error of the class that belongs to a code."""
        error = CallError._class_of.get(code, Unknown)("")
        CallError.__init__(error, message, details=details, origin=origin)
        return error


def _restore(
    cls: type[CallError], args: tuple[object, ...], fields: dict[str, object]
) -> CallError:
    """Make a copied or unpickled error without its constructor, which may want other arguments."""
    error = cls.__new__(cls, *args)
    error.__dict__.update(fields)
    return error


class Cancelled(CallError):
    """The caller gave up."""

    code = Code.CANCELLED


class Unknown(CallError):
    """The handler failed in a way nobody named."""

    code = Code.UNKNOWN


class InvalidArgument(CallError):
    """The request is wrong; `details` says where."""

    code = Code.INVALID_ARGUMENT


class DeadlineExceeded(CallError):
    """Time ran out; the handler may have run."""

    code = Code.DEADLINE_EXCEEDED


class NotFound(CallError):
    """What was asked for does not exist."""

    code = Code.NOT_FOUND


class AlreadyExists(CallError):
    """What was to be made is there already."""

    code = Code.ALREADY_EXISTS


class PermissionDenied(CallError):
    """Known, but not allowed."""

    code = Code.PERMISSION_DENIED


class ResourceExhausted(CallError):
    """A limit was reached; `retry_after` says how long to stay away, if the service knows."""

    code = Code.RESOURCE_EXHAUSTED


class FailedPrecondition(CallError):
    """Right request, wrong state; fix the state first."""

    code = Code.FAILED_PRECONDITION


class Aborted(CallError):
    """Lost a race; read again and start over."""

    code = Code.ABORTED


class OutOfRange(CallError):
    """Past the end of what there is."""

    code = Code.OUT_OF_RANGE


class Unimplemented(CallError):
    """The service lives and does not have this endpoint."""

    code = Code.UNIMPLEMENTED


class Internal(CallError):
    """A promise of the software itself was broken; look for the id in the service's log."""

    code = Code.INTERNAL


class Unavailable(CallError):
    """Nobody is there to answer now."""

    code = Code.UNAVAILABLE


class DataLoss(CallError):
    """Messages are gone and cannot be had again."""

    code = Code.DATA_LOSS


class Unauthenticated(CallError):
    """Nobody knows who is calling."""

    code = Code.UNAUTHENTICATED


class PayloadTooLarge(ResourceExhausted):
    """The message would not pass the server; it was not sent."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"{size_bytes:,} bytes with headers, the server takes {limit_bytes:,}; "
            "send less, or raise max_payload of nats-server",
            not_run=True,
        )
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class NoResponders(Unavailable):
    """No node serves this subject; nothing ran."""

    def __init__(self, subject: str) -> None:
        super().__init__(f"no node serves {subject}", not_run=True)
        self.subject = subject


class Disconnected(Unavailable):
    """The connection to NATS is down, or went down while the call was under way."""

    def __init__(self, message: str, *, not_run: bool) -> None:
        super().__init__(message, not_run=not_run)


class NoJetStream(Unavailable):
    """This account of the NATS server keeps no streams; nothing was stored."""

    def __init__(self) -> None:
        super().__init__(
            "JetStream is not enabled: start nats-server with -js, or use a topic without a stream",
            not_run=True,
        )


class NotSupported(Unimplemented):
    """The NATS server is too old for what was asked of it; nothing was done."""

    def __init__(self, what: str, version: str) -> None:
        super().__init__(f"{what} needs nats-server {version} or newer", not_run=True)
        self.what = what
        self.version = version


class StreamMissing(NotFound):
    """The stream that should keep an event is not there; nothing was stored."""

    def __init__(self, stream: str) -> None:
        super().__init__(
            f"there is no stream {stream}: start a service that declares it",
            not_run=True,
        )
        self.stream = stream


class StreamFull(ResourceExhausted):
    """The stream refuses new events because it is full; nothing was stored."""

    def __init__(self, stream: str, limit: str) -> None:
        super().__init__(
            f"stream {stream} is full ({limit}): let its consumers catch up, or raise its limits",
            not_run=True,
        )
        self.stream = stream


class StreamConflict(FailedPrecondition):
    """A stream or consumer exists with other settings; it was left as it is."""

    def __init__(self, name: str, differences: Sequence[str], hint: str = "") -> None:
        super().__init__(
            f"{name} exists with other settings: {'; '.join(differences)}"
            + (f"; {hint}" if hint else ""),
            details=[{"field": "", "problem": difference} for difference in differences],
            not_run=True,
        )
        self.name = name
        self.differences = list(differences)


class PublishUnknown(Unknown):
    """Nobody can tell whether the event was stored; publish it again with the same id."""

    def __init__(self, subject: str, id: str, timeout: float) -> None:
        super().__init__(
            f"no word within {timeout:g} s on whether event {id} was stored on {subject}; "
            "publishing it again with the same id cannot store it twice"
        )
        self.subject = subject
        self.id = id


class NotAllPublished(CallError):
    """Some of many events were not published, for the reasons in `failures`."""

    def __init__(self, stored: int, failures: dict[int, CallError]) -> None:
        first = min(failures)
        super().__init__(
            f"{stored} events were stored, {len(failures)} were not; "
            f"event {first}: {failures[first]}"
        )
        self.code = failures[first].code
        self.stored = stored
        """How many certainly are stored."""
        self.failures = failures
        """By position. What comes after the last one was not sent at all."""


class Reject(FailedPrecondition):
    """Raised by a handler of events: this one must never be delivered again.

    It goes to the dead letters at once, with the reason.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def exit_code(failure: BusmicroError) -> int:
    """Return the exit code of a command that failed this way.

    2 for wrong code or settings, 3 for a NATS that cannot be reached, 64 and the gRPC number for
    any other end of a call (as grpcurl has it), 1 for the rest.
    """
    if isinstance(failure, Disconnected) and failure.not_run:
        return 3
    if isinstance(failure, CallError):
        return TABLE[failure.code].exit_code
    return 2 if isinstance(failure, SetupError) else 1
