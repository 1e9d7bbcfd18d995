"""A TCP proxy between clients and a server: a bad network, as bad as a test wants it.

It cuts connections, goes silent, comes late, comes in crumbs, and is narrow.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 64 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_STEPS_A_SECOND = 50
"""In how many steps a narrow network passes on what a second lets through."""

Read = Callable[[], Awaitable[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What becomes of bytes on their way; each direction of a connection for itself."""

    latency: float = 0.0
    """Seconds that they take, one way."""
    jitter: float = 0.0
    """Seconds that they may take more or less; what was sent first still comes first."""
    slice_bytes: int = 0
    """They come in slices of 1 to so many bytes; 0 for as they were sent."""
    bytes_per_second: int = 0
    """How many get through; 0 for as many as there are."""
    seed: int = 0
    """What decides the jitter and the slices."""


class Proxy:
    """Listens on a port of its own and passes everything on, for `async with`.

    Args:
        port: Of the server.
        counting: What to count in all that clients send.
        network: What becomes of bytes on their way; None for nothing.
    """

    def __init__(self, port: int, *, counting: bytes = b"", network: Network | None = None) -> None:
        self._target = port
        self._counting = counting
        self._network = network or Network()
        self._chance = random.Random(self._network.seed)
        self.counted = 0
        """How often clients have sent what is counted."""
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.accepted = 0
        """How many connections there have been."""
        self._open = asyncio.Event()
        self._open.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.thaw()
        async with asyncio.timeout(10):
            while self._writers:
                self.cut()
                await asyncio.sleep(0.01)

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._writers) // 2

    def cut(self) -> None:
        """Cut every connection with a reset, at both ends; what was under way is gone."""
        for writer in list(self._writers):
            taken: socket.socket = writer.get_extra_info("socket")
            with suppress(OSError):  # it may be closed already
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()

    def freeze(self) -> None:
        """Pass nothing on, either way, and keep every connection open: a black hole."""
        self._open.clear()

    def thaw(self) -> None:
        """Go on after `freeze`."""
        self._open.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self.accepted += 1
        pair = (writer, server_writer)
        self._writers.update(pair)
        try:
            async with asyncio.TaskGroup() as group:
                there = self._read(group, reader)
                back = self._read(group, server_reader)
                group.create_task(self._pass_on(there, server_writer, self._counting))
                group.create_task(self._pass_on(back, writer))
        finally:
            self._writers.difference_update(pair)

    def _read(self, group: asyncio.TaskGroup, reader: asyncio.StreamReader) -> Read:
        """Return what gives the next bytes when they are due, and none at the end."""
        if not self._network.latency:
            return lambda: reader.read(_CHUNK_BYTES)
        way = _LongWay(self._network, self._chance)
        group.create_task(way.take_from(reader))
        return way.read

    async def _pass_on(
        self, read: Read, writer: asyncio.StreamWriter, counting: bytes = b""
    ) -> None:
        with suppress(OSError):
            while chunk := await read():
                if counting:
                    self.counted += chunk.count(counting)
                await self._write(writer, chunk)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def _write(self, writer: asyncio.StreamWriter, chunk: bytes) -> None:
        speed = self._network.bytes_per_second
        due = asyncio.get_running_loop().time()
        for piece in self._pieces(chunk):
            await self._open.wait()
            writer.write(piece)
            await writer.drain()
            if piece is not chunk:  # a turn of the loop, so that each piece leaves by itself
                due += len(piece) / speed if speed else 0.0
                await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))

    def _pieces(self, chunk: bytes) -> Iterator[bytes]:
        network = self._network
        if not network.slice_bytes and not network.bytes_per_second:
            yield chunk
            return
        most = network.bytes_per_second // _STEPS_A_SECOND or len(chunk)
        at = 0
        while at < len(chunk):
            size = self._chance.randint(1, network.slice_bytes) if network.slice_bytes else most
            yield bytes(memoryview(chunk)[at : at + size])  # never the chunk itself
            at += size


class _LongWay:
    """Bytes that are on their way for a while, in order."""

    def __init__(self, network: Network, chance: random.Random) -> None:
        self._network = network
        self._chance = chance
        self._under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def take_from(self, reader: asyncio.StreamReader) -> None:
        """Send off all that comes; the end, too, takes its time."""
        chunk, arrives = b"-", 0.0
        while chunk:
            try:
                chunk = await reader.read(_CHUNK_BYTES)
            except OSError:
                chunk = b""
            takes = self._network.latency + self._network.jitter * self._chance.uniform(-1, 1)
            arrives = max(arrives, asyncio.get_running_loop().time() + takes)
            self._under_way.put_nowait((arrives, chunk))

    async def read(self) -> bytes:
        """Return the next bytes when they arrive."""
        arrives, chunk = await self._under_way.get()
        await asyncio.sleep(max(0.0, arrives - asyncio.get_running_loop().time()))
        return chunk
