"""Consumers that die, hang and dawdle lose no event and have each effect once."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable

import pytest

from busmicro import Client, NatsServer, Service
from busmicro.pubsub.deadletters import DeadLetters
from tests.faults.events.history import History
from tests.faults.events.observer import Observer
from tests.faults.events.orders import CONSUMER, GROUP, ORDERS, STREAM, Order
from tests.faults.events.report import add_history
from tests.faults.events.run import Run
from tests.faults.events.stored import ask, left_to_do, raw_events
from tests.faults.processes import Programs
from tests.faults.proxy import Proxy
from tests.faults.report import Report

DEAD = "DEAD-LETTERS"


@pytest.mark.timeout(240)
async def test_consumers_killed_between_effect_and_ack_have_each_effect_once(
    server: NatsServer,
    observer: Observer,
    programs: Programs,
    report: Report,
    seed: int,
    full: bool,
):
    """Killed right after the commit, or right before it: every effect is there, and once."""
    count = 2000 if full else 300
    after = range(50, count, count // 20 if full else count // 3)
    before = range(75, count, count // 5 if full else count)
    run = Run(
        programs,
        server.url,
        observer,
        FAULTS_ACK_WAIT="1",
        FAULTS_DIE_AFTER=",".join(map(str, after)),
        FAULTS_DIE_BEFORE=",".join(map(str, before)),
    )
    await run.start_consumers(2, keep=True)
    await run.start_publishers(one=300, many=300, count=count)

    history = await run.finish(ask_to_stop=False)
    dead = await raw_events(observer, DEAD)

    kills = programs.deaths.total()
    add_history(report, f"consumers killed {kills} times", history)
    history.must_be_clean(where=programs.logs, seed=seed)
    assert kills >= len(after) + len(before)
    assert kills >= (20 if full else 3)
    assert dead == []


@pytest.mark.timeout(120)
async def test_poison_ends_among_the_dead_letters_alone_and_comes_back(
    server: NatsServer, observer: Observer, programs: Programs, report: Report, full: bool
):
    """An event that kills its process is buried once, without its neighbours; replay works."""
    run = Run(
        programs,
        server.url,
        observer,
        FAULTS_WORK_QUEUE="1",
        FAULTS_ACK_WAIT="1",
        FAULTS_MAX_DELIVER="3" if full else "2",
    )
    await run.start_publishers(one=2000, many=2000, count=100)
    await programs.wait("p0", "p1")  # so that the consumer has all of it in its hands at once
    await run.start_consumers(1, keep=True, FAULTS_POISON="p0-3")
    scenario = "poison in a work queue"
    took = await _time_until(run, lambda: _has_buried(observer, 1), within=20.0)
    report.add(scenario, "among the dead letters after, s", took, "≤ 10")
    await run.until(lambda: _is_empty(observer))
    await observer.request("orders.placed", b'{"id": 17', timeout=5)
    undecoded = await _time_until(run, lambda: _has_buried(observer, 2), within=10.0)
    report.add(scenario, "what does not decode, after, s", undecoded, "≤ 10")
    await run.until(lambda: _is_empty(observer))
    await asyncio.sleep(8.0 if full else 1.0)  # for copies that must not come

    dead = [(headers, payload) for _, headers, payload in await raw_events(observer, DEAD)]
    report.add(scenario, "copies and its neighbours' copies", len(dead) - 1, "1")
    assert [json.loads(payload)["id"] for _, payload in dead[:-1]] == ["p0-3"]
    assert dead[-1][1] == b'{"id": 17'
    assert [headers["Bus-Dead-Code"] for headers, _ in dead] == ["aborted", "invalid_argument"]
    assert took <= 10.0

    await programs.end("c0")
    await run.start_consumers(1)
    async with Client(server.url) as client:
        letters = DeadLetters(client.bus)
        poison, unreadable = await letters.list()
        await letters.replay(poison.number)
        await run.until(lambda: _is_empty(observer))
        assert [letter.number for letter in await letters.list()] == [unreadable.number]
        await letters.drop(unreadable.number)
    await programs.end("c0")

    history = History()
    history.read_effects(run.database)
    effects = history.effects or []
    report.add(scenario, "effects after replay", len(effects), "200")
    assert sorted(effects) == sorted(f"p{way}-{number}" for way in (0, 1) for number in range(100))


async def _time_until(
    run: Run, condition: Callable[[], Awaitable[bool]], *, within: float
) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await run.until(condition, within=within)
    return loop.time() - began


async def _has_buried(observer: Observer, count: int) -> bool:
    info = await ask(observer, f"STREAM.INFO.{DEAD}")
    return "state" in info and bool(info["state"]["messages"] >= count)


async def _is_empty(observer: Observer) -> bool:
    info = await ask(observer, f"STREAM.INFO.{STREAM}")
    return bool(info["state"]["messages"] == 0)


@pytest.mark.timeout(120)
async def test_events_of_a_frozen_consumer_go_to_another(
    server: NatsServer,
    observer: Observer,
    programs: Programs,
    report: Report,
    seed: int,
    full: bool,
):
    """A consumer is frozen with events in its hands: another one gets them after `ack_wait`."""
    ack_wait, count = (2.0, 200) if full else (1.0, 120)
    run = Run(programs, server.url, observer, FAULTS_ACK_WAIT=str(ack_wait), FAULTS_EFFECTS="")
    await run.start_consumers(2, FAULTS_SLOW="0.1")
    await run.start_publishers(one=400, many=400, count=count)
    await programs.wait("p0", "p1")
    frozen = programs.running["c0"]
    loop = asyncio.get_running_loop()
    began = loop.time()
    frozen.send_signal(signal.SIGSTOP)
    at_the_time = await run.read()
    await run.until(lambda: _all_done(observer), within=ack_wait + 20.0)
    took = loop.time() - began
    frozen.send_signal(signal.SIGCONT)
    history = await run.finish(ask_to_stop=False)

    in_hand = {d.id for d in at_the_time.delivered if d.consumer == "c0"} - set(at_the_time.handled)
    elsewhere = {d.id: d.at for d in history.delivered if d.consumer == "c1"}
    slowest = max((elsewhere[id_] - began for id_ in in_hand), default=0.0)
    report.add("frozen consumer", "events in its hands", len(in_hand))
    report.add("frozen consumer", "the last one elsewhere after, s", slowest, f"≤ {ack_wait + 3:g}")
    report.add("frozen consumer", "all events handled after, s", took)
    history.must_be_clean(where=programs.logs, seed=seed)
    assert in_hand
    assert in_hand <= set(elsewhere)
    assert ack_wait - 0.5 <= slowest <= ack_wait + 3.0


async def _all_done(observer: Observer) -> bool:
    return await left_to_do(observer, STREAM, CONSUMER) == 0


@pytest.mark.timeout(120)
async def test_slow_handlers_keep_their_events(
    server: NatsServer,
    observer: Observer,
    programs: Programs,
    report: Report,
    seed: int,
    full: bool,
):
    """Handlers take five times `ack_wait`, others wait for them: nothing is delivered again."""
    ack_wait = 2.0 if full else 0.5
    run = Run(programs, server.url, observer, FAULTS_ACK_WAIT=str(ack_wait), FAULTS_EFFECTS="")
    await run.start_consumers(1, FAULTS_SLOW=str(5 * ack_wait))
    await run.start_publishers(one=400, many=400, count=12)

    history = await run.finish(ask_to_stop=False)

    report.add("handlers of five ack_waits", "events", len(history.stored))
    report.add("handlers of five ack_waits", "delivered again", history.redelivered, "0")
    history.must_be_clean(where=programs.logs, seed=seed)
    assert history.redelivered == 0
    assert len(history.delivered) == len(history.stored) == 24


@pytest.mark.timeout(60)
async def test_stopped_consumer_gives_its_events_back_at_once(
    server: NatsServer, observer: Observer, programs: Programs, report: Report, seed: int
):
    """SIGTERM: what runs is finished, what waits goes elsewhere long before `ack_wait`."""
    run = Run(programs, server.url, observer, FAULTS_ACK_WAIT="60", FAULTS_EFFECTS="")
    await run.start_consumers(2, FAULTS_SLOW="1.0")
    await run.start_publishers(one=800, many=800, count=60)
    await programs.wait("p0", "p1")

    assert await programs.end("c0", within=5.0) == {"c0": 0}
    took = await _time_until(run, lambda: _all_done(observer), within=30.0)
    history = await run.finish(ask_to_stop=False)

    report.add(
        "consumer stopped by SIGTERM", "given back, and handled elsewhere", history.redelivered
    )
    report.add("consumer stopped by SIGTERM", "all events handled after, s", took, "≤ 20")
    history.must_be_clean(where=programs.logs, seed=seed)
    assert len(history.handled) == len(history.stored) == 120, "each was handled once"
    assert history.redelivered > 0
    assert took <= 20.0


async def test_cut_connections_do_not_let_a_consumer_hold_more(
    server: NatsServer, observer: Observer, report: Report, until
):
    """However often its connection is cut, a process holds no more events than `waiting`."""
    waiting, cuts = 20, 6
    service = Service("billing")
    go = asyncio.Event()

    @service.subscribe(ORDERS, group=GROUP, concurrency=10, waiting=waiting)
    async def on_order(_order: Order) -> None:
        await go.wait()

    async with Proxy(server.port) as proxy, Client(server.url) as client:
        await service.start(url=proxy.url)
        for connections in range(1, cuts + 1):
            proxy.cut()
            await until(lambda before=connections: proxy.accepted > before)
            await until(lambda: service.bus.transport.connected)
            await service.bus.transport.barrier()
            await asyncio.sleep(0.1)  # the server looks after requests at its own pace
        orders = [Order(f"p0-{number}", number) for number in range(200)]
        await client.publish_many(ORDERS, orders, id=lambda order: order.id)
        await until(lambda: _holds(observer, waiting))
        await asyncio.sleep(0.5)  # for events that must not come
        info = await ask(observer, f"CONSUMER.INFO.{STREAM}.{CONSUMER}")
        go.set()
        await until(lambda: _all_done(observer))
        await service.stop()

    report.add(f"consumer cut {cuts} times", "events held", info["num_ack_pending"], f"≤ {waiting}")
    assert info["num_ack_pending"] <= waiting


async def _holds(observer: Observer, count: int) -> bool:
    info = await ask(observer, f"CONSUMER.INFO.{STREAM}.{CONSUMER}")
    return bool(info["num_ack_pending"] >= count)
