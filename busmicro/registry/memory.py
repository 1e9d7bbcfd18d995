"""A registry within one process, for tests and for services that share a process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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
    """Who is up, among those who share this object or have it as their peer.

    Args:
        clock: Tells time and waits.
        ttl: Seconds of silence after which a node is gone.
        peer: Another registry to see the same nodes as, as if from another process.
    """

    def __init__(
        self,
        clock: Clock = SYSTEM_CLOCK,
        *,
        ttl: float = 30.0,
        peer: MemoryRegistry | None = None,
    ) -> None:
        self._clock = clock
        self._ttl = ttl
        self.view: LiveView = peer.view if peer else LiveView(clock)
        """Who is there."""
        self.descriptions: dict[tuple[str, str], Description] = peer.descriptions if peer else {}
        """What they offer, by service and hash."""
        self._own: dict[tuple[str, str], Node] = {}
        self._watchers: list[Watcher] = []
        self._tasks = Tasks()

    async def register(self, node: Node, description: Description) -> None:
        """Make a node known; see `Registry.register`."""
        known = node.model_copy(update={"description": fingerprint(description)})
        self.descriptions[node.service, known.description] = description
        self._own[node.service, node.id] = known
        self.view.put(known, _FOR_EVER)

    async def deregister(self, node: Node) -> None:
        """Make a node unknown at once; see `Registry.deregister`."""
        if self._own.pop((node.service, node.id), None) is not None:
            self.view.remove(node.service, node.id)

    def abort(self) -> None:
        """Fall silent without a good-bye, as a process does that is killed."""
        for node in self._own.values():
            self.view.put(node, self._ttl)
        self._own.clear()
        self._tasks.spawn(self._expire(), name="busmicro memory registry")

    async def _expire(self) -> None:
        await self._clock.sleep(self._ttl)
        self.view.expire()

    async def service(self, name: str) -> ServiceRecord | None:
        """Find a service; see `Registry.service`."""
        found = assemble(self.view.nodes(name), self.descriptions)
        return found[0] if found else None

    async def services(self) -> list[ServiceRecord]:
        """List every service; see `Registry.services`."""
        return assemble(self.view.nodes(), self.descriptions)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[Change]]:
        """Hear of everyone who is there, then of every change; see `Registry.watch`."""
        watcher = self.view.watcher()
        self._watchers.append(watcher)
        try:
            yield watcher
        finally:
            self._watchers.remove(watcher)
            self.view.dismiss(watcher)

    async def close(self) -> None:
        """Deregister what was registered here and end every watcher."""
        for node in tuple(self._own.values()):
            await self.deregister(node)
        for watcher in self._watchers:
            self.view.dismiss(watcher)
        await self._tasks.cancel()
