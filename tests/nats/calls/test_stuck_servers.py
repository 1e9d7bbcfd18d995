"""A server that takes nothing more holds no call beyond its deadline, nor one that is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from busmicro import Client, DeadlineExceeded, NatsServer, ResourceExhausted, Settings

Stuck = tuple[NatsServer, Client]


@pytest.fixture
async def waiting() -> AsyncIterator[Stuck]:
    """A client beside somebody who takes calls and never answers."""
    async with NatsServer() as server:
        settings = Settings.load(nats_url=server.url, max_buffered_bytes=2_000_000)
        async with Client(settings=settings) as client:
            client.bus.transport.subscribe("rpc.deaf.hear", lambda *_: None)
            await client.bus.transport.barrier()
            yield server, client
            server.resume()


async def fill(server: NatsServer, client: Client) -> None:
    """Stop the server, and publish until no more is taken."""
    server.pause()
    with pytest.raises(ResourceExhausted):
        for _ in range(100):
            client.bus.transport.publish(b"nobody", bytes(500_000))
            await asyncio.sleep(0)
    assert not client.bus.transport.writable


async def test_call_that_cannot_be_sent_ends_at_its_deadline(waiting: Stuck):
    """The caller learns in time that its request has not left, so that it did not run."""
    server, client = waiting
    await fill(server, client)

    async with asyncio.timeout(2.0):
        with pytest.raises(DeadlineExceeded) as told:
            await client.call("deaf", "hear", 1, timeout=0.3)

    assert told.value.not_run


async def test_call_that_was_sent_ends_at_its_deadline(waiting: Stuck):
    """It may have run: nobody is told that it did not, though no word of its end can be sent."""
    server, client = waiting
    call = asyncio.get_running_loop().create_task(client.call("deaf", "hear", 1, timeout=0.5))
    await asyncio.sleep(0.05)
    await fill(server, client)

    async with asyncio.timeout(2.0):
        with pytest.raises(DeadlineExceeded) as told:
            await call

    assert not told.value.not_run


async def test_call_that_is_cancelled_ends_at_once(waiting: Stuck):
    """That no word of it can be sent is no reason to go on, or to begin again."""
    server, client = waiting
    call = asyncio.get_running_loop().create_task(client.call("deaf", "hear", 1, timeout=30.0))
    await asyncio.sleep(0.05)
    await fill(server, client)
    call.cancel()

    async with asyncio.timeout(2.0):
        with pytest.raises(asyncio.CancelledError):
            await call
    assert call.cancelled()
