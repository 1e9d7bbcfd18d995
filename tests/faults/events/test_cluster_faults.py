"""Leaders that die or freeze, and a cluster without a majority, lose no event."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from busmicro import NatsCluster, NatsServer, Service, Stream, Topic
from tests.faults.events.cluster import a_follower, flip_a_bit, leader, let_lead, ports, whole_again
from tests.faults.events.losses import add_losses, programs_told, restored, servers_told, without
from tests.faults.events.observer import observing
from tests.faults.events.orders import Order
from tests.faults.events.refusals import read_refusals
from tests.faults.events.report import add_history, judge_refusals
from tests.faults.events.run import Run
from tests.faults.log import now
from tests.faults.processes import Programs
from tests.faults.report import Report

EVENTS = 300_000
LONGEST_ELECTION = 10.0
"""Seconds without an ack: an election among three servers takes 4 to 9."""
RECOVERED = 15.0
"""Seconds from the return of the majority to the next acknowledgement."""
SECOND_ELECTION = 30.0
"""Seconds that both may take where others use the machine: no candidate may win the first one."""


@pytest.mark.timeout(420)
async def test_leaders_killed_and_frozen_lose_nothing(
    programs: Programs, report: Report, seed: int, full: bool
):
    """The leader of a stream with three replicas is killed, or frozen: 0 lost, no error."""
    faults = ["kill", "pause"] * 3 if full else [random.Random(seed).choice(["kill", "pause"])]
    async with NatsCluster(3) as cluster, observing(*ports(cluster)) as observer:
        env = {} if full else {"FAULTS_TIMEOUT": str(SECOND_ELECTION + 10.0)}
        run = Run(programs, cluster.url, observer, FAULTS_REPLICAS="3", FAULTS_EFFECTS="", **env)
        await run.start_consumers(2)
        await run.start_publishers(one=400, many=5000 if full else 400)
        for fault in faults:
            leading = await leader(cluster, observer)
            getattr(leading, fault)()
            await run.acknowledged(200, within=60.0)
            if fault == "kill":
                await leading.restart()
            else:
                leading.resume()
            await whole_again(cluster, observer)
            await run.acknowledged(1000 if full else 100)
        await run.acknowledged_in_all(EVENTS if full else 0)

        history = await run.finish(within=180.0)

    name = f"S34 leader killed {faults.count('kill')} times, frozen {faults.count('pause')} times"
    add_history(report, name, history, gap=LONGEST_ELECTION, least=EVENTS if full else 0)
    history.must_be_clean(where=programs.logs, seed=seed)
    assert history.gap <= (LONGEST_ELECTION if full else SECOND_ELECTION)
    assert history.failed == [], f"a publisher saw an error; logs: {programs.logs}"


@pytest.mark.timeout(240)
async def test_services_start_while_a_server_is_missing(report: Report, seed: int, full: bool):
    """One of three servers is killed or hangs, and three services start at once: all of them do.

    Until the others have elected their leaders nobody answers for JetStream and its streams, not
    even where one that the services have used before is missing.
    """
    chance = random.Random(seed)
    ways = [(fault, known) for fault in ("kill", "pause") for known in (False, True)]
    starts = []
    for fault, known in ways if full else [chance.choice(ways)]:
        async with NatsCluster(3) as cluster:
            if known:
                await _start_and_stop(cluster.servers)
            missing = chance.choice(cluster.servers)
            getattr(missing, fault)()
            left = [server for server in cluster.servers if server is not missing]
            starts.append(await _start_and_stop(left))
            if fault == "pause":
                missing.resume()
    scenario = f"S34 services start when one of three servers is missing, {len(starts)} times"
    report.add(scenario, "all have started after, s, at worst", max(starts), "≤ 30")


async def _start_and_stop(servers: list[NatsServer]) -> float:
    """Have three services start at once and hear of each other; return how long they took."""
    url = ",".join(server.url for server in servers)
    stream = Stream("SHOPS", replicas=3)
    topics = [Topic(f"shops.{number}", Order, stream=stream) for number in range(3)]
    heard: set[str] = set()
    async with AsyncExitStack() as stack:
        began = now()
        services = [_shop(url, number, topics, heard) for number in range(3)]
        await asyncio.gather(*(stack.enter_async_context(service) for service in services))
        took = now() - began
        for number, service in enumerate(services):
            await service.publish(topics[number], Order(f"s-{number}", number), timeout=40.0)
        async with asyncio.timeout(40):
            while len(heard) < len(services):
                await asyncio.sleep(0.05)
    return took


def _shop(url: str, number: int, topics: list[Topic[Order]], heard: set[str]) -> Service:
    """Make a service that publishes on one topic and listens to the next."""
    service = Service(f"shop-{number}", url=url)
    service.publishes(topics[number])

    @service.subscribe(topics[(number + 1) % len(topics)], group=f"shop-{number}")
    async def on_order(order: Order) -> None:
        heard.add(order.id)

    return service


@pytest.mark.timeout(180)
async def test_events_published_without_a_majority_fail_in_time_and_are_stored_afterwards(
    programs: Programs, report: Report, seed: int, full: bool
):
    """Two of three servers hang: publishing fails at its deadline, and goes on when they are back.

    Which one is left is up to the seed; publishers find it by themselves.
    """
    timeout, silence = (4.0, 20.0) if full else (2.0, 4.0)
    async with NatsCluster(3) as cluster, observing(*ports(cluster)) as observer:
        run = Run(
            programs,
            cluster.url,
            observer,
            FAULTS_REPLICAS="3",
            FAULTS_EFFECTS="",
            FAULTS_TIMEOUT=str(timeout),
        )
        await run.start_consumers(2)
        await run.start_publishers(one=400, many=1200 if full else 400)
        hanging = random.Random(seed).sample(cluster.servers, 2)
        for server in hanging:
            server.pause()
        await asyncio.sleep(silence)
        await run.until(lambda: run.refused("p0") > 0 and run.refused("p1") > 0)
        for server in hanging:
            server.resume()
        back = await run.acknowledged(1)
        await whole_again(cluster, observer)
        await run.acknowledged(1000 if full else 100)

        history = await run.finish()

    refusals = [refused for name in ("p0", "p1") for refused in read_refusals(run.log_of(name))]
    scenario = f"S44 no majority for {silence:g} s"
    add_history(report, scenario, history, errors="")
    judge_refusals(report, scenario, refusals, timeout=timeout, full=full)
    report.add(scenario, "stored again after the majority is back, s", back, f"≤ {RECOVERED:g}")
    history.must_be_clean(where=programs.logs, seed=seed)
    assert back <= (RECOVERED if full else SECOND_ELECTION)


@pytest.mark.timeout(180)
async def test_a_bit_flipped_in_one_replica_is_no_silent_loss(
    tmp_path: Path, programs: Programs, report: Report, seed: int, full: bool
):
    """A bit is wrong in one replica, which then leads: what is lost is named, the rest goes on.

    From the event on whose checksum fails, its server takes nothing from its disk: it has all of
    that from the others, and says nothing of it.
    """
    async with (
        NatsCluster(3, store=tmp_path / "stores") as cluster,
        observing(*ports(cluster)) as observer,
    ):
        run = Run(programs, cluster.url, observer, FAULTS_REPLICAS="3", FAULTS_EFFECTS="")
        await run.start_consumers(2)
        await run.start_publishers(one=400, many=1200 if full else 400)
        least = 10_000 if full else 1000
        await run.acknowledged_in_all(least)
        await whole_again(cluster, observer)  # so that there is something to flip a bit of
        follower = await a_follower(cluster, observer)
        follower.kill()
        flip_a_bit(follower, random.Random(seed))
        await follower.restart()
        await whole_again(cluster, observer)
        await let_lead(follower, cluster, observer)
        await run.acknowledged(200)

        history = await run.finish()
        warned, taken = servers_told(cluster), restored(follower)

    scenario = "S45 a bit flipped in a replica, which then leads"
    report.add(scenario, "published", len(set(history.sent)), "≥ 10,000" if full else "")
    lost = add_losses(report, scenario, history)
    report.add(scenario, f"events its server took from its disk, of more than {least:,}", taken)
    report.add(scenario, "servers whose log says that something is wrong, of 3", warned)
    report.add(
        scenario, "programs that were told of a loss and said so, of 4", programs_told(programs)
    )
    without(history, lost).must_be_clean(where=programs.logs, seed=seed)
