"""The pytest plugin that comes with busmicro: a real nats-server in ten milliseconds, or none.

Fixtures: `busmicro_server` (one nats-server a session), `busmicro_client` (a connected client) and
`busmicro_start` (starts services for one test and stops them after it)::

    async def test_hello(busmicro_client, busmicro_start):
        await busmicro_start(service)
        reply = await busmicro_client.call("greeter", "hello", HelloRequest(name="John"))

Without a server there are calls, events that nobody keeps, `$SRV` and all that is made of them:
`busmicro_memory` is the URL of a bus inside the test's own process, new for each test::

    async def test_hello(busmicro_memory):
        await service.start(url=busmicro_memory)
        async with Client(busmicro_memory) as client:
            reply = await client.call("greeter", "hello", HelloRequest(name="John"))
        await service.stop()

Durable topics need JetStream, so a real server: there they raise `NoJetStream`.

Needs `pytest-asyncio`; all but `busmicro_memory` need `busmicro[server]` (or a nats-server on the
PATH).  `FakeClock` is time that a test moves by hand, for whatever takes a `clock=`.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

try:
    import pytest
    import pytest_asyncio
except ImportError as missing:  # pragma: no cover - pytest loads this file, so pytest is there
    raise ImportError("the busmicro fixtures need: pip install pytest pytest-asyncio") from missing

if TYPE_CHECKING:
    from busmicro.client import Client
    from busmicro.embedded import NatsServer
    from busmicro.service import Service

    Start = Callable[[Service], Awaitable[Service]]


class FakeClock:
    """Time that stands still until `advance` moves it."""

    def __init__(self) -> None:
        self._now = 1_000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def now(self) -> float:
        """Seconds since some fixed moment."""
        return self._now

    def wall(self) -> datetime:
        """A date that moves along with `now`."""
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._now)

    async def sleep(self, seconds: float) -> None:
        """Return when `advance` has moved the clock so far."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._numbers), woken))
        await woken

    async def advance(self, seconds: float) -> None:
        """Move the clock, waking sleepers one after another at their own time."""
        end = self._now + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            self._now, _number, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                woken.set_result(None)
            await settle()
        self._now = end


async def settle(turns: int = 20) -> None:
    """Let every task that can run do so, for some turns of the loop."""
    for _ in range(turns):
        await asyncio.sleep(0)


_buses = itertools.count(1)


@pytest.fixture
def busmicro_memory() -> str:
    """The URL of a bus in memory that is this test's alone; it needs no server."""
    return f"memory://test-{next(_buses)}"


@pytest.fixture(scope="session")
def busmicro_server() -> Iterator[NatsServer]:
    """A nats-server with JetStream on loopback, for the whole session."""
    from busmicro.embedded import NatsServer  # noqa: PLC0415 - only for tests that ask

    server = NatsServer()
    with asyncio.Runner() as runner:
        runner.run(server.start())
        yield server
        runner.run(server.stop())


@pytest_asyncio.fixture
async def busmicro_client(busmicro_server: NatsServer) -> AsyncIterator[Client]:
    """A client that is connected to the session's server."""
    from busmicro.client import Client  # noqa: PLC0415 - only for tests that ask

    async with Client(busmicro_server.url) as client:
        yield client


@pytest_asyncio.fixture
async def busmicro_start(busmicro_server: NatsServer) -> AsyncIterator[Start]:
    """Start services on the session's server; they are stopped after the test."""
    started: list[Service] = []

    async def start(service: Service) -> Service:
        await service.start(url=busmicro_server.url)
        started.append(service)
        return service

    yield start
    for service in reversed(started):
        await service.stop(grace=1.0)
