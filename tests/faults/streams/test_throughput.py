"""How many messages a stream carries from one process to another."""

from __future__ import annotations

from statistics import median

import pytest

from busmicro import Client, NatsServer
from tests.faults.log import now
from tests.faults.processes import Programs
from tests.faults.report import Report
from tests.faults.streams.chat import SIZE_BYTES, Ask
from tests.faults.streams.ends import calling, start_node

TARGET = 50_000
LEAST, LEAST_BESIDE_OTHERS = 10_000, 2_000
"""Messages a second that even a busy machine carries, and one where other tests run."""
ROUNDS = 5


@pytest.mark.timeout(120)
async def test_stream_is_quick(server: NatsServer, programs: Programs, report: Report, full: bool):
    """Messages of 128 bytes at the usual window, from a node in a process of its own."""
    count = 200_000 if full else 20_000
    async with calling(server.url, 5.0) as client:
        start_node(programs, server.url)
        await rate(client, count // 10)  # as soon as the node is there, and warm
        rates = [await rate(client, count) for _ in range(ROUNDS)]

    scenario = f"S27 {count:,} messages of {SIZE_BYTES} B, two processes"
    usual = round(median(rates))
    why = f"{min(rates):,.0f} to {max(rates):,.0f} in {ROUNDS} rounds"
    report.add(scenario, "messages a second, usually", usual, f"≥ {TARGET:,}", why=why)
    assert usual >= (LEAST if full else LEAST_BESIDE_OTHERS)


async def rate(client: Client, count: int) -> float:
    """Take so many messages, and return how many a second came."""
    came = 0
    async with client.stream("chat", "Chat.count", Ask(to=count), returns=bytes) as stream:
        await anext(stream)
        began = now()
        async for _ in stream:
            came += 1
    assert came == count - 1
    return came / (now() - began)
