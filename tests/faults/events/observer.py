"""A NATS client of its own, on a bare socket: what judges the rest shares no code with it.

It stays on a connection while that works and takes the next server when it does not, so that it
sees a cluster through kills and pauses, and leaves no socket behind.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

_CONNECT_TIMEOUT = 1.0


class Gone(Exception):
    """The connection is gone, or nobody answered in time."""


class Observer:
    """Asks and gets answers.

    Args:
        ports: Of the servers on this machine.
    """

    def __init__(self, ports: list[int]) -> None:
        self._ports = itertools.cycle(ports)
        self._writer: asyncio.StreamWriter | None = None
        self._reading: set[asyncio.Task[None]] = set()
        self._waiting: dict[bytes, asyncio.Future[bytes]] = {}
        self._numbers = itertools.count()
        self._turn = asyncio.Lock()

    async def request(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float = 1.0,
    ) -> bytes:
        """Ask, and return the payload of the answer.

        Raises:
            Gone: No answer came.
        """
        try:
            async with asyncio.timeout(timeout):
                async with self._turn:
                    writer = self._writer or await self._connect()
                return await self._ask(writer, subject, payload, headers or {})
        except (OSError, TimeoutError) as failure:
            raise Gone(subject) from failure

    async def _ask(
        self, writer: asyncio.StreamWriter, subject: str, payload: bytes, headers: Mapping[str, str]
    ) -> bytes:
        inbox = b"_INBOX.observer.%d" % next(self._numbers)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[inbox] = answer
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        block = f"NATS/1.0\r\n{lines}\r\n".encode()
        sizes = (len(block), len(block) + len(payload))
        writer.write(
            b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject.encode(), inbox, *sizes, block, payload)
        )
        try:
            await writer.drain()
            return await answer
        except BaseException:
            if self._writer is writer:
                self._writer = None  # the next question goes to the next server
            writer.transport.abort()
            raise
        finally:
            del self._waiting[inbox]

    async def _connect(self) -> asyncio.StreamWriter:
        async with asyncio.timeout(_CONNECT_TIMEOUT):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", next(self._ports), limit=2**22
            )
            try:
                await reader.readline()  # INFO; a frozen server does not say it
                writer.write(
                    b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\n'
                    b"SUB _INBOX.observer.* 1\r\n"
                )
            except BaseException:
                writer.transport.abort()
                raise
        self._writer = writer
        reading = asyncio.get_running_loop().create_task(self._read(reader, writer))
        self._reading.add(reading)
        reading.add_done_callback(self._reading.discard)
        return writer

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                words = line.split()
                if words[0] == b"PING":
                    writer.write(b"PONG\r\n")
                elif words[0] in {b"MSG", b"HMSG"}:
                    header_bytes = int(words[-2]) if words[0] == b"HMSG" else 0
                    message = await reader.readexactly(int(words[-1]) + 2)
                    answer = self._waiting.get(words[1])
                    if answer is not None and not answer.done():
                        answer.set_result(message[header_bytes:-2])
        except (OSError, asyncio.IncompleteReadError):
            pass  # as good as the end
        finally:
            if self._writer is writer:
                self._writer = None
            writer.transport.abort()

    async def close(self) -> None:
        """Let go of every connection."""
        for reading in tuple(self._reading):
            reading.cancel()
            await asyncio.wait([reading])
        await asyncio.sleep(0)  # lets the sockets close


@asynccontextmanager
async def observing(*ports: int) -> AsyncIterator[Observer]:
    """Observe servers for a while."""
    observer = Observer(list(ports))
    try:
        yield observer
    finally:
        await observer.close()
