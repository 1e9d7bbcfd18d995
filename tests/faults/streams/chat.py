"""The service that the fault tests open streams to; its messages are numbered, so none goes amiss.

Each message is 128 bytes that begin with its number, from 1 on.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from busmicro import Call, NotFound, Service
from tests.faults.log import now

SIZE_BYTES = 128
_PAGE_BYTES = 4096


def numbered(number: int) -> bytes:
    """Make the message with this number."""
    return number.to_bytes(8, "big").ljust(SIZE_BYTES, b".")


def rss_bytes(pid: int | str = "self") -> int:
    """Tell how much memory a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES


class Reader:
    """Takes numbered messages, and knows what was wrong with them."""

    def __init__(self) -> None:
        self.received = 0
        """Messages taken in order, each once."""
        self.wrong = ""
        """The first one that was out of order: lost, twice or too early."""
        self.stall = 0.0
        """The longest time between two of them."""
        self._at = now()

    def take(self, message: bytes) -> None:
        """Look at the next message."""
        self.received += 1
        number = int.from_bytes(message[:8], "big")
        if not self.wrong and (number != self.received or len(message) != SIZE_BYTES):
            self.wrong = f"message {number} where {self.received} was due"
        at = now()
        self.stall, self._at = max(self.stall, at - self._at), at

    async def take_all(self, messages: AsyncIterator[bytes], pause: float = 0.0) -> None:
        """Look at all messages of a stream."""
        async for message in messages:
            self.take(message)
            if pause:
                await asyncio.sleep(pause)


@dataclass
class Ask:
    """What `count` is asked for."""

    to: int
    """The last message."""
    pause: float = 0.0
    """Seconds after each."""
    fails_after: int = 0
    """After so many the handler raises; 0 for never."""


@dataclass
class Standing:
    """How things stand at a node."""

    open: int
    """Handlers that are entered and not left."""
    ended: int
    """Handlers that were left."""
    frames: int
    """Ends of streams that the process remembers."""
    rss_bytes: int
    """Its memory."""
    wrong: list[str]
    """What was wrong with messages that it took."""


class Chat:
    """Streams of every kind, for this service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.open = 0
        self.ended: list[float] = []
        """When each handler was left."""
        self.readers: list[Reader] = []
        """What has been taken from callers, stream by stream."""
        self.pause = 0.0
        """Seconds that `total` needs for each message."""

    @contextmanager
    def _entered(self) -> Iterator[None]:
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1
            self.ended.append(now())

    async def count(self, ask: Ask) -> AsyncIterator[bytes]:
        """Give messages from 1 on."""
        with self._entered():
            for number in range(1, ask.to + 1):
                yield numbered(number)
                if number == ask.fails_after:
                    raise NotFound(f"there are {number}")
                if ask.pause:
                    await asyncio.sleep(ask.pause)

    async def total(self, numbers: AsyncIterator[bytes]) -> int:
        """Take messages and say how many there were."""
        with self._entered():
            reader = self._reader()
            await reader.take_all(numbers, self.pause)
            return reader.received

    async def exchange(self, numbers: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        """Give as many messages as `Count` says, and take the caller's meanwhile."""
        reader = self._reader()
        with self._entered():
            reading = asyncio.get_running_loop().create_task(reader.take_all(numbers))
            try:
                for number in range(1, int(call.headers["Count"]) + 1):
                    yield numbered(number)
                await reading
            finally:
                reading.cancel()
                await asyncio.wait([reading])
        call.reply_headers["Received"] = str(reader.received)
        call.reply_headers["Stall"] = str(reader.stall)

    async def standing(self) -> Standing:
        """Say how things stand."""
        gc.collect()
        wrong = [reader.wrong for reader in self.readers if reader.wrong]
        return Standing(
            self.open, len(self.ended), len(self.service.bus.frames), rss_bytes(), wrong
        )

    def _reader(self) -> Reader:
        reader = Reader()
        self.readers.append(reader)
        return reader
