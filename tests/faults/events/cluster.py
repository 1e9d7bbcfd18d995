"""A cluster as its tests see it: who leads the stream, and when all is well again."""

from __future__ import annotations

import asyncio
import random

from busmicro import NatsCluster, NatsServer
from tests.faults.events.observer import Observer
from tests.faults.events.orders import STREAM
from tests.faults.events.stored import ask, is_replicated, leader_of


def ports(cluster: NatsCluster) -> list[int]:
    """Return where an observer finds its servers."""
    return [server.port for server in cluster.servers]


def named(cluster: NatsCluster, name: str) -> NatsServer:
    """Return the server of this name."""
    return cluster.servers[int(name.removeprefix("n")) - 1]


async def leader(cluster: NatsCluster, observer: Observer) -> NatsServer:
    """Wait until the stream has a leader, and return it."""
    name = ""
    async with asyncio.timeout(30):
        while not name:
            name = await leader_of(observer, STREAM)
    return named(cluster, name)


async def whole_again(cluster: NatsCluster, observer: Observer) -> None:
    """Wait until every server, and every replica of the stream, is up to date."""
    await cluster.ready()
    async with asyncio.timeout(60):
        while not await is_replicated(observer, STREAM):
            await asyncio.sleep(0.1)


async def a_follower(cluster: NatsCluster, observer: Observer) -> NatsServer:
    """Return a server that has the stream and does not lead it."""
    leading = await leader(cluster, observer)
    return next(server for server in cluster.servers if server is not leading)


async def let_lead(server: NatsServer, cluster: NatsCluster, observer: Observer) -> None:
    """Make a server the stream's leader."""
    name = f"n{cluster.servers.index(server) + 1}"
    async with asyncio.timeout(60):
        while await leader(cluster, observer) is not server:
            wish = {"preferred": name}
            await ask(observer, f"STREAM.LEADER.STEPDOWN.{STREAM}", placement=wish)
            await asyncio.sleep(0.2)


def flip_a_bit(server: NatsServer, chance: random.Random) -> None:
    """Turn over one bit of what a server that does not run has stored of the stream."""
    assert server.store is not None
    blocks = sorted(server.store.glob(f"jetstream/*/streams/{STREAM}/msgs/*.blk"))
    block = chance.choice([block for block in blocks if block.stat().st_size])
    content = bytearray(block.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    block.write_bytes(content)
