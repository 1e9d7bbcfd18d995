"""A TCP proxy between clients and a server that cuts and freezes what passes through it."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 64 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Proxy:
    """Listens on a port of its own and passes everything on, for `async with`.

    Args:
        port: Of the server.
        counting: What to count in all that clients send.
    """

    def __init__(self, port: int, *, counting: bytes = b"") -> None:
        self._target = port
        self._counting = counting
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
        """Pass nothing on, either way, and keep every connection open."""
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
                group.create_task(self._pass_on(reader, server_writer, self._counting))
                group.create_task(self._pass_on(server_reader, writer))
        finally:
            self._writers.difference_update(pair)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counting: bytes = b""
    ) -> None:
        with suppress(OSError):
            while chunk := await reader.read(_CHUNK_BYTES):
                if counting:
                    self.counted += chunk.count(counting)
                await self._open.wait()
                writer.write(chunk)
                await writer.drain()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
