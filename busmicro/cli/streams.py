"""`busmicro streams`: what is kept, for how long, and who is behind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import click

from busmicro.cli.complete import stream_names
from busmicro.cli.connection import connected
from busmicro.cli.failures import report
from busmicro.cli.find import duration
from busmicro.cli.kept import Answer, Kept, is_bucket, next_command
from busmicro.cli.moments import write_time
from busmicro.cli.options import given, verb
from busmicro.cli.output import print_json, print_table, print_text
from busmicro.cli.words import note
from busmicro.clock import SYSTEM_CLOCK
from busmicro.errors import CallError


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFacts:
    """What is known of a stream; None for no limit, or where there are no events."""

    name: str
    subjects: Sequence[str]
    events: int
    bytes: int
    first: int
    last: int
    oldest: str | None
    newest: str | None
    consumer_count: int
    retention: str
    max_age: float | None
    max_bytes: int | None
    max_events: int | None
    discard: str
    storage: str
    replicas: int
    dedup_window: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerFacts:
    """What is known of a consumer."""

    name: str
    durable: bool
    subjects: Sequence[str]
    pending: int
    ack_pending: int
    redelivered: int
    delivered: int
    max_deliver: int | None
    ack_wait: float | None


@verb("streams")
@click.argument("name", required=False, shell_complete=stream_names)
def streams(name: str | None) -> int:
    """List what is kept; with NAME, its settings and who reads it.

    A consumer's pending are the events that it has not been given yet, its ack pending those that
    somebody works on now.

    JSON: [{"name", "subjects": [], "events", "bytes", "first", "last", "oldest", "newest",
    "consumer_count", "retention", "max_age", "max_bytes", "max_events", "discard", "storage",
    "replicas", "dedup_window"}], buckets of keys too, which the table leaves out; times in
    seconds, limits null for none. With NAME that one object, and in it "consumers": [{"name",
    "durable", "subjects": [], "pending", "ack_pending", "redelivered", "delivered", "max_deliver",
    "ack_wait"}].
    """
    try:
        return asyncio.run(_list() if name is None else _show(name))
    except CallError as failure:
        return report(failure, hint=next_command(failure))


async def _list() -> int:
    async with connected() as client:
        kept = Kept(client)
        found = [_facts(kept, one) for one in await kept.streams()]
    events = [one for one in found if not is_bucket(one.name)]
    if given().json:
        print_json([asdict(one) for one in found])
    elif events:
        headings = ("name", "subjects", "events", "size", "oldest", "consumers", "limits")
        print_table(headings, [_row(one) for one in events])
    if not events:
        note("no stream keeps events")
        note("try: a service with a topic that has a stream")
    return 0


async def _show(name: str) -> int:
    async with connected() as client:
        kept = Kept(client)
        facts = _facts(kept, await kept.stream(name))
        consumers = [_consumer(kept, one) for one in await kept.consumers(name)]
    if given().json:
        print_json({**asdict(facts), "consumers": [asdict(one) for one in consumers]})
        return 0
    _describe(facts)
    if consumers:
        print_text()
        headings = ("consumer", "subjects", "pending", "ack pending", "redelivered")
        print_table(headings, [_consumer_row(one) for one in consumers])
    else:
        note("nobody reads it")
    return 0


# --- from the server's words to ours ------------------------------------------------------------


def _facts(kept: Kept, answer: Answer) -> StreamFacts:
    config, state = answer["config"], answer["state"]
    some = bool(state["messages"])
    return StreamFacts(
        name=kept.own(config["name"]),
        subjects=[kept.own_subject(subject) for subject in config.get("subjects") or []],
        events=state["messages"],
        bytes=state["bytes"],
        first=state["first_seq"],
        last=state["last_seq"],
        oldest=_moment(state["first_ts"]) if some else None,
        newest=_moment(state["last_ts"]) if some else None,
        consumer_count=state["consumer_count"],
        retention=config["retention"],
        max_age=_seconds(config.get("max_age", 0)) or None,
        max_bytes=_limit(config.get("max_bytes", -1)),
        max_events=_limit(config.get("max_msgs", -1)),
        discard=config["discard"],
        storage=config["storage"],
        replicas=config["num_replicas"],
        dedup_window=_seconds(config.get("duplicate_window", 0)),
    )


def _consumer(kept: Kept, answer: Answer) -> ConsumerFacts:
    config = answer["config"]
    one = config.get("filter_subject")
    subjects = config.get("filter_subjects") or ([one] if one else [])
    return ConsumerFacts(
        name=answer["name"],
        durable=bool(config.get("durable_name")),
        subjects=[kept.own_subject(subject) for subject in subjects],
        pending=answer["num_pending"],
        ack_pending=answer["num_ack_pending"],
        redelivered=answer["num_redelivered"],
        delivered=answer["delivered"]["stream_seq"],
        max_deliver=_limit(config.get("max_deliver", -1)),
        ack_wait=_seconds(config.get("ack_wait", 0)) or None,
    )


def _moment(text: str) -> str:
    return write_time(datetime.fromisoformat(text))


def _seconds(nanoseconds: int) -> float:
    return nanoseconds / 1e9


def _limit(number: int) -> int | None:
    return number if number > 0 else None


# --- for people ---------------------------------------------------------------------------------


def _row(one: StreamFacts) -> tuple[str, ...]:
    return (
        one.name,
        ", ".join(_visible(one)),
        f"{one.events:,}",
        weight(one.bytes),
        _age(one.oldest),
        str(one.consumer_count),
        _limits(one),
    )


def _visible(one: StreamFacts) -> list[str]:
    """List the subjects without the one where events wait for their moment."""
    return [subject for subject in one.subjects if not subject.startswith("schedules.")]


def _consumer_row(one: ConsumerFacts) -> tuple[str, ...]:
    subjects = ", ".join(one.subjects) or "all"
    return one.name, subjects, f"{one.pending:,}", f"{one.ack_pending:,}", f"{one.redelivered:,}"


def _describe(one: StreamFacts) -> None:
    print_text(one.name)
    if one.events:
        print_text(f"  events    {one.events:,}, {weight(one.bytes)}, {one.first} to {one.last}")
        print_text(f"  oldest    {one.oldest}")
        print_text(f"  newest    {one.newest}")
    else:
        print_text("  events    none")
    print_text(f"  subjects  {', '.join(_visible(one)) or '-'}")
    print_text(f"  limits    {_limits(one)}")
    print_text(f"  full      {_WHEN_FULL.get(one.discard, one.discard)}")
    copies = f"{one.replicas} replicas" if one.replicas > 1 else "1 replica"
    print_text(f"  storage   {one.storage}, {copies}")
    print_text(f"  dedup     {one.dedup_window:g} s")


_WHEN_FULL = {"old": "forgets the oldest", "new": "refuses the newest"}
_UNTIL = {"workqueue": "until handled", "interest": "while somebody wants it"}


def _limits(one: StreamFacts) -> str:
    limits = [
        _UNTIL.get(one.retention, ""),
        duration(one.max_age) if one.max_age else "",
        weight(one.max_bytes) if one.max_bytes else "",
        f"{one.max_events:,} events" if one.max_events else "",
    ]
    return ", ".join(filter(None, limits)) or "none"


def _age(moment: str | None) -> str:
    if moment is None:
        return ""
    then = datetime.fromisoformat(moment)
    return duration(max(0.0, (SYSTEM_CLOCK.wall() - then).total_seconds()))


def weight(size_bytes: int) -> str:
    """Write a number of bytes so that it is read at a glance."""
    for unit, size in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size_bytes >= size:
            return f"{size_bytes / size:.1f} {unit}"
    return f"{size_bytes} B"
