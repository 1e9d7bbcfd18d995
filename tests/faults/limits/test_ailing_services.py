"""A service that fails most of its calls, or whose loop is stuck: callers are kept away from it."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter

import pytest

from busmicro import CallError, Client, NatsServer
from busmicro.testing import FakeClock
from busmicro.wrappers import CircuitBreaker, Hedge, Retry, State
from tests.faults.limits.nodes import CATCHES_UP, Until, nodes_up, noted, start_node
from tests.faults.log import now
from tests.faults.processes import Programs
from tests.faults.report import Report

BREAKER = "S15 a service fails 80 % of its calls"
BLOCKED = "S25 the event loop of 1 of 3 nodes is blocked for 2 s"
BLOCKED_FOR = 2.0
RATE = 150
LEAST_LAG = BLOCKED_FOR - 0.25
"""A node looks four times a second how late its loop is; a block may begin right after a look."""
STAYS = "nothing of it runs, so it takes calls as before; one that falls on it waits for its end"


async def end_of(client: Client, *, is_well: bool) -> str:
    try:
        await client.call("ailing", "ailing", is_well)
    except CallError as failure:
        return type(failure).__name__
    return "ok"


async def until_open(client: Client, breaker: CircuitBreaker, chance: random.Random) -> int:
    """Call until the circuit opens, one of five going well; return how many calls it took."""
    calls, turn = 0, chance.randrange(5)
    while breaker.circuit("ailing", "ailing").state is State.CLOSED:
        await end_of(client, is_well=calls % 5 == turn)
        calls += 1
    return calls


@pytest.mark.timeout(120)
async def test_breaker_opens_early_and_sends_one_probe_of_a_hundred(
    server: NatsServer, programs: Programs, until: Until, report: Report, full: bool, seed: int
):
    """At 80 % errors the circuit opens by call 25, and then 1 of 100 calls at once goes through."""
    chance, opened, probes, refused = random.Random(seed), [], [], []
    start_node(programs, server.url, "ailing", "n1")
    async with Client(server.url) as plain:
        await nodes_up(plain, until, ailing=1)
    for _ in range(20 if full else 3):
        clock = FakeClock()  # or the circuit might be half open again before it was looked at
        breaker = CircuitBreaker(open_for=0.2, probes=1, clock=clock)
        async with Client(server.url, wrappers=[Retry(1), breaker]) as client:
            opened.append(await until_open(client, breaker, chance))
            meanwhile = Counter([await end_of(client, is_well=True) for _ in range(100)])
            refused.append(meanwhile["CircuitOpen"])
            await clock.advance(0.2)  # as long as the circuit says that it stays open
            together = [end_of(client, is_well=True) for _ in range(100)]
            probes.append(Counter(await asyncio.gather(*together))["ok"])
            assert await end_of(client, is_well=True) == "ok"

    report.add(BREAKER, "circuit opened at call, at first", min(opened), "≥ 20")
    report.add(BREAKER, "circuit opened at call, at last", max(opened), "≤ 25")
    report.add(BREAKER, "calls of 100 at once that went through as probes", max(probes), "= 1")
    assert (min(opened) >= 20, max(opened) <= 25) == (True, True)
    assert set(refused) == {100}
    assert set(probes) == {1}


class Load:
    """Calls of any node at a steady rate, until `stop`; how each began, ended and how long."""

    def __init__(self, client: Client) -> None:
        self.calls: list[tuple[float, float, str]] = []
        self._client = client
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    async def run(self) -> None:
        due = now()
        async with asyncio.TaskGroup() as group:
            while not self._stopped:
                due = max(due + 1 / RATE, now() - CATCHES_UP)
                await asyncio.sleep(max(0.0, due - now()))
                group.create_task(self._one())

    async def _one(self) -> None:
        began = now()
        try:
            answered = await self._client.call("busy", "hello", 0.002, returns=str, idempotent=True)
        except CallError as failure:
            answered = failure.code.value
        self.calls.append((began, now() - began, answered))


async def with_one_blocked(clients: list[Client]) -> list[Load]:
    """Put load on three nodes, through each client, while one of them is blocked."""
    loads = [Load(client) for client in clients]
    async with asyncio.TaskGroup() as group:
        for load in loads:
            group.create_task(load.run())
        await asyncio.sleep(0.5)
        blocking = clients[0].with_options(node="n1", timeout=10.0)
        await blocking.call("busy", "block", BLOCKED_FOR)
        await asyncio.sleep(1.5)
        for load in loads:
            load.stop()
    return loads


def judge(
    report: Report, how: str, load: Load, blocked: float, free: float, *, full: bool
) -> float:
    """Check what callers noticed of a blocked node; return the share of those that waited."""
    meanwhile = [took for began, took, _ in load.calls if blocked < began < free]
    waited = sum(took > 0.5 for took in meanwhile) / len(meanwhile)
    late = [began + took - free for began, took, _ in load.calls if took > 0.5]
    last = max([0.0, *late])
    failed = sum(not answered.startswith("n") for *_, answered in load.calls)
    report.add(f"{BLOCKED}, {how}", f"calls failed, of {len(load.calls):,}", failed, "0")
    report.add(f"{BLOCKED}, {how}", "share of calls meanwhile that waited for it", waited)
    report.add(f"{BLOCKED}, {how}", "the last of them ended after it, s", last, "≤ 1")
    assert (failed, last <= (1.0 if full else 4.0)) == (0, True)
    assert {by for began, _, by in load.calls if began > free} == {"n1", "n2", "n3"}
    return waited


async def shown_lag(programs: Programs, node: str) -> float:
    """Return what `/health/live` of a node says of its loop, in seconds."""
    found = re.search(r"http://127\.0\.0\.1:(\d+) has", programs.said(node))
    assert found, "it does not say where its probes are"
    reader, writer = await asyncio.open_connection("127.0.0.1", int(found[1]))
    writer.write(b"GET /health/live HTTP/1.1\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    lag = json.loads(answer.partition(b"\r\n\r\n")[2])["loop_lag"]
    return float(lag)


def judge_node(report: Report, lag: float, load: Load, blocked: float, free: float) -> None:
    """Check what the node showed of its block, and report whether it left meanwhile."""
    report.add(BLOCKED, "loop_lag of /health/live after it, s", lag, f"≥ {LEAST_LAG:g}")
    fallen = sum(blocked + 1 < began < free and by == "n1" for began, _, by in load.calls)
    left = "no" if fallen else "yes"
    report.add(BLOCKED, "it left within 1 s by itself", left, "yes", met=not fallen, why=STAYS)
    assert lag >= LEAST_LAG


@pytest.mark.timeout(120)
async def test_node_whose_loop_is_blocked_costs_no_call_after_it(
    server: NatsServer, programs: Programs, until: Until, report: Report, full: bool
):
    """While a loop is blocked calls that fall on it wait; a second after it none does, none fails.

    A loop that is blocked cannot leave the queue group, as nothing of the node runs; afterwards
    `/health/live` says how late it was.  A hedge at the caller does not wait for it.
    """
    for number in (1, 2, 3):
        start_node(programs, server.url, "busy", f"n{number}", BUSMICRO_METRICS_PORT="0")
    hedge = Hedge(most=0.05, extra=1.0)
    async with (
        Client(server.url, wrappers=[Retry(1)], timeout=10.0) as plain,
        Client(server.url, wrappers=[Retry(1), hedge], timeout=10.0) as hedged,
    ):
        await nodes_up(plain, until, busy=3)
        loads = await with_one_blocked([plain, hedged])
        lag = await shown_lag(programs, "n1")

    blocked, free = (noted(programs, "n1", what)[0] for what in ("blocked", "free"))
    assert free - blocked >= BLOCKED_FOR
    judge_node(report, lag, loads[0], blocked, free)
    without = judge(report, "no hedge", loads[0], blocked, free, full=full)
    with_one = judge(report, "a hedge of 50 ms", loads[1], blocked, free, full=full)
    assert without <= 0.5
    assert with_one < without
