"""Whoever waits for a stream may stop waiting: nothing is lost by it, and the stream goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from busmicro import CallError, Cancelled, Client, Disconnected, Internal, Service, Settings
from tests.nats.streaming.chat import Chat, Number, gather


class Slow:
    """Handlers that wait until they are told to go on."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.timed_out = 0

    async def later(self) -> AsyncIterator[int]:
        for n in range(3):
            await self.go.wait()
            yield n

    async def total(self, numbers: AsyncIterator[int]) -> int:
        await self.go.wait()
        return sum([n async for n in numbers])

    async def polls(self, numbers: AsyncIterator[int]) -> int:
        total = 0
        while True:
            try:
                async with asyncio.timeout(0.02):
                    total += await anext(numbers)
            except TimeoutError:
                self.timed_out += 1
            except StopAsyncIteration:
                return total


@pytest.fixture
async def slow(serve) -> Slow:
    """The handlers, served, with a window of two messages."""
    slow = Slow()
    await serve(slow, settings=Settings(stream_window=2))
    return slow


async def test_reader_may_wait_in_turns(busmicro_client, slow):
    """A read that has timed out takes no message with it; the next one gets it."""
    async with busmicro_client.stream("chat", "Slow.later", returns=int) as stream:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(stream), 0.02)  # noqa: TID251 - users may
        slow.go.set()
        assert [n async for n in stream] == [0, 1, 2]


async def test_send_that_timed_out_was_not_sent(busmicro_client, slow):
    """A message that found no room in time is not sent later; what follows is."""
    async with busmicro_client.stream("chat", "Slow.total", sends=int, returns=int) as stream:
        await stream.send(1)
        await stream.send(2)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await stream.send(1000)
        slow.go.set()
        await stream.send(4)
        assert await stream.result() == 7


async def test_handler_may_wait_in_turns(busmicro_client, slow, until):
    """The same at the node: a handler that looks in now and then misses nothing."""
    async with busmicro_client.stream("chat", "Slow.polls", sends=int, returns=int) as stream:
        for n in range(1, 5):
            before = slow.timed_out
            await until(lambda before=before: slow.timed_out > before)
            await stream.send(n)
        assert await stream.result() == 10


async def test_sender_that_waits_hears_that_the_block_was_left(busmicro_client, slow, spawn):
    """A task that still waits for room when the stream is left is not left waiting."""
    async with busmicro_client.stream("chat", "Slow.total", sends=int, returns=int) as stream:
        await stream.send(1)
        await stream.send(2)
        sending = spawn(stream.send(3))
        reading = spawn(gather(stream, []))
        await asyncio.sleep(0)

    for waiting in (sending, reading):
        async with asyncio.timeout(5):
            with pytest.raises(Cancelled, match="left the stream"):
                await waiting


@pytest.mark.parametrize("when", ["before", "after"])
async def test_stream_of_a_client_that_is_not_connected(busmicro_server, remains, when):
    """Before a client is entered, and after it was left, no stream opens; nothing runs."""
    client = Client(busmicro_server.url)
    remains.watch(client)
    if when == "after":
        async with client:
            pass

    with pytest.raises(Disconnected) as caught:
        async with client.stream("chat", "Chat.count", Number(n=1)):
            pass
    assert caught.value.not_run
    with pytest.raises(Disconnected):
        await gather(client.stub(Chat, service="chat").count(Number(n=1)), [])


# --- handlers that end in odd ways ----------------------------------------------------------------


class Odd:
    """Handlers with ends that few would write."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def cancels_itself(self) -> AsyncIterator[int]:
        yield 1
        raise asyncio.CancelledError

    async def exits(self, numbers: AsyncIterator[int]) -> int:
        raise SystemExit(3)

    async def stops(self, numbers: AsyncIterator[int]) -> int:
        raise StopAsyncIteration

    async def fails_to_close(self) -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            self.ended.set()
            raise ValueError("in the finally")

    async def yields_while_closing(self) -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            self.ended.set()
            yield 2

    async def cleans_up(self) -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            await asyncio.sleep(0.02)
            self.ended.set()


@pytest.mark.parametrize(
    ("endpoint", "error"),
    [("cancels_itself", Cancelled), ("exits", Internal), ("stops", Internal)],
)
async def test_handler_that_ends_oddly_still_answers(busmicro_client, serve, endpoint, error):
    """Whatever a handler raises, its caller hears of an end, and the node serves on."""
    await serve(Odd())

    for _ in range(2):
        async with busmicro_client.stream("chat", f"Odd.{endpoint}", returns=int) as stream:
            with pytest.raises(error):
                await gather(stream, [])


@pytest.mark.parametrize("endpoint", ["fails_to_close", "yields_while_closing", "cleans_up"])
async def test_handler_that_closes_badly_harms_nobody(busmicro_client, serve, endpoint, caplog):
    """A `finally` that fails, or takes its time, runs; the next stream is served."""
    odd = Odd()
    await serve(odd)

    for _ in range(2):
        odd.ended.clear()
        async with busmicro_client.stream("chat", f"Odd.{endpoint}", returns=int) as stream:
            await anext(stream)
        async with asyncio.timeout(5):
            await odd.ended.wait()


async def test_iterator_of_the_caller_that_closes_badly(busmicro_client, serve):
    """What the `finally` of a caller's own generator raises reaches the caller."""
    service = Service("first")

    class Takes:
        async def first(self, numbers: AsyncIterator[int]) -> int:
            return await anext(numbers)

    async def fails() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            raise KeyError("mine")

    service.handle(Takes())
    await serve(service)

    with pytest.raises((KeyError, CallError), match="mine"):
        await busmicro_client.stub(Takes, service="first").first(fails())
