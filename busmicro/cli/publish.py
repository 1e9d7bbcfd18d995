"""`busmicro publish`: publish an event, and say where it is kept."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime

import click

from busmicro.cli.body import parse, parse_headers
from busmicro.cli.complete import stream_names
from busmicro.cli.connection import connected
from busmicro.cli.failures import report
from busmicro.cli.kept import Kept, next_command
from busmicro.cli.moments import read_time, write_time
from busmicro.cli.options import given, verb
from busmicro.cli.output import print_json
from busmicro.cli.words import note
from busmicro.client import Client
from busmicro.errors import CallError, FailedPrecondition, PermissionDenied
from busmicro.pubsub import Stored, Stream, Topic

_TIMEOUT = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What is published, and when."""

    subject: str
    """Where to."""
    message: object
    """A JSON value, or bytes."""
    headers: dict[str, str]
    """Sent with it."""
    id: str | None
    """By which the stream recognises it; None for one that nobody has used."""
    after: float | None
    """Seconds to wait; None for none."""
    at: datetime | None
    """When; None for now."""

    @property
    def later(self) -> bool:
        """Is it for later?"""
        return self.after is not None or self.at is not None

    @property
    def needs_stream(self) -> bool:
        """Is something asked of it that only a stream can do?"""
        return self.later or self.id is not None


@dataclass(slots=True)
class Outcome:
    """What has been published."""

    subject: str
    """Where to."""
    stream: str | None = None
    """Who keeps it; None for nobody."""
    sequence: int | None = None
    """The number of the last one in the stream."""
    published: int = 0
    """How many were published."""
    duplicates: int = 0
    """Of these, how many the stream had already."""

    def add(self, stored: Stored | None, stream: str | None) -> None:
        """Add one that went well."""
        self.published += 1
        if stored is not None:
            self.stream, self.sequence = stream, stored.sequence
            self.duplicates += stored.duplicate

    def as_json(self) -> dict[str, object]:
        """Return it as it is printed."""
        return {name: getattr(self, name) for name in self.__slots__}


@verb("publish")
@click.argument("subject")
@click.argument("body", nargs=-1, metavar="[JSON | - | @FILE | K=V K:=JSON]")
@click.option("-H", "--header", "headers", multiple=True, metavar="'K: V'", help="Send a header.")
@click.option("--id", "event_id", metavar="ID", help="A stream keeps only one event with this id.")
@click.option(
    "--after",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Have the server publish it so much later.",
)
@click.option("--at", type=read_time, metavar="TIME", help="Have the server publish it then.")
@click.option("--stream", metavar="NAME", shell_complete=stream_names, help="Who must keep it.")
@click.option("--count", type=click.IntRange(1), default=1, help="Publish it so often.")
@click.option("--raw", is_flag=True, help="Send as bytes what is no JSON.")
def publish(
    subject: str,
    body: tuple[str, ...],
    *,
    headers: tuple[str, ...],
    event_id: str | None,
    after: float | None,
    at: datetime | None,
    stream: str | None,
    count: int,
    raw: bool,
) -> int:
    """Publish an event.

    It is JSON, `-` for stdin, `@file`, or fields: `order=17 amount:=30`. If a stream keeps SUBJECT,
    this ends when the event is stored; else it reaches those who listen now, and that is said.
    --after and --at need a stream, and nats-server 2.12.

    JSON: {"subject", "stream", "sequence", "published", "duplicates"}; stream and sequence (that of
    the last one) are null if nobody keeps it.
    """
    if after is not None and at is not None:
        raise click.UsageError("--after and --at exclude each other")
    event = Event(
        subject=subject,
        message=parse(body, raw=raw),
        headers=parse_headers(headers),
        id=event_id,
        after=after,
        at=at,
    )
    outcome = Outcome(event.subject)
    try:
        asyncio.run(_publish(event, stream, count, outcome))
    except CallError as failure:
        if outcome.published:
            note(f"published {outcome.published} of {count}, then:")
        return report(failure, hint=next_command(failure))
    _tell(event, outcome)
    return 0


async def _publish(event: Event, stream: str | None, count: int, outcome: Outcome) -> None:
    kind: type[object] = bytes if isinstance(event.message, bytes) else object
    Topic(event.subject, kind).require_concrete()  # refuses a wrong subject before anyone is asked
    async with connected() as client:
        kept = Kept(client)
        keeper = await _keeper(kept, event, stream)
        topic = Topic(event.subject, kind, stream=Stream(keeper, managed=False) if keeper else None)
        refused = _Refused()
        client.bus.transport.listen(refused)
        for _ in range(count):
            stored = await _publish_once(client, topic, event)
            outcome.add(stored, kept.own(stored.stream) if stored else None)
        if not keeper:
            await client.bus.transport.barrier()
            refused.check()


async def _keeper(kept: Kept, event: Event, wanted: str | None) -> str:
    """Return the stream that keeps an event; empty if none does and none has to.

    Raises:
        FailedPrecondition: One has to, and it does not.
        NotFound: There is no such stream.
    """
    try:
        names = await kept.keepers(event.subject)
    except PermissionDenied:
        if wanted is None:
            note("this user may not ask which stream keeps it; --stream says so")
        return wanted or ""
    if wanted is not None and wanted not in names:
        subjects = (await kept.stream(wanted))["config"].get("subjects") or []
        raise FailedPrecondition(
            f"stream {wanted} does not keep {event.subject}: it keeps {', '.join(subjects)}"
        )
    if not names and event.needs_stream:
        raise FailedPrecondition(
            f"no stream keeps {event.subject}: --id, --after and --at need one that does"
        )
    return names[0] if names else ""  # the server lets only one stream keep a subject


async def _publish_once(client: Client, topic: Topic[object], event: Event) -> Stored | None:
    return await client.publish(
        topic,
        event.message,
        id=event.id,
        after=event.after,
        at=event.at,
        headers=event.headers,
        timeout=given().timeout or _TIMEOUT,
    )


class _Refused:
    """Remembers that the server refused an event: without a stream, nobody else is told."""

    def __init__(self) -> None:
        self._subject = ""

    def check(self) -> None:
        """Raise `PermissionDenied` if an event was refused."""
        if self._subject:
            raise PermissionDenied(f"this user may not publish to {self._subject}")

    def on_connected(self) -> None:
        """Nothing follows from it."""

    def on_disconnected(self) -> None:
        """Nothing follows from it: the barrier fails."""

    def on_publish_denied(self, subject: str) -> None:
        """Remember it."""
        self._subject = subject


def _tell(event: Event, outcome: Outcome) -> None:
    if given().json:
        print_json(outcome.as_json())
    if outcome.stream is None:
        note(f"published; no stream keeps {event.subject}, so it reached only who listens now")
    elif outcome.duplicates == outcome.published:
        note(f"{outcome.stream} has it already, as {outcome.sequence}")
    elif event.later:
        when = f"after {event.after:g} s" if event.at is None else f"at {write_time(event.at)}"
        note(f"stored in {outcome.stream}, to be published {when}")
    elif outcome.published == 1:
        note(f"stored in {outcome.stream} as {outcome.sequence}")
    else:
        had = f", {outcome.duplicates} of them it had already" if outcome.duplicates else ""
        last = f"the last as {outcome.sequence}"
        note(f"stored {outcome.published} in {outcome.stream}, {last}{had}")
