"""The shared view: who is there as far as this process has heard, and who wants to know.

Nothing here waits or talks to anybody: puts, deletes, snapshots and the passing of time are told
to it, and it tells its watchers what follows.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self, TypeAlias

from busmicro.clock import Clock
from busmicro.registry.base import Change, ChangeKind, Node, is_news

MOST_BEHIND: Final = 1000

Key: TypeAlias = tuple[str, str]
"""Service and node id."""


@dataclass(slots=True)
class Sighting:
    """A node, and when it was last heard of."""

    node: Node
    """Who."""
    ttl: float
    """Seconds of silence after which it is taken to be gone."""
    heard: float
    """When it last gave a sign of life, by the clock."""
    expires: float
    """When it is taken to be gone."""


class LiveView:
    """Who is there.

    Args:
        clock: Tells time.
        limit: Changes that a watcher may fall behind.
    """

    def __init__(self, clock: Clock, *, limit: int = MOST_BEHIND) -> None:
        self._clock = clock
        self._limit = limit
        self._seen: dict[Key, Sighting] = {}
        self._left: dict[Key, float] = {}
        self._watchers: list[Watcher] = []

    def __len__(self) -> int:
        return len(self._seen)

    def nodes(self, service: str | None = None) -> list[Node]:
        """List who is there, of one service or of all, by service and id."""
        return [self._seen[key].node for key in sorted(self._seen) if service in (None, key[0])]

    @property
    def next_expiry(self) -> float:
        """When the next node will be taken to be gone if it stays silent."""
        return min((s.expires for s in self._seen.values()), default=float("inf"))

    # --- what it is told ------------------------------------------------------------------------

    def put(self, node: Node, ttl: float, *, age: float = 0.0) -> None:
        """Note a sign of life.

        Args:
            node: Who, as it describes itself now.
            ttl: Seconds of silence after which it is gone.
            age: Seconds since it gave the sign.
        """
        key = (node.service, node.id)
        if age >= ttl:
            self._drop(key)
            return
        heard = self._clock.now() - age
        before = self._seen.get(key)
        self._seen[key] = Sighting(node, ttl, heard, heard + ttl)
        self._left.pop(key, None)
        if before is None:
            self._tell(Change(kind=ChangeKind.JOINED, node=node))
        elif is_news(before.node, node):
            self._tell(Change(kind=ChangeKind.UPDATED, node=node))

    def remove(self, service: str, node: str) -> None:
        """Note a good-bye."""
        self._left[service, node] = self._clock.now()
        self._drop((service, node))

    def compare(self, snapshot: Iterable[Sighting], *, since: float, grace: float = 0.0) -> None:
        """Take over what a snapshot says, unless something newer has been heard.

        Args:
            snapshot: Everyone who is there; `heard` by this clock.
            since: What was heard after this moment, by the clock, is newer.
            grace: Seconds that those who are missing get to be heard of; 0 removes them.
        """
        present: set[Key] = set()
        for sighting in snapshot:
            key = (sighting.node.service, sighting.node.id)
            present.add(key)
            if not self._is_outdated(key, sighting, since):
                self.put(sighting.node, sighting.ttl, age=self._clock.now() - sighting.heard)
        for key in [k for k, s in self._seen.items() if k not in present and s.heard <= since]:
            if grace:
                self._seen[key].expires = self._clock.now() + grace
            else:
                self._drop(key)

    def _is_outdated(self, key: Key, sighting: Sighting, since: float) -> bool:
        if self._left.get(key, float("-inf")) > since:
            return True
        known = self._seen.get(key)
        return known is not None and known.heard > sighting.heard

    def expire(self) -> None:
        """Take those to be gone who have been silent for too long."""
        now = self._clock.now()
        for key in [k for k, s in self._seen.items() if s.expires <= now]:
            self._drop(key)
        self._left = {k: at for k, at in self._left.items() if at > now - 60.0}

    def patience(self, seconds: float) -> None:
        """Give everyone at least so many seconds from now to be heard of."""
        until = self._clock.now() + seconds
        for sighting in self._seen.values():
            sighting.expires = max(sighting.expires, until)

    def _drop(self, key: Key) -> None:
        sighting = self._seen.pop(key, None)
        if sighting is not None:
            self._tell(Change(kind=ChangeKind.LEFT, node=sighting.node))

    # --- whom it tells --------------------------------------------------------------------------

    def _tell(self, change: Change) -> None:
        for watcher in self._watchers:
            watcher.hear(change)

    def watcher(self) -> Watcher:
        """Make one that first hears of everyone who is there."""
        watcher = Watcher(self, self._limit)
        self._watchers.append(watcher)
        return watcher

    def dismiss(self, watcher: Watcher) -> None:
        """Tell a watcher nothing more; its iteration ends."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)
        watcher.end()

    @property
    def watched(self) -> bool:
        """Does anybody want to know?"""
        return bool(self._watchers)

    def close(self) -> None:
        """End every watcher."""
        for watcher in tuple(self._watchers):
            self.dismiss(watcher)


class Watcher:
    """One who wants to know; iterate over it."""

    def __init__(self, view: LiveView, limit: int) -> None:
        self._view = view
        self._limit = limit
        self._told: dict[Key, Node] = {}
        self._waiting: deque[Change] = deque()
        self._room = limit
        self._behind = False
        self._ended = False
        self._news = asyncio.Event()
        self._start_over()

    def hear(self, change: Change) -> None:
        """Take note of a change; beyond the limit, start over at the next look."""
        if self._behind:
            return
        if len(self._waiting) >= self._room:
            self._waiting.clear()
            self._behind = True
        else:
            self._waiting.append(change)
        self._news.set()

    def end(self) -> None:
        """Stop iterating."""
        self._ended = True
        self._news.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        while True:
            if self._ended:
                raise StopAsyncIteration
            if self._behind:
                self._start_over()
            if self._waiting:
                return self._next()
            self._news.clear()
            await self._news.wait()

    def _next(self) -> Change:
        change = self._waiting.popleft()
        key = (change.node.service, change.node.id)
        if change.kind is ChangeKind.LEFT:
            self._told.pop(key, None)
        else:
            self._told[key] = change.node
        return change

    def _start_over(self) -> None:
        there = {(node.service, node.id): node for node in self._view.nodes()}
        gone = [node for key, node in self._told.items() if key not in there]
        self._waiting.extend(Change(kind=ChangeKind.LEFT, node=node) for node in gone)
        self._waiting.extend(Change(kind=ChangeKind.JOINED, node=n) for n in there.values())
        self._room = len(self._waiting) + self._limit
        self._behind = False
