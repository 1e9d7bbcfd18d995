"""Streams of every shape between a client and a service, with wrappers of the test's choice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Self

from pydantic import BaseModel

from busmicro import Call, Client, NotFound, Service
from busmicro.call import Handler, Wrapper
from busmicro.rpc.callstream import CallStream
from busmicro.session import Session


class Item(BaseModel):
    """A message; `path` grows by everything that it passes."""

    n: int = 0
    path: list[str] = []

    def by(self, name: str) -> Self:
        return self.model_copy(update={"path": [*self.path, name]})


class Feed:
    """A service with a stream of every shape, and of every end."""

    def __init__(self) -> None:
        self.entered = 0
        """How many handlers were begun."""
        self.left = 0
        """How many have ended."""

    async def count(self, request: Item) -> AsyncIterator[Item]:
        """Give so many."""
        with self:
            for n in range(request.n):
                yield Item(n=n, path=request.by("handler").path)

    async def total(self, items: AsyncIterator[Item]) -> Item:
        """Give the sum."""
        with self:
            taken = [item async for item in items]
            return Item(n=sum(item.n for item in taken), path=taken[0].by("handler").path)

    async def echo(self, items: AsyncIterator[Item]) -> AsyncIterator[Item]:
        """Give back what comes."""
        with self:
            async for item in items:
                yield item.by("handler")

    async def hold(self, request: Item) -> AsyncIterator[Item]:
        """Give so many, and then nothing, for ever."""
        with self:
            for n in range(request.n):
                yield Item(n=n)
            await asyncio.Event().wait()

    async def fail(self, request: Item) -> AsyncIterator[Item]:
        """Give so many, then an answer that is an error."""
        with self:
            for n in range(request.n):
                yield Item(n=n)
            raise NotFound("no more")

    async def crash(self, request: Item) -> AsyncIterator[Item]:
        """Give so many, then a fault."""
        with self:
            for n in range(request.n):
                yield Item(n=n)
            raise ZeroDivisionError("hunter2")

    async def add(self, request: Item, call: Call) -> Item:
        """Answer a plain call."""
        return Item(n=request.n + 1)

    def __enter__(self) -> None:
        self.entered += 1

    def __exit__(self, *_: object) -> None:
        self.left += 1


class Ends:
    """A client and a service, connected."""

    def __init__(self, client: Client, service: Service, feed: Feed) -> None:
        self.client = client
        self.service = service
        self.feed = feed
        self.stub = client.stub(Feed, service="feed")

    def open(
        self,
        endpoint: str,
        n: int = 0,
        *,
        timeout: float | None = None,
        idle_timeout: float | None = None,
    ) -> Session[CallStream[Item, Item]]:
        """Open a stream to an endpoint that takes one request."""
        return self.client.stream(
            "feed",
            f"Feed.{endpoint}",
            Item(n=n),
            returns=Item,
            timeout=timeout,
            idle_timeout=idle_timeout,
        )

    def talk(self, endpoint: str = "echo") -> Session[CallStream[Item, Item]]:
        """Open a stream to an endpoint that takes many messages."""
        return self.client.stream("feed", f"Feed.{endpoint}", sends=Item, returns=Item)


@asynccontextmanager
async def connected(
    url: str, *, client: Sequence[Wrapper] = (), handler: Sequence[Wrapper] = ()
) -> AsyncIterator[Ends]:
    """Run the service, and a client of it, with these wrappers."""
    feed = Feed()
    service = Service("feed", url=url, handler_wrappers=handler)
    service.handle(feed)
    async with service, Client(url, wrappers=client) as caller:
        yield Ends(caller, service, feed)


async def items(*numbers: int) -> AsyncIterator[Item]:
    for n in numbers:
        yield Item(n=n)


class Witness:
    """A wrapper that writes down when the exchange begins and how it ends."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self.name = name
        self.seen = seen

    async def __call__(self, call: Call, call_next: Handler, /) -> object:
        self.seen.append(f"{self.name} begins")
        try:
            reply = await call_next(call)
        except BaseException as failure:
            self.seen.append(f"{self.name}: {type(failure).__name__}")
            raise
        self.seen.append(f"{self.name} ends")
        return reply


class Stamp:
    """A wrapper that puts its name into each message that passes, either way."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def __call__(self, call: Call, call_next: Handler, /) -> object:
        call.taps.append(self)
        return await call_next(call)

    def outgoing(self, message: object, /) -> object:
        return self._stamp(message)

    incoming = outgoing

    def _stamp(self, message: object) -> object:
        assert isinstance(message, Item), message
        return message.by(self.name)
