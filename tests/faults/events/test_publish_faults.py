"""Servers that die, leaders that freeze and connections that break lose no event."""

from __future__ import annotations

import asyncio
import random

import pytest

from busmicro import NatsCluster, NatsServer
from tests.faults.events.observer import Observer, observing
from tests.faults.events.orders import STREAM
from tests.faults.events.report import add_history
from tests.faults.events.run import Run
from tests.faults.events.stored import is_replicated, leader_of
from tests.faults.processes import Programs
from tests.faults.proxy import Proxy
from tests.faults.report import Report

LONGEST_RESTART = 5.0
"""Seconds without an ack around the restart of a server, which itself takes one."""
LONGEST_CUT = 8.0
"""Seconds without an ack around a reset, or around 4 s of silence on every connection."""
LONGEST_ELECTION = 12.0
"""Seconds without an ack: an election among three servers takes 4 to 9."""


@pytest.mark.timeout(240)
async def test_server_killed_under_load_loses_nothing(
    server: NatsServer,
    observer: Observer,
    programs: Programs,
    report: Report,
    seed: int,
    full: bool,
):
    """A single server is killed and started again on its store: 0 lost, no error."""
    chance = random.Random(seed)
    kills = 5 if full else 1
    run = Run(programs, server.url, observer)
    await run.start_consumers(2)
    await run.start_publishers(one=600 if full else 200, many=1800 if full else 400)
    for _ in range(kills):
        await asyncio.sleep(chance.uniform(2.5, 4.0) if full else chance.uniform(0.5, 1.0))
        server.kill()
        await asyncio.sleep(chance.uniform(0.0, 1.0))
        await server.restart()
        await run.acknowledged(100)
    await run.acknowledged(3000 if full else 200)
    await run.acknowledged_in_all(50_000 if full else 0)

    history = await run.finish()

    add_history(report, f"server killed {kills} times", history, gap=LONGEST_RESTART)
    history.must_be_clean(where=programs.logs, seed=seed)
    assert history.gap <= LONGEST_RESTART
    assert history.failed == [], f"a publisher saw an error; logs: {programs.logs}"


@pytest.mark.timeout(420)
async def test_leaders_killed_and_frozen_lose_nothing(
    programs: Programs, report: Report, seed: int, full: bool
):
    """The leader of a stream with three replicas is killed, or frozen: 0 lost, no error."""
    faults = ["kill", "pause"] * 3 if full else [random.Random(seed).choice(["kill", "pause"])]
    async with NatsCluster(3) as cluster, observing(*_ports(cluster)) as observer:
        run = Run(programs, cluster.url, observer, FAULTS_REPLICAS="3")
        await run.start_consumers(2)
        await run.start_publishers(one=400, many=1200 if full else 400)
        for fault in faults:
            leader = await _leader(cluster, observer)
            getattr(leader, fault)()
            await run.acknowledged(200)
            if fault == "kill":
                await leader.restart()
            else:
                leader.resume()
            await _whole_again(cluster, observer)
            await run.acknowledged(1000 if full else 100)
        await run.acknowledged_in_all(30_000 if full else 0)

        history = await run.finish()

    name = f"leader killed {faults.count('kill')} times, frozen {faults.count('pause')} times"
    add_history(report, name, history, gap=LONGEST_ELECTION)
    history.must_be_clean(where=programs.logs, seed=seed)
    assert history.gap <= LONGEST_ELECTION
    assert history.failed == [], f"a publisher saw an error; logs: {programs.logs}"


def _ports(cluster: NatsCluster) -> list[int]:
    return [server.port for server in cluster.servers]


async def _leader(cluster: NatsCluster, observer: Observer) -> NatsServer:
    name = ""
    async with asyncio.timeout(30):
        while not name:
            name = await leader_of(observer, STREAM)
    return cluster.servers[int(name.removeprefix("n")) - 1]


async def _whole_again(cluster: NatsCluster, observer: Observer) -> None:
    await cluster.ready()
    async with asyncio.timeout(60):
        while not await is_replicated(observer, STREAM):
            await asyncio.sleep(0.1)


@pytest.mark.timeout(180)
async def test_cut_connections_lose_nothing(
    server: NatsServer,
    observer: Observer,
    programs: Programs,
    report: Report,
    seed: int,
    full: bool,
):
    """Connections are reset and black-holed between clients and server: 0 lost, 0 twice."""
    chance = random.Random(seed)
    cuts = 5 if full else 1
    async with Proxy(server.port) as proxy:
        run = Run(programs, proxy.url, observer)
        await run.start_consumers(2)
        await run.start_publishers(one=600 if full else 200, many=1800 if full else 400)
        for _ in range(cuts):
            await asyncio.sleep(chance.uniform(0.5, 2.0) if full else chance.uniform(0.2, 0.5))
            assert proxy.connections >= 4
            proxy.cut()
            await run.acknowledged(200)
        proxy.freeze()  # the way there and back is gone, and nobody says so
        await asyncio.sleep(4.0 if full else 0.5)
        proxy.thaw()
        await run.acknowledged(2000 if full else 100)
        await run.acknowledged_in_all(25_000 if full else 0)

        history = await run.finish()

    add_history(report, f"connections cut {cuts} times, frozen once", history, gap=LONGEST_CUT)
    history.must_be_clean(where=programs.logs, seed=seed)
    assert history.gap <= LONGEST_CUT
    assert history.failed == [], f"a publisher saw an error; logs: {programs.logs}"


@pytest.mark.timeout(60)
async def test_publisher_that_starts_over_stores_nothing_twice(
    server: NatsServer, observer: Observer, programs: Programs, report: Report, seed: int
):
    """Publishers are killed at work and publish all again, with the same ids: 0 stored twice."""
    run = Run(programs, server.url, observer)
    await run.start_consumers(1)
    await run.start_publishers(one=400, many=400, count=600)
    for name in ("p0", "p1"):
        programs.running[name].kill()
        programs.running[name].wait()
    await run.start_publishers(one=2000, many=2000, count=600)

    history = await run.finish(ask_to_stop=False)

    add_history(report, "publishers killed, all published again", history)
    history.must_be_clean(where=programs.logs, seed=seed)
    assert len(history.stored) == 1200
