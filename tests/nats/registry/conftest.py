"""What the tests of the registry share: processes that are connected, and closed again."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from busmicro.settings import Settings
from busmicro.timers import Timers
from busmicro.transport import NatsTransport, Replies
from tests.nats.registry.processes import Connect, Process


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Connect processes that are closed in order after the test."""
    started: list[Process] = []

    async def one_more(url: str) -> Process:
        transport = NatsTransport(Settings(nats_url=url))
        await transport.connect()
        replies = Replies(transport, Timers())
        await replies.start()
        started.append(Process(transport, replies))
        return started[-1]

    yield one_more
    for process in started:
        await process.close()
