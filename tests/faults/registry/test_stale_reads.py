"""A registry that is behind the truth, and busy, keeps no call from getting through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from busmicro import CallError, Client, NatsCluster
from busmicro.registry import Description, KvRegistry, Node
from tests.faults.log import now
from tests.faults.processes import Programs
from tests.faults.registry.crowds import Crowds
from tests.faults.report import Report

WRITERS = 8
"""Nodes that register again and again, as fast as the registry takes it."""
CALLERS = 8
AT_LEAST = 100
"""Reads and calls without which nothing would be shown."""


class Busy:
    """Writes, reads and calls, as many as there can be, until they are told to stop."""

    def __init__(self) -> None:
        self.writes = 0
        self.reads = 0
        self.stale = 0
        """Reads that missed what the reader's own process had been told is written."""
        self.refused = 0
        """Reads and writes of the registry that failed, as they may while it has no leader."""
        self.calls = 0
        self.failed: list[CallError] = []
        self.stopped = False

    async def write(self, registry: KvRegistry, number: int) -> None:
        """Register a node again and again."""
        while not self.stopped:
            try:
                await registry.register(_node(f"writer-{number}", self.writes), _NOTHING)
                self.writes += 1
            except CallError:
                self.refused += 1
                await asyncio.sleep(0.01)

    async def read(self, writer: KvRegistry, reader: KvRegistry) -> None:
        """Register a node through one server, and look for it at once through another."""
        number = 0
        while not self.stopped:
            number += 1
            try:
                await writer.register(_node("seen", number), _NOTHING)
                record = await reader.service("busy")
            except CallError:
                self.refused += 1
                await asyncio.sleep(0.01)
                continue
            said = {node.id: node.version for node in record.nodes} if record else {}
            self.reads += 1
            self.stale += said.get("seen") != f"0.0.{number}"

    async def call(self, client: Client) -> None:
        """Call a service whose nodes come and go."""
        while not self.stopped:
            self.calls += 1
            try:
                await client.call("crowd", "hello", "Ann", returns=str)
            except CallError as failure:
                self.failed.append(failure)

    @property
    def least(self) -> int:
        """How many there were of what was done least."""
        return min(self.reads, self.calls, self.writes)


_NOTHING = Description(service="busy")


def _node(id: str, number: int) -> Node:
    return Node(service="busy", id=id, version=f"0.0.{number}")


@asynccontextmanager
async def connected(cluster: NatsCluster) -> AsyncIterator[list[Client]]:
    """Connect a client to each server."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Client(url)) for url in cluster.urls]


@pytest.mark.timeout(120)
async def test_stale_reads_fail_no_call(programs: Programs, report: Report, seed: int, full: bool):
    """Three servers whose registry lags behind, nodes that come and go: no call fails."""
    lasting = 20.0 if full else 2.0
    busy = Busy()
    async with NatsCluster(3) as cluster, connected(cluster) as clients:
        crowds = Crowds(programs, cluster.url, seed, 30.0)
        crowds.start("stays", 1)
        await crowds.quiet(within=45.0)
        crowds.start("restless", 4, restless=lasting)
        registries = [client.bus.discovery.kv for client in clients]
        began = now()
        async with asyncio.TaskGroup() as group:
            for number in range(WRITERS):
                group.create_task(busy.write(registries[number % 3], number))
            group.create_task(busy.read(registries[0], registries[1]))
            for number in range(CALLERS):
                group.create_task(busy.call(clients[number % 3]))
            await crowds.quiet(within=lasting + 45.0)
            await programs.until(lambda: busy.least >= AT_LEAST)
            busy.stopped = True
        took = now() - began

    scenario = f"S51 {WRITERS} writers, three servers, nodes that come and go"
    report.add(scenario, "writes a second", round(busy.writes / took))
    report.add(scenario, "stale reads, %", 100 * busy.stale / busy.reads)
    report.add(scenario, "reads and writes that failed", busy.refused)
    report.add(scenario, "calls", busy.calls)
    report.add(scenario, "failed calls", len(busy.failed), "0")
    assert busy.failed == []
