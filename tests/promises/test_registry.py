"""What every registry promises, over memory, the key-value bucket, `$SRV` and both together."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from busmicro.embedded import NatsServer
from busmicro.registry import (
    Change,
    ChangeKind,
    Description,
    Discovery,
    EndpointRecord,
    KvRegistry,
    MemoryRegistry,
    Node,
    Registry,
    SrvRegistry,
)
from busmicro.settings import Settings
from busmicro.timers import Timers
from busmicro.transport import NatsTransport, Replies

TTL = 1.0
BAD_INFO = b'{"name":"greeter","id":"x","metadata":7,"endpoints":"none"}'
Until = Callable[..., Awaitable[None]]


class Process(ABC):
    """One process on the bus, as far as its registry is concerned."""

    registry: Registry
    ttl = TTL
    """Seconds of silence after which its nodes are gone."""

    @abstractmethod
    async def die(self) -> None:
        """End without a good-bye."""

    def cut(self) -> None:  # noqa: B027 - one in memory has no connection to lose
        """Lose the connection, and come back as soon as possible."""

    def litter(self) -> None:  # noqa: B027 - and no bytes that could be misread
        """Say what no registry can read."""

    async def close(self) -> None:
        """End in order."""
        await self.registry.close()


class MemoryProcess(Process):
    ttl = 0.2

    def __init__(self, peer: MemoryRegistry) -> None:
        self.registry: MemoryRegistry = MemoryRegistry(ttl=self.ttl, peer=peer)

    async def die(self) -> None:
        self.registry.abort()


class NatsProcess(Process):
    """A process with a connection of its own."""

    def __init__(self, transport: NatsTransport, registry: Registry) -> None:
        self.transport = transport
        self.registry = registry

    async def die(self) -> None:
        await self.transport.close()

    def cut(self) -> None:
        self.transport.lose()

    def litter(self) -> None:
        for key in ("node.greeter.x", "node.a", "service.greeter.h", "what.is.this"):
            for value in (b"\xff\x00", b"[]", b'{"v":2,"version":"9.0.0","ttl":9}', b'{"v":1}'):
                self.transport.publish(b"$KV.bus-registry." + key.encode(), value)

        def babble(_subject: bytes, reply: bytes, _header: bytes, _payload: bytes) -> None:
            for answer in (b"\xff", b"7", b"{}", b'{"name":"greeter","id":7}', BAD_INFO):
                self.transport.publish(reply, answer)

        for subject in ("$SRV.PING", "$SRV.INFO", "$SRV.INFO.greeter"):
            self.transport.subscribe(subject, babble)

    async def close(self) -> None:
        await self.registry.close()
        await self.transport.close()


def make_registry(kind: str, transport: NatsTransport, replies: Replies) -> Registry:
    if kind == "kv":
        return KvRegistry(transport, replies, ttl=TTL)
    if kind == "srv":
        return SrvRegistry(transport, replies, poll=0.2)
    return Discovery(transport, replies, ttl=TTL)


async def connect(kind: str, url: str) -> NatsProcess:
    transport = NatsTransport(Settings(nats_url=url))
    await transport.connect()
    replies = Replies(transport, Timers())
    await replies.start()
    return NatsProcess(transport, make_registry(kind, transport, replies))


Start = Callable[[], Awaitable[Process]]


@pytest.fixture(params=["memory", "kv", "srv", "discovery"])
async def start(request: pytest.FixtureRequest) -> AsyncIterator[Start]:
    """Start processes that share one bus."""
    started: list[Process] = []
    bus = MemoryRegistry()
    server = NatsServer() if request.param != "memory" else None
    if server is not None:
        await server.start()

    async def one_more() -> Process:
        if server is None:
            started.append(MemoryProcess(bus))
        else:
            started.append(await connect(request.param, server.url))
        return started[-1]

    yield one_more
    for process in started:
        await process.close()
    if server is not None:
        await server.stop()


def node(id: str, service: str = "greeter", **more: object) -> Node:
    fields = {"started": "2026-01-01T00:00:00.000Z", "metadata": {"zone": "a"}, **more}
    return Node.model_validate({"service": service, "id": id, **fields})


def endpoint(name: str, service: str = "greeter") -> EndpointRecord:
    return EndpointRecord(
        name=name,
        subject=f"rpc.{service}.{name}",
        idempotent=True,
        timeout=2.5,
        doc="Says hello.",
        request={"type": "object"},
        metadata={"team": "red"},
    )


def description(*names: str, service: str = "greeter") -> Description:
    return Description(service=service, endpoints=tuple(endpoint(n, service) for n in names))


HELLO = description("hello", "Greeter.wave")


async def hear(changes: AsyncIterator[Change], count: int) -> list[tuple[str, str]]:
    """Wait for so many changes: kind and node of each."""
    async with asyncio.timeout(10):
        found = [await anext(changes) for _ in range(count)]
    return [(change.kind.value, change.node.id) for change in found]


async def ids(registry: Registry, service: str = "greeter") -> list[str]:
    """List the nodes of a service."""
    record = await registry.service(service)
    return [found.id for found in record.nodes] if record else []


async def test_a_node_that_registers_is_found_by_service_and_in_the_list_with_its_description(
    start: Start,
) -> None:
    """Another process finds the node with everything that was said of it."""
    here, there = await start(), await start()
    await here.registry.register(node("n1"), HELLO)
    await here.registry.register(node("m1", "mailer"), description("send", service="mailer"))

    found = await there.registry.service("greeter")
    everyone = await there.registry.services()

    assert found is not None
    assert [n.model_copy(update={"description": ""}) for n in found.nodes] == [node("n1")]
    assert found.descriptions == {"n1": HELLO}
    assert [(record.name, len(record.nodes)) for record in everyone] == [
        ("greeter", 1),
        ("mailer", 1),
    ]
    assert everyone[0].descriptions == {"n1": HELLO}
    assert await there.registry.service("nobody") is None


async def test_an_endpoint_is_found_with_the_kind_that_it_has(start: Start) -> None:
    """Callers learn from the registry how many messages go which way; a plain call says nothing."""
    here, there = await start(), await start()
    kinds = ["unary", "server_stream", "client_stream", "both"]
    endpoints = tuple(endpoint(kind).model_copy(update={"kind": kind}) for kind in kinds)
    await here.registry.register(node("n1"), Description(service="greeter", endpoints=endpoints))

    found = await there.registry.service("greeter")

    assert found is not None
    assert [e.kind for e in found.endpoints] == kinds
    assert [e.streams for e in found.endpoints] == [False, True, True, True]
    assert [e.takes_many for e in found.endpoints] == [False, False, True, True]
    assert [e.gives_many for e in found.endpoints] == [False, True, False, True]


async def test_registering_the_same_node_again_replaces_it(start: Start) -> None:
    """The second registration wins, for those who ask and for those who watch."""
    here, there = await start(), await start()
    await here.registry.register(node("n1"), HELLO)

    async with there.registry.watch() as changes:
        assert await hear(changes, 1) == [("joined", "n1")]
        await here.registry.register(node("n1", version="2.0.0"), description("hello"))
        change = await anext(changes)

    found = await there.registry.service("greeter")
    assert (change.kind, change.node.version) == (ChangeKind.UPDATED, "2.0.0")
    assert found is not None
    assert [n.version for n in found.nodes] == ["2.0.0"]
    assert [e.name for e in found.endpoints] == ["hello"]


async def test_nodes_of_one_service_with_different_descriptions_are_kept_apart_each_with_its_own(
    start: Start,
) -> None:
    """During a rollout each node is shown with what it offers itself."""
    old, new, there = await start(), await start(), await start()
    await old.registry.register(node("n1"), description("hello"))
    await new.registry.register(node("n2", version="2.0.0"), description("hello", "bye"))

    found = await there.registry.service("greeter")

    assert found is not None
    assert found.descriptions == {"n1": description("hello"), "n2": description("hello", "bye")}
    assert found.versions == ["0.1.0", "2.0.0"]
    assert found.endpoint("bye") is not None


async def test_a_node_that_deregisters_is_gone_at_once_and_watchers_are_told(start: Start) -> None:
    """Who asks right after the good-bye does not find the node; a second good-bye is no error."""
    here, there = await start(), await start()
    await here.registry.register(node("n1"), HELLO)
    await here.registry.register(node("n2"), HELLO)

    async with there.registry.watch() as changes:
        assert await hear(changes, 2) == [("joined", "n1"), ("joined", "n2")]
        await here.registry.deregister(node("n1"))
        await here.registry.deregister(node("n1"))
        assert await hear(changes, 1) == [("left", "n1")]

    assert await ids(there.registry) == ["n2"]


async def test_a_node_that_deregisters_is_gone_at_once_for_who_asks(start: Start) -> None:
    """Nobody who asks after `deregister` has returned finds the node."""
    here, there = await start(), await start()
    await here.registry.register(node("n1"), HELLO)
    assert await ids(there.registry) == ["n1"]

    await here.registry.deregister(node("n1"))

    assert await ids(there.registry) == []
    assert await there.registry.services() == []


async def test_a_node_that_dies_is_gone_within_the_time_to_live_and_watchers_are_told(
    start: Start, until: Until
) -> None:
    """A process that falls silent is forgotten; one that lives on is not."""
    dying, living, there = await start(), await start(), await start()
    await dying.registry.register(node("n1"), HELLO)
    await living.registry.register(node("n2"), HELLO)

    async with there.registry.watch() as changes:
        assert await hear(changes, 2) == [("joined", "n1"), ("joined", "n2")]
        await dying.die()
        async with asyncio.timeout(TTL + 1.0):
            assert await hear(changes, 1) == [("left", "n1")]
        assert await ids(there.registry) == ["n2"]

    async def gone() -> bool:
        return await ids(there.registry) == ["n2"]

    await until(gone, timeout=TTL + 1.0)


async def test_a_watcher_first_hears_of_everyone_who_is_there_then_of_every_change_in_order(
    start: Start, until: Until
) -> None:
    """Whoever follows the changes knows at every moment who is there."""
    here, there = await start(), await start()
    await here.registry.register(node("n1"), HELLO)
    heard: list[tuple[str, str]] = []

    async with there.registry.watch() as early, there.registry.watch() as second:
        heard += await hear(early, 1)
        for step in range(2, 5):
            await here.registry.register(node(f"n{step}"), HELLO)
            heard += await hear(early, 1)
        await here.registry.deregister(node("n2"))
        heard += await hear(early, 1)
        both = await hear(second, len(heard))
        async with there.registry.watch() as late:
            present = await hear(late, 3)

    assert heard == [
        ("joined", "n1"),
        ("joined", "n2"),
        ("joined", "n3"),
        ("joined", "n4"),
        ("left", "n2"),
    ]
    assert both == heard
    assert present == [("joined", "n1"), ("joined", "n3"), ("joined", "n4")]


async def test_after_a_lost_connection_the_view_becomes_true_again_by_itself(
    start: Start, until: Until
) -> None:
    """What happens while a watcher is cut off is made up for when it is back."""
    here, there = await start(), await start()
    await here.registry.register(node("n1"), HELLO)

    async with there.registry.watch() as changes:
        assert await hear(changes, 1) == [("joined", "n1")]
        there.cut()
        await here.registry.deregister(node("n1"))
        await here.registry.register(node("n2"), HELLO)
        heard = await hear(changes, 2)

    async def true() -> bool:
        return await ids(there.registry) == ["n2"]

    assert sorted(heard) == [("joined", "n2"), ("left", "n1")]
    await until(true)


async def test_a_node_whose_own_connection_is_lost_stays_known(start: Start, until: Until) -> None:
    """A node that comes back at once is never reported as gone for good."""
    here, there = await start(), await start()
    await here.registry.register(node("n1"), HELLO)
    here.cut()

    async def there_again() -> bool:
        return await ids(there.registry) == ["n1"]

    await until(there_again)
    await asyncio.sleep(1.2 * here.ttl)
    assert await ids(there.registry) == ["n1"]


async def test_what_it_cannot_read_is_skipped_and_logged_never_raised(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Garbage and records of a newer version neither raise nor hide the nodes that are well."""
    here, there, vandal = await start(), await start(), await start()
    await here.registry.register(node("n1"), HELLO)

    with caplog.at_level(logging.WARNING, logger="busmicro.registry"):
        async with there.registry.watch() as changes:
            vandal.litter()
            assert await hear(changes, 1) == [("joined", "n1")]
            await here.registry.register(node("n2"), HELLO)
            assert await hear(changes, 1) == [("joined", "n2")]
        asked = await there.registry.service("greeter")
        everyone = await there.registry.services()

    assert asked is not None
    assert [n.id for n in asked.nodes] == ["n1", "n2"]
    assert [record.name for record in everyone] == ["greeter"]
    if not isinstance(there, MemoryProcess):
        assert "skipped" in caplog.text


async def test_closing_deregisters_and_ends_every_watcher(start: Start) -> None:
    """After `close` the process' nodes are gone and its watchers' loops have ended."""
    here, there = await start(), await start()
    await here.registry.register(node("n1"), HELLO)

    async with here.registry.watch() as changes:
        assert await hear(changes, 1) == [("joined", "n1")]
        await here.registry.close()
        rest = [change async for change in changes]

    assert all(change.kind is ChangeKind.LEFT for change in rest)
    assert await ids(there.registry) == []
