"""Consumers that die, hang and dawdle lose no event and have each effect once."""

from __future__ import annotations

import asyncio
import json

import pytest

from busmicro import Client, NatsServer
from busmicro.pubsub.deadletters import DeadLetters
from tests.faults.events.history import History
from tests.faults.events.observer import Observer
from tests.faults.events.orders import STREAM
from tests.faults.events.report import add_history
from tests.faults.events.run import Run
from tests.faults.events.stored import ask, raw_events
from tests.faults.processes import Programs
from tests.faults.report import Report

DEAD = "DEAD-LETTERS"
POISON = "S39 poison in a work queue"


@pytest.mark.timeout(420)
async def test_consumers_killed_between_effect_and_ack_have_each_effect_once(
    server: NatsServer,
    observer: Observer,
    programs: Programs,
    report: Report,
    seed: int,
    full: bool,
):
    """Killed right after the commit, or right before it: every effect is there, and once."""
    count = 5100 if full else 300
    after = range(50, count, count // 200 if full else count // 3)
    before = range(75, count, count // 40 if full else count)
    run = Run(
        programs,
        server.url,
        observer,
        FAULTS_ACK_WAIT="1",
        FAULTS_DIE_AFTER=",".join(map(str, after)),
        FAULTS_DIE_BEFORE=",".join(map(str, before)),
    )
    await run.start_consumers(4 if full else 2, keep=True)
    await run.start_publishers(one=300, many=300, count=count)

    history = await run.finish(ask_to_stop=False, within=360.0)
    dead = await raw_events(observer, DEAD)

    kills = len(list(programs.logs.glob("died-*")))
    scenario = f"S38 consumers killed {kills} times between effect and ack, or before"
    report.add(scenario, "between effect and ack", len(after), "≥ 200" if full else "")
    add_history(report, scenario, history, least=10_000 if full else 0)
    history.must_be_clean(where=programs.logs, seed=seed)
    assert kills == len(after) + len(before)
    assert len(after) >= (200 if full else 3)
    assert programs.deaths.total() == kills, "a consumer died of something else"
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
    took = await run.time_until(lambda: _has_buried(observer, 1), within=40.0)
    report.add(POISON, "among the dead letters after, s", took, "≤ 10")
    await run.until(lambda: _is_empty(observer))
    await observer.request("orders.placed", b'{"id": 17', timeout=5)
    undecoded = await run.time_until(lambda: _has_buried(observer, 2))
    report.add(POISON, "what does not decode, after, s", undecoded, "≤ 10")
    await run.until(lambda: _is_empty(observer))
    await asyncio.sleep(8.0 if full else 1.0)  # for copies that must not come
    await _judge_the_dead(observer, report)
    assert took <= (10.0 if full else 30.0)  # it takes three starts of Python

    await programs.end("c0")
    await _replay_the_poison(run, server.url)
    await programs.end("c0")

    history = History()
    history.read_effects(run.database)
    effects = history.effects or []
    report.add(POISON, "effects after replay", len(effects), "200")
    assert sorted(effects) == sorted(f"p{way}-{number}" for way in (0, 1) for number in range(100))


async def _judge_the_dead(observer: Observer, report: Report) -> None:
    """Check that two events are dead letters, with the reasons, and that no other event is left."""
    dead = [(headers, payload) for _, headers, payload in await raw_events(observer, DEAD)]
    report.add(POISON, "copies and its neighbours' copies", len(dead) - 1, "1")
    report.add(POISON, "left in the work queue", await _left(observer), "0")
    assert [json.loads(payload)["id"] for _, payload in dead[:-1]] == ["p0-3"]
    assert dead[-1][1] == b'{"id": 17'
    assert [headers["Bus-Dead-Code"] for headers, _ in dead] == ["aborted", "invalid_argument"]


async def _replay_the_poison(run: Run, url: str) -> None:
    """Have a consumer that survives it handle the poison, and drop what nobody can read."""
    await run.start_consumers(1)
    async with Client(url) as client:
        letters = DeadLetters(client.bus)
        poison, unreadable = await letters.list()
        await letters.replay(poison.number)
        await run.until(lambda: _is_empty(run.observer))
        assert [letter.number for letter in await letters.list()] == [unreadable.number]
        await letters.drop(unreadable.number)


async def _has_buried(observer: Observer, count: int) -> bool:
    info = await ask(observer, f"STREAM.INFO.{DEAD}")
    return "state" in info and bool(info["state"]["messages"] >= count)


async def _left(observer: Observer) -> int:
    info = await ask(observer, f"STREAM.INFO.{STREAM}")
    return int(info["state"]["messages"])


async def _is_empty(observer: Observer) -> bool:
    return await _left(observer) == 0
