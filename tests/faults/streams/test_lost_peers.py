"""The end of a stream whose other end dies, freezes or goes silent hears of it in time."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import Awaitable, Callable

import pytest

from busmicro import Client, NatsServer, Unavailable
from busmicro.rpc.callstream import CallStream
from tests.faults.log import now
from tests.faults.processes import Programs
from tests.faults.proxy import Proxy
from tests.faults.report import Report
from tests.faults.streams.chat import Ask, Chat, Reader, numbered
from tests.faults.streams.ends import calling, serving, start_caller, start_node

WHILE_SENDING = 0.1
"""Seconds in which the death of the other end is noticed while something is sent to it."""
LATE, LATE_BESIDE_OTHERS = 3.0, 10.0
"""The same where the other end had stopped taking before, and where other tests run."""
SELDOM = 30.0
"""Seconds of silence before a ping, where it is not a ping that shall notice."""
FOR_EVER = 1_000_000_000
NUMBERS = {signal.SIGKILL: "S28", signal.SIGSTOP: "S29"}

Until = Callable[..., Awaitable[None]]


@pytest.fixture
def interval(full: bool) -> float:
    """Seconds of silence before a ping: the default, or little."""
    return 5.0 if full else 0.7  # in three of them a process may stand still for a second


@pytest.fixture
def longest_silence(interval: float, full: bool) -> float:
    """Seconds in which a silent end is given up."""
    return 3 * interval + (1 if full else 6)


async def use(stream: CallStream[bytes, object], way: str, pause: float) -> None:
    """Send for ever, or take for ever."""
    if way == "take":
        async for _ in stream:
            pass
    for number in itertools.count(1):
        await stream.send(numbered(number))
        if pause:
            await asyncio.sleep(pause)


def target(fault: signal.Signals, interval: float) -> str:
    """Say when an idle end should be given up: a dead one does not answer, a frozen one may yet."""
    return f"≤ {3 * interval + (fault == signal.SIGSTOP):g}"


def opening(client: Client, way: str, pause: float = 0.0):
    if way == "take":
        return client.stream("chat", "Chat.count", Ask(to=FOR_EVER, pause=pause), returns=bytes)
    return client.stream("chat", "Chat.total", sends=bytes, returns=int)


async def nothing_is_left(client: Client) -> bool:
    """Is every handler of the node left and every stream forgotten?"""
    standing = await client.stub(Chat, service="chat").standing()
    assert standing.wrong == []
    return (standing.open, standing.frames) == (0, 0)


def must_be_quick(report: Report, scenario: str, took: list[float], *, full: bool) -> None:
    """Check that a death was noticed at once; a machine that is busy may be late now and then."""
    usual = sorted(took)[len(took) // 2]
    report.add(scenario, "noticed after, s, usually", usual, f"≤ {WHILE_SENDING}")
    report.add(scenario, "noticed after, s, at worst", max(took))
    assert max(took) <= (LATE if full else LATE_BESIDE_OTHERS)
    assert usual <= WHILE_SENDING or not full


@pytest.mark.timeout(150)
@pytest.mark.parametrize("pause", [0.0, 0.005], ids=["flat out", "with pauses"])
async def test_dead_node_is_noticed_while_the_caller_sends(
    server: NatsServer, programs: Programs, report: Report, full: bool, pause: float
):
    """SIGKILL of the node: the caller that sends hears `unavailable` within 100 ms."""
    took = []
    for _ in range(11 if full else 1):
        async with calling(server.url, SELDOM) as client:
            node = start_node(programs, server.url)
            async with opening(client, "send", pause) as stream:
                sending = asyncio.get_running_loop().create_task(use(stream, "send", pause))
                await asyncio.sleep(0.2)
                killed = now()
                node.kill()
                with pytest.raises(Unavailable):
                    await sending
                took.append(now() - killed)
            node.wait()
            assert len(client.bus.frames) == 0

    how = "flat out" if pause == 0 else f"every {pause} s"
    must_be_quick(report, f"S28 node killed, caller sends {how}", took, full=full)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("pause", [0.0, 0.005], ids=["flat out", "with pauses"])
async def test_dead_caller_is_noticed_while_the_node_sends(
    server: NatsServer, programs: Programs, until: Until, report: Report, full: bool, pause: float
):
    """SIGKILL of the caller: the handler that sends is closed within 100 ms."""
    took = []
    async with serving(server.url, SELDOM) as chat:
        for _ in range(11 if full else 1):
            caller = start_caller(programs, server.url, "take", 1, pause)
            await until(lambda: chat.open == 1, timeout=20.0)
            await asyncio.sleep(0.2)
            killed = now()
            caller.kill()
            await until(lambda: chat.open == 0, timeout=20.0)
            caller.wait()
            took.append(chat.ended[-1] - killed)
        await until(lambda: len(chat.service.bus.frames) == 0)

    how = "flat out" if pause == 0 else f"every {pause} s"
    must_be_quick(report, f"S28 caller killed, node sends {how}", took, full=full)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
async def test_lost_node_is_noticed_when_nothing_is_sent(
    server: NatsServer,
    programs: Programs,
    until: Until,
    report: Report,
    interval: float,
    longest_silence: float,
    fault: signal.Signals,
):
    """A caller that waits hears `unavailable`, by pings, when its node is killed or frozen."""
    async with calling(server.url, interval) as client:
        node = start_node(programs, server.url)
        async with opening(client, "take", 3600.0) as stream:
            await anext(stream)
            lost = now()
            node.send_signal(fault)
            with pytest.raises(Unavailable):
                await anext(stream)
            took = now() - lost
        assert len(client.bus.frames) == 0
        if fault == signal.SIGSTOP:  # it finds out when it runs again
            node.send_signal(signal.SIGCONT)
            await until(lambda: nothing_is_left(client), timeout=30.0)

    scenario = f"{NUMBERS[fault]} node {fault.name} while nothing is sent, ping every {interval} s"
    report.add(scenario, "noticed after, s", took, target(fault, interval))
    assert took <= longest_silence


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
@pytest.mark.parametrize("way", ["sending", "taking"])
async def test_lost_caller_with_many_streams_leaves_nothing(
    server: NatsServer,
    programs: Programs,
    until: Until,
    report: Report,
    full: bool,
    interval: float,
    longest_silence: float,
    fault: signal.Signals,
    way: str,
):
    """A caller with 200 idle streams dies or freezes: every handler is closed, nothing is left."""
    streams = 200 if full else 100
    async with serving(server.url, interval) as chat:
        how = {"sending": ("send", 3600), "taking": ("take", 3600)}[way]
        caller = start_caller(programs, server.url, how[0], streams, how[1])
        await until(lambda: chat.open == streams, timeout=20.0)
        lost = now()
        caller.send_signal(fault)
        await until(lambda: chat.open == 0, timeout=longest_silence + 5)
        took = max(chat.ended) - lost
        await until(lambda: len(chat.service.bus.frames) == 0)
        assert len(chat.ended) == streams

    who = f"{NUMBERS[fault]} caller of {streams} streams {fault.name}"
    scenario = f"{who}, last {way}, ping every {interval} s"
    report.add(scenario, "all handlers closed after, s", took, target(fault, interval))
    assert took <= longest_silence


async def test_dead_caller_with_many_streams_is_noticed_while_the_node_sends(
    server: NatsServer, programs: Programs, until: Until, report: Report, full: bool
):
    """A caller with 200 streams that the node sends on dies: each handler is closed in a second."""
    streams = 200 if full else 100
    async with serving(server.url, SELDOM) as chat:
        caller = start_caller(programs, server.url, "take", streams, 0.02)
        await until(lambda: chat.open == streams, timeout=20.0)
        killed = now()
        caller.kill()
        await until(lambda: chat.open == 0, timeout=20.0)
        took = max(chat.ended) - killed
        await until(lambda: len(chat.service.bus.frames) == 0)
        assert len(chat.ended) == streams

    scenario = f"S28 caller of {streams} streams killed, node sends"
    why = f"all {streams} handlers end in one process, with other work on the machine"
    report.add(scenario, "all handlers closed after, s", took, f"≤ {WHILE_SENDING}", why=why)
    assert took <= (1.0 if full else LATE_BESIDE_OTHERS)


@pytest.mark.parametrize("grace", [0.06, 5.0])
async def test_end_that_is_away_for_longer_than_its_grace_is_told_so(
    server: NatsServer,
    programs: Programs,
    report: Report,
    until: Until,
    full: bool,
    grace: float,
):
    """A while without the node's connection: both ends hear it, or with more grace go on."""
    taken, error, count = 0, "", 1000
    away = 0.5 if full or grace > 0.5 else 4.0  # or until it is heard, by whoever stood still
    async with Proxy(server.port) as proxy, calling(server.url, 5.0, stream_grace=grace) as client:
        start_node(programs, proxy.url)
        try:
            async with opening(client, "send") as stream:
                for number in range(1, count + 1):
                    await stream.send(numbered(number))
                    await asyncio.sleep(0.0005)
                    if number == count // 2:
                        proxy.cut()
                        proxy.freeze()  # the node connects again, and hears nothing
                        asyncio.get_running_loop().call_later(away, proxy.thaw)
                taken = await stream.result()
        except Unavailable as gone:
            error = str(gone)
        proxy.thaw()

        await until(lambda: nothing_is_left(client), timeout=30.0)
        assert len(client.bus.frames) == 0

    scenario = f"S30 node away for {away} s, grace {grace} s"
    report.add(scenario, "messages taken", taken, f"{count:,}, or an error")
    report.add(scenario, "error", error or "none")
    assert (taken, bool(error)) == ((count, False) if grace > 0.5 else (0, True))


async def test_frozen_for_less_than_that_goes_on(
    server: NatsServer, programs: Programs, report: Report, full: bool
):
    """A node that hangs for two pings goes on where it was: nothing lost, nothing twice."""
    interval, pings = (5.0, 2.3) if full else (1.5, 2.1)  # a second less than what is too long
    async with calling(server.url, interval) as client:
        node = start_node(programs, server.url)
        reader, count = Reader(), 400
        ask = Ask(to=count, pause=0.002)
        async with client.stream("chat", "Chat.count", ask, returns=bytes) as stream:
            async for message in stream:
                reader.take(message)
                if reader.received == count // 2:
                    node.send_signal(signal.SIGSTOP)
                    asyncio.get_running_loop().call_later(
                        pings * interval, node.send_signal, signal.SIGCONT
                    )

    scenario = f"S29 node frozen for {pings} pings of {interval} s"
    report.add(scenario, "messages", reader.received, str(count))
    assert (reader.received, reader.wrong) == (count, "")
    assert reader.stall >= interval, "it was not frozen while messages came"
