"""More calls than a node can take, and failures that must not become a storm."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from busmicro import CallError, Client, NatsServer, ResourceExhausted
from busmicro.wrappers import Retry
from tests.faults.calls.load import Load, quantile
from tests.faults.calls.nodes import logs, start_nodes
from tests.faults.history import Operations, logged
from tests.faults.log import now
from tests.faults.processes import Programs
from tests.faults.report import Report

RUNNING = 10
TAKEN = 20
"""How many calls a node has room for, running and waiting."""
WORK = 0.02
AT_ONCE = 1000
RATE = 200


@dataclass
class Rush:
    """Calls that are all made at once, and how long each end took to come."""

    client: Client
    operations: Operations = field(default_factory=Operations)
    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    async def make(self, count: int, name: str) -> None:
        """Make so many calls, as quickly as one caller can."""
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(self._one(f"{name}-{number}"))
                if number % 50 == 0:  # it must read meanwhile, or it would measure itself
                    await asyncio.sleep(0)

    async def _one(self, value: str) -> None:
        self.operations.invoked.append(value)
        began = now()
        try:
            await self.client.call("greeter", "hello", value)
        except ResourceExhausted as failure:
            (self.operations.failed if failure.not_run else self.operations.unknown).append(value)
            self.refused.append(now() - began)
        else:
            self.operations.ok.append(value)
            self.accepted.append(now() - began)


async def test_full_node_sheds_at_once_what_it_cannot_take(
    server: NatsServer, programs: Programs, report: Report, seed: int, full: bool
):
    """Of 1,000 calls at once ten run, ten wait; the rest is refused, not timed out, never begun.

    Those that are taken are not slowed down by those that are refused: they take as long as they
    would alone.
    """
    operations = Operations()
    env = {
        "FAULTS_RUNNING": str(RUNNING),
        "FAULTS_QUEUED": str(TAKEN - RUNNING),
        "FAULTS_WORK": str(WORK),
    }
    await start_nodes(programs, server.url, "n0", **env)
    async with Client(server.url, wrappers=[Retry(1)]) as client:
        await Rush(client, operations).make(TAKEN, "first")
        alone = Rush(client, operations)
        for turn in range(5):
            await alone.make(TAKEN, f"alone{turn}")
        rushes = [Rush(client, operations) for _ in range(10 if full else 3)]
        for turn, rush in enumerate(rushes):
            await rush.make(AT_ONCE, f"rush{turn}")

    running, most_at_once = 0, 0
    for words in logged(*logs(programs, "n0")):
        running += 1 if words[0] == "began" else -1
        most_at_once = max(most_at_once, running)
        (operations.begun if words[0] == "began" else operations.done).append(words[1])
    refused = [took for rush in rushes for took in rush.refused]
    times = quantile((took for rush in rushes for took in rush.accepted), 0.99) / max(
        alone.accepted
    )
    in_time = 100 * sum(took <= 0.05 for took in refused) / len(refused)
    scenario = f"S13 {AT_ONCE:,} calls at once, {len(rushes)} times; 10 may run, 10 wait"
    why = "caller, node and server share two cores, and a thousand calls are 50 ms of both"
    report.add(scenario, f"refused, of {len(rushes) * AT_ONCE:,}", len(refused))
    report.add(scenario, "of them within 50 ms, %", in_time, "= 100", why=why)
    report.add(scenario, "the last refused after, ms", max(refused) * 1e3, "≤ 50", why=why)
    report.add(scenario, "p99 of those taken, times unloaded", times, "≤ 2", why=why)
    operations.must_be_clean(where=programs.logs, seed=seed)
    assert operations.unknown == []
    assert most_at_once == RUNNING
    assert len(refused) >= (0.9 if full else 0.5) * len(rushes) * AT_ONCE
    judged = refused if full else min((rush.refused for rush in rushes), key=max)
    assert max(judged) <= 1.0
    assert quantile(judged, 0.5) <= (0.05 if full else 0.25)
    assert not full or any(  # a moment in which the machine does something else is no proof
        max(rush.refused) <= 0.05 and max(rush.accepted) <= 2 * max(alone.accepted)
        for rush in rushes
    )


async def test_storm_of_retries_adds_a_tenth_at_most(
    server: NatsServer, programs: Programs, report: Report, seed: int, full: bool
):
    """While everything fails, retries are at most a tenth of the load after two seconds."""
    await start_nodes(programs, server.url, "n0")
    async with Client(server.url) as client:
        idempotent = client.with_options(idempotent=True)
        began = now()
        async with Load(idempotent, RATE, endpoint="fail") as load:
            await load.until(began + (10.0 if full else 4.0))

    attempts = [words[1] for words in logged(*logs(programs, "n0"))]
    later = {call.value for call in load.since(began + 2.0)}
    made, tried = len(later), sum(value in later for value in attempts)
    scenario = f"S14 everything fails at {RATE} calls/s"
    report.add(scenario, "calls after the first 2 s", made)
    report.add(scenario, "more attempts than calls, %", 100 * (tried / made - 1), "≤ 10")
    report.add(scenario, "in all, %", 100 * (len(attempts) / load.calls - 1))
    assert len(load.failures) == load.calls == len(load.ended)
    assert all(isinstance(call.failure, CallError) for call in load.failures)
    assert len(attempts) > load.calls  # at first it does try again
    assert tried <= 1.1 * made
