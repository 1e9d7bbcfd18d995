"""Streams take no memory but their window, and leave nothing behind however they end."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import urllib.request
from collections.abc import Awaitable, Callable

import pytest

from busmicro import Client, DeadlineExceeded, NatsServer, NotFound
from busmicro.transport import Frames
from tests.faults.processes import Programs
from tests.faults.report import Report
from tests.faults.streams.chat import Ask, Chat, Reader, numbered, rss_bytes
from tests.faults.streams.ends import calling, serving, start_caller, start_node

WINDOW = 256
READING = 0.001
"""Seconds that a slow reader needs for a message."""
MOST_GROWTH_BYTES = 5_000_000
FOR_EVER = 1_000_000_000
PATIENCE = 20.0
"""Seconds for what pings find out at the latest, where others use the machine."""

Until = Callable[..., Awaitable[None]]


class Watch:
    """What two processes need, from one moment on, and how much waits at this end."""

    def __init__(self, frames: Frames, pid: int) -> None:
        self._frames = frames
        self._pid = pid
        self.longest_queue = 0
        gc.collect()
        self._before = (rss_bytes(), rss_bytes(pid))

    def look(self) -> None:
        """Look how much waits."""
        for link in self._frames._ends.values():
            self.longest_queue = max(self.longest_queue, len(link.end.incoming.waiting))

    def growth_bytes(self) -> tuple[int, int]:
        """Tell how much this process and the other one have grown."""
        gc.collect()
        after = (rss_bytes(), rss_bytes(self._pid))
        return after[0] - self._before[0], after[1] - self._before[1]


def report_memory(report: Report, scenario: str, growth_bytes: tuple[int, int]) -> None:
    """Add how much each process has grown."""
    for who, size_bytes in zip(("this end", "the other end"), growth_bytes, strict=True):
        figure = f"memory of {who} grown, MB"
        report.add(scenario, figure, size_bytes / 1e6, f"≤ {MOST_GROWTH_BYTES / 1e6:g}")


@pytest.mark.timeout(120)
async def test_slow_caller_slows_the_node(
    server: NatsServer, programs: Programs, report: Report, full: bool
):
    """A node that sends all it can to a slow caller sends no more than the window ahead."""
    count = 10_000 if full else 1_000
    reader, watch = Reader(), None
    async with calling(server.url, 5.0) as client:
        node = start_node(programs, server.url)
        async with client.stream("chat", "Chat.count", Ask(to=count), returns=bytes) as stream:
            async for message in stream:
                reader.take(message)
                await asyncio.sleep(READING)
                if reader.received == WINDOW:
                    watch = Watch(client.bus.frames, node.pid)
                elif watch is not None:
                    watch.look()
        assert watch is not None
        growth = watch.growth_bytes()

    must_be_flat(report, f"S26 caller takes {count:,}, 1 ms each", reader, watch, growth)
    assert reader.received == count


@pytest.mark.timeout(120)
async def test_slow_node_slows_the_caller(
    server: NatsServer, programs: Programs, until: Until, report: Report, full: bool
):
    """A caller that sends all it can to a slow node sends no more than the window ahead."""
    count = 10_000 if full else 1_000
    async with serving(server.url, 2.0) as chat:
        chat.pause = READING
        caller = start_caller(programs, server.url, "send", 1, 0)
        await until(lambda: chat.readers and chat.readers[0].received >= WINDOW, timeout=PATIENCE)
        reader, watch = chat.readers[0], Watch(chat.service.bus.frames, caller.pid)
        while reader.received < count:
            watch.look()
            await asyncio.sleep(READING)
        growth = watch.growth_bytes()
        caller.kill()
        await until(lambda: chat.open == 0, timeout=PATIENCE)

    must_be_flat(report, f"S26 node takes {count:,}, 1 ms each", reader, watch, growth)


def must_be_flat(
    report: Report, scenario: str, reader: Reader, watch: Watch, growth: tuple[int, int]
) -> None:
    """Check that messages came in order, and that no more of them waited than may."""
    report.add(scenario, "longest queue", watch.longest_queue, f"≤ {WINDOW}")
    report_memory(report, scenario, growth)
    assert reader.wrong == ""
    assert WINDOW / 2 <= watch.longest_queue <= WINDOW
    assert max(growth) <= MOST_GROWTH_BYTES


# --- however they end -------------------------------------------------------------------------


async def left_early(client: Client) -> None:
    """Leave the block after a few messages."""
    async with client.stream("chat", "Chat.count", Ask(to=FOR_EVER), returns=bytes) as stream:
        for _ in range(3):
            await anext(stream)


async def iterator_dropped(client: Client) -> None:
    """Break out of the iterator of a stub."""
    async for _ in client.stub(Chat, service="chat").count(Ask(to=FOR_EVER)):
        break


async def cancelled(client: Client) -> None:
    """Cancel the task that waits for a message."""

    async def wait() -> None:
        ask = Ask(to=2, pause=60.0)
        async with client.stream("chat", "Chat.count", ask, returns=bytes) as stream:
            await anext(stream)
            came.set()
            await anext(stream)

    came = asyncio.Event()
    waiting = asyncio.get_running_loop().create_task(wait())
    await came.wait()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()


async def failed(client: Client) -> None:
    """Let the handler raise."""
    with pytest.raises(NotFound):
        async for _ in client.stub(Chat, service="chat").count(Ask(to=20, fails_after=10)):
            pass


async def too_late(client: Client) -> None:
    """Let the time run out."""
    ask = Ask(to=2, pause=60.0)
    with pytest.raises(DeadlineExceeded):
        async with client.stream("chat", "Chat.count", ask, returns=bytes, timeout=0.1) as stream:
            async for _ in stream:
                pass


async def left_while_sending(client: Client) -> None:
    """Send some and leave."""
    async with client.stream("chat", "Chat.total", sends=bytes, returns=int) as stream:
        for number in range(1, 20):
            await stream.send(numbered(number))


async def ended_well(client: Client) -> None:
    """Send and take all there is."""
    assert len([m async for m in client.stub(Chat, service="chat").count(Ask(to=300))]) == 300


WAYS = (
    left_early,
    iterator_dropped,
    cancelled,
    failed,
    too_late,
    left_while_sending,
    ended_well,
)
AT_ONCE = 14


@pytest.mark.timeout(180)
async def test_dropped_streams_leave_nothing(
    server: NatsServer, programs: Programs, until: Until, report: Report, full: bool
):
    """Streams that end in every way leave no memory, no subscription and no handler behind."""
    streams = 1000 if full else 140
    async with calling(server.url, 5.0) as client:
        node = start_node(programs, server.url)
        chat = client.stub(Chat, service="chat")

        async def nothing_is_open() -> bool:
            standing = await chat.standing()
            assert standing.wrong == []
            return (standing.open, standing.frames, len(client.bus.frames)) == (0, 0, 0)

        await chat.standing()  # as soon as the node is there
        await drop(client, streams // 2)
        await until(nothing_is_open, timeout=PATIENCE)
        subscriptions, tasks = await count_subscriptions(server), len(asyncio.all_tasks())
        watch = Watch(client.bus.frames, node.pid)
        await drop(client, streams)
        await until(nothing_is_open, timeout=PATIENCE)
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        growth = watch.growth_bytes()
        left = max(0, await count_subscriptions(server) - subscriptions)
        standing = await chat.standing()

    scenario = f"S32 {streams:,} streams dropped in {len(WAYS)} ways"
    report.add(scenario, "subscriptions left", left, "0")
    report.add(scenario, "handlers entered and left", standing.ended)
    report_memory(report, scenario, growth)
    assert left == 0
    assert max(growth) <= MOST_GROWTH_BYTES


async def drop(client: Client, streams: int) -> None:
    """Open streams and drop them, some at once."""
    ways = itertools.cycle(WAYS)
    for _ in range(0, streams, AT_ONCE):
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(next(ways)(client))


async def count_subscriptions(server: NatsServer) -> int:
    """Ask the server how many subscriptions it has."""

    def ask() -> int:
        with urllib.request.urlopen(f"{server.monitoring_url}/subsz", timeout=5) as answer:
            return int(json.load(answer)["num_subscriptions"])

    return await asyncio.to_thread(ask)
