"""A node that hangs while it is called: who notices, when, and what it does when it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from busmicro import Client, DeadlineExceeded, NatsServer
from busmicro.wrappers import Retry
from tests.faults.calls.load import Load
from tests.faults.calls.nodes import logs, start_nodes
from tests.faults.history import logged
from tests.faults.log import now
from tests.faults.monitoring import connections
from tests.faults.processes import Programs
from tests.faults.report import Report

NODES = ("n0", "n1")
PINGS = 'ping_interval: "1s"\nping_max: 2\n'
"""What the server's configuration says: who answers no two pings in a row is dropped."""
RATE = 100
TIMEOUT = 0.5
SHORT_TIMEOUT = 2.5
"""The same in the short form: no call fails because the machine stands still for a second."""


@asynccontextmanager
async def two_nodes(
    folder: Path, programs: Programs, names: tuple[str, str] = NODES
) -> AsyncIterator[NatsServer]:
    """Have a server that soon drops who does not answer its pings, and two nodes."""
    config = folder / "nats.conf"
    config.write_text(PINGS, encoding="utf-8")
    async with NatsServer(config=config) as server:
        await start_nodes(programs, server.url, *names)
        yield server


async def dropped(server: NatsServer, clients: int) -> float:
    """Return when the server has no more than so many clients left."""
    async with asyncio.timeout(20):
        while await connections(server) > clients:
            await asyncio.sleep(0.05)
    return now()


def late_starts(
    load: Load, timeout: float, frozen: tuple[float, float], *written: Path
) -> list[tuple[str, float]]:
    """Return which calls to a frozen node began when their callers had gone, and how late.

    Only those that were made while it was frozen: one that it had already read then may begin when
    it goes on.
    """
    made = [call for call in load.ended if frozen[0] < call.began < frozen[1]]
    due = {call.value: call.began + timeout for call in made}
    words = [words for log in written for words in logged(log) if words[0] == "began"]
    late = [(value, float(at) - due[value]) for _, value, at in words if value in due]
    return [(value, seconds) for value, seconds in late if seconds > 0]


@pytest.mark.timeout(90)
async def test_frozen_node_gets_no_calls_once_the_server_drops_it(
    tmp_path: Path, programs: Programs, report: Report, seed: int, full: bool
):
    """SIGSTOP of one of two nodes: no call fails after 4 s, and none is begun when it is late.

    Half of the calls go to the frozen node until the server drops it.  Those that lie in its socket
    when it goes on were given up long before; it runs none of them.
    """
    timeout = TIMEOUT if full else SHORT_TIMEOUT
    async with (
        two_nodes(tmp_path, programs) as server,
        Client(server.url, timeout=timeout, wrappers=[Retry(1)]) as client,
    ):
        async with Load(client, RATE) as load:
            await load.made(RATE // 2)
            programs.freeze("n0")
            frozen_at = now()
            dropped_at = await dropped(server, 2)
            await load.until(frozen_at + 30.0 if full else dropped_at + timeout)
            thawed_at = now()
            programs.thaw("n0")
            await load.made(RATE)
            await programs.until(lambda: "connected to NATS again" in programs.said("n0"))
            again_at = now()
            await load.made(RATE)
        await programs.end(*NODES)
        assert len(client.bus.replies) == 0

    history = load.read(*logs(programs, *NODES))
    last = max(call.began for call in load.failures) - frozen_at
    late = late_starts(load, timeout, (frozen_at, thawed_at), *logs(programs, *NODES))
    scenario = f"S4 a node of two frozen for {thawed_at - frozen_at:.0f} s, not tried again"
    report.add(scenario, "last call that failed, s after", last, "≤ 4")
    report.add(scenario, f"failed, of {len(load.ended):,}", len(load.failures))
    scenario = "S5 the frozen node goes on"
    report.add(scenario, "handlers begun when their callers had gone", len(late), "0")
    report.add(scenario, "replies to somebody else's call", len(history.made_up()), "0")
    history.must_be_clean(where=programs.logs, seed=seed)
    assert last <= dropped_at - frozen_at < (4.1 if full else 8.0)
    assert late == []
    assert all(isinstance(call.failure, DeadlineExceeded) for call in load.failures)
    assert {call.node for call in load.since(again_at)} == {"n0", "n1"}


@pytest.mark.timeout(90)
async def test_frozen_node_fails_no_call_that_is_tried_again_in_time(
    tmp_path: Path, programs: Programs, report: Report, seed: int, full: bool
):
    """SIGSTOP of one of two nodes: idempotent calls with 5 s and retries succeed, while few fail.

    The last attempt is made when the server has dropped the frozen node.  At a high rate the budget
    of the retries is spent before that, as it has to be.
    """
    timeout = 5.0 if full else 8.0
    for rate in (1, 50) if full else (2,):
        names = (f"n{rate}", f"m{rate}")
        async with (
            two_nodes(tmp_path, programs, names) as server,
            Client(server.url, timeout=timeout) as client,
        ):
            async with Load(client.with_options(idempotent=True), rate, f"r{rate}") as load:
                await load.made(1)
                frozen_at = now()
                programs.freeze(names[0])
                await load.until(frozen_at + (4.0 if full else 0.7))
            programs.thaw(names[0])
            await programs.end(*names)
        history = load.read(*logs(programs, *names))
        history.twice_allowed = True
        scenario = f"S4 a node of two frozen, {rate} calls/s with {timeout:g} s each, tried again"
        why = "five failures spend the budget that keeps retries from becoming a storm (S14)"
        report.add(scenario, f"failed, of {load.calls}", len(load.failures), "0", why=why)
        assert load.failures == [] or rate > 2
        assert all(isinstance(call.failure, DeadlineExceeded) for call in load.failures)
        assert all(call.began < frozen_at + 4.0 for call in load.failures)
        history.must_be_clean(where=programs.logs, seed=seed)


async def test_node_that_hung_runs_what_has_time_left_and_nothing_else(
    server: NatsServer, programs: Programs, report: Report, seed: int
):
    """The only node hangs for 2 s: calls with 5 s succeed then, those with 0.5 s are not begun."""
    await start_nodes(programs, server.url, "n0")
    async with Client(server.url, wrappers=[Retry(1)]) as client:
        patient = Load(client.with_options(timeout=5.0), RATE / 2, "patient")
        hasty = Load(client.with_options(timeout=TIMEOUT), RATE / 2, "hasty")
        async with patient, hasty:
            await hasty.made(5)
            programs.freeze("n0")
            frozen_at = now()
            await hasty.until(frozen_at + 2.0)
            thawed_at = now()
            programs.thaw("n0")
            await hasty.made(10)
    assert await programs.end("n0") == {"n0": 0}

    late = late_starts(hasty, TIMEOUT, (frozen_at, thawed_at), *logs(programs, "n0"))
    scenario = "S5 the only node frozen for 2 s goes on"
    report.add(scenario, "handlers begun when their callers had gone", len(late), "0")
    report.add(scenario, f"calls with 5 s failed, of {patient.calls}", len(patient.failures), "0")
    assert late == []
    assert patient.failures == []
    assert hasty.failures
    history = patient.read(*logs(programs, "n0"))
    history.invoked += hasty.operations.invoked
    history.ok += hasty.operations.ok
    history.failed += hasty.operations.failed
    history.unknown += hasty.operations.unknown
    history.must_be_clean(where=programs.logs, seed=seed)
