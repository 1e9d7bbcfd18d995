"""The buses as fixtures: all of them in turn, those with sockets, and the one by TCP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from busmicro import NatsServer
from tests.promises.transport.buses import AnyBus, MemoryBus, ServerBus, free_port

CONFIG = """
write_deadline: "5s"
websocket {{ listen: "127.0.0.1:{ws_port}", no_tls: true }}
authorization {{
  users: [
    {{ user: any, password: pw }}
    {{ user: some, password: pw, permissions: {{
        publish: {{ deny: ["forbidden.>"] }}, subscribe: {{ deny: ["secret.>"] }} }} }}
    {{ user: mine, password: pw, permissions: {{ subscribe: {{ allow: ["_INBOX.mine.>"] }} }} }}
  ]
}}
no_auth_user: any
"""

# nats-py opens a WebSocket with a number of seconds where newer versions of aiohttp want an object.
WS = pytest.param(
    "ws",
    marks=pytest.mark.filterwarnings(
        "ignore:parameter 'timeout' of type 'float':DeprecationWarning"
    ),
)


async def open_server(scheme: str, config: Path) -> AsyncIterator[ServerBus]:
    ws_port = free_port()
    config.write_text(CONFIG.format(ws_port=ws_port))
    async with NatsServer(config=config) as server:
        bus = ServerBus(server, scheme, ws_port)
        try:
            yield bus
        finally:
            await bus.close()


async def open_memory() -> AsyncIterator[MemoryBus]:
    bus = MemoryBus()
    yield bus
    await bus.close()


@pytest.fixture(params=["nats", WS, "memory"])
async def bus(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AnyBus]:
    """A bus of each kind in turn."""
    memory = request.param == "memory"
    async for bus in open_memory() if memory else open_server(request.param, tmp_path / "n.conf"):
        yield bus


@pytest.fixture(params=["nats", WS])
async def socket_bus(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ServerBus]:
    """A server, reached by each kind of URL in turn."""
    async for bus in open_server(request.param, tmp_path / "nats.conf"):
        yield bus


@pytest.fixture
async def tcp_bus(tmp_path: Path) -> AsyncIterator[ServerBus]:
    """A server reached by TCP."""
    async for bus in open_server("nats", tmp_path / "nats.conf"):
        yield bus
