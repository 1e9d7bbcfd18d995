"""The registry: how long it takes to see who is up, and to hear that somebody came or went."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

from benchmarks.bench import Bench
from benchmarks.processes import Worker
from benchmarks.worker import Answer
from busmicro.registry import Change, ChangeKind, Description, EndpointRecord, Node

SUBJECT = "Registry"
NODES, SERVICES = 200, 10
TIMES = 20
BY_HAND, ASKED_BY_HAND = "nats-py", ("all", "one")
"""By hand: whatever a watch of the keys tells at its beginning."""
FIGURES = {
    "first": "first look of a new client, 200 nodes, ms",
    "all": "look-up of 200 nodes of 10 services, ms",
    "one": "look-up of one service with 20 nodes, ms",
    "joined": "a node registers, a watcher hears of it, ms",
    "left": "a node says good-bye, a watcher hears of it, ms",
}


def measure(bench: Bench) -> None:
    """Measure all of it in one process that knows 200 nodes, and watches as another client."""
    bench.say("registry")
    with Worker("benchmarks.registry:look", url=bench.url) as worker:
        found = worker.ask(times=bench.count(TIMES, least=2))
    for name, figure in FIGURES.items():
        ours = {"busmicro": found[name]}
        by_hand = {BY_HAND: found[f"{name} {BY_HAND}"]} if name in ASKED_BY_HAND else {}
        bench.report.add_all(SUBJECT, figure, ours | by_hand, BY_HAND)


def described(service: str) -> Description:
    """Describe a service with three endpoints."""
    names = ("hello", "pay", "refund")
    records = [EndpointRecord(name=name, subject=f"rpc.{service}.{name}") for name in names]
    return Description(service=service, endpoints=tuple(records))


def node(number: int, service: str) -> Node:
    """Make up a node."""
    return Node(service=service, id=f"n{number:05}", version="1.0.0", metadata={"zone": "a"})


async def look(stack: AsyncExitStack, *, url: str) -> Answer:
    """Make 200 nodes known, and return what looks at them."""
    from busmicro import Client

    here = await stack.enter_async_context(Client(url))
    there = await stack.enter_async_context(Client(url))
    registry, asking = here.bus.discovery.kv, there.bus.discovery.kv
    await registry.bucket.open()
    nodes = [node(number, f"s{number % SERVICES}") for number in range(NODES)]
    await asyncio.gather(*(registry.register(n, described(n.service)) for n in nodes))

    async def answer(*, times: int) -> dict[str, list[float]]:
        found = {
            "first": [await first_look(url) for _ in range(times)],
            "all": await timed(times, asking.services),
            "one": await timed(times, lambda: asking.service("s3")),
        }
        found |= await ask_by_hand(times, url)
        return found | await news(times, registry, asking)

    return answer


async def ask_by_hand(times: int, url: str) -> dict[str, list[float]]:
    """Read the same bucket with nats-py, and return the milliseconds of each time."""
    import nats

    client = await nats.connect(url)
    bucket = await client.jetstream().key_value("bus-registry")

    async def read(pattern: str) -> list[object]:
        watcher = await bucket.watch(pattern, ignore_deletes=True)
        found = []
        async for entry in watcher:
            if entry is None:  # that was all there is
                break
            found.append(json.loads(entry.value))
        await watcher.stop()
        return found

    patterns = {"all": "node.>", "one": "node.s3.*"}
    found = {
        f"{name} {BY_HAND}": await timed(times, partial(read, patterns[name]))
        for name in ASKED_BY_HAND
    }
    await client.close()
    return found


async def first_look(url: str) -> float:
    """Return the milliseconds from nothing, through a connection, to who is up."""
    from busmicro import Client

    began = time.perf_counter()
    async with Client(url) as client:
        found = await client.bus.discovery.service("s3")
        took = time.perf_counter() - began
    assert found is not None
    assert len(found.nodes) == NODES // SERVICES
    return took * 1000


async def timed(times: int, ask: Callable[[], Awaitable[object]]) -> list[float]:
    """Ask again and again, and return the milliseconds of each."""
    await ask()
    took = []
    for _ in range(times):
        began = time.perf_counter()
        assert await ask()
        took.append((time.perf_counter() - began) * 1000)
    return took


async def news(times: int, registry, asking) -> dict[str, list[float]]:
    """Let a node come and go, and return the milliseconds until a watcher heard of it."""
    joined, left = [], []
    async with asking.watch() as changes:
        for number in range(times):
            who = node(90_000 + number, "newcomer")
            come = registry.register(who, described("newcomer"))
            joined.append(await until_heard(changes, who, ChangeKind.JOINED, come))
            go = registry.deregister(who)
            left.append(await until_heard(changes, who, ChangeKind.LEFT, go))
    return {"joined": joined, "left": left}


async def until_heard(
    changes: AsyncIterator[Change], who: Node, kind: ChangeKind, doing: Awaitable[None]
) -> float:
    """Do something, and return the milliseconds until a watcher heard of it."""
    began = time.perf_counter()
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        told = group.create_task(heard(changes, who, kind))
        await doing
    return (told.result() - began) * 1000


async def heard(changes: AsyncIterator[Change], who: Node, kind: ChangeKind) -> float:
    """Wait for a change, and return the moment at which it came."""
    async for change in changes:
        if change.kind is kind and change.node.id == who.id:
            return time.perf_counter()
    raise AssertionError("the watch ended")
