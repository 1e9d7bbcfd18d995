"""A registry with 10,000 nodes: heartbeats written as nodes write them, and one who watches.

Nobody has 10,000 services here: a process writes their records, each every third of its time to
live, a thousand a second.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

from benchmarks.bench import Bench
from benchmarks.processes import Worker, cpu_s, rss_mb
from benchmarks.registry import described, node, until_heard
from benchmarks.worker import Answer
from busmicro.registry import ChangeKind
from busmicro.registry.kv import encode_node

SUBJECT = "Growth: the registry"
NODES, SERVICES = 10_000, 100
TTL = 30.0
SECONDS = 10.0
PROBES = 10
AT_ONCE = 100


def measure(bench: Bench) -> None:
    """Let them beat for a while, and look at the watcher and at the nats-server."""
    count, seconds = bench.count(NODES), bench.seconds(SECONDS)
    bench.say(f"growth: a registry with {count:,} nodes")
    target = "benchmarks.crowd"
    with (
        Worker(f"{target}:beat", url=bench.url, count=count) as writer,
        Worker(f"{target}:watch", url=bench.url, count=count) as watcher,
    ):
        writer.ready()
        before = rss_mb(watcher.ready().pid)
        seen = watcher.ask(do="see")
        pids = {"the watcher": watcher.pid, "nats-server": bench.server_pid}
        spent = {of: cpu_s(pid) for of, pid in pids.items()}
        began = time.perf_counter()
        written = writer.ask(seconds=seconds)
        took = time.perf_counter() - began
        spent = {of: cpu_s(pid) - spent[of] for of, pid in pids.items()}
        held = {of: rss_mb(pid) for of, pid in pids.items()}
        latencies = probe(writer, watcher, bench.seconds(SECONDS))
    add = bench.report.add
    add(SUBJECT, f"snapshot of {count:,} nodes, then all of them told, s", "busmicro", seen)
    add(SUBJECT, f"heartbeats of {count:,} nodes, a second", "all of them", written / took)
    for of, seconds_of in spent.items():
        add(SUBJECT, "CPU meanwhile, % of a core", of, seconds_of / took * 100)
    add(SUBJECT, f"memory with {count:,} nodes, MB", "the watcher", held["the watcher"])
    add(SUBJECT, f"memory with {count:,} nodes, MB", "nats-server", held["nats-server"])
    add(SUBJECT, "the watcher before it watched, MB", "the watcher", before)
    add(SUBJECT, "one more registers meanwhile, the watcher hears of it, ms", "busmicro", latencies)


def probe(writer: Worker, watcher: Worker, seconds: float) -> list[float]:
    """Let newcomers register while all the others beat."""
    writer.tell(seconds=seconds)
    latencies = watcher.ask(do="probe")
    writer.read()
    return latencies


async def beat(stack: AsyncExitStack, *, url: str, count: int) -> Answer:
    """Write the record of every node once, and return what writes them for so many seconds more."""
    from busmicro import Client

    client = await stack.enter_async_context(Client(url))
    bucket = client.bus.discovery.kv.bucket
    await bucket.open()
    nodes = [node(number, f"s{number % SERVICES}") for number in range(count)]
    records = [(f"node.{n.service}.{n.id}", encode_node(n, TTL)) for n in nodes]

    async def write(some: list[tuple[str, bytes]]) -> None:
        async with asyncio.TaskGroup() as group:
            for key, record in some:
                group.create_task(bucket.put(key, record, ttl=TTL))

    for at in range(0, count, AT_ONCE):
        await write(records[at : at + AT_ONCE])
    turn = 0
    pause = (TTL / 3) / (count / AT_ONCE)

    async def answer(*, seconds: float) -> int:
        nonlocal turn
        loop = asyncio.get_running_loop()
        began = loop.time()
        rounds = int(seconds / pause)
        for number in range(rounds):
            await asyncio.sleep(began + number * pause - loop.time())
            at = turn * AT_ONCE % count
            await write(records[at : at + AT_ONCE])
            turn += 1
        return rounds * AT_ONCE

    return answer


async def watch(stack: AsyncExitStack, *, url: str, count: int) -> Answer:
    """Return what watches: `see` waits until everybody is there, `probe` for newcomers."""
    from busmicro import Client

    client = await stack.enter_async_context(Client(url))
    other = await stack.enter_async_context(Client(url))
    changes = None

    async def see() -> float:
        nonlocal changes
        began = time.perf_counter()
        changes = await stack.enter_async_context(client.bus.discovery.kv.watch())
        for _ in range(count):
            change = await anext(changes)
            assert change.kind is ChangeKind.JOINED
        return time.perf_counter() - began

    async def probe() -> list[float]:
        assert changes is not None
        took = []
        for number in range(PROBES):
            who = node(90_000 + number, "newcomer")
            come = other.bus.discovery.kv.register(who, described("newcomer"))
            took.append(await until_heard(changes, who, ChangeKind.JOINED, come))
        return took

    async def answer(*, do: str) -> object:
        return await (see() if do == "see" else probe())

    return answer
