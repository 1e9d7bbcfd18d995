"""Time and headers of streams: how long one may last, who is told, and what travels beside it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from busmicro import (
    Call,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    Service,
    Settings,
    endpoint_options,
)
from busmicro.call import Handler
from tests.nats.streaming.chat import Chat, Number, gather


class Waits:
    """Handlers that do not come to an end; they note what ended them."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    async def forever(self, call: Call) -> AsyncIterator[int]:
        left = None if call.deadline is None else call.deadline - time.monotonic()
        self.notes.append("no deadline" if left is None else "soon" if left < 1 else "late")
        try:
            yield 1
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.notes.append("cancelled")
            raise

    async def hears(self, numbers: AsyncIterator[int]) -> int:
        try:
            return sum([n async for n in numbers])
        except BaseException as failure:
            self.notes.append(type(failure).__name__)
            raise

    @endpoint_options(timeout=0.2)
    async def shortly(self) -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()


@pytest.fixture
async def waits(serve) -> Waits:
    """The handlers, served."""
    waits = Waits()
    await serve(waits)
    return waits


# --- deadlines ------------------------------------------------------------------------------------


async def test_streams_have_no_deadline_unless_asked_for(busmicro_client, waits, until):
    """However short the timeout of the client's calls is, a stream that is open may last."""
    client = busmicro_client.with_options(timeout=0.2)
    got: list[int] = []

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            async with client.stream("chat", "Waits.forever", returns=int) as stream:
                await gather(stream, got)

    assert got == [1]
    await until(lambda: waits.notes == ["no deadline", "cancelled"])


async def test_timeout_ends_the_stream_at_both_ends(busmicro_client, waits, until):
    """After `timeout=` the reader gets `deadline_exceeded`, and the handler is cancelled."""
    began = time.monotonic()
    got: list[int] = []

    with pytest.raises(DeadlineExceeded):
        async with busmicro_client.stream(
            "chat", "Waits.forever", returns=int, timeout=0.6
        ) as stream:
            await gather(stream, got)

    assert got == [1]
    assert 0.5 < time.monotonic() - began < 5
    await until(lambda: waits.notes == ["soon", "cancelled"])


async def test_timeout_ends_a_sender_that_waits_for_room(busmicro_client, serve):
    """A caller that cannot send on, because nobody reads, is freed by the deadline too."""
    service = Service("deaf")

    @service.rpc
    async def deaf(numbers: AsyncIterator[int]) -> int:
        await asyncio.Event().wait()
        return 0

    await serve(service)
    sent = 0

    with pytest.raises(DeadlineExceeded):
        async with busmicro_client.stream("deaf", "deaf", sends=int, timeout=0.6) as stream:
            while True:
                await stream.send(1)
                sent += 1

    assert sent == Settings().stream_window


async def test_deadline_reaches_a_handler_that_waits_for_messages(busmicro_client, waits, until):
    """The handler is cancelled where it waits for its caller."""
    async with busmicro_client.stream("chat", "Waits.hears", sends=int, timeout=0.2) as stream:
        with pytest.raises(DeadlineExceeded):
            await stream.only_reply()

    await until(lambda: waits.notes == ["CancelledError"])


async def test_author_may_give_a_stream_a_timeout(busmicro_client, waits):
    """A timeout of the endpoint holds where the caller says none, by `stream` and by a stub."""
    async with busmicro_client.stream("chat", "Waits.shortly", returns=int) as stream:
        assert await anext(stream) == 1
        with pytest.raises(DeadlineExceeded):
            await anext(stream)
    with pytest.raises(DeadlineExceeded):
        await gather(busmicro_client.stub(Waits, service="chat").shortly(), [])


async def test_served_calls_deadline_limits_the_streams_it_opens(
    busmicro_client, serve, waits, until
):
    """A handler's streams get no more time than its own caller has left."""
    outer = Service("outer")

    @outer.rpc
    async def consume() -> int:
        async with outer.client.stream("chat", "Waits.forever", timeout=60) as stream:
            return len([n async for n in stream])

    await serve(outer)

    with pytest.raises(DeadlineExceeded):
        await busmicro_client.call("outer", "consume", timeout=0.6)

    await until(lambda: waits.notes == ["soon", "cancelled"])


async def test_what_came_in_time_can_be_read_later(busmicro_client, serve, until):
    """A stream that has ended before its deadline is not spoilt by a reader that is slow."""
    await serve(Chat())

    async with busmicro_client.stream(
        "chat", "Chat.count", Number(n=5), returns=Number, timeout=1.0
    ) as stream:
        await until(lambda: stream.is_over)
        await asyncio.sleep(1.0)
        assert [tick.n async for tick in stream] == [0, 1, 2, 3, 4]


async def test_opening_times_out_when_a_wrapper_hangs(busmicro_client, serve, until):
    """Not accepted within the client's timeout: `deadline_exceeded`, and the node is told."""
    ended = asyncio.Event()

    async def hang(call: Call, call_next: Handler) -> object:
        if call.spec.endpoint.startswith("Debug"):
            return await call_next(call)
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return None

    await serve(Chat(), handler_wrappers=[hang])
    client = busmicro_client.with_options(timeout=0.2)

    with pytest.raises(DeadlineExceeded, match="did not accept"):
        async with client.stream("chat", "Chat.count", Number(n=1)):
            pass

    async with asyncio.timeout(5):
        await ended.wait()
    await until(lambda: not len(busmicro_client.bus.frames))


@pytest.mark.parametrize("timeout", [0, -1, 86_401, float("nan")])
async def test_times_that_cannot_be_meant_are_refused(busmicro_client, timeout):
    """Such a timeout is an error of the caller, before anything is sent."""
    with pytest.raises(InvalidArgument, match="say seconds"):
        busmicro_client.stream("chat", "Chat.count", timeout=timeout)
    if timeout != 86_401:
        with pytest.raises(InvalidArgument, match="say seconds"):
            busmicro_client.stream("chat", "Chat.count", idle_timeout=timeout)


# --- idle -----------------------------------------------------------------------------------------


async def test_idle_timeout_ends_a_silent_stream_at_both_ends(busmicro_client, waits, until):
    """Without a message for `idle_timeout=` both ends hear `deadline_exceeded`."""
    async with busmicro_client.stream(
        "chat", "Waits.forever", returns=int, idle_timeout=0.2
    ) as stream:
        assert await anext(stream) == 1
        with pytest.raises(DeadlineExceeded, match="no message came or went"):
            await anext(stream)

    await until(lambda: waits.notes == ["no deadline", "cancelled"])


async def test_idle_timeout_is_put_off_by_every_message(busmicro_client, serve):
    """Messages either way keep a stream alive far beyond its `idle_timeout`."""
    await serve(Chat())

    async with busmicro_client.stream(
        "chat", "Chat.talk", sends=Number, returns=Number, idle_timeout=0.8
    ) as stream:
        for n in range(12):
            await asyncio.sleep(0.1)
            await stream.send(Number(n=n))
            assert await anext(stream) == Number(n=2 * n)
        await stream.close_send()
        assert [line async for line in stream] == []


async def test_node_may_have_an_idle_timeout(busmicro_client, serve, until):
    """The setting holds at the node's end: the caller hears why, the handler is cancelled."""
    waits = Waits()
    await serve(waits, settings=Settings(stream_idle_timeout=0.2))

    async with busmicro_client.stream("chat", "Waits.hears", sends=int) as stream:
        await stream.send(1)
        with pytest.raises(DeadlineExceeded, match="no message came or went"):
            await anext(stream)

    await until(lambda: waits.notes == ["CancelledError"])


# --- headers --------------------------------------------------------------------------------------


async def test_reply_headers_come_with_the_stream_and_with_its_end(busmicro_client, serve):
    """Headers of a handler are there with its first message, and those it sets last at the end."""
    service = Service("headed")
    go = asyncio.Event()

    async def stamp(call: Call, call_next: Handler) -> object:
        call.reply_headers["X-Accepted"] = "yes"
        return await call_next(call)

    @service.rpc
    async def talk(numbers: AsyncIterator[int], call: Call) -> AsyncIterator[int]:
        call.reply_headers["X-First"] = call.headers["X-Asked"]
        await go.wait()
        yield 1
        call.reply_headers["X-Last"] = "last"
        yield 2

    service.wrap_handler(stamp)
    await serve(service)

    async with busmicro_client.with_options(headers={"X-Mine": "0"}).stream(
        "headed", "talk", sends=int, returns=int, headers={"X-Asked": "a b"}
    ) as stream:
        assert dict(stream.headers) == {"X-Mine": "0", "X-Asked": "a b"}
        assert dict(stream.reply_headers) == {"X-Accepted": "yes"}
        go.set()
        await anext(stream)
        assert stream.reply_headers["X-First"] == "a b"
        await anext(stream)
        assert "X-Last" not in stream.reply_headers
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert dict(stream.reply_headers) == {
            "X-Accepted": "yes",
            "X-First": "a b",
            "X-Last": "last",
        }


async def test_headers_of_a_client_stream_come_with_its_reply(busmicro_client, serve):
    """A handler with one reply sends its headers with that, and a stub's wrappers see them."""
    seen: list[object] = []
    service = Service("sums")

    class Sums:
        async def total(self, numbers: AsyncIterator[int], call: Call) -> int:
            total = sum([n async for n in numbers])
            call.reply_headers["X-Count"] = "3"
            return total

    service.handle(Sums())
    await serve(service)

    async with busmicro_client.stream("sums", "Sums.total", sends=int, returns=int) as stream:
        for n in range(3):
            await stream.send(n)
        assert await stream.result() == 3
        seen.append(stream.reply_headers["X-Count"])

    assert seen == ["3"]


async def test_header_that_cannot_be_sent_is_refused(busmicro_client, serve, caplog):
    """One of the caller is its own error; one of the handler is `internal`, named in the log."""
    service = Service("headed")

    @service.rpc
    async def wrong(call: Call) -> AsyncIterator[int]:
        call.reply_headers["X-Split"] = "a\r\nb"
        yield 1

    await serve(service)

    with pytest.raises(InvalidArgument):
        async with busmicro_client.stream("headed", "wrong", headers={"X": "a\r\nb"}):
            pass
    async with busmicro_client.stream("headed", "wrong", returns=int) as stream:
        with pytest.raises(Internal, match="header"):
            await anext(stream)
    assert any("X-Split" in record.getMessage() for record in caplog.records)


async def test_headers_of_a_failed_stream(busmicro_client, serve):
    """Headers that were sent before a failure are kept by the caller."""
    service = Service("headed")

    @service.rpc
    async def fails(call: Call) -> AsyncIterator[int]:
        call.reply_headers["X-First"] = "1"
        yield 1
        raise NotFound("no more")

    await serve(service)
    got: list[int] = []

    async with busmicro_client.stream("headed", "fails", returns=int) as stream:
        with pytest.raises(NotFound):
            await gather(stream, got)
        assert (got, stream.reply_headers["X-First"]) == ([1], "1")
