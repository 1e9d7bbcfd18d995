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
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class EndpointRecord(_Record):
    """One endpoint as others see it."""

    name: str
    """One word, or two with a dot between."""
    subject: str
    """Where it listens."""
    queue_group: str = "q"
    """The queue group that shares its requests."""
    kind: str = "unary"
    """What it is: `unary` or `stream`."""
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


class ChangeKind(enum.Enum):
    """What happened to a node."""

    JOINED = "joined"
    """It is there now."""
    UPDATED = "updated"
    """It was there, and says something new of itself."""
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
        starts over with everyone who is there.
        """
        ...

    async def close(self) -> None:
        """Deregister what was registered here and end every watcher."""
        ...
