"""What a consumer holds stays its own while it works, and goes elsewhere when it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest

from busmicro import Client, NatsServer, Service
from tests.faults.events.observer import Observer
from tests.faults.events.orders import CONSUMER, GROUP, ORDERS, STREAM, Order
from tests.faults.events.run import Run
from tests.faults.events.stored import ask, left_to_do
from tests.faults.log import now
from tests.faults.processes import Programs
from tests.faults.proxy import Proxy
from tests.faults.report import Report

AT_ONCE = 16
"""Handlers that run in a consumer."""
IN_HAND = 2 * AT_ONCE
"""Events that a consumer has, those of them counted, while no handler ends."""


@pytest.mark.timeout(120)
async def test_events_of_a_frozen_consumer_go_to_another(
    server: NatsServer,
    observer: Observer,
    programs: Programs,
    report: Report,
    seed: int,
    full: bool,
):
    """A consumer is frozen with events in its hands: another one gets them after `ack_wait`.

    When it thaws it goes on where it was, with effects that are there already: each stays one.
    """
    ack_wait = 2.0 if full else 1.0
    run = Run(programs, server.url, observer, FAULTS_ACK_WAIT=str(ack_wait))
    await run.start_consumers(2, FAULTS_LINGER="0.05")
    await run.start_publishers(one=200, many=200)  # they go on until there is something to freeze
    frozen = programs.running["c0"]
    in_hand, began = await freeze_with_events_in_hand(frozen, run)
    assert await programs.end("p0", "p1") == {"p0": 0, "p1": 0}
    await run.until(run.caught_up, within=ack_wait + 20.0)
    took = now() - began
    frozen.send_signal(signal.SIGCONT)
    history = await run.finish(ask_to_stop=False)

    elsewhere = {d.id: d.at for d in history.delivered if d.consumer == "c1"}
    slowest = max((elsewhere[id_] - began for id_ in in_hand), default=0.0)
    scenario = "S41 frozen consumer, thawed after its events were handled elsewhere"
    report.add(scenario, "events in its hands", len(in_hand))
    report.add(scenario, "the last one elsewhere after, s", slowest, f"≤ {ack_wait + 3:g}")
    report.add(scenario, "all events handled after, s", took)
    report.add(scenario, "effects missing or twice", len(history.effects_not_once()), "0")
    history.must_be_clean(where=programs.logs, seed=seed)
    assert in_hand <= set(elsewhere)
    # it said last that it works up to a third of `ack_wait` before it froze
    assert ack_wait / 2 <= slowest <= ack_wait + 3.0


async def freeze_with_events_in_hand(
    process: subprocess.Popen[bytes], run: Run
) -> tuple[set[str], float]:
    """Freeze a consumer while handlers of it run; return the ids of their events, and when."""
    for _ in range(200):
        freeze(process)
        at = now()
        read = await run.read()
        delivered = {delivery.id for delivery in read.delivered if delivery.consumer == "c0"}
        in_hand = delivered - set(read.handled)
        if in_hand and may_write(run.database):
            return in_hand, at
        process.send_signal(signal.SIGCONT)
        await asyncio.sleep(0.02)  # it needs a moment to come to another place
    raise AssertionError("the consumer never had events in its hands and not the right to write")


def freeze(process: subprocess.Popen[bytes]) -> None:
    """Return once a process stands still."""
    process.send_signal(signal.SIGSTOP)
    if hasattr(os, "waitid"):  # not so on macOS before Python 3.13
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


def may_write(database: Path) -> bool:
    """Tell whether nobody who stands still has the right to write: or others could not go on."""
    with contextlib.closing(sqlite3.connect(database, timeout=0.1)) as opened:
        try:
            opened.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
    return True


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
    """Handlers take longer than `ack_wait`, others wait for them: nothing is delivered again.

    They say each third of `ack_wait` that they work, so a standstill of a second does no harm.
    """
    ack_wait, times = 2.0, 5.0 if full else 1.5
    run = Run(programs, server.url, observer, FAULTS_ACK_WAIT=str(ack_wait), FAULTS_EFFECTS="")
    await run.start_consumers(1, FAULTS_SLOW=str(times * ack_wait))
    await run.start_publishers(one=400, many=400, count=12)

    history = await run.finish(ask_to_stop=False)

    scenario = f"S40 handlers of {times:g} ack_waits"
    report.add(scenario, "events", len(history.stored))
    report.add(scenario, "delivered again", history.redelivered, "0")
    history.must_be_clean(where=programs.logs, seed=seed)
    assert history.redelivered == 0
    assert len(history.delivered) == len(history.stored) == 24


@pytest.mark.timeout(120)
async def test_stopped_consumer_gives_its_events_back_at_once(
    server: NatsServer, observer: Observer, programs: Programs, report: Report, seed: int
):
    """SIGTERM: what runs is finished, what waits goes elsewhere at once, long before `ack_wait`.

    Its handlers do not end before the other consumer has all the rest.
    """
    run = Run(programs, server.url, observer, FAULTS_ACK_WAIT="60", FAULTS_EFFECTS="")
    run.gate.touch()
    await run.start_consumers(1, gated=True)
    await run.start_publishers(one=800, many=800, count=60)
    await run.until(lambda: _holds(observer, IN_HAND))
    await run.start_consumers(1, first=1)
    await run.until(lambda: run.has_left(IN_HAND))
    programs.running["c0"].send_signal(signal.SIGTERM)
    took = await run.time_until(lambda: run.has_left(AT_ONCE))
    run.gate.unlink()
    assert await programs.wait("c0") == {"c0": 0}
    history = await run.finish(ask_to_stop=False)

    scenario = "S38 consumer stopped by SIGTERM"
    report.add(scenario, "given back, and handled elsewhere", history.redelivered)
    report.add(scenario, "handled elsewhere after, s", took, "≤ 20")
    history.must_be_clean(where=programs.logs, seed=seed)
    assert len(history.handled) == len(history.stored) == 120, "each was handled once"
    assert history.redelivered == IN_HAND - AT_ONCE
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
        for _ in range(cuts):
            before = proxy.accepted
            proxy.cut()
            await until(lambda before=before: proxy.accepted > before)
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

    report.add(
        f"S35 consumer cut {cuts} times", "events held", info["num_ack_pending"], f"≤ {waiting}"
    )
    assert info["num_ack_pending"] <= waiting


async def _holds(observer: Observer, count: int) -> bool:
    info = await ask(observer, f"CONSUMER.INFO.{STREAM}.{CONSUMER}")
    return bool(info["num_ack_pending"] >= count)
