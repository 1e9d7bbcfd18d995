"""Topics: where events of one type go, and what the words of their subjects mean.

A topic's subject is concrete (``orders.paid``), a pattern (``orders.*``, ``orders.>``), or has
names in braces (``orders.{region}.created``).  Subscribers may use all three; publishers need a
concrete one, which `format` makes of the last.
"""

from __future__ import annotations

import enum
import re
import uuid
from collections.abc import Mapping
from typing import Generic, TypeVar

from busmicro.codecs import Coders
from busmicro.errors import InvalidArgument, SetupError
from busmicro.pubsub.stream import Stream
from busmicro.transport import matches

T = TypeVar("T")

_WORD = re.compile(r"[^\s.*>{}\x00-\x1f\x7f\ud800-\udfff$][^\s.*>{}\x00-\x1f\x7f\ud800-\udfff]*")
_NAME = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_RESERVED = ("_INBOX", "rpc", "node", "cancel", "dlq", "schedules")
_MAX_LENGTH = 255


class Topic(Generic[T]):
    """Events of one type, on one subject or a family of subjects.

    Args:
        subject: Words with dots between. `*` stands for any one word, `>` at the end for one or
            more; `{name}` for one word that handlers may take as a parameter.
        type: What the events are: a pydantic model, dataclass, `TypedDict`, protobuf message,
            builtin or `bytes`.
        stream: Where events are kept; without one they reach whoever listens at that moment, at
            most once.
        content_type: How events travel; left out, what suits their type (JSON, protobuf, raw).

    Raises:
        SetupError: The subject breaks a rule, no stream's subjects cover it, or no codec takes the
            type.
    """

    def __init__(
        self,
        subject: str,
        type: type[T],
        *,
        stream: Stream | None = None,
        content_type: str = "",
    ) -> None:
        self.subject = subject
        """As it was given."""
        self.type = type
        """What its events are."""
        self.stream = stream
        """Where its events are kept; None if they are not."""
        self.names = _check(subject)
        """The names in braces, in order."""
        self.pattern = _NAME.sub("*", subject)
        """The subject to listen to: names in braces have become `*`."""
        self.coders = Coders(type)
        """How its events become bytes and come back."""
        self.coder = self.coders.require(content_type) if content_type else self.coders.default
        """How they are sent."""
        self.family: Topic[T] = self
        """The topic that this one was formatted from; itself if it was not."""
        if stream is not None:
            stream.must_cover(self.pattern)

    @property
    def is_concrete(self) -> bool:
        """Can events be published to it as it is?"""
        return not self.names and "*" not in self.pattern and not self.pattern.endswith(">")

    @property
    def event_type(self) -> str:
        """The name of the events' type, for people and for CloudEvents."""
        return getattr(self.type, "__name__", None) or str(self.type)

    def format(self, **values: object) -> Topic[T]:
        """Return the concrete topic for these values of the names in braces.

        Args:
            values: One for each name: a text, whole number, truth value, UUID or enum member that
                becomes a single word, without dots, blanks or wildcards.

        Raises:
            InvalidArgument: A name is missing or unknown, or a value cannot be a word.
        """
        if set(values) != set(self.names):
            wanted = ", ".join(self.names) or "no names"
            raise InvalidArgument(
                f"topic {self.subject} takes {wanted}, not {', '.join(sorted(values)) or 'none'}",
                not_run=True,
            )
        words = {name: _word(self.subject, name, value) for name, value in values.items()}
        other: Topic[T] = Topic.__new__(Topic)
        other.__dict__.update(self.__dict__)
        other.subject = other.pattern = _NAME.sub(lambda found: words[found[1]], self.subject)
        other.names = ()
        return other

    def values(self, subject: str) -> dict[str, str]:
        """Read the words that stand for the names in braces from a concrete subject."""
        words = subject.split(".")
        return {
            found[1]: words[at]
            for at, word in enumerate(self.subject.split("."))
            if (found := _NAME.fullmatch(word)) and at < len(words)
        }

    def matches(self, subject: str) -> bool:
        """Tell whether events with this subject belong to the topic."""
        return matches(self.pattern, subject)

    def require_concrete(self) -> None:
        """Refuse to publish to what is not one subject.

        Raises:
            InvalidArgument: The subject has wildcards, or names that were not filled in.
        """
        if not self.is_concrete:
            names = ", ".join(f"{name}=…" for name in self.names)
            hint = f"use topic.format({names})" if names else "publish to one subject"
            raise InvalidArgument(f"topic {self.subject} is not one subject: {hint}", not_run=True)

    def __repr__(self) -> str:
        kept = f" in {self.stream.name}" if self.stream else ""
        return f"<Topic {self.subject} of {self.event_type}{kept}>"


def _check(subject: str) -> tuple[str, ...]:
    """Refuse a subject that cannot be meant; return the names in it."""
    words = subject.split(".")
    names = tuple(found[1] for word in words if (found := _NAME.fullmatch(word)))
    if len(subject) > _MAX_LENGTH:
        raise SetupError(f"topic {subject[:40]}…: a subject has at most {_MAX_LENGTH} characters")
    for at, word in enumerate(words):
        last = at == len(words) - 1
        wild = word == "*" or (word == ">" and last) or _NAME.fullmatch(word)
        if not wild and not _WORD.fullmatch(word):
            raise SetupError(
                f"topic {subject!r}: {word!r} is no word of a subject; write words with dots "
                "between, '*' for one, '>' at the end for the rest, '{name}' for one with a name"
            )
    if len(set(names)) != len(names):
        raise SetupError(f"topic {subject!r}: each name in braces may stand there once")
    if words[0] in _RESERVED:
        raise SetupError(
            f"topic {subject!r}: subjects that begin with {words[0]} are busmicro's own"
        )
    return names


def _word(subject: str, name: str, value: object) -> str:
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, bool):
        value = str(value).lower()
    word = str(value)
    if not isinstance(value, str | int | uuid.UUID) or not _WORD.fullmatch(word):
        raise InvalidArgument(
            f"topic {subject}: {name}={value!r} cannot be a word of a subject: "
            "no dots, blanks, wildcards or braces, and not empty",
            not_run=True,
        )
    return word


def subjects_of(values: Mapping[str, str]) -> str:
    """Write the words of a subject for people: `region=eu, kind=a`."""
    return ", ".join(f"{name}={word}" for name, word in values.items())
