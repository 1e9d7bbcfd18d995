"""Iterators behind a stub, left half-way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from busmicro import Client, Service


class Chat:
    async def talk(self, lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for line in lines:
            yield line


class SourceFailedError(Exception):
    """What the caller's own iterator raises."""


async def test_failure_of_the_source_is_raised_by_whoever_leaves(
    busmicro_memory: str, until: Callable[[Callable[[], object]], object]
):
    """A source that fails while nobody reads is not taken for a cancelled call."""
    read = asyncio.Event()

    async def lines() -> AsyncIterator[bytes]:
        yield b"one"
        await read.wait()
        raise SourceFailedError

    service = Service("chat", url=busmicro_memory)
    service.handle(Chat())
    async with service, Client(busmicro_memory) as client:
        replies = client.stub(Chat, service="chat").talk(lines())
        assert await anext(replies) == b"one"
        read.set()
        await until(lambda: not len(client.bus.frames))
        with pytest.raises(SourceFailedError):
            await replies.aclose()
