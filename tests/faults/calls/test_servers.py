"""NATS itself dies, hangs or is not there yet: how calls end, and how soon all is well again."""

from __future__ import annotations

import asyncio
import signal
from typing import NamedTuple

import pytest

from busmicro import (
    Client,
    DeadlineExceeded,
    NatsCluster,
    NatsServer,
    NoResponders,
    Unavailable,
)
from busmicro.settings import Settings
from busmicro.wrappers import Retry
from tests.faults.calls.load import Load, quantile
from tests.faults.calls.nodes import logs, start_nodes
from tests.faults.log import now
from tests.faults.processes import Programs
from tests.faults.report import Report

RATE = 500
SHORT_RATE = 200
"""Calls a second of the short form, which shares the machine with other tests."""
PING = "1"
"""Seconds between two pings of a client to its server."""
FROZEN_FOR = 20.0
SERVERS_NOTICE = 17.0
"""Seconds: a `NatsServer` pings every 5 s, and a route that misses two pings is closed."""


async def test_call_without_a_node_fails_at_once(server: NatsServer, report: Report, full: bool):
    """Nobody serves: a call is told so in milliseconds, not at its deadline."""
    took = []
    async with Client(server.url) as client:
        for _ in range(1000 if full else 300):
            began = now()
            with pytest.raises(NoResponders):
                await client.call("greeter", "hello", "a-1")
            took.append(now() - began)

    scenario = "S6 no node at all"
    report.add(scenario, "unavailable after, ms, half of them", quantile(took, 0.5) * 1e3)
    report.add(scenario, "unavailable after, ms, 99 of 100", quantile(took, 0.99) * 1e3, "≤ 10")
    assert quantile(took, 0.5) <= (0.01 if full else 0.05)
    assert quantile(took, 0.99) <= (0.05 if full else 0.5)


async def test_no_call_hangs_when_the_server_dies_with_200_in_flight(
    server: NatsServer, programs: Programs, report: Report, full: bool
):
    """NATS is killed and comes back after 0.3 s: every call in flight ends at once, as Unavailable.

    The service answers again as soon as it is connected, and nobody has to help it.
    """
    await start_nodes(programs, server.url, "n0", "n1")
    async with Client(server.url) as client:
        loop = asyncio.get_running_loop()
        long = client.with_options(timeout=40.0)  # all 200 are in flight, however slow they begin
        calls = [loop.create_task(long.call("greeter", "sleep", 30.0)) for _ in range(200)]
        async with asyncio.timeout(20):
            while await _running(client) < 200:
                await asyncio.sleep(0.005)
        killed_at = now()
        server.kill()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        took = now() - killed_at
        await asyncio.sleep(0.3)
        await server.restart()
        restarted_at = now()
        patient = client.with_options(wait_for_ready=True)
        assert await patient.call("greeter", "hello", "a-1", timeout=10.0)
        back = now() - restarted_at
        assert len(client.bus.replies) == 0

    hung = sum(not isinstance(outcome, Unavailable) for outcome in outcomes)
    scenario = "S7 server killed with 200 calls in flight, back after 0.3 s"
    report.add(scenario, "calls that did not end as unavailable", hung, "0")
    report.add(scenario, "the last of them ended after, s", took, "≤ 5.1")
    report.add(scenario, "answered again after, s", back)
    assert hung == 0
    assert took < (1.0 if full else 5.0)
    assert back < (5.0 if full else 10.0)


async def _running(client: Client) -> int:
    try:
        nodes = await client.call_all("greeter", "Debug.Stats", returns=dict[str, object])
    except Unavailable:  # who is there cannot be said just now
        return 0
    return sum(int(str(stats["running"])) - 1 for stats in nodes)  # the question itself runs, too


async def test_restart_of_nats_under_load_is_over_when_it_is_over(
    server: NatsServer, programs: Programs, report: Report, seed: int, full: bool
):
    """Calls fail fast while NATS is down and succeed again after it; no task is left behind."""
    rate = RATE if full else SHORT_RATE
    await start_nodes(programs, server.url, "n0")
    async with Client(server.url) as client:
        patient = client.with_options(wait_for_ready=True)
        async with Load(client, rate) as load:
            await load.made(rate // 4)
            for number in range(3):
                server.kill()
                await asyncio.sleep(0.2)
                await server.restart()
                await patient.call("greeter", "hello", f"b-{number}", timeout=10.0)
                load.operations.invoked.append(f"b-{number}")
                load.operations.ok.append(f"b-{number}")
                await load.made(rate // 10)
        assert await client.call("greeter", "sleep", 0.0) == 0.0
        assert len(client.bus.replies) == 0

    history = load.read(*logs(programs, "n0"))
    slowest = max(call.took for call in load.ended)
    scenario = f"S7 server killed 3 times at {rate} calls/s"
    report.add(scenario, f"failed, of {len(load.ended):,}", len(load.failures))
    report.add(scenario, "certainly not run, of those", len(history.failed))
    report.add(scenario, "the slowest call, s", slowest, "≤ 5.1")
    history.must_be_clean(where=programs.logs, seed=seed)
    assert slowest < (2.0 if full else 4.5)
    assert all(isinstance(call.failure, Unavailable) for call in load.failures)


class Move(NamedTuple):
    """How caller and node left a server that hangs, in seconds from when it began to."""

    noticed: float
    answered: float
    failed: list[float]
    """When calls after that, until the server is back, ended without an answer."""


@pytest.mark.timeout(120)
async def test_frozen_server_is_left_for_another(programs: Programs, report: Report, full: bool):
    """SIGSTOP of the server that caller and node are connected to: both move to another one.

    The other servers miss its pings later than they do: until then they may send it calls.
    """
    frozen_for, moves = (FROZEN_FOR if full else 0.0), []
    async with NatsCluster(3) as cluster:
        for turn in range(3 if full else 1):
            await cluster.ready()
            moves.append(await _move(cluster, programs, f"n{turn}", frozen_for))

    noticed = max(move.noticed for move in moves)
    answered = max(move.answered for move in moves)
    failed = [at for move in moves for at in move.failed]
    scenario = f"S8 server of a cluster frozen{f' for {frozen_for:g} s' * full}, pings of 1 s"
    why = "a ping is missed a second after it, so the second miss is up to 3 s after the last pong"
    times = f"the worst of {len(moves)}"
    report.add(scenario, f"on another server after, s, {times}", noticed, "≤ 3", why=why)
    report.add(scenario, f"the node answered again after, s, {times}", answered)
    if full:
        report.add(scenario, "calls after that, one by one, without an answer", len(failed))
        report.add(scenario, "the last of them ended after, s", max([0.0, *failed]))
    assert noticed <= (4.0 if full else 8.0)
    assert answered <= (6.0 if full else 12.0)
    assert max([0.0, *failed]) <= SERVERS_NOTICE


async def _move(cluster: NatsCluster, programs: Programs, name: str, frozen_for: float) -> Move:
    """Freeze the server that a caller and a node use, at least until both have another."""
    settings = Settings.load(nats_url=cluster.url, ping_interval=float(PING))
    async with Client(settings=settings, wrappers=[Retry(1)], timeout=0.5) as client:
        transport = client.bus.transport
        used = next(server for server in cluster.servers if server.url == transport.server_url)
        await start_nodes(programs, used.url, name, BUSMICRO_PING_INTERVAL=PING)
        assert await client.call("greeter", "sleep", 0.0, timeout=10.0) == 0.0
        frozen_at = now()
        used.pause()
        try:
            async with asyncio.timeout(15.0):
                while transport.server_url in {used.url, ""}:
                    await asyncio.sleep(0.005)
                noticed = now() - frozen_at
                while not await _answers(client):
                    await asyncio.sleep(0.02)
                answered = now() - frozen_at
            failed = await _failing(client, until=frozen_at + frozen_for)
        finally:
            used.resume()
        await programs.end(name)
    return Move(noticed, answered, [at - frozen_at for at in failed])


async def _failing(client: Client, *, until: float) -> list[float]:
    """Call again and again until a moment; return when calls ended that were not answered."""
    failed = []
    while now() < until:
        if not await _answers(client):
            failed.append(now())
        await asyncio.sleep(0.02)
    return failed


async def _answers(client: Client) -> bool:
    try:
        return await client.call("greeter", "sleep", 0.0) == 0.0
    except (Unavailable, DeadlineExceeded):
        return False


async def test_service_started_before_nats_waits_and_says_so(programs: Programs):
    """A service waits for a NATS that is not there, says so, and serves when it comes."""
    first = NatsServer()
    await first.start()
    port = first.port
    await first.stop()
    node = programs.start("early", "node.py", "early", BUSMICRO_NATS_URL=f"nats://127.0.0.1:{port}")
    await programs.until(lambda: "waiting for it" in programs.said("early"))
    async with NatsServer(port=port) as server, Client(server.url, wait_for_ready=True) as client:
        assert await client.call("greeter", "hello", "a-1", timeout=10.0)
        node.send_signal(signal.SIGTERM)
        assert await programs.wait("early") == {"early": 0}
    assert f"cannot reach NATS at nats://127.0.0.1:{port}" in programs.said("early")
