"""A registry within one process, for tests and for services that share a process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from busmicro.clock import SYSTEM_CLOCK, Clock
from busmicro.registry.base import (
    Change,
    Description,
    Node,
    ServiceRecord,
    assemble,
    fingerprint,
)
from busmicro.registry.watch import LiveView, Watcher
from busmicro.tasks import Tasks

_FOR_EVER = float("inf")


class MemoryRegistry:
    """Who is up, among those who share this object or a `peer` of it.

    Args:
        clock: Tells time and waits.
        ttl: Seconds of silence after which a node is gone.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK, *, ttl: float = 30.0) -> None:
        self._clock = clock
        self._ttl = ttl
        self._view = LiveView(clock)
        self._descriptions: dict[tuple[str, str], Description] = {}
        self._own: dict[tuple[str, str], Node] = {}
        self._watchers: list[Watcher] = []
        self._tasks = Tasks()

    def peer(self) -> Self:
        """Make a registry that sees the same nodes, as another process would have it."""
        other = type(self)(self._clock, ttl=self._ttl)
        other._view, other._descriptions = self._view, self._descriptions
        return other

    async def register(self, node: Node, description: Description) -> None:
        """Make a node known; see `Registry.register`."""
        known = node.model_copy(update={"description": fingerprint(description)})
        self._descriptions[node.service, known.description] = description
        self._own[node.service, node.id] = known
        self._view.put(known, _FOR_EVER)

    async def deregister(self, node: Node) -> None:
        """Make a node unknown at once; see `Registry.deregister`."""
        if self._own.pop((node.service, node.id), None) is not None:
            self._view.remove(node.service, node.id)

    def abort(self) -> None:
        """Fall silent without a good-bye, as a process does that is killed."""
        for node in self._own.values():
            self._view.put(node, self._ttl)
        self._own.clear()
        self._tasks.spawn(self._expire(), name="busmicro memory registry")

    async def _expire(self) -> None:
        await self._clock.sleep(self._ttl)
        self._view.expire()

    async def service(self, name: str) -> ServiceRecord | None:
        """Find a service; see `Registry.service`."""
        found = assemble(self._view.nodes(name), self._descriptions)
        return found[0] if found else None

    async def services(self) -> list[ServiceRecord]:
        """List every service; see `Registry.services`."""
        return assemble(self._view.nodes(), self._descriptions)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[Change]]:
        """Hear of everyone who is there, then of every change; see `Registry.watch`."""
        watcher = self._view.watcher()
        self._watchers.append(watcher)
        try:
            yield watcher
        finally:
            self._watchers.remove(watcher)
            self._view.dismiss(watcher)

    async def close(self) -> None:
        """Deregister what was registered here and end every watcher."""
        for node in tuple(self._own.values()):
            await self.deregister(node)
        for watcher in self._watchers:
            self._view.dismiss(watcher)
        await self._tasks.cancel()
