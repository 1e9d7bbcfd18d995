"""Events for later, and events that recur: kept and published by the server itself.

An event for later lies in its stream under a subject of its own, with headers that say when it is
to be published and where.  No process of ours has to be awake then, and replicas of a service
cannot publish it twice: the schedule is one message, whoever wrote it.

A stream forgets what is older than its `max_age`, schedules too; `Nats-TTL: never` keeps them.

Source: NATS ADR-51 (schedules), ADR-43 (time to live).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from busmicro.errors import (
    CallError,
    InvalidArgument,
    NotFound,
    NotSupported,
    SetupError,
)
from busmicro.headers import VERSION_LINE, encode_lines, parse
from busmicro.pubsub.declare import BATCH_LEVEL, CRON_LEVEL, Declarations
from busmicro.pubsub.topic import Topic
from busmicro.transport import JetStream, Subjects, err_code

_SHORTCUTS: Final = frozenset({"@yearly", "@monthly", "@weekly", "@daily", "@hourly"})
_EVERY = re.compile(r"@every ([0-9]+(h|m|s))+")
_FIELDS = re.compile(r"[!-~]+([ \t]+[!-~]+){5}")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
_INVALID_SCHEDULE: Final = 10189


def schedule_lines(
    target: str,
    producer: str,
    id: str,
    at: datetime,
    level: int,
) -> tuple[str, bytes]:
    """Say where an event for later waits, and until when.

    Args:
        target: The subject it is for.
        producer: Who publishes.
        id: What makes it this event; another with the same id takes its place.
        at: When, with a time zone.
        level: What JetStream can do here.

    Returns:
        The name of the schedule, one word, and header lines.

    Raises:
        NotSupported: The server is too old.
    """
    if level < BATCH_LEVEL:
        raise NotSupported("publishing later (after=, at=)", "2.12")
    # what follows a colon of the target could be the beginning of another's id
    subject = target.replace(":", " ")
    name = hashlib.sha256(f"{producer}:{subject}:{id}".encode()).hexdigest()[:32]
    when = at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return name, _lines(f"@at {when}", target)


def _lines(schedule: str, target: str) -> bytes:
    return encode_lines(
        [
            ("Nats-Schedule", schedule),
            ("Nats-Schedule-Target", target),
            ("Nats-TTL", "never"),
        ]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cron:
    """An event that the server publishes again and again."""

    name: str
    """Which, among those of the service."""
    schedule: str
    """When: six fields from seconds to weekdays, `@hourly` and the like, or `@every 5m`."""
    topic: Topic[Any]
    """Where."""
    event: object
    """What."""

    def __post_init__(self) -> None:
        """Refuse what no server would take."""
        shortcut = self.schedule in _SHORTCUTS or _EVERY.fullmatch(self.schedule)
        if not (shortcut or _FIELDS.fullmatch(self.schedule)):
            raise SetupError(
                f"cron {self.schedule!r}: write six fields, seconds first, like '0 */5 * * * *', "
                f"or '@every 5m', or one of {', '.join(sorted(_SHORTCUTS))}"
            )
        if self.topic.stream is None:
            raise SetupError(f"cron {self.name}: topic {self.topic.subject} needs a stream")
        if not self.topic.is_concrete:
            raise SetupError(f"cron {self.name}: topic {self.topic.subject} is not one subject")
        if not _NAME.fullmatch(self.name):
            raise SetupError(f"cron name {self.name!r}: use letters, digits, _ and -")

    @classmethod
    def of(cls, name: str, schedule: str, topic: Topic[Any], event: object) -> Cron:
        """Make one; without an event, from the topic's type without arguments.

        Raises:
            SetupError: No server would take it, or the event needs arguments.
        """
        if event is None and topic.type not in (None, type(None)):
            try:
                event = topic.type()
            except Exception as wrong:
                raise SetupError(
                    f"cron {name}: give event=, for a {topic.event_type} needs arguments ({wrong})"
                ) from wrong
        return cls(name=name, schedule=schedule, topic=topic, event=event)


class CronTable:
    """The recurring events of one service, as the server keeps them."""

    def __init__(self, declarations: Declarations, subjects: Subjects, service: str) -> None:
        self._declarations = declarations
        self._subjects = subjects
        self._service = service

    @property
    def _jetstream(self) -> JetStream:
        return self._declarations.jetstream

    async def write(self, crons: Sequence[Cron]) -> None:
        """Have the server publish these events, if it does not yet.

        Raises:
            NotSupported: The server is older than 2.14.
            SetupError: The server does not understand a schedule.
            CallError: As `JetStream.api`.
        """
        for cron in crons:
            await self._write(cron)

    async def clean_up(self, crons: Sequence[Cron], kept: Sequence[str]) -> None:
        """Delete the schedules of this service that its code does not have any more.

        Args:
            crons: What shall recur.
            kept: The subjects that the account's streams keep.

        Raises:
            CallError: As `JetStream.api`.
        """
        wanted = {self._subject(cron) for cron in crons}
        start, end = self._subjects.schedule("", "").removesuffix("."), ".>"
        for subject in kept:
            if not (subject.startswith(start) and subject.endswith(end)):
                continue
            stream = subject[len(start) : -len(end)]
            for written in await self._written(stream):
                if written not in wanted:
                    name = self._subjects.stream(stream)
                    await self._jetstream.api(f"STREAM.PURGE.{name}", {"filter": written})

    def _subject(self, cron: Cron) -> str:
        stream = cron.topic.stream.name if cron.topic.stream else ""
        return self._subjects.schedule(stream, f"cron.{self._service}.{cron.name}")

    async def _write(self, cron: Cron) -> None:
        if await self._declarations.level() < CRON_LEVEL:
            raise NotSupported("a recurring event", "2.14")
        topic, subject = cron.topic, self._subject(cron)
        await self._declarations.ensure(topic)
        payload = topic.coder.encode(cron.event)
        target = f"{self._subjects.prefix}{topic.subject}"
        lines = encode_lines([("Content-Type", topic.coder.content_type)])
        block = VERSION_LINE + lines + _lines(cron.schedule, target) + b"\r\n"
        if await self._is_written(cron, subject, payload, block):
            return  # writing it again could skip a moment, or fire twice in one
        try:
            await self._jetstream.publish(subject, payload, block)
        except CallError as failure:
            if err_code(failure) == _INVALID_SCHEDULE:
                raise SetupError(
                    f"cron {cron.name}: the server does not understand {cron.schedule!r}"
                ) from failure
            raise

    async def _is_written(self, cron: Cron, subject: str, payload: bytes, block: bytes) -> bool:
        stream = self._subjects.stream(cron.topic.stream.name if cron.topic.stream else "")
        try:
            header, found = await self._jetstream.last_message(stream, subject)
        except NotFound:
            return False
        have, want = parse(header), parse(block)
        return found == payload and all(have.get(name) == want[name] for name in want)

    async def _written(self, stream: str) -> list[str]:
        """List the subjects of this service's schedules in a stream."""
        name = self._subjects.stream(stream)
        pattern = self._subjects.schedule(stream, f"cron.{self._service}.>")
        info = await self._jetstream.ask(f"STREAM.INFO.{name}", {"subjects_filter": pattern})
        return list(info["state"].get("subjects") or {})


def check_moment(at: datetime) -> datetime:
    """Return a moment with a time zone.

    Raises:
        InvalidArgument: It has none, or is in no year that can be written.
    """
    if at.tzinfo is None:
        raise InvalidArgument("at= needs a time zone: datetime.now(UTC) has one", not_run=True)
    try:
        at.astimezone(UTC)
    except OverflowError as beyond:
        text = f"at={at} must be in the years 1 to 9999 of UTC"
        raise InvalidArgument(text, not_run=True) from beyond
    return at
