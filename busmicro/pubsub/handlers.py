"""The handlers of events: what is registered, checked at registration, before any I/O."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias, TypedDict, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from busmicro.call import Call, Kind, Side, Spec
from busmicro.endpoint import hints_of, label
from busmicro.errors import CodecError, InvalidArgument, SetupError
from busmicro.pubsub.topic import Topic

Start: TypeAlias = Literal["first", "new"] | datetime | int
"""Where a subscription begins: all that is kept, what comes from now on, a moment, or a sequence
number of the stream."""
Invoke: TypeAlias = Callable[[Call], Awaitable[object]]
Function: TypeAlias = Callable[..., Awaitable[object]]
KeyOf: TypeAlias = Callable[..., object]

_GROUP = re.compile(r"[A-Za-z0-9_-]{1,64}")
DEFAULT_BACKOFF = (1.0, 5.0, 30.0, 120.0)


def check_start(start: object) -> None:
    """Refuse a beginning that cannot be meant.

    Raises:
        SetupError: It is none of those there are, or a moment without a time zone.
    """
    known = start in (None, "first", "new") or (type(start) is int and start >= 1)
    if not known and not (isinstance(start, datetime) and start.tzinfo is not None):
        raise SetupError(
            f"start={start!r}: say 'first', 'new', a moment with a time zone, or a number from 1"
        )


class Durable(TypedDict, total=False):
    """What may be said of a handler of events that a stream keeps, and of one that takes lists."""

    max_deliver: int
    """How often an event is tried before it goes to the dead letters; 5 if left out."""
    ack_wait: float
    """Seconds of silence after which the server takes a node for dead and tries another; 30. A
    handler may take longer: the node says that it is at work."""
    backoff: Sequence[float]
    """Seconds before the second, third, … attempt, the last one for the rest; 1, 5, 30, 120."""
    start: Start
    """Where a subscription begins that is new to the server: `"first"` (with a group, if left out),
    `"new"` (without one), a moment, or a number of the stream."""
    batch: int
    """How many events a handler of lists gets at most; 100."""
    batch_wait: float
    """Seconds that a list may wait for more events; 0.05."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscribeOptions:
    """What the author of a handler says of it; `Service.subscribe` explains each."""

    group: str = ""
    """Who shares the events; empty for a subscription of its own."""
    concurrency: int = 16
    """How many events are handled at once."""
    key: KeyOf | None = None
    """Events with the same key are handled one after another."""
    timeout: float | None = None
    """Seconds a handler may take; None for no limit."""
    waiting: int = 1024
    """How many events may wait in this process."""
    max_deliver: int = 5
    """How often an event is tried before it goes to the dead letters."""
    ack_wait: float = 30.0
    """Seconds of silence after which the server takes a node for dead and tries another."""
    backoff: Sequence[float] = DEFAULT_BACKOFF
    """Seconds before the second, third, … attempt; the last one holds for the rest."""
    start: Start | None = None
    """Where it begins; None for `first` with a group and `new` without."""
    batch: int = 100
    """How many events a handler of lists gets at most."""
    batch_wait: float = 0.05
    """Seconds that a list may wait for more."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.group and not _GROUP.fullmatch(self.group):
            raise SetupError(f"group {self.group!r}: use 1 to 64 letters, digits, _ and -")
        for name, least, most in (
            ("concurrency", 1, 10_000),
            ("waiting", 1, 65_536),
            ("max_deliver", 1, 1_000),
            ("ack_wait", 0.5, 86_400),
            ("batch", 1, 10_000),
            ("batch_wait", 0.0, 60.0),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise SetupError(f"{name}={value}: say {least} to {most:,}")
        check_start(self.start)
        if self.timeout is not None and not 0 < self.timeout <= 86_400:
            raise SetupError(f"timeout={self.timeout}: say seconds, more than 0, at most 86,400")
        if not self.backoff or not all(0 <= pause <= 86_400 for pause in self.backoff):
            raise SetupError(f"backoff={list(self.backoff)}: say seconds, one or more")

    @classmethod
    def of(cls, topic: Topic[Any], durable: Durable, **common: Any) -> SubscribeOptions:
        """Put options together; those for streams are refused where there is none.

        Raises:
            SetupError: An option makes no sense.
        """
        if topic.stream is None:
            for name in durable.keys() - {"batch", "batch_wait"}:
                raise SetupError(f"topic {topic.subject} has no stream: {name}= needs one")
        return cls(**common, **durable)

    def pause_after(self, attempt: int) -> float:
        """Return the seconds to wait after the given attempt has failed."""
        return self.backoff[min(attempt, len(self.backoff)) - 1]


@dataclass(slots=True)
class Figures:
    """What a handler has done so far."""

    handled: int = 0
    """Events that went well."""
    failed: int = 0
    """Attempts that failed."""
    dead: int = 0
    """Events that went to the dead letters."""
    dropped: int = 0
    """Events without a stream that came while too many waited."""
    last_error: str = ""
    """What the latest failure said."""


class Subscriber:
    """One handler and the topic it listens to."""

    def __init__(
        self, service: str, topic: Topic[Any], function: Function, options: SubscribeOptions
    ) -> None:
        self.topic = topic
        """What it listens to."""
        self.function = function
        """What runs."""
        self.options = options
        """What its author said of it."""
        self.figures = Figures()
        """What it has done so far."""
        self.spec = Spec(
            service=service, endpoint=topic.subject, kind=Kind.EVENT, side=Side.HANDLER
        )
        self.doc = (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")
        """What it is for: the first paragraph of its docstring."""
        self.words_before = 0
        """Words that stand before the topic's own in a subject: those of the namespace."""
        self.invoke, self.takes_list = _read(function, topic, self)

    def copy(self) -> Subscriber:
        """Make the same one with figures of its own, for one run of the service."""
        return Subscriber(self.spec.service, self.topic, self.function, self.options)

    def __repr__(self) -> str:
        group = f" in group {self.options.group}" if self.options.group else ""
        return f"<Subscriber {label(self.function)} of {self.topic.subject}{group}>"


class Subscribers:
    """The event handlers of a service, in the order they were registered."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._all: list[Subscriber] = []

    def __iter__(self) -> Iterator[Subscriber]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def copy(self) -> Subscribers:
        """Make a set with the same handlers and figures of its own, for one run of the service."""
        other = Subscribers(self._service)
        other._all = [subscriber.copy() for subscriber in self]
        return other

    def add(self, topic: Topic[Any], function: Function, options: SubscribeOptions) -> Subscriber:
        """Register a handler; every handler has a subscription of its own, never a shared one.

        Raises:
            SetupError: The signature does not do, or the group has a handler for this topic. The
                text names the fix.
        """
        subscriber = Subscriber(self._service, topic, function, options)
        for other in self._all if options.group else ():
            if (other.topic.pattern, other.options.group) == (topic.pattern, options.group):
                raise SetupError(
                    f"{label(function)}: group {options.group!r} of topic {topic.subject} is "
                    f"served by {label(other.function)}, and they would take each other's events; "
                    "give one of them another group"
                )
        self._all.append(subscriber)
        return subscriber


def _read(function: Function, topic: Topic[Any], subscriber: Subscriber) -> tuple[Invoke, bool]:
    """Adapt a user's function to `Handler`; tell whether it takes lists of events."""
    if not inspect.iscoroutinefunction(function):
        raise SetupError(f"{label(function)} is not async: write 'async def'")
    hints = hints_of(function)
    event: str | None = None
    takes_list = False
    others: dict[str, Callable[[Call], object]] = {}
    for parameter in inspect.signature(function).parameters.values():
        name = parameter.name
        hint = hints.get(name)
        if name not in hints:
            raise SetupError(f"{label(function)}: parameter {name!r} has no type hint: add one")
        if hint is Call:
            others[name] = _whole_call
        elif name in topic.names:
            others[name] = _placeholder(topic, name, hint, subscriber)
        elif event is None:
            event, takes_list = name, _is_list_of(function, topic, hint)
        else:
            raise SetupError(
                f"{label(function)}: {name!r} is neither the event, nor 'call: Call', nor one of "
                f"the names in {topic.subject}"
            )
    if takes_list and others:
        raise SetupError(f"{label(function)}: a handler of lists takes the list and nothing else")
    return _invoker(function, event, others), takes_list


def _whole_call(call: Call) -> object:
    return call


def _placeholder(
    topic: Topic[Any], name: str, hint: object, subscriber: Subscriber
) -> Callable[[Call], object]:
    adapter: TypeAdapter[object] = TypeAdapter(hint)  # type: ignore[arg-type]
    at = topic.subject.split(".").index(f"{{{name}}}")

    def read(call: Call) -> object:
        word = call.subject.split(".")[subscriber.words_before + at]
        try:
            return adapter.validate_python(word)
        except ValidationError as wrong:
            fault = CodecError(f"{name}={word!r} in subject {call.subject}")
            raise InvalidArgument(
                f"{name}={word!r} in the subject: {wrong.errors()[0]['msg']}"
            ) from fault

    return read


def _is_list_of(function: Function, topic: Topic[Any], hint: object) -> bool:
    """Tell a handler of lists from a handler of events, and refuse one of something else."""
    wanted: object = topic.type
    if hint == wanted or hint is object:
        return False
    if get_origin(hint) is list and get_args(hint) == (wanted,):
        return True
    if isinstance(hint, type) and isinstance(wanted, type) and issubclass(wanted, hint):
        return False
    raise SetupError(
        f"{label(function)} takes {getattr(hint, '__name__', hint)}, but topic {topic.subject} "
        f"has events of type {topic.event_type}"
    )


def _invoker(
    function: Function, event: str | None, others: dict[str, Callable[[Call], object]]
) -> Invoke:
    if event is not None and not others:

        def usual(call: Call) -> Awaitable[object]:
            message = call.message
            call.began = True
            return function(message)

        return usual

    def other(call: Call) -> Awaitable[object]:
        given = {name: read(call) for name, read in others.items()}
        if event is not None:
            given[event] = call.message
        call.began = True
        return function(**given)

    return other
