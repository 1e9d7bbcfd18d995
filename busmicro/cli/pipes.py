"""Stdin and stdout for a verb that must go on meanwhile: neither stops the event loop.

Reading blocks until somebody types, writing until somebody reads (`| less`).  Both are done in
threads that are not waited for at the end, on the bare file descriptors: a thread that is left
behind in `sys.stdin.read` would hold the lock that Python wants to take when it exits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import sys
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from queue import SimpleQueue
from typing import Final, Self, TypeVar

from busmicro.cli.words import is_terminal
from busmicro.errors import InvalidArgument

T = TypeVar("T")

_PART_BYTES: Final = 64 * 1024
_AT_ONCE_BYTES: Final = 4096
"""So much fits into any pipe that can be written to at all."""


class Aside:
    """Does what may block, one thing after another, in a thread of its own."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function; what it returns or raises.

        Cancelled: it goes on, and nobody hears how it ended.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()
        self._jobs.put(partial(_settle, loop, outcome, function))
        return await outcome

    def _work(self) -> None:
        while True:
            self._jobs.get()()


def _settle(
    loop: asyncio.AbstractEventLoop, outcome: asyncio.Future[T], function: Callable[[], T]
) -> None:
    try:
        settle: Callable[[], None] = partial(outcome.set_result, function())
    except Exception as failure:
        settle = partial(outcome.set_exception, failure)

    def tell() -> None:
        if not outcome.done():
            settle()

    with contextlib.suppress(RuntimeError):  # the loop has ended, so nobody waits
        loop.call_soon_threadsafe(tell)


class Lines(AsyncIterator[bytes]):
    """The lines of stdin, ends included; nothing is read before it is asked for.

    Args:
        most_bytes: What a line may weigh.
        cut: Hand out what is longer in parts, instead of refusing it?
    """

    def __init__(self, most_bytes: int, *, cut: bool = False) -> None:
        self._most = min(most_bytes, _PART_BYTES) if cut else most_bytes
        self._cut = cut
        self._aside = Aside("stdin")
        self._read = bytearray()
        self._ended = sys.stdin is None
        self.number = 0
        """Which line it was."""

    @property
    def typed(self) -> bool:
        """Does a person type them?"""
        return sys.stdin is not None and sys.stdin.isatty()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Return the next line.

        Raises:
            InvalidArgument: It is too long, or stdin cannot be read.
        """
        searched = 0
        while (end := self._read.find(b"\n", searched) + 1) == 0 and not self._ended:
            if len(self._read) > self._most:
                break
            searched = len(self._read)
            await self._read_more()
        end = end or len(self._read)
        if end > self._most:
            if not self._cut:
                raise InvalidArgument(f"line {self.number + 1} is over {self._most} bytes long")
            end = self._most
        if not end:
            raise StopAsyncIteration
        line = bytes(self._read[:end])
        del self._read[:end]
        self.number += 1
        return line

    async def _read_more(self) -> None:
        try:
            part = await self._aside.run(partial(os.read, 0, _PART_BYTES))
        except OSError as wrong:
            raise InvalidArgument(f"stdin cannot be read: {wrong.strerror}") from wrong
        self._read += part
        self._ended = not part


class Out:
    """Stdout, byte by byte and at once."""

    def __init__(self) -> None:
        self._aside = Aside("stdout")
        self.is_terminal = is_terminal()
        """Does a person read it?"""

    async def write(self, data: bytes) -> None:
        """Write, however long that takes; nothing of it waits in this process afterwards.

        Raises:
            BrokenPipeError: Nobody reads any more.
        """
        if len(data) <= _AT_ONCE_BYTES and select.select([], [1], [], 0)[1]:
            _write(data)
        else:
            await self._aside.run(partial(_write, data))


def _write(data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(1, left) :]
