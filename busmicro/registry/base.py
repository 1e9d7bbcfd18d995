"""The promise: who is up, what they offer, and word when that changes.

Nobody needs a registry for a plain call to get through: it serves choosing and people.

Every implementation promises:
- a node that registers is found, by service and in the list of all, with its description;
- registering the same node again replaces it;
- nodes of one service with different descriptions are kept apart, each with its own;
- a node that deregisters is gone at once, and watchers are told;
- a node that dies is gone within the time to live, and watchers are told;
- a watcher first hears of everyone who is there, then of every change, in order;
- after a lost connection the view becomes true again by itself;
- what it cannot read, such as a record of a newer version, is skipped and logged, never raised.
"""

from __future__ import annotations

import enum
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, JsonValue

log = logging.getLogger("busmicro.registry")

MAX_SCHEMA_BYTES = 4096
"""A JSON Schema longer than this is left out where it would travel often."""
UNARY = "unary"
"""The kind of endpoint that takes one message and gives one: the usual, so it does not travel."""


class _Record(BaseModel):
    # Schemas are built on first use: all of them at once would cost every start 30 ms.
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class EndpointRecord(_Record):
    """One endpoint as others see it."""

    name: str
    """One word, or two with a dot between."""
    subject: str
    """Where it listens."""
    queue_group: str = "q"
    """The queue group that shares its requests."""
    kind: str = UNARY
    """How many messages go which way: `unary`, `server_stream`, `client_stream` or `both`."""
    idempotent: bool = False
    """May it safely run twice?"""
    timeout: float | None = None
    """Seconds it asks callers to allow; None for the usual."""
    doc: str = ""
    """What it is for: the first paragraph of its docstring."""
    request: JsonValue = None
    """The JSON Schema of its request; None if it takes none or it is not known."""
    reply: JsonValue = None
    """The JSON Schema of its reply; None if it has none or it is not known."""
    metadata: dict[str, str] = Field(default_factory=dict)
    """What its author says of it."""

    @property
    def streams(self) -> bool:
        """Does it take or give many messages?"""
        return self.kind != UNARY

    @property
    def takes_many(self) -> bool:
        """Does it take many messages?"""
        return self.kind in {"client_stream", "both"}

    @property
    def gives_many(self) -> bool:
        """Does it give many messages?"""
        return self.kind in {"server_stream", "both"}


class Description(_Record):
    """What a service offers; shared by all of its nodes that run the same code."""

    service: str
    """The name of the service."""
    endpoints: tuple[EndpointRecord, ...] = ()
    """In the order they were registered."""

    def endpoint(self, name: str) -> EndpointRecord | None:
        """Find an endpoint by name."""
        return next((e for e in self.endpoints if e.name == name), None)


class Node(_Record):
    """One running instance of a service."""

    service: str
    """The name of the service."""
    id: str
    """Unique among all nodes."""
    version: str = "0.1.0"
    """The version of the service that it runs."""
    started: str = ""
    """When it started, ISO 8601, UTC."""
    metadata: dict[str, str] = Field(default_factory=dict)
    """What its author says of it."""
    running: int = 0
    """Requests it works on now."""
    description: str = ""
    """The hash of its description; empty where descriptions are not shared."""


class ServiceRecord(_Record):
    """A service: its nodes and what each of them offers."""

    name: str
    """The name of the service."""
    nodes: tuple[Node, ...] = ()
    """Sorted by id."""
    descriptions: dict[str, Description] = Field(default_factory=dict)
    """By node id."""

    @property
    def versions(self) -> list[str]:
        """The versions that run, each once."""
        return sorted({node.version for node in self.nodes})

    def endpoint(self, name: str) -> EndpointRecord | None:
        """Find an endpoint that at least one node has."""
        found = (d.endpoint(name) for d in self.descriptions.values())
        return next((endpoint for endpoint in found if endpoint), None)

    @property
    def endpoints(self) -> list[EndpointRecord]:
        """Every endpoint that at least one node has, each once, in order."""
        seen: dict[str, EndpointRecord] = {}
        for description in self.descriptions.values():
            for endpoint in description.endpoints:
                seen.setdefault(endpoint.name, endpoint)
        return list(seen.values())


class EndpointStats(_Record):
    """What an endpoint has done so far."""

    name: str
    """Which; one word, or two with a dot between."""
    num_requests: int = 0
    """Answered or given up, good or bad."""
    num_errors: int = 0
    """Of these, how many did not succeed."""
    last_error: str = ""
    """What the latest failure said."""
    processing_time: int = 0
    """Nanoseconds spent in all."""
    average_processing_time: int = 0
    """Nanoseconds a request, on average."""
    data: JsonValue = None
    """Whatever else its author wants to show."""


class ServiceStats(_Record):
    """What the endpoints of a node have done so far."""

    endpoints: tuple[EndpointStats, ...] = ()
    """One by one."""


class NodeStats(_Record):
    """What one node says it has done so far."""

    node: Node
    """Who."""
    endpoints: tuple[EndpointStats, ...] = ()
    """One by one."""


class ChangeKind(enum.Enum):
    """What happened to a node."""

    JOINED = "joined"
    """It is there now."""
    UPDATED = "updated"
    """It was there, and says something new of itself; `running` alone is no news."""
    LEFT = "left"
    """It has said good-bye, or has been silent for too long."""


class Change(_Record):
    """Something that happened to a node."""

    kind: ChangeKind
    """What."""
    node: Node
    """To whom; for `LEFT` as it was last seen."""


class Registry(Protocol):
    """Who is up."""

    async def register(self, node: Node, description: Description) -> None:
        """Make a node known and keep it known until it is deregistered or the process ends.

        Args:
            node: Who; replaces what was known of the same id.
            description: What it offers.

        Raises:
            Unavailable: The registry cannot be written now.
        """
        ...

    async def deregister(self, node: Node) -> None:
        """Make a node unknown at once; not an error if it is."""
        ...

    async def service(self, name: str) -> ServiceRecord | None:
        """Find a service with all of its nodes; None if no node of it is up."""
        ...

    async def services(self) -> list[ServiceRecord]:
        """List every service that has a node, by name."""
        ...

    def watch(self) -> AbstractAsyncContextManager[AsyncIterator[Change]]:
        """Hear of everyone who is there, then of every change.

        A watcher that does not listen falls behind at most 1,000 changes; then its iteration
        starts over: `LEFT` for those it was told of who are gone, `JOINED` for everyone there.
        The iteration ends when the registry is closed.

        Raises:
            Unavailable: The registry cannot be read now (on entering; never later).
        """
        ...

    async def close(self) -> None:
        """Deregister what was registered here and end every watcher."""
        ...


def fingerprint(description: Description) -> str:
    """Return the hash by which nodes share a description."""
    canonical = json.dumps(description.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:24]


def without_schemas(description: Description) -> Description:
    """Return a description that says less, for where the whole does not fit."""
    slim = {"request": None, "reply": None}
    endpoints = tuple(e.model_copy(update=slim) for e in description.endpoints)
    return description.model_copy(update={"endpoints": endpoints})


def assemble(
    nodes: Iterable[Node], descriptions: Mapping[tuple[str, str], Description]
) -> list[ServiceRecord]:
    """Put nodes and the descriptions they share together as services, by name.

    Args:
        nodes: In any order.
        descriptions: By service and hash.
    """
    by_service: dict[str, list[Node]] = {}
    for node in sorted(nodes, key=lambda n: (n.service, n.id)):
        by_service.setdefault(node.service, []).append(node)
    return [
        ServiceRecord(
            name=name,
            nodes=tuple(members),
            descriptions={
                node.id: descriptions[name, node.description]
                for node in members
                if (name, node.description) in descriptions
            },
        )
        for name, members in by_service.items()
    ]


def is_news(before: Node, after: Node) -> bool:
    """Tell whether a node says something new of itself; `running` alone is no news."""
    return before.model_copy(update={"running": 0}) != after.model_copy(update={"running": 0})


class Complaints:
    """What could not be read, each said once and not at every look."""

    _MOST = 1000

    def __init__(self) -> None:
        self._said: set[str] = set()

    def about(self, what: str, why: object) -> None:
        """Log that something was skipped, unless that has been said."""
        text = f"{what}: {str(why)[:300]}"
        if text in self._said:
            return
        if len(self._said) >= self._MOST:
            self._said.clear()
        self._said.add(text)
        log.warning("skipped %s", text)
