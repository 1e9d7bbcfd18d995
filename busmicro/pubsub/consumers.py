"""The server's side of a subscription to a stream: a consumer, made, found or made again.

A group's consumer is durable and shared by its nodes.  A subscription without a group has one of
its own, which the server forgets some minutes after its node has gone.

Source: NATS ADR-37, ADR-42 (pinned clients); ADR 0014.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from busmicro.errors import CallError, NotFound, SetupError, StreamConflict
from busmicro.pubsub.declare import MADE_BY, PATIENCE, TTL_LEVEL, Declarations
from busmicro.pubsub.handlers import Start
from busmicro.pubsub.topic import Topic
from busmicro.transport import Subjects, err_code

log = logging.getLogger("busmicro.events")

_CONSUMER_NOT_FOUND: Final = 10014
_EXISTS: Final = frozenset({10013, 10105, 10148})
_WORK_QUEUE_TAKEN: Final = frozenset({10099, 10100})
_IDLE_FOR: Final = 300.0
_MOST_PENDING: Final = 10_000
"""Events that all nodes of a group together may hold."""
PINNED: Final = "key"
"""The priority group of consumers whose events are handled in order."""
_PIN_MARGIN: Final = 5.0
_JUST_MADE: Final = 0.5
"""Seconds of age below which a consumer is the answer to the question, not to one a second ago."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerPlan:
    """What a subscription wants of its consumer."""

    topic: Topic[Any]
    """Whose events."""
    group: str = ""
    """Who shares them; empty for a consumer of its own."""
    owner: str = "client"
    """Who subscribes, for the name of a consumer of its own."""
    ack_wait: float = 30.0
    """Seconds of silence after which an event is delivered again."""
    start: Start | None = None
    """Where it begins; None for `first` with a group and `new` without."""
    one_at_a_time: bool = False
    """Shall one node of the group at a time get the events?"""

    @property
    def label(self) -> str:
        """Who could not handle an event, as dead letters have it."""
        subject = self.topic.pattern.replace(".", "-").replace("*", "any").replace(">", "all")
        return f"{self.group or self.owner}-{subject}"


class Consumer:
    """A consumer of a stream.

    Args:
        plan: What is wanted.
        declarations: The streams of this process.
        subjects: Those of the namespace.
    """

    def __init__(self, plan: ConsumerPlan, declarations: Declarations, subjects: Subjects) -> None:
        self.plan = plan
        self.label = plan.label
        stream = plan.topic.stream
        if stream is None:
            raise SetupError(f"topic {plan.topic.subject} has no stream")
        self.stream = subjects.stream(stream.name)
        """The stream, as the server calls it."""
        self.name = plan.label if plan.group else f"{plan.label}-{secrets.token_hex(4)}"
        """The consumer, as the server calls it."""
        self.pinned = ""
        """Its priority group, known after `ensure`."""
        self.floor = 0
        """Up to which number all nodes have settled everything, when last seen."""
        self.streams = 0
        """How many streams of that name there have been: numbers mean other events in each."""
        self._stream_made = ""
        self._begin_again = False
        self._lost_from: int | None = None
        """The first number that means another event since the server has lost some."""
        self._filter = f"{subjects.prefix}{plan.topic.pattern}"
        self._declared = stream
        self._declarations = declarations
        self._api = declarations.jetstream.api
        self._ask = declarations.jetstream.ask

    async def ensure(self, *, resume_at: int | None = None) -> bool:
        """Find the consumer, bring it up to date, or make it.

        Args:
            resume_at: The number in the stream to go on from if it has to be made again.

        Returns:
            Was it made?

        Raises:
            StreamConflict: A consumer of that name does something else. It was left as it is.
            CallError: As `JetStream.api`.
        """
        self._declarations.forget(self._declared)
        await self._declarations.ensure(self.plan.topic)
        made = self._declarations.made(self._declared)
        if self._stream_made not in {"", made}:
            self._other_stream()
        self._stream_made = made
        level = await self._declarations.level()
        self.pinned = PINNED if self.plan.one_at_a_time and level >= TTL_LEVEL else ""
        if self.plan.one_at_a_time and not self.pinned:
            log.warning(
                "nats-server is older than 2.11: events of %s are in order in each node, but all "
                "nodes of the group get them",
                self.name,
            )
        found = await self._find()
        if found is None:
            return await self._create(self._from(resume_at))
        await self._update(found["config"])
        self._begin_again = False
        return False

    def _other_stream(self) -> None:
        """Forget how far it was, until it is there again: all events of another stream are new."""
        self.streams += 1
        self.floor = 0
        self._begin_again, self._lost_from = True, None

    def _from(self, resume_at: int | None) -> int | None:
        """Return where it goes on: where it was, or at the first if the stream ends before that."""
        end = self._declarations.end(self._declared)
        if resume_at is None and not self.plan.group:  # a group begins at the first
            resume_at = self._lost_from
        if not self._begin_again and resume_at is not None and resume_at > end + 1:
            self._tell_of_loss(end, resume_at - 1)
            self._other_stream()
        return 1 if self._begin_again else resume_at

    async def look(self) -> None:
        """See how far all nodes together have come.

        Raises:
            CallError: As `JetStream.api`.
        """
        found = await self._find()
        if found is not None:
            self.floor = int(found["ack_floor"]["stream_seq"])

    async def see_end(self, seen: int) -> None:
        """Say so if the stream ends before an event that was here; those that come now are others.

        Args:
            seen: The number of the event.

        Raises:
            CallError: As `JetStream.api`.
        """
        info = await self._declarations.find(self.stream)
        if info is None or str(info.get("created", "")) != self._stream_made:
            return  # `ensure` deals with another stream
        if (info.get("cluster") or {}).get("replicas"):
            return  # a new leader may be behind for a moment
        end = int(info["state"]["last_seq"])
        if end < seen:
            self._tell_of_loss(end, seen)
            self.streams += 1
            self.floor, self._lost_from = 0, end + 1

    def _tell_of_loss(self, end: int, seen: int) -> None:
        log.error(
            "stream %s ends at event %d, and consumer %s had event %d: its server has lost events",
            self.stream,
            end,
            self.name,
            seen,
        )

    async def delete(self) -> None:
        """Delete the consumer; not an error if it is not there."""
        try:
            await self._api(f"CONSUMER.DELETE.{self.stream}.{self.name}")
        except NotFound:
            return

    async def unpin(self) -> None:
        """Let another node have the events at once."""
        await self._api(f"CONSUMER.UNPIN.{self.stream}.{self.name}", {"group": PINNED})

    async def _find(self) -> dict[str, Any] | None:
        try:
            info = await self._ask(f"CONSUMER.INFO.{self.stream}.{self.name}", patience=PATIENCE)
        except NotFound as failure:
            if err_code(failure) != _CONSUMER_NOT_FOUND:
                raise
            return None
        return info

    async def _create(self, resume_at: int | None) -> bool:
        config = {**self._settings(), **self._position(resume_at)}
        try:
            made = await self._send(config, "create")
            if _is_leftover(made):
                log.warning("consumer %s is made of what a power cut left, once more", self.name)
                await self.delete()
                await self._send(config, "create")
        except CallError as failure:
            number = err_code(failure)
            if number in _EXISTS:  # another node was faster
                self._begin_again = False
                return False
            if number in _WORK_QUEUE_TAKEN:
                raise StreamConflict(
                    f"consumer {self.name}",
                    [f"another group of work queue {self.stream} takes {self._filter} already"],
                    "use its group, or a stream that is no work queue",
                ) from failure
            raise
        self._begin_again = False
        return True

    async def _update(self, found: Mapping[str, Any]) -> None:
        wanted = self._settings()
        conflicts = [
            f"{name} is {found.get(name)!r} and should be {wanted[name]!r}"
            for name in ("ack_policy", "filter_subject")
            if found.get(name) != wanted[name]
        ]
        if found.get("deliver_subject"):
            conflicts.append("it pushes its events and should be pulled from")
        policy = found.get("priority_policy") or "none"
        if (policy == "pinned_client") != bool(self.pinned):
            order = "one node at a time" if self.pinned else "all nodes"
            conflicts.append(f"its events should go to {order} (key=), its policy is {policy!r}")
        if conflicts:
            raise StreamConflict(
                f"consumer {self.name} of stream {self.stream}",
                conflicts,
                "use another group, or delete it with 'nats consumer rm'",
            )
        changes = {
            name: wanted.get(name)
            for name in ("ack_wait", "max_deliver", "max_ack_pending", "priority_timeout")
            if found.get(name) != wanted.get(name)
        }
        if changes:
            await self._send({**found, **changes}, "update")
            log.info("consumer %s: changed %s", self.name, ", ".join(sorted(changes)))

    async def _send(self, config: Mapping[str, Any], action: str) -> dict[str, Any]:
        return await self._ask(
            f"CONSUMER.CREATE.{self.stream}.{self.name}.{self._filter}",
            {"stream_name": self.stream, "config": config, "action": action},
            patience=PATIENCE,
        )

    def _settings(self) -> dict[str, Any]:
        plan = self.plan
        settings: dict[str, Any] = {
            "name": self.name,
            "filter_subject": self._filter,
            "ack_policy": "explicit",
            "ack_wait": int(plan.ack_wait * 1e9),
            "max_deliver": -1,
            "max_ack_pending": _MOST_PENDING,
            "metadata": MADE_BY,
        }
        if plan.group:
            settings["durable_name"] = self.name
        else:
            settings["inactive_threshold"] = int(_IDLE_FOR * 1e9)
        if self.pinned:
            settings["priority_groups"] = [PINNED]
            settings["priority_policy"] = "pinned_client"
            # Longer than ack_wait: what a dead node held has to come again before what is new.
            settings["priority_timeout"] = int((plan.ack_wait + _PIN_MARGIN) * 1e9)
        return settings

    def _position(self, resume_at: int | None) -> dict[str, Any]:
        """Say where it begins."""
        start = resume_at or self.plan.start or ("first" if self.plan.group else "new")
        if self._declared.work_queue or start == "first":
            return {"deliver_policy": "all"}  # a work queue has no other
        if isinstance(start, int):
            return {"deliver_policy": "by_start_sequence", "opt_start_seq": max(1, start)}
        if isinstance(start, datetime):
            when = start.astimezone(UTC).isoformat().replace("+00:00", "Z")
            return {"deliver_policy": "by_start_time", "opt_start_time": when}
        return {"deliver_policy": "new"}


def _is_leftover(made: Mapping[str, Any]) -> bool:
    """Tell whether a new consumer believes that it has delivered events before it was made.

    nats-server takes over the state in a directory of that name whose settings were lost, as a
    power cut may leave it, and would skip as many events as that state counts. Another node may
    have made the consumer before: then the server knows when it delivered last, unless another
    server leads it since, which is asked only after a while.
    """
    delivered = made.get("delivered") or {}
    if not delivered.get("consumer_seq") or delivered.get("last_active"):
        return False
    return _age(made) < _JUST_MADE


def _age(made: Mapping[str, Any]) -> float:
    """Return for how many seconds a consumer has been there, by the server's clock."""
    try:
        created, now = (datetime.fromisoformat(str(made[key])) for key in ("created", "ts"))
        return (now - created).total_seconds()
    except (KeyError, ValueError, TypeError):  # nats-server older than 2.10 does not say
        return 0.0
