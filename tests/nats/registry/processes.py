"""The registry parts of a process, and what the tests of the registry ask of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from busmicro.registry import (
    Change,
    Description,
    Discovery,
    EndpointRecord,
    KvRegistry,
    Node,
    SrvRegistry,
)
from busmicro.transport import Bucket, JetStream, NatsTransport, Replies

Until = Callable[..., Awaitable[None]]


class Process:
    """The registry parts of one process."""

    def __init__(self, transport: NatsTransport, replies: Replies) -> None:
        self.transport = transport
        self.replies = replies
        self.closing: list[Callable[[], Awaitable[None]]] = []

    def discovery(self, *, ttl: float = 1.0, namespace: str = "") -> Discovery:
        made = Discovery(self.transport, self.replies, ttl=ttl, namespace=namespace)
        self.closing.append(made.close)
        return made

    def kv(self, *, ttl: float = 1.0, namespace: str = "", description_ttl: float = 3600.0):
        made = KvRegistry(
            self.transport,
            self.replies,
            ttl=ttl,
            namespace=namespace,
            description_ttl=description_ttl,
        )
        self.closing.append(made.close)
        return made

    def srv(self, *, namespace: str = "", poll: float = 0.2) -> SrvRegistry:
        made = SrvRegistry(self.transport, self.replies, namespace=namespace, poll=poll)
        self.closing.append(made.close)
        return made

    async def bucket(self, name: str = "bus-registry") -> Bucket:
        made = Bucket(JetStream(self.transport, self.replies), name)
        await made.open()
        return made

    async def close(self) -> None:
        for close in self.closing:
            await close()
        await self.transport.close()


Connect = Callable[[str], Awaitable[Process]]


def node(id: str, service: str = "greeter") -> Node:
    return Node(service=service, id=id, started="2026-01-01T00:00:00.000Z")


def described(*names: str, service: str = "greeter") -> Description:
    return Description(
        service=service,
        endpoints=tuple(EndpointRecord(name=n, subject=f"rpc.{service}.{n}") for n in names),
    )


HELLO = described("hello", "Greeter.wave")


async def ids(registry: Discovery | KvRegistry | SrvRegistry) -> list[str]:
    record = await registry.service("greeter")
    return [found.id for found in record.nodes] if record else []


async def hear(changes: AsyncIterator[Change], count: int) -> list[tuple[str, str]]:
    async with asyncio.timeout(10):
        found = [await anext(changes) for _ in range(count)]
    return [(change.kind.value, change.node.id) for change in found]


async def ids_are(registry: Discovery, expected: list[str]) -> bool:
    return await ids(registry) == expected


async def ids_are_in(registry: KvRegistry, expected: list[str]) -> bool:
    return await ids(registry) == expected


NODE_PROGRAM = """
import asyncio, sys
from busmicro.registry import Discovery, Description, Node
from busmicro.settings import Settings
from busmicro.timers import Timers
from busmicro.transport import NatsTransport, Replies

async def main():
    transport = NatsTransport(Settings())
    await transport.connect()
    replies = Replies(transport, Timers())
    await replies.start()
    discovery = Discovery(transport, replies, ttl=1.0)
    node = Node(service="greeter", id=sys.argv[1])
    await discovery.register(node, Description(service="greeter"))
    print("up", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
