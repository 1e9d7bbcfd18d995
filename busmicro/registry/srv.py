"""The registry without any storage: every node answers for itself on `$SRV`.

`$SRV.PING`, `.INFO` and `.STATS`, each for all, for one service and for one node: whoever asks
gets an answer from each node that is meant.  That is NATS' own services protocol, so `nats micro`
and services written with NATS' framework in other languages take part.

What ADR-32 has no field for travels as metadata with names that begin with `busmicro.`.  The name
of an endpoint has `_` for `.` there; it is read back from the end of the subject.

Source: NATS ADR-32.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from pydantic import BaseModel, Field, JsonValue, ValidationError
from pydantic_core import from_json, to_json

from busmicro.clock import SYSTEM_CLOCK, Clock
from busmicro.errors import BusmicroError, CallError, Disconnected, NoResponders
from busmicro.registry.base import (
    MAX_SCHEMA_BYTES,
    UNARY,
    Change,
    Complaints,
    Description,
    EndpointRecord,
    EndpointStats,
    Node,
    NodeStats,
    ServiceRecord,
    ServiceStats,
    log,
    without_schemas,
)
from busmicro.registry.watch import LiveView
from busmicro.tasks import Tasks
from busmicro.transport import (
    QUEUE_GROUP,
    Replies,
    ReplyPolicy,
    Subjects,
    Subscription,
    Transport,
    check_node,
    check_service,
    collect,
    may_be_named,
    require_allowed,
)

ASK_FOR: Final = 0.5
"""Seconds that everybody gets to answer."""
STALL: Final = 0.1
"""Seconds without a further answer after which everybody is taken to have answered."""
LOOKUP_FOR: Final = 0.05
_RETURN_GRACE: Final = 3.0
_GOOD_BYE: Final = 2.0
_OURS: Final = "busmicro."
_WORD = re.compile(r"[A-Za-z0-9_-]+")

R = TypeVar("R", bound="_Identity")


# --- what travels -------------------------------------------------------------------------------


class _Identity(BaseModel, defer_build=True):
    """What every answer begins with."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    id: str = Field(min_length=1)
    version: str = ""
    metadata: dict[str, str] | None = None

    @property
    def namespace(self) -> str | None:
        """The namespace of a busmicro node; None for services of other frameworks."""
        metadata = self.metadata or {}
        if any(name.startswith(_OURS) for name in metadata):
            return metadata.get("busmicro.namespace", "")
        return None

    def node(self, started: str = "") -> Node:
        metadata = self.metadata or {}
        return Node(
            service=self.name,
            id=self.id,
            version=self.version,
            started=metadata.get("busmicro.started", started),
            metadata=_without_ours(metadata),
        )


class _Endpoint(BaseModel, defer_build=True):
    name: str
    subject: str = Field(min_length=1)
    queue_group: str | None = None
    metadata: dict[str, str] | None = None


class _Info(_Identity):
    endpoints: list[_Endpoint] | None = None


class _EndpointStats(BaseModel, defer_build=True):
    name: str
    subject: str = ""
    num_requests: int = 0
    num_errors: int = 0
    last_error: str | None = None
    processing_time: int = 0
    average_processing_time: int = 0
    data: JsonValue = None


class _Stats(_Identity):
    started: str = ""
    endpoints: list[_EndpointStats] | None = None


_TYPES: Final[dict[str, str]] = {
    "PING": "io.nats.micro.v1.ping_response",
    "INFO": "io.nats.micro.v1.info_response",
    "STATS": "io.nats.micro.v1.stats_response",
}


def _without_ours(metadata: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in metadata.items() if not name.startswith(_OURS)}


def flat_name(name: str) -> str:
    """Return the name that ADR-32 has for an endpoint: no dots."""
    return name.replace(".", "_")


def _own_name(name: str, subject: str) -> str:
    """Undo `flat_name`: the subject ends with the name as it was."""
    tail = ".".join(subject.split(".")[-2:])
    return tail if flat_name(tail) == name else name


def _endpoint_metadata(endpoint: EndpointRecord) -> dict[str, str]:
    """Write what a caller needs to know of an endpoint; what is as usual is left out."""
    found = dict(endpoint.metadata)
    if endpoint.streams:
        found["busmicro.kind"] = endpoint.kind
    if endpoint.idempotent:
        found["busmicro.idempotent"] = "true"
    if endpoint.timeout is not None:
        found["busmicro.timeout"] = str(endpoint.timeout).removesuffix(".0")
    if endpoint.doc:
        found["busmicro.doc"] = endpoint.doc
    for name, schema in (("request", endpoint.request), ("reply", endpoint.reply)):
        text = to_json(schema)
        if schema is not None and len(text) <= MAX_SCHEMA_BYTES:
            found[f"busmicro.{name}"] = text.decode()
    return found


def _read_endpoint(endpoint: _Endpoint) -> EndpointRecord:
    metadata = endpoint.metadata or {}
    return EndpointRecord(
        name=_own_name(endpoint.name, endpoint.subject),
        subject=endpoint.subject,
        queue_group=QUEUE_GROUP if endpoint.queue_group is None else endpoint.queue_group,
        kind=metadata.get("busmicro.kind", UNARY),
        idempotent=metadata.get("busmicro.idempotent") == "true",
        timeout=_number(metadata.get("busmicro.timeout")),
        doc=metadata.get("busmicro.doc", ""),
        request=_schema(metadata.get("busmicro.request")),
        reply=_schema(metadata.get("busmicro.reply")),
        metadata=_without_ours(metadata),
    )


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "0")
    except ValueError:
        return None
    return number if 0 < number < float("inf") else None


def _schema(text: str | None) -> Any:
    try:
        return from_json(text) if text is not None else None
    except ValueError:
        return None


def _read_stats(found: _Stats) -> NodeStats:
    return NodeStats(
        node=found.node(found.started),
        endpoints=tuple(
            EndpointStats(
                name=_own_name(e.name, e.subject),
                num_requests=e.num_requests,
                num_errors=e.num_errors,
                last_error=e.last_error or "",
                processing_time=e.processing_time,
                average_processing_time=e.average_processing_time,
                data=e.data,
            )
            for e in found.endpoints or ()
        ),
    )


# --- answering ----------------------------------------------------------------------------------


class _Responder:
    """Answers for one node."""

    def __init__(
        self,
        node: Node,
        description: Description,
        namespace: str,
        stats: Callable[[], ServiceStats],
    ) -> None:
        self.node = node
        self.description = description
        self.subscriptions: list[Subscription] = []
        self._stats = stats
        ours = {"busmicro.started": node.started}
        if namespace:
            ours["busmicro.namespace"] = namespace
        self._identity = {
            "name": node.service,
            "id": node.id,
            "version": node.version,
            "metadata": {**_without_ours(node.metadata), **ours},
        }

    def subjects(self, verb: str) -> list[str]:
        """List what to listen to for a verb."""
        service, node = self.node.service, self.node.id
        return [f"$SRV.{verb}", f"$SRV.{verb}.{service}", f"$SRV.{verb}.{service}.{node}"]

    def answer(self, verb: str, limit_bytes: int) -> bytes:
        """Write the answer; schemas that would make it too long are left out."""
        if verb == "PING":
            return self._write(verb, {})
        if verb == "STATS":
            return self._write(verb, {"started": self.node.started, "endpoints": self._figures()})
        payload = self._info(self.description)
        if len(payload) > limit_bytes:
            payload = self._info(without_schemas(self.description))
        return payload

    def _write(self, verb: str, more: Mapping[str, object]) -> bytes:
        return to_json({"type": _TYPES[verb], **self._identity, **more}, fallback=repr)

    def _info(self, description: Description) -> bytes:
        endpoints = [
            {**_address(endpoint), "metadata": _endpoint_metadata(endpoint)}
            for endpoint in description.endpoints
        ]
        return self._write("INFO", {"description": "", "endpoints": endpoints})

    def _figures(self) -> list[dict[str, object]]:
        figures = {e.name: e for e in self._stats().endpoints}
        found = []
        for endpoint in self.description.endpoints:
            of = figures.get(endpoint.name) or EndpointStats(name=endpoint.name)
            numbers = of.model_dump(exclude={"name"}, exclude_none=True)
            found.append({**_address(endpoint), **numbers})
        return found


def _address(endpoint: EndpointRecord) -> dict[str, object]:
    return {
        "name": flat_name(endpoint.name),
        "subject": endpoint.subject,
        "queue_group": endpoint.queue_group,
    }


# --- the registry -------------------------------------------------------------------------------


class SrvRegistry:
    """Who is up, told by everybody for themselves.

    Args:
        transport: The connection.
        replies: Where answers arrive.
        namespace: Nodes of other busmicro namespaces are left out; services of other frameworks
            have none and are always seen.
        stats: Gives the live figures of the nodes of this process.
        replies_allowed: Where answers may go.
        clock: Tells time and waits.
        poll: Seconds between two looks while somebody watches.
    """

    def __init__(
        self,
        transport: Transport,
        replies: Replies,
        *,
        namespace: str = "",
        stats: Callable[[], ServiceStats] | None = None,
        replies_allowed: ReplyPolicy | None = None,
        clock: Clock = SYSTEM_CLOCK,
        poll: float = 2.0,
    ) -> None:
        self.stats_provider = stats or ServiceStats
        """Gives the live figures of the nodes of this process."""
        self.replies_allowed = replies_allowed or ReplyPolicy(
            Subjects(namespace).prefix, "_INBOX", strict=False
        )
        """Where answers may go."""
        self._transport = transport
        self._replies = replies
        self._namespace = namespace
        self._clock = clock
        self._poll = poll
        self._own: dict[tuple[str, str], _Responder] = {}
        self._view: LiveView | None = None
        self._patient_until = 0.0
        self._complaints = Complaints()
        self._tasks = Tasks()
        transport.listen(self)

    # --- Listener -------------------------------------------------------------------------------

    def on_connected(self) -> None:
        """Give others time to come back too."""
        self._patient_until = self._clock.now() + _RETURN_GRACE
        if self._view is not None:
            self._view.patience(_RETURN_GRACE)

    def on_disconnected(self) -> None:
        """Nothing to do: what was seen last stays until the connection is back."""

    def on_publish_denied(self, subject: str) -> None:
        """Nothing to do."""

    # --- being known ----------------------------------------------------------------------------

    async def register(self, node: Node, description: Description) -> None:
        """Answer for a node from now on; see `Registry.register`.

        Raises:
            PermissionDenied: `$SRV` may not be subscribed to. Nothing is left behind.
            Unavailable: The connection is down; answers begin as soon as it is back.
        """
        check_service(node.service)
        check_node(node.id)
        self._release((node.service, node.id))
        own = _Responder(node, description, self._namespace, self._figures)
        self._own[node.service, node.id] = own
        for verb in _TYPES:
            for subject in own.subjects(verb):
                listen = self._answerer(own, verb)
                own.subscriptions.append(self._transport.subscribe(subject, listen))
        try:
            await self._transport.barrier()
            require_allowed(*own.subscriptions)
        except Disconnected:
            raise  # the subscriptions come into force with the next connection
        except BusmicroError:
            self._release((node.service, node.id))
            raise

    def _answerer(self, own: _Responder, verb: str) -> Callable[[bytes, bytes, bytes, bytes], None]:
        def on_message(_subject: bytes, reply: bytes, _header: bytes, _payload: bytes) -> None:
            if not reply or not self.replies_allowed.allows(reply):
                return
            answer = own.answer(verb, self._transport.max_payload_bytes)
            try:
                self._transport.publish(reply, answer)
            except BusmicroError as failure:
                log.debug("%s not answered: %s", verb, failure)

        return on_message

    def _figures(self) -> ServiceStats:
        return self.stats_provider()

    def _release(self, key: tuple[str, str]) -> bool:
        own = self._own.pop(key, None)
        for subscription in own.subscriptions if own else ():
            self._transport.unsubscribe(subscription)
        return own is not None

    async def deregister(self, node: Node) -> None:
        """Answer for a node no more; see `Registry.deregister`."""
        if not self._release((node.service, node.id)):
            return
        try:
            await self._transport.barrier(timeout=_GOOD_BYE)
        except BusmicroError as failure:
            log.debug("deregistered without a connection: %s", failure)

    # --- asking ---------------------------------------------------------------------------------

    async def service(self, name: str) -> ServiceRecord | None:
        """Find a service; see `Registry.service`."""
        found = await self._records(f"INFO.{check_service(name)}")
        return next((record for record in found if record.name == name), None)

    async def services(self) -> list[ServiceRecord]:
        """List every service, also those of other frameworks; see `Registry.services`."""
        return await self._records("INFO")

    async def _records(self, verb: str) -> list[ServiceRecord]:
        found = await self._ask(verb, _Info)
        return _records(sorted(found, key=lambda info: (info.name, info.id)))

    async def lookup(self, service: str) -> dict[str, str]:
        """Find out quickly what a service has, for a caller whom nobody answered.

        Args:
            service: Its name.

        Returns:
            The subjects of its endpoints by name; empty if no node of it lives. After at most
            50 ms.
        """
        try:
            found = await self._ask(f"INFO.{check_service(service)}", _Info, LOOKUP_FOR, 0.02)
        except CallError as failure:
            log.debug("%s could not be looked up: %s", service, failure)
            return {}
        records = (_read_endpoint(e) for info in found for e in info.endpoints or ())
        return {one.name: one.subject for one in records if may_be_named(one.subject)}

    async def stats(self, service: str | None = None) -> list[NodeStats]:
        """Ask nodes what they have done so far.

        Args:
            service: Whose nodes; None for those of all services.

        Returns:
            The answers, by service and node.

        Raises:
            Unavailable: The connection is down.
        """
        verb = f"STATS.{check_service(service)}" if service else "STATS"
        found = await self._ask(verb, _Stats)
        return [_read_stats(one) for one in sorted(found, key=lambda one: (one.name, one.id))]

    async def _ask(
        self, verb: str, kind: type[R], timeout: float = ASK_FOR, stall: float = STALL
    ) -> list[R]:
        subject = f"$SRV.{verb}"
        answers = await collect(
            self._replies, self._transport, subject, timeout=timeout, stall=stall
        )
        return list(self._understood(subject, kind, (payload for _header, payload in answers)))

    def _understood(self, subject: str, kind: type[R], payloads: Iterable[bytes]) -> Iterable[R]:
        for payload in payloads:
            try:
                answer = kind.model_validate_json(payload)
            except ValidationError as wrong:
                why = wrong.errors(include_url=False, include_input=False)[0]["msg"]
                self._complaints.about(f"an answer to {subject}", why)
                continue
            if answer.namespace in (None, self._namespace):
                yield answer

    # --- watching -------------------------------------------------------------------------------

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[Change]]:
        """Hear of everyone who is there, then of every change; see `Registry.watch`."""
        view = self._view
        if view is None:
            view = LiveView(self._clock)
            await self._look(view)
            if self._view is None:
                self._view = view
                self._tasks.spawn(self._keep_looking(view), name="busmicro $SRV watch")
            view = self._view
        watcher = view.watcher()
        try:
            yield watcher
        finally:
            view.dismiss(watcher)
            if not view.watched and self._view is view:
                self._view = None

    async def _keep_looking(self, view: LiveView) -> None:
        while self._view is view:
            await self._clock.sleep(self._poll)
            try:
                await self._look(view)
            except BusmicroError as failure:
                log.debug("no look at $SRV: %s", failure)

    async def _look(self, view: LiveView) -> None:
        answers = await self._ask("PING", _Identity)
        there = set()
        for answer in answers:
            node = answer.node()
            there.add((node.service, node.id))
            view.put(node, 2.5 * self._poll + ASK_FOR)
        if self._clock.now() < self._patient_until:
            return
        await asyncio.gather(
            *(self._verify(view, n) for n in view.nodes() if (n.service, n.id) not in there)
        )
        view.expire()

    async def _verify(self, view: LiveView, node: Node) -> None:
        """Ask one who did not answer: is it slow, or is nobody there?"""
        if not (_WORD.fullmatch(node.service) and _WORD.fullmatch(node.id)):
            return
        subject = f"$SRV.PING.{node.service}.{node.id}".encode()
        try:
            await self._replies.ask(subject, b"", timeout=ASK_FOR)
        except NoResponders:
            view.remove(node.service, node.id)
        except CallError as failure:
            log.debug("%s %s does not answer: %s", node.service, node.id, failure)

    async def close(self) -> None:
        """Deregister what was registered here and end every watcher."""
        for own in tuple(self._own.values()):
            await self.deregister(own.node)
        view, self._view = self._view, None
        if view is not None:
            view.close()
        await self._tasks.cancel()


def _records(found: Iterable[_Info]) -> list[ServiceRecord]:
    nodes: dict[str, dict[str, Node]] = {}
    descriptions: dict[str, dict[str, Description]] = {}
    for info in found:
        nodes.setdefault(info.name, {})[info.id] = info.node()
        descriptions.setdefault(info.name, {})[info.id] = Description(
            service=info.name, endpoints=tuple(map(_read_endpoint, info.endpoints or ()))
        )
    return [
        ServiceRecord(name=name, nodes=tuple(of.values()), descriptions=descriptions[name])
        for name, of in nodes.items()
    ]
