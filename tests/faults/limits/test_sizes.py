"""Messages at the limit of what the server takes: refused here or whole there, the line lives."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from busmicro import Client, NatsServer, PayloadTooLarge, ResourceExhausted, Service, Settings
from tests.faults.report import Report

SIZES = "S19 messages of the largest size, less and more, headers counted"
MEBIBYTE = 1024 * 1024
HEADER = b"NATS/1.0\r\nX-Some: header\r\n\r\n"


@asynccontextmanager
async def echoing(url: str, **settings: object) -> AsyncIterator[tuple[Client, Service]]:
    """Serve echoes, and call them."""
    given = Settings.load(nats_url=url, **settings)
    service = Service("echo", settings=given)

    @service.rpc
    async def back(payload: bytes) -> bytes:
        return payload

    @service.rpc
    async def make(size_bytes: int) -> bytes:
        return bytes(size_bytes)

    @service.rpc
    async def all_back(payloads: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for payload in payloads:
            yield payload

    async with service, Client(settings=given, timeout=20.0) as client:
        yield client, service


async def passes(client: Client, size_bytes: int) -> bool:
    """Call with a payload of this size, and tell whether it came back whole."""
    payload = bytes(size_bytes)
    try:
        return await client.call("echo", "back", payload, returns=bytes) == payload
    except PayloadTooLarge:
        return False


async def largest(client: Client) -> int:
    """Find out by halving which is the largest payload that a call takes."""
    taken, refused = 0, 2 * MEBIBYTE
    while refused - taken > 1:
        size_bytes = (taken + refused) // 2
        if await passes(client, size_bytes):
            taken = size_bytes
        else:
            refused = size_bytes
    return taken


@pytest.mark.parametrize("header", [b"", HEADER], ids=["bare", "with a header"])
async def test_message_of_the_largest_size_passes_and_one_byte_more_is_refused(
    server: NatsServer, report: Report, header: bytes
):
    """At the limit a message arrives whole; beyond it the publisher is told and nothing is sent."""
    arrived: asyncio.Queue[int] = asyncio.Queue()
    async with echoing(server.url) as (client, service):
        transport = client.bus.transport
        service.bus.transport.subscribe("weighed", lambda *parts: arrived.put_nowait(len(parts[3])))
        await service.bus.transport.barrier()
        most = transport.max_payload_bytes
        for more in (-1, 0):
            transport.publish(b"weighed", bytes(most + more - len(header)), b"", header)
            async with asyncio.timeout(10):
                assert await arrived.get() == most + more - len(header)
        for more in (1, 10 * MEBIBYTE):
            with pytest.raises(PayloadTooLarge):
                transport.publish(b"weighed", bytes(most + more - len(header)), b"", header)
        await transport.barrier()
        lost = transport.reconnects + service.bus.transport.reconnects

    how = f"{SIZES}, {'with' if header else 'without'} a header"
    report.add(how, "connections lost", lost, "0")
    assert lost == 0
    assert arrived.empty()


@pytest.mark.timeout(120)
async def test_largest_call_passes_and_one_byte_more_is_told_at_both_ends(
    server: NatsServer, report: Report, full: bool, seed: int
):
    """Requests and replies around the limit: answered, or told as what they are; the line lives."""
    chance, told = random.Random(seed), 0
    async with echoing(server.url) as (client, service):
        most = await largest(client)
        sizes = [most - 1, most, most + 1, most + 2, 10 * MEBIBYTE]
        sizes += [most + chance.randint(-200, 200) for _ in range(200 if full else 20)]
        for size_bytes in sizes:
            assert await passes(client, size_bytes) == (size_bytes <= most)
        for size_bytes in (10 * MEBIBYTE, client.bus.transport.max_payload_bytes + 1):
            with pytest.raises(ResourceExhausted, match="could not be sent"):
                await client.call("echo", "make", size_bytes, returns=bytes)
            told += 1
        lost = client.bus.transport.reconnects + service.bus.transport.reconnects

    overhead = client.bus.transport.max_payload_bytes - most
    report.add(f"{SIZES}, calls", "connections lost", lost, "0")
    report.add(f"{SIZES}, calls", "bytes of a request that are headers", overhead)
    assert (lost, told) == (0, 2)
    assert 0 < overhead < 200


@pytest.mark.parametrize("claim_check_bytes", [None, 100_000], ids=["pieces", "claim check"])
async def test_message_of_10_mib_goes_through_a_stream(
    server: NatsServer, report: Report, full: bool, seed: int, claim_check_bytes: int | None
):
    """What no NATS message can hold goes there and back in a stream, byte for byte."""
    payload = random.Random(seed).randbytes(10 * MEBIBYTE)
    count, whole = 5 if full else 1, 0
    async with (
        echoing(server.url, claim_check_bytes=claim_check_bytes) as (client, service),
        client.stream("echo", "all_back", sends=bytes, returns=bytes) as stream,
    ):
        for _ in range(count):
            await stream.send(payload)
            whole += await anext(stream) == payload
        await stream.close_send()
        lost = client.bus.transport.reconnects + service.bus.transport.reconnects

    how = f"{SIZES}, 10 MiB in a stream, {'by claim check' if claim_check_bytes else 'in pieces'}"
    report.add(how, "connections lost", lost, "0")
    report.add(how, "messages whole there and back", whole, f"= {count}")
    assert (lost, whole) == (0, count)
