"""A server whose machine loses power keeps what it synced, and a loss does not stay unsaid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from busmicro import NatsServer
from tests.faults.events.disk import FragileDisk, server_config
from tests.faults.events.losses import PROGRAMS, add_losses, programs_told, without
from tests.faults.events.observer import Observer, observing
from tests.faults.events.orders import STREAM
from tests.faults.events.report import add_history
from tests.faults.events.run import Run
from tests.faults.events.stored import ask
from tests.faults.processes import Programs
from tests.faults.report import Report

LONGEST_CUT = 10.0
"""Seconds without an ack around a power cut, which itself takes one or two."""

UNKNOWN = "nats-server tells its clients nothing of sync_interval, so no program can know it"
UNTOLD = "new events had taken the numbers of the lost ones before anybody looked"


async def cut_power(server: NatsServer, disk: FragileDisk) -> None:
    """Take the power away and bring it back: the server starts on what had reached the disk."""
    server.pause()  # from here on nothing is acknowledged
    disk.see()
    server.kill()
    disk.cut()
    await server.restart()


@pytest.mark.timeout(120)
async def test_power_cut_takes_nothing_from_a_server_that_syncs(
    fragile_disk: FragileDisk,
    tmp_path: Path,
    programs: Programs,
    report: Report,
    seed: int,
    full: bool,
):
    """With `sync_always`, every event that was acknowledged is there after a power cut."""
    config = server_config(tmp_path, sync_always=True)
    store = fragile_disk.path / "store"
    async with (
        NatsServer(store=store, config=config) as server,
        observing(server.port) as observer,
    ):
        run = Run(programs, server.url, observer)
        await run.start_consumers(2)
        await run.start_publishers(one=300, many=1500 if full else 600)
        await run.acknowledged_in_all(11_000 if full else 1000)
        await cut_power(server, fragile_disk)
        await run.acknowledged(300)

        history = await run.finish()

    least = 10_000 if full else 0
    scenario = "S36 power cut, sync always"
    add_history(report, scenario, history, gap=LONGEST_CUT, least=least)
    history.must_be_clean(where=programs.logs, seed=seed)
    assert history.failed == [], f"a publisher saw an error; logs: {programs.logs}"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("synced", ["stream and consumer", "stream", "nothing"])
async def test_power_cut_takes_what_was_not_synced_and_every_loss_is_named(
    fragile_disk: FragileDisk,
    tmp_path: Path,
    programs: Programs,
    report: Report,
    seed: int,
    full: bool,
    synced: str,
):
    """Without `sync_always`, acknowledged events may be lost: all others are handled, once."""
    async with (
        NatsServer(store=fragile_disk.path / "store", config=server_config(tmp_path)) as server,
        observing(server.port) as observer,
    ):
        run = Run(programs, server.url, observer, FAULTS_EFFECTS="")
        rates = {"one": 300.0, "many": 1500.0 if full else 600.0}
        if synced == "stream":
            await run.start_publishers(**rates)
            fragile_disk.sync()
        await run.start_consumers(2)
        if synced != "stream":
            await run.start_publishers(**rates)
        if synced == "stream and consumer":
            fragile_disk.sync()
        await run.acknowledged_in_all(11_000 if full else 1000)
        await cut_power(server, fragile_disk)
        await run.acknowledged(300)

        history = await run.finish()

    scenario = f"S37 power cut, default sync, what had reached the disk: {synced}"
    report.add(scenario, "acknowledged", len(history.acked), "≥ 10,000" if full else "")
    lost = add_losses(report, scenario, history)
    told = programs_told(programs)
    report.add(scenario, "programs that were told and said so, of 4", told, "≥ 1", why=UNTOLD)
    if synced == "nothing":  # whoever stands still for a second finds a stream made anew
        assert told >= (len(PROGRAMS) if full else 1)
    without(history, lost).must_be_clean(where=programs.logs, seed=seed)


async def test_no_client_is_told_how_often_its_server_syncs(
    server: NatsServer, observer: Observer, report: Report
):
    """Nothing that JetStream says of itself and of a stream is about what a power cut would take.

    If a nats-server ever says it, `busmicro streams` can warn.
    """
    itself = await ask(observer, "INFO")
    stream = await ask(observer, f"STREAM.CREATE.{STREAM}", name=STREAM, subjects=["orders.>"])

    scenario = "S37 power cut, default sync"
    what = "a warning where the server syncs every two minutes"
    report.add(scenario, what, "README only", "yes", met=False, why=UNKNOWN)
    assert "limits" in itself
    assert stream["config"]["storage"] == "file"
    assert "sync" not in json.dumps([itself, stream])
