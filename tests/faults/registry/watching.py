"""One who watches the registry: what it has been told, and whether that can be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from busmicro import Client, Unavailable
from busmicro.registry import Change, ChangeKind


class View:
    """Who is there, by the changes that a watcher hears of."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        """The ids of the nodes that are there."""
        self.changes = 0
        """How many were heard."""
        self.wrong: list[Change] = []
        """Those that cannot be: who is there joined, or who is not left."""

    async def follow(self, changes: AsyncIterator[Change]) -> None:
        """Listen until there is no more to hear."""
        async for change in changes:
            self.hear(change)

    def hear(self, change: Change) -> None:
        """Note one change."""
        node = change.node.id
        self.changes += 1
        if (change.kind is ChangeKind.JOINED) == (node in self.there):
            self.wrong.append(change)
        if change.kind is ChangeKind.LEFT:
            self.there.discard(node)
        else:
            self.there.add(node)


@asynccontextmanager
async def watching(client: Client) -> AsyncIterator[View]:
    """Watch the registry while this lasts."""
    view = View()
    async with client.bus.discovery.watch() as changes:
        following = asyncio.get_running_loop().create_task(view.follow(changes))
        try:
            yield view
        finally:
            following.cancel()
            await asyncio.wait([following])


async def listed(client: Client) -> set[str]:
    """Ask the registry anew who is there, until it can be read."""
    async with asyncio.timeout(20):
        while True:
            try:
                record = await client.bus.discovery.kv.service("crowd")
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                return {node.id for node in record.nodes} if record else set()
