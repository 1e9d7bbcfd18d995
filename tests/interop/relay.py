"""The service that streams are opened to; `streampeer.js` has it in the other language."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from pydantic import BaseModel

from busmicro import Call, NotFound, Service
from busmicro.call import Handler
from busmicro.settings import Settings

MANY = 10_000
SMALL = 16
LARGE_BYTES = 3 * 1024 * 1024
NOTHING: dict[str, object] = {}
ALERT = {"stream_ping_interval": 1.0}
"""So that a lost last frame and a dead program are noticed within a test."""
UNEASY = {"stream_ping_interval": 0.4}
"""So that silence is too long within a test."""
SILENCE = 1.6
"""Longer than an uneasy end waits for an answer."""
PATIENT = {"stream_grace": 5.0}
"""So that a program may take its time to connect again."""


class Number(BaseModel):
    n: int


class Total(BaseModel):
    sum: int
    messages: int


class Count(BaseModel):
    to: int
    fail: bool = False


class Text(BaseModel):
    text: str


class Relay:
    """All shapes; it tells what happens to its handlers."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.ended = asyncio.Event()
        self.taken = 0

    async def hello(self, request: dict[str, str]) -> dict[str, str]:
        return {"greeting": f"Hello {request['name']}"}

    async def count(self, count: Count) -> AsyncIterator[Number]:
        for n in range(count.to):
            if count.fail and n == 10:
                raise NotFound("no Zoë, 100% sure", details=[{"after": n}])
            yield Number(n=n)

    async def total(self, numbers: AsyncIterator[Number]) -> Total:
        found = [number.n async for number in numbers]
        return Total(sum=sum(found), messages=len(found))

    async def first(self, numbers: AsyncIterator[Number]) -> Number:
        return await anext(numbers)

    async def echo(self, messages: AsyncIterator[dict[str, object]]) -> AsyncIterator[object]:
        try:
            async for message in messages:
                self.taken += 1
                yield message
        finally:
            self.ended.set()

    async def wait(self) -> AsyncIterator[Number]:
        self.began.set()
        try:
            await asyncio.Event().wait()
            yield Number(n=0)
        finally:
            self.ended.set()


def window(messages: int, size_bytes: int = 1 << 20) -> dict[str, int]:
    return {"messages": messages, "bytes": size_bytes}


async def slow_to_accept(call: Call, call_next: Handler) -> object:
    """Take time before the handler: the caller hears of the node late."""
    await asyncio.sleep(0.05)
    return await call_next(call)


async def serve(start: Callable[[Service], Awaitable[Service]], **settings: float) -> Relay:
    """Start a service in Python whose callers may send `SMALL` messages ahead."""
    relay = Relay()
    given = Settings.load(stream_window=SMALL, **settings)
    service = Service("relay", settings=given, handler_wrappers=[slow_to_accept])
    service.handle(relay)
    await start(service)
    return relay
