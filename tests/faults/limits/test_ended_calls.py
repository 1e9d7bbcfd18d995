"""Calls that are given up, run out of time, or come twice: what still runs of them, and how often.

Callers and nodes are processes of their own, so that what is measured is not the measuring.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import nats
import pytest

from busmicro import CallError, Client, DeadlineExceeded, NatsServer
from tests.faults.limits.nodes import (
    Until,
    counted,
    nodes_up,
    noted,
    start_node,
    times_noted,
)
from tests.faults.log import now
from tests.faults.processes import Programs
from tests.faults.proxy import Proxy
from tests.faults.report import Report

CANCELLED = "S16 1,000 calls given up while their handlers run"
NESTED = "S17 A calls B calls C, with {:g} s in all"
TWICE = "S18 a request comes twice"
CALLS = 1_000


async def give_up(client: Client, first: int) -> float:
    """Give a thousand running calls up at one moment; return it."""
    loop = asyncio.get_running_loop()
    numbers = range(first, first + CALLS)
    tasks = [loop.create_task(client.call("idle", "hop", number)) for number in numbers]
    await counted(client, "idle", "began", first + CALLS)
    moment = now()
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends)
    await counted(client, "idle", "ended", first + CALLS)
    return moment


@pytest.mark.timeout(120)
async def test_handlers_of_calls_that_are_given_up_are_cancelled_at_once(
    server: NatsServer, programs: Programs, until: Until, settled, report: Report, full: bool
):
    """Of 1,000 handlers 99.9 % are cancelled within 100 ms, and none of them answers."""
    shares, last, late = [], [], []
    start_node(programs, server.url, "idle", "n1")
    raw = await nats.connect(server.url)
    async with Client(server.url, timeout=30.0) as client:
        await nodes_up(client, until, idle=1)
        for turn in range(5 if full else 1):
            moment = await give_up(client, turn * CALLS)
            replies = await raw.subscribe(f"{client.bus.replies.inbox}.>")
            await settled(raw)
            ends = noted(programs, "n1", "ended")
            took = [ends[turn * CALLS + number] - moment for number in range(CALLS)]
            shares.append(sum(each <= 0.1 for each in took) / CALLS)
            last.append(max(took))
            await client.call("idle", "count", "ended")  # whatever was answered has arrived
            await raw.flush()
            late.append(replies.pending_msgs - 1)  # but the reply to that
            await replies.unsubscribe()
        assert len(client.bus.replies) == 0
    await raw.close()

    why = f"the last after {max(last) * 1e3:.0f} ms, with other work on the machine"
    report.add(
        CANCELLED, "handlers cancelled within 100 ms, %, usually",
        100 * sorted(shares)[len(shares) // 2], "≥ 99.9", why=why,
    )  # fmt: skip
    report.add(CANCELLED, "the same at worst, %", 100 * min(shares))
    report.add(CANCELLED, "the last handler cancelled after, s, at worst", max(last))
    report.add(CANCELLED, "replies after that", max(late), "0")
    assert max(late) == 0
    assert max(last) <= (2.0 if full else 10.0)


async def overrun(client: Client, number: int, timeout: float) -> float:
    """Make a nested call that runs out of time; return when that was."""
    deadline = now() + timeout
    with pytest.raises(DeadlineExceeded):
        await client.call("a", "hop", number, timeout=timeout)
    return deadline


@pytest.mark.timeout(120)
async def test_no_process_works_past_the_deadline_of_the_first_caller(
    server: NatsServer, programs: Programs, until: Until, report: Report, full: bool, seed: int
):
    """A, B and C are processes: C ends with the deadline of the call to A, whatever B asked for.

    In the short form there is time enough for all to begin, even if the machine stands still.
    """
    chance, deadlines, timeout = random.Random(seed), {}, 1.0 if full else 3.0
    for name, following in (("a", ["b"]), ("b", ["c"]), ("c", [])):
        start_node(programs, server.url, name, f"of-{name}", *following)
    async with Client(server.url) as client:
        await nodes_up(client, until, a=1, b=1, c=1)
        for turn in range(6 if full else 1):
            numbers = range(turn * 50, turn * 50 + 50)

            async def one(number: int) -> None:
                await asyncio.sleep(chance.random() / 2)
                deadlines[number] = await overrun(client, number, timeout)

            await asyncio.gather(*map(one, numbers))
            await counted(client, "c", "ended", turn * 50 + 50)

    ended = noted(programs, "of-c", "ended")
    began = noted(programs, "of-c", "began")
    late = [ended[number] - deadline for number, deadline in deadlines.items()]
    over = sum(each > 0.02 for each in late)
    why = f"the latest by {max(late) * 1e3:.0f} ms, with other work on the machine"
    nested = NESTED.format(timeout)
    report.add(nested, f"overruns of C of more than 20 ms, of {len(late)}", over, "0", why=why)
    report.add(nested, "latest end of C after the deadline, s", max(late), "≤ 0.02", why=why)
    assert all(began[number] < deadline for number, deadline in deadlines.items())
    assert max(late) <= (0.3 if full else 3.0)


async def test_request_that_comes_twice_runs_twice(
    server: NatsServer, programs: Programs, until: Until, report: Report
):
    """A stranger who sends a request twice has it run and answered twice: nobody promises less.

    NATS delivers a request at most once, and busmicro sends one that may not run twice again only
    if it certainly did not run; so there is nothing that a store of requests seen could prevent.
    """
    start_node(programs, server.url, "twice", "n1")
    raw = await nats.connect(server.url)
    async with Client(server.url) as client:
        await nodes_up(client, until, twice=1)
        replies = await raw.subscribe("_INBOX.stranger.>")
        for number in range(100):
            for _ in range(2):
                await raw.publish("rpc.twice.work", b"%d" % number, f"_INBOX.stranger.{number}")
        await raw.flush()
        await until(lambda: replies.pending_msgs == 200)
    await raw.close()

    runs = times_noted(programs, "n1", "began")
    why = "NATS delivers a request at most once, so no node remembers those that it ran"
    report.add(
        TWICE, "runs of each, if a stranger sends it twice", max(runs.values()), "1", why=why
    )
    assert set(runs.values()) == {2}


@pytest.mark.timeout(120)
async def test_call_that_may_not_run_twice_never_does(
    server: NatsServer, programs: Programs, until: Until, report: Report, full: bool, seed: int
):
    """However often the caller's connection is cut, no handler runs twice for one call."""
    chance, count, ends = random.Random(seed), 3000 if full else 400, Counter[str]()
    start_node(programs, server.url, "once", "n1")

    async def cut(proxy: Proxy, client: Client) -> None:
        while True:
            await until(lambda: client.bus.transport.connected)
            await asyncio.sleep(chance.uniform(0.02, 0.2))
            proxy.cut()

    async def one(client: Client, number: int) -> None:
        try:
            assert await client.call("once", "work", number, returns=int) == number
            ends["ok"] += 1
        except CallError as failure:
            ends[failure.code.value] += 1

    async with (
        Proxy(server.port) as proxy,
        Client(proxy.url, wait_for_ready=True, timeout=10.0) as client,
    ):
        await nodes_up(client, until, once=1)
        cutting = asyncio.get_running_loop().create_task(cut(proxy, client))
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(one(client, number))
                await asyncio.sleep(0.004)
            await until(lambda: client.bus.transport.reconnects >= 3)
        cutting.cancel()
        cuts = client.bus.transport.reconnects

    runs = times_noted(programs, "n1", "began")
    twice = sum(times > 1 for times in runs.values())
    how = f"{TWICE}: {count:,} calls of a caller that is cut off {cuts} times"
    report.add(how, "calls whose handler ran twice", twice, "0")
    report.add(how, "answered, and cut off", f"{ends['ok']} and {count - ends['ok']}")
    assert twice == 0
    assert set(ends) <= {"ok", "unavailable"}
    assert len(runs) >= ends["ok"]
