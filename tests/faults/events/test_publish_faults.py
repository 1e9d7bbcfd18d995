"""A server that dies, connections that break and publishers that start over lose no event."""

from __future__ import annotations

import asyncio
import random

import pytest

from busmicro import Client, Code, NatsServer, NotAllPublished
from busmicro.pubsub import Topic
from tests.faults.events.observer import Observer
from tests.faults.events.orders import ORDERS, STREAM, Order
from tests.faults.events.report import add_history
from tests.faults.events.run import Run
from tests.faults.events.stored import read_stream
from tests.faults.processes import Programs
from tests.faults.proxy import Proxy
from tests.faults.report import Report

EVENTS = 100_000
LONGEST_RESTART = 5.0
"""Seconds without an ack around the restart of a server, which itself takes one."""
LONGEST_CUT = 8.0
"""Seconds without an ack around a reset, or around 4 s of silence on every connection."""
BESIDE_OTHERS = 20.0
"""What both may be where other tests use the machine."""


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
    run = Run(programs, server.url, observer, FAULTS_EFFECTS="")
    await run.start_consumers(2)
    await run.start_publishers(one=600 if full else 200, many=3600 if full else 400)
    for _ in range(kills):
        await asyncio.sleep(chance.uniform(2.5, 4.0) if full else chance.uniform(0.5, 1.0))
        server.kill()
        await asyncio.sleep(chance.uniform(0.0, 1.0))
        await server.restart()
        await run.acknowledged(100)
    await run.acknowledged(3000 if full else 200)
    await run.acknowledged_in_all(EVENTS if full else 0)

    history = await run.finish()

    scenario = f"S33 server killed {kills} times"
    least = EVENTS if full else 0
    add_history(report, scenario, history, gap=LONGEST_RESTART, least=least)
    history.must_be_clean(where=programs.logs, seed=seed)
    assert history.gap <= (LONGEST_RESTART if full else BESIDE_OTHERS)
    assert history.failed == [], f"a publisher saw an error; logs: {programs.logs}"


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
            await run.until(lambda: proxy.connections >= 4)
            proxy.cut()
            await run.acknowledged(200)
        proxy.freeze()  # the way there and back is gone, and nobody says so
        await asyncio.sleep(4.0 if full else 0.5)
        proxy.thaw()
        await run.acknowledged(2000 if full else 100)
        await run.acknowledged_in_all(25_000 if full else 0)

        history = await run.finish()

    scenario = f"S35 connections cut {cuts} times, frozen once"
    add_history(report, scenario, history, gap=LONGEST_CUT, least=3000 if full else 0)
    history.must_be_clean(where=programs.logs, seed=seed)
    assert history.gap <= (LONGEST_CUT if full else BESIDE_OTHERS)
    assert history.failed == [], f"a publisher saw an error; logs: {programs.logs}"


@pytest.mark.timeout(120)
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

    add_history(report, "S33 publishers killed, all published again", history)
    history.must_be_clean(where=programs.logs, seed=seed)
    assert len(history.stored) == 1200


async def test_one_id_on_two_subjects_is_two_events(
    server: NatsServer, observer: Observer, report: Report
):
    """Whoever uses an order's id for all that happens to it loses none of it, and repeats none."""
    paid = Topic("orders.paid", Order, stream=ORDERS.stream)
    order = Order("order-17", 17)
    async with Client(server.url) as client:
        for topic in (ORDERS, paid, ORDERS, paid):
            await client.publish(topic, order, id=order.id)

    stored = await read_stream(observer, STREAM)

    scenario = "S43 one id on two subjects, each published twice"
    report.add(scenario, "stored", len(stored), "2")
    assert [event.id for event in stored] == ["order-17", "order-17"]
    assert len({event.msg_id for event in stored}) == 2


async def test_publish_many_fails_at_its_deadline_where_nobody_answers(
    server: NatsServer, report: Report, full: bool
):
    """The server hangs: `publish_many` says so when its time is up, and not later."""
    loop = asyncio.get_running_loop()
    async with Client(server.url) as client:
        await client.publish(ORDERS, Order("p0-0", 0))
        server.pause()
        began = loop.time()
        with pytest.raises(NotAllPublished) as failed:
            await client.publish_many(ORDERS, [Order("p0-1", 1)], timeout=2.0)
        took = loop.time() - began
        server.resume()

    report.add("S44 publish_many to a frozen server", "error after, s", took, "≤ 2.5")
    assert failed.value.code is Code.UNKNOWN
    assert 1.9 <= took <= (2.5 if full else 7.0)
