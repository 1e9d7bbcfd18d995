"""A server of a cluster is told to leave (lame duck mode) under load: nobody notices."""

from __future__ import annotations

import asyncio

import pytest

from busmicro import CallError, Client, NatsCluster, NatsServer
from tests.faults.limits.nodes import CATCHES_UP, Until, nodes_up, start_node
from tests.faults.log import now
from tests.faults.monitoring import connections
from tests.faults.processes import Programs
from tests.faults.report import Report

LEAVES = "S24 1 of 3 servers leaves (lame duck mode) under load"
RATE = 300
THROWN_OUT_AFTER = 10.0
"""Seconds that the server waits before it closes the first connection."""


class Load:
    """Calls at a steady rate, through clients in turn; what failed and what was slow."""

    def __init__(self, clients: list[Client]) -> None:
        self.calls = 0
        self.failed: list[str] = []
        self.slowest = 0.0
        self._clients = clients
        self._stop = asyncio.Event()

    async def run(self) -> None:
        due = now()
        async with asyncio.TaskGroup() as group:
            while not self._stop.is_set():
                due = max(due + 1 / RATE, now() - CATCHES_UP)
                await asyncio.sleep(max(0.0, due - now()))
                group.create_task(self._one(self._clients[self.calls % len(self._clients)]))
                self.calls += 1

    async def _one(self, client: Client) -> None:
        began = now()
        try:
            await client.call("busy", "hello", 0.02, returns=str)
        except CallError as failure:
            self.failed.append(str(failure))
        self.slowest = max(self.slowest, now() - began)

    def stop(self) -> None:
        self._stop.set()


async def nobody_there(server: NatsServer) -> bool:
    return await connections(server) == 0


@pytest.mark.timeout(180)
async def test_server_that_leaves_fails_no_call(
    programs: Programs, until: Until, report: Report, full: bool
):
    """Nodes and callers of the server that leaves are elsewhere within 6 s; no call fails."""
    moved, calls, failed, slowest, reconnects = [], 0, [], 0.0, 0
    for turn in range(2 if full else 1):
        async with NatsCluster(3) as cluster:
            first, second = cluster.servers[:2]
            for number, server in enumerate([first, first, second]):
                start_node(programs, server.url, "busy", f"n{turn}-{number}")
            async with Client(first.url) as leaving, Client(second.url) as staying:
                await nodes_up(staying, until, busy=3)
                await nodes_up(leaving, until, busy=3)
                load = Load([leaving, staying])
                running = asyncio.get_running_loop().create_task(load.run())
                await asyncio.sleep(0.5)
                told = now()
                first.lame_duck()
                await until(lambda first=first: nobody_there(first), timeout=15.0)
                moved.append(now() - told)
                await asyncio.sleep(0.5)
                load.stop()
                await running
                await nodes_up(staying, until, busy=3)
                reconnects += leaving.bus.transport.reconnects
            calls, failed = calls + load.calls, failed + load.failed
            slowest = max(slowest, load.slowest)
            await programs.end()
        programs.running.clear()

    report.add(LEAVES, f"calls failed, of {calls:,}", len(failed), "0")
    report.add(LEAVES, "slowest call, of 0.02 s of work, s", slowest)
    why = "of which at most 4 s are the pause, with other work on the machine"
    report.add(LEAVES, "all of its clients moved after, s, at worst", max(moved), "≤ 6", why=why)
    assert failed == []
    assert reconnects == 0
    assert max(moved) <= THROWN_OUT_AFTER - 1
