"""What the tests of events share: a client that knows nothing of busmicro, and older servers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import nats
import pytest

from busmicro import NatsServer

Ask = Callable[..., Awaitable[dict[str, Any]]]
Older = Callable[[int], AbstractAsyncContextManager[str]]


@pytest.fixture
async def raw(server: NatsServer) -> AsyncIterator[nats.NATS]:
    """A client that knows nothing of busmicro."""
    client = await nats.connect(server.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1)
    yield client
    await client.close()


@pytest.fixture
def ask(raw: nats.NATS) -> Ask:
    """Ask the JetStream API, as any program would."""

    async def ask(subject: str, body: object = None) -> dict[str, Any]:
        payload = b"" if body is None else json.dumps(body).encode()
        reply = await raw.request(f"$JS.API.{subject}", payload, timeout=5)
        answer: dict[str, Any] = json.loads(reply.data)
        return answer

    return ask


@pytest.fixture
def older(server: NatsServer) -> Older:
    """Reach the server by a way on which it says that its JetStream can do less than it can."""

    @asynccontextmanager
    async def reach(level: int) -> AsyncIterator[str]:
        said = b'"level":%d' % level

        async def pass_on(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, lie: bool
        ) -> None:
            with suppress(OSError):
                while chunk := await reader.read(65_536):
                    writer.write(re.sub(rb'"level":\d', said, chunk) if lie else chunk)
                    await writer.drain()
            writer.close()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection("127.0.0.1", server.port)
            await asyncio.gather(pass_on(reader, back, lie=False), pass_on(there, writer, lie=True))

        listening = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with listening:
            yield f"nats://127.0.0.1:{listening.sockets[0].getsockname()[1]}"

    return reach
