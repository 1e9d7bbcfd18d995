"""Nodes that are killed or replaced while they are called: what callers notice of it."""

from __future__ import annotations

import random

import pytest

from busmicro import Client, DeadlineExceeded, NatsServer
from busmicro.wrappers import Retry
from tests.faults.calls.load import Load, p99
from tests.faults.calls.nodes import logs, start_nodes
from tests.faults.log import now
from tests.faults.processes import Programs
from tests.faults.report import Report

RATE = 500
SHORT_RATE = 200
"""Calls a second of the short form, which shares the machine with other tests."""
ATTEMPT = 0.25
"""Seconds that an attempt gets where it is tried again."""
SHORT_ATTEMPT = 2.0
"""The same in the short form: no failure of busmicro if the machine stands still for a second."""


async def test_killed_node_fails_no_call_that_may_run_twice(
    server: NatsServer, programs: Programs, report: Report, seed: int, full: bool
):
    """SIGKILL of one of three nodes at 500 calls/s: idempotent calls, tried again, all succeed.

    It is killed when few calls are under way: more failures at once than the budget of the retries
    has room for would not be tried again, as they must not be (S14).
    """
    calls, rate, attempt = (3000, RATE, ATTEMPT) if full else (400, SHORT_RATE, SHORT_ATTEMPT)
    await start_nodes(programs, server.url, "n0", "n1", "n2")
    wrappers = [Retry(3, attempt_timeout=attempt)]
    async with (
        Client(server.url, timeout=8 * attempt, wrappers=wrappers) as client,
        Load(client.with_options(idempotent=True), rate) as load,
    ):
        await load.made(random.Random(seed).randrange(calls // 4, calls // 2))
        await load.few_under_way()
        programs.kill("n0")
        killed_at = now()
        await load.made(max(calls - load.calls, calls // 2))

    history = load.read(*logs(programs, "n0", "n1", "n2"))
    history.twice_allowed = True
    slowest = max(call.took for call in load.ended)
    scenario = f"S1 a node of three killed at {rate} calls/s, tried again"
    report.add(scenario, f"failed, of {len(load.ended):,}", len(load.failures), "0")
    why = "the pause before the next attempt alone may take the 50 ms"
    report.add(scenario, "the slowest call, s", slowest, f"≤ {attempt + 0.05:g}", why=why)
    report.add(scenario, "begun twice", len(history.done_twice()))
    history.must_be_clean(where=programs.logs, seed=seed)
    assert load.failures == []
    assert slowest <= attempt + (0.25 if full else 2.5)  # a pause, and what else runs here
    assert {call.node for call in load.since(killed_at)} == {"n1", "n2"}


async def test_killed_node_fails_only_what_it_was_working_on(
    server: NatsServer, programs: Programs, report: Report, seed: int, full: bool
):
    """SIGKILL without retries: only calls in flight on that node can fail, by their deadline."""
    calls, rate, timeout = (3000, RATE, 1.0) if full else (400, SHORT_RATE, 2.5)
    await start_nodes(programs, server.url, "n0", "n1", "n2")
    async with (
        Client(server.url, timeout=timeout, wrappers=[Retry(1)]) as client,
        Load(client, rate) as load,
    ):
        await load.made(random.Random(seed).randrange(calls // 4, calls // 2))
        await load.few_under_way()
        programs.kill("n0")
        killed_at = now()
        await load.made(max(calls - load.calls, calls // 2))

    history = load.read(*logs(programs, "n0", "n1", "n2"))
    left_undone = len(set(history.begun) - set(history.done))
    late = [call for call in load.failures if call.began > killed_at + 0.05]
    scenario = f"S2 a node of three killed at {rate} calls/s, not tried again"
    at_most = max(1, round(0.002 * 3000))
    report.add(scenario, f"failed, of {len(load.ended):,}", len(load.failures), f"≤ {at_most}")
    report.add(scenario, "of them made after the kill", len(late), "0")
    report.add(scenario, "begun by the node and left undone", left_undone)
    history.must_be_clean(where=programs.logs, seed=seed)
    assert [call for call in late if full or call.began > killed_at + 1.0] == []
    assert all(isinstance(call.failure, DeadlineExceeded) for call in load.failures)
    assert len(load.failures) <= (15 if full else 40)  # about one is in flight on each node
    answered = {call.node for call in load.since(killed_at) if not call.failure}
    assert answered == {"n1", "n2"}


@pytest.mark.timeout(90)
async def test_rolling_restart_under_load_fails_no_call(
    server: NatsServer, programs: Programs, report: Report, seed: int, full: bool
):
    """Three nodes are replaced one by one by SIGTERM at 500 calls/s: 0 of >= 3,000 fail."""
    old, new = ("n0", "n1", "n2"), ("m0", "m1", "m2")
    calls, rate, leaving_calls = *((3000, RATE) if full else (900, SHORT_RATE)), []
    await start_nodes(programs, server.url, *old)
    async with Client(server.url) as client, Load(client, rate) as load:
        await load.made(calls // 2 if full else calls // 4)
        quiet = list(load.ended)
        for leaving, coming in zip(old, new, strict=True):
            await start_nodes(programs, server.url, coming)
            before = len(load.ended)
            assert await programs.end(leaving) == {leaving: 0}
            await load.made(random.Random(seed).randrange(50, 400 if full else 100))
            leaving_calls += load.ended[before:]
        meanwhile = load.ended[len(quiet) :]
        await load.made(max(0, calls - load.calls))

    history = load.read(*logs(programs, *old, *new))
    scenario = f"S3 three nodes replaced one by one at {rate} calls/s"
    times = p99(meanwhile) / p99(quiet)
    report.add(scenario, f"failed, of {len(load.ended):,}", len(load.failures), "0")
    report.add(scenario, "p99 before, ms", p99(quiet) * 1e3)
    report.add(scenario, "p99 meanwhile, ms", p99(meanwhile) * 1e3)
    report.add(
        scenario, "p99 while one leaves, times before", p99(leaving_calls) / p99(quiet), "≤ 2"
    )
    why = "a node that starts takes 0.6 s of one of the cores that callers and nodes work on"
    report.add(scenario, "p99 meanwhile, times before", times, "≤ 2", why=why)
    history.must_be_clean(where=programs.logs, seed=seed)
    assert load.calls >= calls
    assert load.failures == []
    assert {call.node for call in load.ended} == {*old, *new}
