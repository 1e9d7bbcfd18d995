"""What watchers see becomes the truth, however many come and go and whatever the server does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from busmicro import Client, NatsServer
from tests.faults.log import now
from tests.faults.processes import Programs
from tests.faults.registry.crowds import Crowds
from tests.faults.registry.watching import listed, watching
from tests.faults.report import Report

CONVERGES = 5.0
"""Seconds from a server's return to a true view."""

Until = Callable[..., Awaitable[None]]


@pytest.mark.timeout(150)
async def test_view_is_the_truth_after_many_came_and_went(
    server: NatsServer,
    programs: Programs,
    report: Report,
    until: Until,
    seed: int,
    full: bool,
):
    """200 nodes come and go, processes with 50 are killed: after twice the TTL the view is true.

    In the short form the TTL is a second: if the machine stands still for that long, nodes rightly
    leave and come back, so there the view has to become true in the end.
    """
    places, restless, ttl, kills = (50, 60.0, 3.0, 3) if full else (8, 2.0, 1.0, 1)
    chance = random.Random(seed)
    crowds = Crowds(programs, server.url, seed, ttl)
    async with Client(server.url) as client, watching(client) as view:
        began = now()
        for name in ("a", "b", "c", "d"):
            crowds.start(name, places, restless=restless)
        for number in range(kills):
            end = restless * (number + chance.uniform(0.4, 0.9)) / kills
            await asyncio.sleep(max(0.0, began + end - now()))
            await programs.until(lambda: crowds.came(crowds.alive[0]))
            crowds.kill(crowds.alive[0])
            crowds.start(f"{number}", places, restless=max(0.5, began + restless - now()))
        await crowds.quiet(within=restless + 45)
        crowds.kill(crowds.alive[0])
        took = await _time_until_true(lambda: view.there == crowds.up, 2 * ttl)
        fresh, truth = await _other_view(server.url), crowds.up

        async def is_true() -> bool:
            nonlocal fresh
            fresh = await _other_view(server.url)
            return view.there == fresh == truth

        if not full:
            await until(is_true, timeout=20.0)

    scenario = (
        f"S53 {4 * places} nodes come and go for {restless:g} s, {kills + 1} processes killed"
    )
    report.add(scenario, "nodes that came", crowds.joined)
    report.add(scenario, "nodes there in the end", len(truth))
    report.add(scenario, "ghosts and missing ones", len(view.there ^ truth), "0")
    report.add(scenario, "the same for who asks anew", len(fresh ^ truth), "0")
    report.add(scenario, "changes that cannot be", len(view.wrong), "0")
    report.add(scenario, "view true after quiet, s", took, f"≤ {2 * ttl:g}")
    assert truth
    assert view.wrong == []
    assert not full or (view.there, fresh, took <= 2 * ttl) == (truth, truth, True)


async def _time_until_true(condition: Callable[[], bool], within: float) -> float:
    """Wait so many seconds; return after how many of them it has become true for good."""
    began, true_since = now(), float("inf")
    while now() < began + within:
        true_since = min(true_since, now()) if condition() else float("inf")
        await asyncio.sleep(0.02)
    return true_since - began


async def _other_view(url: str) -> set[str]:
    async with Client(url) as client:
        return await listed(client)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("ack_format", [1, 2])
async def test_view_is_the_truth_soon_after_the_server_was_killed(
    programs: Programs,
    report: Report,
    until: Until,
    seed: int,
    full: bool,
    tmp_path: Path,
    ack_format: int,
):
    """The server dies, nodes die and come while it is away: 5 s later the view is true."""
    config = tmp_path / "nats.conf"
    flag = "feature_flags { js_ack_fc_v2: true }\n" if ack_format == 2 else ""
    config.write_text(f"{flag}jetstream {{}}\n")
    chance = random.Random(seed)
    rounds, took, ghosts = 4 if full else 1, [], set()
    async with NatsServer(config=config) as server, Client(server.url) as client:
        crowds = Crowds(programs, server.url, seed, 30.0)
        for name in ("stays", "dies"):
            crowds.start(name, 5)
        async with watching(client) as view:
            await until(lambda: len(view.there) == 10, timeout=45.0)
            for number in range(rounds):
                server.kill()
                crowds.kill(crowds.alive[-1])
                crowds.start(f"comes{number}", 5)
                await asyncio.sleep(chance.uniform(0.2, 1.0))
                await server.restart()
                back = now()
                await crowds.quiet(within=45.0)
                await until(lambda: view.there == crowds.up, timeout=45.0)
                took.append(now() - back)
                ghosts |= await _other_view(server.url) ^ crowds.up

    scenario = f"S52 server killed {rounds} times, acknowledgements of format {ack_format}"
    report.add(scenario, "view true after the restart, s", max(took), f"≤ {CONVERGES:g}")
    report.add(scenario, "ghosts and missing ones for who asks", len(ghosts), "0")
    report.add(scenario, "changes that cannot be", len(view.wrong), "0")
    assert (ghosts, view.wrong) == (set(), [])
    assert max(took) <= (CONVERGES if full else 20.0)
