"""How streams end on a real server: both ends hear of it, once, after everything before it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from busmicro import (
    DataLoss,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    Service,
)
from tests.nats.streaming.chat import Chat, Number, gather


class Fails:
    """Handlers that do not end well."""

    async def after_ten(self) -> AsyncIterator[int]:
        for n in range(10):
            yield n
        raise NotFound("no eleventh", details=[{"searched": "here"}])

    async def unnamed(self) -> AsyncIterator[int]:
        yield 1
        raise ValueError("the password is hunter2")

    async def at_once(self, numbers: AsyncIterator[int]) -> int:
        raise InvalidArgument("not today")

    async def after_one(self, numbers: AsyncIterator[int]) -> int:
        await anext(numbers)
        raise InvalidArgument("not today")

    async def before_yielding(self) -> AsyncIterator[int]:
        raise NotFound("nothing here")
        yield 1

    async def undeclared(self) -> AsyncIterator[int]:
        yield 1
        yield "two"  # type: ignore[misc]


# --- the handler ends it --------------------------------------------------------------------------


async def test_handlers_error_comes_after_all_messages_before_it(busmicro_client, serve):
    """Ten messages arrive, then the error: same class, message, details and origin."""
    await serve(Fails())
    got: list[int] = []

    with pytest.raises(NotFound) as caught:
        await gather(busmicro_client.stub(Fails, service="chat").after_ten(), got)

    error = caught.value
    assert got == [*range(10)]
    assert (error.message, error.details, error.origin) == (
        "no eleventh",
        [{"searched": "here"}],
        "chat",
    )
    assert not error.not_run


async def test_error_of_a_service_further_down_keeps_its_origin(busmicro_client, serve):
    """What a consumed stream ends with passes through, and says where it comes from."""
    relay = Service("relay")

    @relay.rpc
    async def pass_on() -> AsyncIterator[int]:
        async for n in relay.client.stub(Fails, service="chat").after_ten():
            yield n

    await serve(Fails())
    await serve(relay)
    got: list[int] = []

    with pytest.raises(NotFound) as caught:
        async with busmicro_client.stream("relay", "pass_on", returns=int) as stream:
            await gather(stream, got)

    assert (len(got), caught.value.origin) == (10, "chat")


async def test_exception_nobody_named_is_internal_and_keeps_its_secrets(
    busmicro_client, serve, caplog
):
    """The caller gets an id, after the messages; the log has that id beside the traceback."""
    await serve(Fails())
    got: list[int] = []

    with pytest.raises(Internal) as caught:
        await gather(busmicro_client.stub(Fails, service="chat").unnamed(), got)

    assert got == [1]
    assert "hunter2" not in str(caught.value)
    fault = caught.value.message.rpartition(" ")[2]
    assert any(fault in record.getMessage() and record.exc_info for record in caplog.records)


async def test_message_that_was_not_declared_is_internal(busmicro_client, serve, caplog):
    """A handler that yields what it has not declared fails; what it yielded is in its log only."""
    await serve(Fails())

    with pytest.raises(Internal, match="had not declared"):
        assert [n async for n in busmicro_client.stub(Fails, service="chat").undeclared()]

    assert any("returned" in record.getMessage() for record in caplog.records)


async def test_failure_before_the_first_message_is_raised_by_the_first_step(busmicro_client, serve):
    """A handler that fails at once fails the first `anext`, not the opening of the block."""
    await serve(Fails())

    async with busmicro_client.stream("chat", "Fails.before_yielding", returns=int) as stream:
        with pytest.raises(NotFound, match="nothing here"):
            await anext(stream)


async def test_early_failure_stops_the_callers_iterator(busmicro_client, serve):
    """A client stream whose handler fails early fails at once, and closes the generator it read."""
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0.001)
        finally:
            closed.set()

    await serve(Fails())

    with pytest.raises(InvalidArgument, match="not today"):
        await busmicro_client.stub(Fails, service="chat").after_one(endless())

    assert closed.is_set()


async def test_early_failure_closes_a_plain_generator_too(busmicro_client, serve):
    """A plain generator that feeds a stream is closed when the call ends, not some time later."""
    closed = asyncio.Event()

    def endless():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    await serve(Fails())

    with pytest.raises(InvalidArgument, match="not today"):
        await busmicro_client.stub(Fails, service="chat").after_one(endless())

    assert closed.is_set()


async def test_handler_may_return_before_it_has_read_everything(busmicro_client, serve):
    """The reply comes; whoever still sends is told that the service takes no more."""
    service = Service("picky")

    @service.rpc
    async def first(numbers: AsyncIterator[int]) -> int:
        return await anext(numbers)

    await serve(service)

    async with busmicro_client.stream("picky", "first", sends=int, returns=int) as stream:
        await stream.send(7)
        assert await anext(stream) == 7
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        with pytest.raises(FailedPrecondition, match="takes no more"):
            await stream.send(8)


async def test_handler_may_ignore_its_input(busmicro_client, serve):
    """A handler that never reads ends as usual, however much its caller has to say."""
    service = Service("deaf")

    @service.rpc
    async def talk(numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        yield 1
        yield 2

    class Deaf:
        async def sum(self, numbers: AsyncIterator[int]) -> int:
            return -1

    service.handle(Deaf())
    await serve(service)

    def endless():
        while True:
            yield 1

    async with busmicro_client.stream("deaf", "talk", sends=int, returns=int) as stream:
        assert [n async for n in stream] == [1, 2]
    assert await busmicro_client.stub(Deaf, service="deaf").sum(endless()) == -1


# --- half-close -----------------------------------------------------------------------------------


async def test_service_goes_on_after_the_caller_has_finished(busmicro_client, serve):
    """`close_send` ends one direction only: answers still come."""
    service = Service("late")

    @service.rpc
    async def summed(numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        given = [n async for n in numbers]
        for n in reversed(given):
            yield n

    await serve(service)

    async with busmicro_client.stream("late", "summed", sends=int, returns=int) as stream:
        for n in range(600):
            await stream.send(n)
        await stream.close_send()
        await stream.close_send()
        assert [n async for n in stream] == [*reversed(range(600))]


async def test_send_after_close_send_is_refused(busmicro_client, serve):
    """Having said that no more comes, a caller cannot send; the stream is not harmed."""
    await serve(Chat())

    async with busmicro_client.stream("chat", "Chat.talk", sends=Number, returns=Number) as stream:
        await stream.send(Number(n=1))
        await stream.close_send()
        with pytest.raises(FailedPrecondition, match="sends no more"):
            await stream.send(Number(n=2))
        assert [line.n async for line in stream] == [2]


async def test_server_stream_takes_no_messages(busmicro_client, serve):
    """A stream that was opened with its request has nothing more to send."""
    await serve(Chat())

    async with busmicro_client.stream("chat", "Chat.count", Number(n=-1), returns=Number) as stream:
        with pytest.raises(FailedPrecondition, match="sends no more"):
            await stream.send(Number(n=2))
        assert [(await anext(stream)).n for _ in range(3)] == [0, 1, 2]


async def test_close_send_waits_for_what_is_being_sent(busmicro_client, serve, spawn):
    """A message that waits for room is not cut off by another task's `close_send`."""
    service = Service("slow")
    go = asyncio.Event()

    @service.rpc
    async def sizes(chunks: AsyncIterator[bytes]) -> list[int]:
        await go.wait()
        return [len(chunk) async for chunk in chunks]

    await serve(service)

    async with busmicro_client.stream("slow", "sizes", sends=bytes, returns=list[int]) as stream:
        sending = spawn(stream.send(b"x" * 5_000_000))
        await asyncio.sleep(0)
        closing = spawn(stream.close_send())
        await asyncio.sleep(0)
        go.set()
        await sending
        await closing
        assert await stream.result() == [5_000_000]


# --- after the end --------------------------------------------------------------------------------


async def test_after_a_good_end_a_stream_only_says_that_it_is_over(busmicro_client, serve):
    """`anext` after the end says so again and again, and `send` says that it is too late."""
    await serve(Chat())

    async with busmicro_client.stream("chat", "Chat.talk", sends=Number, returns=Number) as stream:
        await stream.close_send()
        for _ in range(3):
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        with pytest.raises(FailedPrecondition):
            await stream.send(Number(n=1))
        await stream.close_send()


async def test_after_a_bad_end_every_step_says_how_it_ended(busmicro_client, serve):
    """`anext` and `send` raise what ended the stream, as often as they are asked."""
    await serve(Fails())

    async with busmicro_client.stream("chat", "Fails.at_once", sends=int, returns=int) as stream:
        for _ in range(2):
            with pytest.raises(InvalidArgument, match="not today"):
                await anext(stream)
            with pytest.raises(InvalidArgument, match="not today"):
                await stream.send(1)


async def test_leaving_a_block_raises_a_failure_that_nobody_saw(busmicro_client, serve, until):
    """A stream that has failed meanwhile does not end as if all had gone well."""
    await serve(Fails())

    with pytest.raises(InvalidArgument, match="not today"):
        async with busmicro_client.stream("chat", "Fails.at_once", sends=int) as stream:
            await until(lambda: stream.is_over)


async def test_blocks_own_error_wins(busmicro_client, serve, until):
    """What the block raises is what comes out, whatever the stream has come to."""
    await serve(Fails())

    with pytest.raises(KeyError):
        async with busmicro_client.stream("chat", "Fails.at_once", sends=int) as stream:
            await until(lambda: stream.is_over)
            raise KeyError("mine")


async def test_result_wants_exactly_one_reply(busmicro_client, serve):
    """`result` of a stream that gives none, or several, is an error, and does not wait for all."""
    chat = Chat()
    await serve(chat)

    async with busmicro_client.stream("chat", "Chat.count", Number(n=0), returns=Number) as stream:
        with pytest.raises(DataLoss, match="no reply came"):
            await stream.result()
    async with (
        asyncio.timeout(5),
        busmicro_client.stream("chat", "Chat.count", Number(n=-1), returns=Number) as stream,
    ):
        with pytest.raises(DataLoss, match="several replies came"):
            await stream.result()
