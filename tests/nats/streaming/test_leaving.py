"""Leaving a stream early, from either side: whatever the other end does for it stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from busmicro import CallError, Client, InvalidArgument, Service, SetupError, Unavailable
from tests.nats.streaming.chat import Chat, Number, gather


@pytest.fixture
async def chat(serve) -> Chat:
    """The handlers, served."""
    chat = Chat()
    await serve(chat)
    return chat


async def test_break_closes_the_handlers_generator(busmicro_client, chat, until):
    """Leaving the loop over a stub's method runs the `finally` of the handler's generator."""
    async for tick in busmicro_client.stub(Chat, service="chat").count(Number(n=-1)):
        if tick.n == 1000:
            break

    await until(lambda: chat.notes == ["count closed"])


async def test_leaving_the_block_closes_the_handlers_generator(busmicro_client, chat, until):
    """Leaving the block of a stream early is no error, and ends the handler."""
    async with busmicro_client.stream("chat", "Chat.count", Number(n=-1), returns=Number) as stream:
        assert (await anext(stream)).n == 0

    await until(lambda: chat.notes == ["count closed"])


async def test_error_in_the_block_closes_the_handlers_generator(busmicro_client, chat, until):
    """A block that fails ends the handler and raises what it raised."""
    with pytest.raises(KeyError):
        async with busmicro_client.stream("chat", "Chat.count", Number(n=-1)) as stream:
            await anext(stream)
            raise KeyError

    await until(lambda: chat.notes == ["count closed"])


@pytest.mark.parametrize("how", ["stub", "block"])
async def test_cancelled_reader_closes_the_handlers_generator(
    busmicro_client, chat, until, how, spawn
):
    """A caller that is cancelled while it reads ends the handler."""
    reading = asyncio.Event()

    async def by_stub() -> None:
        async for _line in busmicro_client.stub(Chat, service="chat").talk(never()):
            pass

    async def by_block() -> None:
        async with busmicro_client.stream("chat", "Chat.talk", sends=Number) as stream:
            reading.set()
            await anext(stream)

    async def never() -> AsyncIterator[Number]:
        reading.set()
        await asyncio.Event().wait()
        yield Number(n=0)

    task = spawn(by_stub() if how == "stub" else by_block())
    await reading.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await until(lambda: chat.notes == ["talk closed"])


async def test_cancelled_client_stream_ends_at_both_ends(busmicro_client, chat, until, spawn):
    """Cancelling a call that sends many closes the generator it reads and cancels the handler."""
    closed = asyncio.Event()

    async def two() -> AsyncIterator[Number]:
        try:
            yield Number(n=1)
            await asyncio.Event().wait()
        finally:
            closed.set()

    task = spawn(busmicro_client.stub(Chat, service="chat").total(two()))
    await until(lambda: chat.notes == ["got 1"])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert closed.is_set()
    await until(lambda: chat.notes == ["got 1", "total cancelled"])


async def test_callers_generator_that_raises_ends_the_handler(busmicro_client, chat, until):
    """What the caller's own generator raises is raised by the call; the handler is cancelled."""

    async def broken() -> AsyncIterator[Number]:
        yield Number(n=1)
        await until(lambda: "got 1" in chat.notes)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await busmicro_client.stub(Chat, service="chat").total(broken())

    await until(lambda: chat.notes == ["got 1", "total cancelled"])


async def test_callers_generator_that_raises_fails_a_two_way_stream(busmicro_client, chat, until):
    """The same in both directions: reading raises what the caller's own generator raised."""
    got: list[Number] = []

    async def broken() -> AsyncIterator[Number]:
        yield Number(n=1)
        await until(lambda: got)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await gather(busmicro_client.stub(Chat, service="chat").talk(broken()), got)

    assert got == [Number(n=2)]
    await until(lambda: chat.notes == ["talk closed"])


async def test_message_of_the_wrong_type_is_the_callers_error(busmicro_client, chat, until):
    """A generator that gives what was not declared fails the call, and nothing of it is sent."""
    with pytest.raises(InvalidArgument) as caught:
        await busmicro_client.stub(Chat, service="chat").total([Number(n=1), "two"])

    assert not caught.value.origin
    with pytest.raises(SetupError, match="no iterator"):
        await busmicro_client.stub(Chat, service="chat").total(7)


async def test_iterator_of_the_handler_ends_when_the_caller_leaves(
    busmicro_client, serve, until, spawn
):
    """A handler that hands its input to a task of its own: the task hears that it is over."""
    service = Service("hands")
    got: list[int] = []
    ends: list[str] = []

    @service.rpc
    async def over(numbers: AsyncIterator[int]) -> int:
        async def read() -> None:
            try:
                await gather(numbers, got)
                ends.append("end")
            except CallError as failure:
                ends.append(failure.code.value)

        spawn(read())
        await asyncio.Event().wait()
        return 0

    await serve(service)

    async with busmicro_client.stream("hands", "over", sends=int) as stream:
        await stream.send(1)
        await until(lambda: got)

    await until(lambda: ends)
    assert (got, ends) == ([1], ["cancelled"])


async def test_break_goes_through_a_service_in_between(busmicro_client, serve, chat, until):
    """A relay, that yields or just returns what it consumes, lets go of its source at once."""
    relay = Service("relay")
    source = Chat

    @relay.rpc
    async def yields() -> AsyncIterator[Number]:
        async for tick in relay.client.stub(source, service="chat").count(Number(n=-1)):
            yield tick

    @relay.rpc
    async def returns() -> AsyncIterator[Number]:
        return relay.client.stub(source, service="chat").count(Number(n=-1))

    await serve(relay)

    for closed, endpoint in enumerate(("yields", "returns"), 1):
        async with busmicro_client.stream("relay", endpoint, returns=Number) as stream:
            for _ in range(300):
                await anext(stream)
        await until(lambda closed=closed: chat.notes == ["count closed"] * closed)


async def test_handler_that_holds_on_cannot_send(busmicro_client, serve, until):
    """A handler that ignores its cancellation gets an error where it sends the next message."""
    service = Service("stubborn")
    heard: list[str] = []

    @service.rpc
    async def ticks() -> AsyncIterator[int]:
        try:
            yield 1
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                heard.append("cancelled")
            yield 2
            heard.append("went on")
        finally:
            heard.append("closed")

    await serve(service)

    async with busmicro_client.stream("stubborn", "ticks", returns=int) as stream:
        await anext(stream)

    await until(lambda: "closed" in heard)
    assert heard == ["cancelled", "closed"]


async def test_service_that_stops_lets_streams_finish(
    busmicro_client, serve, busmicro_server, spawn
):
    """Within the grace period a stream that is open goes on to its end; a new one is refused."""
    service = Service("drains")
    asked = asyncio.Event()

    @service.rpc
    async def talk(numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        async for n in numbers:
            yield n
            asked.set()

    await serve(service)

    async with busmicro_client.stream("drains", "talk", sends=int, returns=int) as stream:
        await stream.send(1)
        assert await anext(stream) == 1
        stopping = spawn(service.stop(grace=10))
        with pytest.raises(Unavailable):
            while True:
                async with busmicro_client.stream("drains", "talk", sends=int):
                    await asyncio.sleep(0.005)
        await stream.send(2)
        assert await anext(stream) == 2
        await stream.close_send()
        assert [n async for n in stream] == []
    async with asyncio.timeout(5):
        await stopping


@pytest.mark.parametrize("grace", [0, 0.05])
async def test_service_that_stops_ends_what_does_not_finish(
    busmicro_client, serve, chat, until, grace, spawn
):
    """After the grace period the handler is cancelled, and the caller told `unavailable`."""
    service = Service("stops")
    closed = asyncio.Event()

    @service.rpc
    async def ticks() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.set()

    await serve(service)

    async with busmicro_client.stream("stops", "ticks", returns=int) as stream:
        assert await anext(stream) == 1
        stopping = spawn(service.stop(grace=grace))
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable, match="stopped before it was done"):
                await anext(stream)
        await stopping
    assert closed.is_set()


async def test_closed_client_ends_its_streams(busmicro_server, chat, until, remains, spawn):
    """A client that is closed while a stream is open: its reader hears it, the handler ends."""
    client = Client(busmicro_server.url)
    async with client:
        remains.watch(client)
        opened = asyncio.Event()

        async def read() -> None:
            async with client.stream("chat", "Chat.talk", sends=Number) as stream:
                opened.set()
                await anext(stream)

        reading = spawn(read())
        await opened.wait()

    async with asyncio.timeout(5):
        with pytest.raises(CallError):
            await reading
    await until(lambda: chat.notes == ["talk closed"])


async def test_closed_client_ends_the_iterators_of_its_stubs(
    busmicro_server, chat, until, remains, spawn
):
    """The same with a stub: whoever iterates hears that there is no more."""
    got: list[Number] = []
    async with Client(busmicro_server.url) as client:
        remains.watch(client)

        async def one() -> AsyncIterator[Number]:
            yield Number(n=1)
            await asyncio.Event().wait()

        async def read() -> None:
            await gather(client.stub(Chat, service="chat").talk(one()), got)

        reading = spawn(read())
        await until(lambda: got)

    async with asyncio.timeout(5):
        with pytest.raises(CallError):
            await reading
    await until(lambda: chat.notes == ["talk closed"])
