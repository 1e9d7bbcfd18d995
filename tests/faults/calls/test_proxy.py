"""The proxy is the bad network that it says it is: it cuts, freezes, delays, crumbles, narrows."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from busmicro import NatsServer
from tests.faults.log import now
from tests.faults.proxy import Network, Proxy


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """Have a server that sends everything back; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):  # it ends with a reset
            while chunk := await reader.read(65_536):
                writer.write(chunk)
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


class Ear(asyncio.Protocol):
    """Notes each piece as it comes, until all has come."""

    def __init__(self, size_bytes: int) -> None:
        self.pieces: list[tuple[float, bytes]] = []
        self.all_heard = asyncio.Event()
        self._missing = size_bytes

    def data_received(self, data: bytes) -> None:
        self.pieces.append((now(), data))
        self._missing -= len(data)
        if self._missing <= 0:
            self.all_heard.set()

    @property
    def heard(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)


async def said_back(network: Network, payloads: list[bytes]) -> tuple[float, Ear]:
    """Say these through such a network to an echo; return when, and what came back."""
    ear = Ear(sum(map(len, payloads)))
    async with asyncio.timeout(20), echo() as port, Proxy(port, network=network) as proxy:
        loop = asyncio.get_running_loop()
        wire, _ = await loop.create_connection(lambda: ear, "127.0.0.1", proxy.port)
        began = now()
        for payload in payloads:
            wire.write(payload)
            await asyncio.sleep(0.01)
        await ear.all_heard.wait()
        wire.abort()
    assert ear.heard == b"".join(payloads)
    return began, ear


async def test_proxy_cuts_and_freezes(server: NatsServer):
    """Frozen means silent, and a cut is a reset."""
    async with Proxy(server.port) as proxy, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert (await reader.readline()).startswith(b"INFO ")
        writer.write(b"CONNECT {}\r\nPING\r\n")
        assert await _line_after(reader, b"PONG")
        assert proxy.connections == 1

        proxy.freeze()
        writer.write(b"PING\r\n")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await reader.readline()
        proxy.thaw()
        assert await _line_after(reader, b"PONG")

        proxy.cut()
        with pytest.raises(ConnectionResetError):
            while await reader.readline():
                pass  # it may have said something just before
        writer.transport.abort()


async def _line_after(reader: asyncio.StreamReader, wanted: bytes) -> bool:
    while (line := await reader.readline()).startswith((b"+OK", b"PING", b"INFO")):
        pass  # what the server says of its own accord
    return line.startswith(wanted)


async def test_latency_delays_each_way_and_keeps_the_order():
    """Everything takes its time there and back, more or less, and nothing overtakes."""
    payloads = [b"%03d," % number for number in range(30)]
    began, ear = await said_back(Network(latency=0.1, jitter=0.05, seed=3), payloads)
    first = ear.pieces[0][0] - began
    assert 0.1 <= first <= 2.0
    pauses = {
        round(at - before, 3)
        for (before, _), (at, _) in zip(ear.pieces, ear.pieces[1:], strict=False)
    }
    assert len(pauses) > 1


async def test_slices_are_small_and_together_what_was_sent():
    """What was sent as a whole comes in slices of 1 to 7 bytes, and not one is lost."""
    payload = random.Random(4).randbytes(2_000)
    _, ear = await said_back(Network(slice_bytes=7, seed=4), [payload])
    sizes = sorted(len(piece) for _, piece in ear.pieces)
    assert sizes[len(sizes) // 2] <= 3 * 7  # some arrive together
    assert len(set(sizes)) > 1


async def test_narrow_network_takes_its_time():
    """20 kB at 32 KB/s take six tenths of a second each way, and those overlap."""
    began, ear = await said_back(Network(bytes_per_second=32 * 1024), [bytes(20_000)])
    took = ear.pieces[-1][0] - began
    assert 0.55 <= took <= 3.0
