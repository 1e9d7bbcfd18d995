"""Make the server's streams what the topics of this process need.

A stream that is not there is made.  One that busmicro made is brought up to date where that can
lose nothing: more subjects, wider limits.  Everything else is a conflict: it is said, with both
values, and left as it is.

One that was there and is not any more has been deleted, perhaps at this moment, and is made again
only when that must be over.  nats-server tells consumers of their end and takes the stream out of
its list before it deletes the directory, so a stream of that name that is made meanwhile loses its
files: it exists, acknowledges nothing, and nothing but deleting it again helps.  In 40 deletions of
streams with 100 consumers, a stream made as soon as the first of them had heard of it was dead 24
times and could not be made 6 times; the deletions took up to 10 ms from there, 28 ms with 300
consumers (nats-server 2.15.1, two cores).  No word of the server says that it is done.

Source: NATS ADR-31, ADR-43 (time to live), ADR-50 (batches), ADR-51 (schedules); ADR 0013.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

from busmicro.errors import (
    CallError,
    DeadlineExceeded,
    NoJetStream,
    NoResponders,
    NotFound,
    StreamConflict,
    StreamMissing,
    Unavailable,
)
from busmicro.pubsub.stream import Stream, covers
from busmicro.pubsub.topic import Topic
from busmicro.transport import JetStream, Subjects, err_code
from busmicro.transport.jetstream import TIMEOUT

log = logging.getLogger("busmicro.events")

STREAM_NOT_FOUND: Final = 10059
NAME_IN_USE: Final = 10058
TTL_LEVEL: Final = 1
"""nats-server 2.11."""
BATCH_LEVEL: Final = 2
"""nats-server 2.12: atomic batches, and schedules for one moment."""
CRON_LEVEL: Final = 4
"""nats-server 2.14: schedules that recur."""
MADE_BY: Final = {"busmicro.made-by": "busmicro"}

PATIENCE: Final = 20.0
"""Seconds for a stream or a consumer to be what was declared: an election takes 4 to 9, and that of
JetStream's own leader may come before that of a stream's."""
_CHANGE_TAKES: Final = 1.0
"""Seconds after which it is better to look than to wait for the answer to a change."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0
"""Seconds between looks at a stream that many services change at once."""
_DELETION_TAKES: Final = 1.0
"""Seconds after which a stream that is gone may be made again."""

Limit = tuple[str, Callable[[Mapping[str, Any]], float]]
_ENDLESS: Final = float("inf")


def _limit(name: str, unit: float = 1.0) -> Callable[[Mapping[str, Any]], float]:
    """Read a limit from a stream's settings, where 0 and -1 mean that there is none."""

    def read(config: Mapping[str, Any]) -> float:
        value = config.get(name) or 0
        return value / unit if value > 0 else _ENDLESS

    return read


_LIMITS: Final[tuple[Limit, ...]] = (
    ("max_age", _limit("max_age", 1e9)),
    ("max_bytes", _limit("max_bytes")),
    ("max_events", _limit("max_msgs")),
    ("dedup_window", _limit("duplicate_window", 1e9)),
    ("replicas", _limit("num_replicas")),
)
_FIXED: Final = ("storage", "retention", "discard")


class Declarations:
    """The streams that this process has seen to."""

    def __init__(self, jetstream: JetStream, subjects: Subjects) -> None:
        self.jetstream = jetstream
        self._subjects = subjects
        self._seen: dict[str, set[str]] = {}
        self._made: dict[str, str] = {}
        self._ends: dict[str, int] = {}
        self._known_level = False

    async def level(self, *, patience: float = PATIENCE) -> int:
        """Return what JetStream can do here.

        Args:
            patience: Seconds for JetStream to answer.

        Raises:
            NoJetStream: It is not enabled.
        """
        if not self._known_level:
            if not await self.jetstream.available(patience=patience):
                raise NoJetStream
            self._known_level = True
        return self.jetstream.level

    def made(self, stream: Stream) -> str:
        """Return when a stream was made; another moment means another stream."""
        return self._made.get(stream.name, "")

    def end(self, stream: Stream) -> int:
        """Return the number of the last event that a stream had when it was looked at."""
        return self._ends.get(stream.name, 0)

    def forget(self, stream: Stream | None = None) -> None:
        """Look again: after a lost connection a stream in memory may be gone."""
        if stream is None:
            self._seen.clear()
        else:
            self._seen.pop(stream.name, None)

    async def ensure(self, *topics: Topic[Any], deadline: float | None = None) -> None:
        """See to it that every topic's events are kept; free of charge once that is so.

        Args:
            topics: Those without a stream are left out.
            deadline: When to give up, seconds of the loop's clock; None for when the server has
                left a question unanswered.

        Raises:
            Unavailable: The deadline came, and nothing of these events has been sent.
            StreamConflict: A stream exists with other settings. It was left as it is.
            StreamMissing: A stream that is not managed is not there.
            NoJetStream: JetStream is not enabled.
            CallError: As `JetStream.api`.
        """
        if len(topics) == 1 and self._is_seen(topics[0]):
            return
        try:
            async with asyncio.timeout_at(deadline):
                await self._ensure_all(topics)
        except TimeoutError as late:
            names = ", ".join(sorted({topic.stream.name for topic in topics if topic.stream}))
            raise Unavailable(f"stream {names} was not there in time", not_run=True) from late

    async def _ensure_all(self, topics: Iterable[Topic[Any]]) -> None:
        wanted: dict[str, tuple[Stream, set[str]]] = {}
        for topic in topics:
            if topic.stream is not None:
                wanted.setdefault(topic.stream.name, (topic.stream, set()))[1].add(topic.pattern)
        for stream, patterns in wanted.values():
            await self.ensure_stream(stream, patterns)

    def _is_seen(self, topic: Topic[Any]) -> bool:
        stream = topic.stream
        return stream is None or topic.pattern in self._seen.get(stream.name, ())

    async def ensure_stream(self, stream: Stream, patterns: AbstractSet[str] = frozenset()) -> None:
        """See to it that a stream is there and keeps these subjects; raises as `ensure`."""
        seen = self._seen.get(stream.name)
        if seen is None or not patterns <= seen:
            await self._ensure(stream, patterns)
            self._seen.setdefault(stream.name, set()).update(patterns)

    async def _ensure(self, stream: Stream, patterns: AbstractSet[str]) -> None:
        level = await self.level()
        name = self._subjects.stream(stream.name)
        info = await self._look(stream, name)
        if not stream.managed:
            if info is None:
                raise StreamMissing(name)
            self._note(stream, info)
            return
        subjects = self._wanted_subjects(stream, patterns, level)
        if info is None:
            config = _config(stream, name, subjects, level)
            try:
                create = f"STREAM.CREATE.{name}"
                made = await self.jetstream.ask(create, config, patience=PATIENCE)
            except CallError as failure:
                if err_code(failure) != NAME_IN_USE:
                    raise
                info = await self.find(name, patience=PATIENCE)  # somebody was faster
            else:
                self._note(stream, made)
                log.info("made stream %s: %s", name, _bounds(stream))
        if info is not None:
            self._note(stream, info)
            await self._bring_up_to_date(stream, name, info["config"], subjects, level)

    def _note(self, stream: Stream, info: Mapping[str, Any]) -> None:
        self._made[stream.name] = str(info.get("created", ""))
        self._ends[stream.name] = int((info.get("state") or {}).get("last_seq", 0))

    async def _look(self, stream: Stream, name: str) -> dict[str, Any] | None:
        """Look a stream up; None if it is not there and may be made now."""
        info = await self.find(name, patience=PATIENCE)
        deleted = info is None and stream.name in self._made
        if not deleted or not stream.managed or stream.storage == "memory":  # without files to lose
            return info
        log.warning("stream %s is gone, it is made again in %g s", name, _DELETION_TAKES)
        await asyncio.sleep(_DELETION_TAKES)
        return await self.find(name, patience=PATIENCE)

    def _wanted_subjects(self, stream: Stream, patterns: AbstractSet[str], level: int) -> list[str]:
        prefix = self._subjects.prefix
        subjects = [prefix + subject for subject in (stream.subjects or sorted(patterns))]
        if takes_schedules(stream, level):
            subjects.append(self._subjects.schedule(stream.name, ">"))
        return subjects

    async def find(self, name: str, *, patience: float = TIMEOUT) -> dict[str, Any] | None:
        """Look a stream up by its name on the server; None if it is not there.

        Args:
            name: The stream, as the server calls it.
            patience: Seconds for whoever leads it to answer.

        Raises:
            CallError: As `JetStream.api`.
        """
        try:
            return await self.jetstream.ask(f"STREAM.INFO.{name}", patience=patience)
        except NoResponders as nobody:
            raise Unavailable("JetStream does not answer", not_run=True) from nobody
        except NotFound as failure:
            if err_code(failure) != STREAM_NOT_FOUND:
                raise
            return None

    async def tell_of_silence(self, name: str, deadline: float) -> None:
        """Log it if a stream that acknowledges nothing is there: it may be broken for good.

        Args:
            name: The stream, as the server calls it.
            deadline: When to give up asking, seconds of the loop's clock.
        """
        try:
            async with asyncio.timeout_at(deadline):
                there = await self.find(name) is not None
        except (CallError, TimeoutError):
            return  # JetStream as a whole is silent: a matter of waiting
        if there:
            log.warning(
                "stream %s is there and acknowledges nothing; the server's log says why. If its "
                "files are gone, delete it with 'nats stream rm', and it is made again",
                name,
            )

    async def _bring_up_to_date(
        self,
        stream: Stream,
        name: str,
        found: dict[str, Any] | None,
        subjects: list[str],
        level: int,
    ) -> None:
        """Bring a stream up to date, or say why not.

        The server takes every change as it comes: a service that looked before this one had written
        writes after it what it saw, and these subjects are gone.  So look again until they stay.
        """
        loop = asyncio.get_running_loop()
        end, pause = loop.time() + PATIENCE, _FIRST_PAUSE
        while found is not None and await self._update(stream, name, found, subjects, level):
            if loop.time() >= end:
                raise Unavailable(f"stream {name} does not become what was declared", not_run=True)
            await asyncio.sleep(pause * (0.5 + random.random()))  # noqa: S311 - jitter
            pause = min(2 * pause, _LONGEST_PAUSE)
            info = await self.find(name, patience=PATIENCE)
            found = None if info is None else info["config"]

    async def _update(
        self,
        stream: Stream,
        name: str,
        found: dict[str, Any],
        subjects: list[str],
        level: int,
    ) -> bool:
        """Write what is missing, or say why not; tell whether there was anything to write."""
        wanted = _config(stream, name, subjects, level)
        ours = found.get("metadata", {}).get("busmicro.made-by") == "busmicro"
        have = found.get("subjects") or []
        missing = [s for s in subjects if not any(covers(other, s) for other in have)]
        conflicts = list(differences(wanted, found, ours=ours))
        if not ours:
            own = self._subjects.schedule(stream.name, ">")
            conflicts += [f"it does not keep {s}" for s in missing if s != own]
            missing = []
        if conflicts:
            raise StreamConflict(
                f"stream {name}",
                conflicts,
                "declare it as it is, change it with 'nats stream edit', or say managed=False",
            )
        changes = _changes(wanted, found) if ours else {}
        if missing:
            kept = [s for s in have if not any(covers(m, s) for m in missing)]
            changes["subjects"] = kept + missing
        if changes:
            config = {**_sendable(found), **changes}
            try:
                await self.jetstream.api(f"STREAM.UPDATE.{name}", config, timeout=_CHANGE_TAKES)
            except DeadlineExceeded as silence:
                log.debug(
                    "stream %s: the next look tells whether it was changed: %s", name, silence
                )
            else:
                log.info("stream %s: changed %s", name, ", ".join(sorted(changes)))
        return bool(changes)


def takes_schedules(stream: Stream, level: int) -> bool:
    """Can events for later lie in this stream? Not where the newest event may be refused."""
    return level >= BATCH_LEVEL and stream.discard == "old"


def differences(
    wanted: Mapping[str, Any], found: Mapping[str, Any], *, ours: bool
) -> Iterable[str]:
    """List what cannot be brought into line without losing something, or is not ours to change."""
    for name in _FIXED:
        if wanted[name] != found.get(name):
            yield f"{name} is {found.get(name)!r} and should be {wanted[name]!r}"
    for name, read in _LIMITS:
        have, want = read(found), read(wanted)
        if name == "replicas" and want <= have:
            continue
        if want < have or (want != have and not ours):
            yield f"{name} is {_number(have)} and should be {_number(want)}"


def _changes(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    names = ("max_age", "max_bytes", "max_msgs", "duplicate_window", "num_replicas")
    flags = ("allow_msg_ttl", "allow_atomic", "allow_msg_schedules", "allow_direct")
    changed = {n: wanted[n] for n in names if _bound(wanted[n]) != _bound(found.get(n))}
    if wanted["num_replicas"] <= found.get("num_replicas", 1):
        changed.pop("num_replicas", None)  # somebody made it safer
    changed |= {flag: True for flag in flags if wanted.get(flag) and not found.get(flag)}
    return changed


def _bound(value: float | None) -> float:
    return value if value and value > 0 else _ENDLESS


def _number(value: float) -> str:
    return "without limit" if value == _ENDLESS else f"{value:g}"


def _sendable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what the server adds by itself."""
    metadata = {k: v for k, v in config.get("metadata", {}).items() if not k.startswith("_nats.")}
    return {**config, "metadata": metadata}


def _config(stream: Stream, name: str, subjects: list[str], level: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        "name": name,
        "subjects": subjects,
        "retention": "workqueue" if stream.work_queue else "limits",
        "storage": stream.storage,
        "discard": stream.discard,
        "max_age": int((stream.max_age or 0) * 1e9),
        "max_bytes": stream.max_bytes or -1,
        "max_msgs": stream.max_events or -1,
        "duplicate_window": int(stream.dedup_window * 1e9),
        "num_replicas": stream.replicas,
        "allow_direct": True,
        "metadata": MADE_BY,
    }
    if level >= TTL_LEVEL:
        config["allow_msg_ttl"] = True
    if level >= BATCH_LEVEL:
        config["allow_atomic"] = True
    if takes_schedules(stream, level):
        config["allow_msg_schedules"] = True
    return config


def _bounds(stream: Stream) -> str:
    """Say how much it keeps."""
    limits = [
        f"{stream.max_age / 86_400:g} days" if stream.max_age else "",
        f"{stream.max_bytes / 2**20:,.0f} MiB" if stream.max_bytes else "",
        f"{stream.max_events:,} events" if stream.max_events else "",
    ]
    said = ", ".join(filter(None, limits))
    return f"keeps {said}, whichever is reached first" if said else "keeps everything, for ever"
