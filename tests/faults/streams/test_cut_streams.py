"""Connections that are cut and servers that die or freeze lose no message of a stream."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable

import pytest

from busmicro import NatsServer, NotFound
from tests.faults.processes import Programs
from tests.faults.proxy import Proxy
from tests.faults.report import Report
from tests.faults.streams.chat import Ask, Chat, Reader
from tests.faults.streams.ends import calling, start_node
from tests.faults.streams.exchange import REPAIR, Exchange, Outcome

Until = Callable[..., Awaitable[None]]

GRACE = 10.0
"""Seconds for the other end to connect again; this machine may be busy with other tests."""
LONGEST_STALL = 1.0
"""Seconds without a message around a cut, of which connecting again takes most."""
LONGEST_RESTART = 2.0
"""The same around the death of a server, which is up again within one."""


def must_be_whole(outcomes: list[Outcome], count: int, *, streams: int = 1) -> None:
    """Check that every message came, each once and in order, at both ends."""
    assert len(outcomes) == streams
    assert {outcome.wrong for outcome in outcomes} == {""}
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    assert {(outcome.received, outcome.told) for outcome in outcomes} == {(count, count)}


def report_exchange(
    report: Report, scenario: str, outcomes: list[Outcome], count: int, *, stall: float = 0.0
) -> None:
    """Add the figures of a run; `stall` is what the longest time without a message may be, if any.

    Many streams stall each other: there it says nothing.
    """
    wrong = sum(
        bool(outcome.wrong or outcome.error) or (outcome.received, outcome.told) != (count, count)
        for outcome in outcomes
    )
    report.add(scenario, "streams not whole", wrong, "0")
    report.add(scenario, "seconds", max(outcome.took for outcome in outcomes))
    longest = max(outcome.stall for outcome in outcomes)
    report.add(scenario, "longest stall, s", longest, f"≤ {stall:g}" if stall else "")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("side", ["caller", "node", "either"])
async def test_cut_connections_lose_nothing(
    server: NatsServer, programs: Programs, report: Report, seed: int, full: bool, side: str
):
    """Numbered messages each way while one end's connection is reset: all there, in order, once."""
    count, cuts = (100_000, 20) if full else (10_000, 4)
    run = CutRun(server, programs, seed, count, cuts)
    outcomes = await run.finish(side, BUSMICRO_STREAM_GRACE=str(GRACE))

    scenario = f"S30 {count:,} each way, {side}'s connection cut {run.done} times"
    report_exchange(report, scenario, outcomes, count, stall=LONGEST_STALL)
    report.add(scenario, "repairs asked for", run.repairs)
    must_be_whole(outcomes, count)
    assert run.done == cuts


@pytest.mark.timeout(240)
async def test_cuts_are_never_silent(
    server: NatsServer, programs: Programs, report: Report, seed: int, full: bool
):
    """With the usual grace too a stream is whole after cuts, or it ends with an error."""
    count, cuts = (100_000, 20) if full else (10_000, 4)
    run = CutRun(server, programs, seed, count, cuts)
    outcome = (await run.finish("either"))[0]

    scenario = f"S30 {count:,} each way, {run.done} cuts, usual grace"
    report.add(scenario, "error", outcome.error or "none", "none, but none is silent")
    report.add(scenario, "longest stall, s", outcome.stall, f"≤ {LONGEST_STALL:g}")
    assert outcome.wrong == ""
    if outcome.error:
        assert outcome.error.startswith(("Unavailable(", "DataLoss("))
    else:
        must_be_whole([outcome], count)


class CutRun:
    """One stream with numbered messages each way, and cuts all along it."""

    def __init__(
        self, server: NatsServer, programs: Programs, seed: int, count: int, cuts: int
    ) -> None:
        self._port = server.port
        self._programs = programs
        self._chance = random.Random(seed)
        self._count = count
        self._cuts = cuts
        self.done = 0
        """Cuts made while messages came."""
        self.repairs = 0
        """How often an end has asked for what was lost."""

    async def finish(self, side: str, **env: str) -> list[Outcome]:
        """Cut the connection of one side, or of either in turn; return what became of it."""
        async with (
            Proxy(self._port, counting=REPAIR) as caller_way,
            Proxy(self._port, counting=REPAIR) as node_way,
        ):
            ways = {"caller": [caller_way], "node": [node_way], "either": [caller_way, node_way]}
            exchange = Exchange(self._programs, caller_way.url, node_way.url, **env)
            await exchange.start("exchange", 1, self._count)
            for way in itertools.islice(itertools.cycle(ways[side]), self._cuts):
                if await exchange.came(self._count * (self.done + 1) // (self._cuts + 1)):
                    await asyncio.sleep(self._chance.uniform(0.0, 0.03))
                    way.cut()
                    self.done += 1
            outcomes = await exchange.finish(within=120.0)
            self.repairs = caller_way.counted + node_way.counted
        return outcomes


@pytest.mark.timeout(240)
async def test_server_killed_or_frozen_loses_nothing(
    server: NatsServer, programs: Programs, report: Report, seed: int, full: bool
):
    """The server dies thrice amid numbered messages, then hangs: all there, in order, once."""
    chance = random.Random(seed)
    count, kills, frozen = (100_000, 3, 3.0) if full else (10_000, 1, 0.5)
    exchange = Exchange(programs, server.url, server.url)
    await exchange.start("exchange", 1, count)
    done = 0
    for number in range(kills + 1):
        if not await exchange.came(count * (number + 1) // (kills + 2)):
            break
        done += 1
        await asyncio.sleep(chance.uniform(0.0, 0.03))
        if number < kills:
            server.kill()
            await asyncio.sleep(chance.uniform(0.0, 0.5))
            await server.restart()
        else:
            server.pause()
            await asyncio.sleep(frozen)
            server.resume()
    outcomes = await exchange.finish(within=120.0)

    scenario = f"S30 {count:,} each way, server killed {kills} times, frozen {frozen} s"
    report_exchange(report, scenario, outcomes, count, stall=frozen + LONGEST_RESTART)
    must_be_whole(outcomes, count)
    assert done == kills + 1


@pytest.mark.timeout(240)
async def test_many_streams_survive_cuts(
    server: NatsServer, programs: Programs, report: Report, seed: int, full: bool
):
    """Streams open at once between two processes all complete while connections are reset."""
    chance = random.Random(seed)
    streams, count, cuts = (500, 200, 10) if full else (100, 50, 2)
    async with Proxy(server.port) as caller_way, Proxy(server.port) as node_way:
        env = {"BUSMICRO_MAX_STREAMS_PER_CALLER": "1000", "BUSMICRO_STREAM_GRACE": str(GRACE)}
        exchange = Exchange(programs, caller_way.url, node_way.url, **env)
        await exchange.start("exchange", streams, count)
        done = 0
        for number in range(cuts):
            await asyncio.sleep(chance.uniform(0.0, 0.03))
            if await exchange.came(streams * count * number // (cuts + 1)):
                (caller_way, node_way)[number % 2].cut()
                done += 1
        outcomes = await exchange.finish(within=120.0)

    scenario = f"S30 {streams} streams at once, {count} each way, {cuts} cuts"
    report_exchange(report, scenario, outcomes, count)
    must_be_whole(outcomes, count, streams=streams)
    assert done == cuts


@pytest.mark.timeout(120)
async def test_error_comes_after_its_messages_through_cuts(
    server: NatsServer, programs: Programs, until: Until, report: Report, seed: int, full: bool
):
    """A handler raises after ten messages amid cuts: the ten arrive, then what it raised."""
    chance = random.Random(seed)
    rounds = 100 if full else 10
    async with (
        Proxy(server.port) as caller_way,
        Proxy(server.port) as node_way,
        calling(caller_way.url, 5.0, stream_grace=GRACE) as client,
    ):
        start_node(programs, node_way.url, BUSMICRO_STREAM_GRACE=str(GRACE))
        chat = client.stub(Chat, service="chat")
        await chat.standing()  # as soon as the node is there
        for _ in range(rounds):
            reader, way = Reader(), chance.choice([caller_way, node_way])
            cut = Cut(way, chance.uniform(0.0, 0.03))
            with pytest.raises(NotFound, match="there are 10"):
                async for message in chat.count(Ask(to=20, pause=0.002, fails_after=10)):
                    reader.take(message)
                    cut.soon()
            assert (reader.received, reader.wrong) == (10, "")
            await until(cut.is_over)  # else the next request could be lost on its way

    report.add(
        f"S30 {rounds} handlers raise amid cuts", "all messages, then the error", rounds, "all"
    )


class Cut:
    """One cut, some time after something has happened."""

    def __init__(self, way: Proxy, later: float) -> None:
        self._way = way
        self._later = later
        self._asked = False
        self._connections = way.accepted

    def soon(self) -> None:
        """Have the connection cut; not an error if that was said before."""
        if not self._asked:
            self._asked = True
            asyncio.get_running_loop().call_later(self._later, self._way.cut)

    def is_over(self) -> bool:
        """Is there a connection again?"""
        return self._way.accepted > self._connections and self._way.connections == 1
