"""A server whose disk is full says so by silence; nothing waits for ever and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from busmicro import NatsServer
from tests.faults.events.disk import SmallDisk, server_config
from tests.faults.events.observer import observing
from tests.faults.events.refusals import read_refusals
from tests.faults.events.report import add_history, judge_refusals
from tests.faults.events.run import Run
from tests.faults.processes import Programs
from tests.faults.report import Report

BEHIND = 100
"""Events that wait for consumers when the disk gets full; a third of them may be past the gate."""


@pytest.mark.timeout(120)
async def test_full_disk_loses_nothing_and_lets_nobody_wait_for_ever(
    small_disk: SmallDisk,
    tmp_path: Path,
    programs: Programs,
    report: Report,
    seed: int,
    full: bool,
):
    """Publishers get errors in time, consumers finish what is there, then it goes on as before."""
    timeout = 5.0 if full else 1.5
    server = NatsServer(
        store=small_disk.path, config=server_config(tmp_path), binary=small_disk.server
    )
    async with server, observing(server.port) as observer:
        run = Run(programs, server.url, observer, FAULTS_TIMEOUT=str(timeout))
        await run.start_consumers(2, gated=True)
        await run.start_publishers(one=400, many=1200 if full else 400)
        await run.acknowledged(1000 if full else 100)
        run.gate.touch()
        await run.until(lambda: run.has_left(BEHIND, or_more=True))
        small_disk.fill()
        behind = await run.left()
        run.gate.unlink()
        handled_all = await run.time_until(run.caught_up, within=60.0)
        rounds = 3 if full else 1
        await run.until(lambda: run.refused("p0") >= 20 * rounds and run.refused("p1") >= rounds)
        small_disk.make_room()
        await server.restart()  # a stream that could not be written waits for that
        back = await run.acknowledged(100)

        history = await run.finish()

    refusals = [refused for name in ("p0", "p1") for refused in read_refusals(run.log_of(name))]
    scenario = "S42 disk full"
    add_history(report, scenario, history, errors="")
    judge_refusals(report, scenario, refusals, timeout=timeout, full=full)
    report.add(scenario, "events in the disk that waited for consumers", behind)
    report.add(scenario, "all of them handled, disk still full, after, s", handled_all, "≤ 15")
    report.add(scenario, "stored again after space and a restart, s", back, "≤ 5")
    history.must_be_clean(where=programs.logs, seed=seed)
    assert behind > 0, "consumers had nothing left to do when the disk was full"
    assert back <= (5.0 if full else 20.0)
