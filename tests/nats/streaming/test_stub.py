"""Iterators behind the methods of a stub: they behave as generators do, however they are left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from busmicro import Call, CallError, Client, NotFound, Service, Unavailable
from busmicro.call import Handler
from tests.nats.streaming.chat import Chat, Number, gather, numbers


class Fails:
    """A handler that fails after its first message."""

    async def soon(self) -> AsyncIterator[int]:
        yield 1
        raise NotFound("no second")


@pytest.fixture
async def notes(serve) -> list[str]:
    """What the handlers of a service `chat` have done."""
    chat = Chat()
    service = Service("chat")
    service.handle(chat)
    service.handle(Fails())
    await serve(service)
    return chat.notes


@pytest.fixture
def chat(busmicro_client: Client) -> Chat:
    """A stub of it."""
    return busmicro_client.stub(Chat, service="chat")


async def test_iterator_that_is_never_started_opens_nothing(chat, notes):
    """Calling a stub's method alone asks nobody; closing what it gave does not either."""
    unused = chat.count(Number(n=3))
    closed = chat.count(Number(n=3))
    await closed.aclose()

    assert [tick async for tick in closed] == []
    assert [tick.n async for tick in chat.count(Number(n=1))] == [0]
    del unused
    assert notes == ["count closed"]


async def test_iterator_is_over_once(chat, notes):
    """Iterating a second time over what has ended gives nothing; it does not ask again."""
    ticks = chat.count(Number(n=3))

    assert [tick.n async for tick in ticks] == [0, 1, 2]
    assert [tick async for tick in ticks] == []
    assert notes == ["count closed"]


async def test_iterator_goes_on_after_a_break(chat, notes, until):
    """An iterator that is kept can be left and taken up again; it ends when it is let go."""
    ticks = chat.count(Number(n=-1))
    async for tick in ticks:
        if tick.n == 4:
            break

    assert (await anext(ticks)).n == 5
    assert notes == []
    del ticks
    await until(lambda: notes == ["count closed"])


async def test_closing_early_ends_the_handler(chat, notes, until):
    """`aclose`, or `aclosing`, ends the stream: no more comes, the handler's `finally` runs."""
    async with aclosing(chat.count(Number(n=-1))) as ticks:
        assert (await anext(ticks)).n == 0
    await ticks.aclose()

    with pytest.raises(StopAsyncIteration):
        await anext(ticks)
    await until(lambda: notes == ["count closed"])


async def test_failure_is_raised_once_and_closing_is_quiet_then(busmicro_client, notes):
    """After its failure an iterator is over, as a generator is; `aclose` does not repeat it."""
    ticks = busmicro_client.stub(Fails, service="chat").soon()
    got: list[int] = []

    with pytest.raises(NotFound, match="no second"):
        await gather(ticks, got)

    await ticks.aclose()
    assert [tick async for tick in ticks] == []
    assert got == [1]


async def test_closing_shows_a_failure_that_nobody_saw(busmicro_client, notes, remains, until):
    """A stream that had failed before it was left says so, as a block does."""
    ticks = busmicro_client.stub(Fails, service="chat").soon()
    assert await anext(ticks) == 1
    await until(lambda: not len(busmicro_client.bus.frames))

    with pytest.raises(NotFound, match="no second"):
        await ticks.aclose()


async def test_closing_shows_what_the_callers_generator_has_raised(
    busmicro_client, chat, notes, until
):
    """The same for a failure of what is sent: nobody takes it for a good end."""
    go = asyncio.Event()

    async def broken() -> AsyncIterator[Number]:
        yield Number(n=1)
        await go.wait()
        raise KeyError("mine")

    lines = chat.talk(broken())
    await anext(lines)
    go.set()
    await until(lambda: not len(busmicro_client.bus.frames))

    with pytest.raises(KeyError, match="mine"):
        await lines.aclose()


async def test_dropped_in_another_task(chat, notes, until, spawn):
    """An iterator may begin in one task and be closed in another; wrappers do not mind."""
    begun: asyncio.Queue[AsyncIterator[Number]] = asyncio.Queue()

    async def begin() -> None:
        ticks = chat.count(Number(n=-1))
        await anext(ticks)
        await begun.put(ticks)

    await spawn(begin())
    ticks = await begun.get()
    assert (await anext(ticks)).n == 1
    await ticks.aclose()

    await until(lambda: notes == ["count closed"])


async def test_dropped_without_a_word(chat, notes, until):
    """An iterator that nobody holds any more is closed by whoever collects it."""
    ticks = chat.talk(numbers(3))
    await anext(ticks)
    del ticks

    await until(lambda: "talk closed" in notes)


async def test_closed_while_somebody_waits(chat, notes, until, spawn):
    """Closing an iterator on which another task waits ends that task's loop."""

    async def never() -> AsyncIterator[Number]:
        yield Number(n=1)
        await asyncio.Event().wait()

    lines = chat.talk(never())
    got: list[Number] = []
    reading = spawn(gather(lines, got))
    await until(lambda: got)
    await lines.aclose()

    async with asyncio.timeout(5):
        await reading
    assert got == [Number(n=2)]
    await until(lambda: notes == ["talk closed"])


async def test_cancelled_while_opening(busmicro_client, serve, until, spawn):
    """A reader that is cancelled before its stream is open leaves nothing waiting anywhere."""
    entered, ended = asyncio.Event(), asyncio.Event()

    async def hang(call: Call, call_next: Handler) -> object:
        if call.spec.endpoint.startswith("Debug"):
            return await call_next(call)
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return None

    await serve(Chat(), handler_wrappers=[hang])
    stub = busmicro_client.with_options(timeout=60).stub(Chat, service="chat")
    reading = spawn(gather(stub.count(Number(n=1)), []))
    await entered.wait()
    reading.cancel()

    async with asyncio.timeout(5):
        await ended.wait()
    await until(lambda: not len(busmicro_client.bus.frames))


async def test_closed_while_opening(busmicro_client, serve, until, spawn):
    """Closing an iterator whose stream is not open yet gives up waiting for it at once."""
    entered = asyncio.Event()

    async def hang(call: Call, call_next: Handler) -> object:
        if not call.spec.endpoint.startswith("Debug"):
            entered.set()
            await asyncio.Event().wait()
        return await call_next(call)

    await serve(Chat(), handler_wrappers=[hang])
    stub = busmicro_client.with_options(timeout=60).stub(Chat, service="chat")
    ticks = stub.count(Number(n=1))
    got: list[Number] = []
    reading = spawn(gather(ticks, got))
    await entered.wait()

    async with asyncio.timeout(5):
        await ticks.aclose()
        await reading
    assert got == []


async def test_stream_that_does_not_open_is_raised_by_the_first_step(busmicro_client, remains):
    """With nobody there the first step fails, every time a new iterator is asked."""
    nobody = busmicro_client.stub(Chat, service="nobody")

    for _ in range(2):
        with pytest.raises(Unavailable):
            await anext(nobody.count(Number(n=1)))
        with pytest.raises(Unavailable):
            await nobody.total(numbers(3))
        with pytest.raises(Unavailable):
            await anext(nobody.talk(numbers(3)))


async def test_iterators_of_one_stub_are_apart(chat, notes):
    """Fifty iterators of one stub at once each get their own messages."""

    async def count(to: int) -> list[int]:
        return [tick.n async for tick in chat.count(Number(n=to))]

    got = await asyncio.gather(*(count(10 * n) for n in range(50)))

    assert got == [[*range(10 * n)] for n in range(50)]


async def test_two_tasks_use_one_stream(busmicro_client, notes, spawn):
    """One task sends while another reads; the reader sees the end when the sender is done."""
    async with busmicro_client.stream("chat", "Chat.talk", sends=Number, returns=Number) as stream:

        async def send() -> None:
            async for number in numbers(2000):
                await stream.send(number)
            await stream.close_send()

        sending = spawn(send())
        assert [line.n async for line in stream] == [*range(0, 4000, 2)]
        await sending


async def test_two_senders_share_a_stream(busmicro_client, notes, spawn):
    """Messages of two tasks that send at once all arrive, each task's in its order."""
    async with busmicro_client.stream("chat", "Chat.talk", sends=Number, returns=Number) as stream:

        async def send(start: int) -> None:
            for n in range(start, start + 1000):
                await stream.send(Number(n=n))

        async def send_all() -> None:
            await asyncio.gather(send(0), send(1000))
            await stream.close_send()

        sending = spawn(send_all())
        got = [line.n // 2 async for line in stream]
        await sending

    assert [n for n in got if n < 1000] == [*range(1000)]
    assert [n for n in got if n >= 1000] == [*range(1000, 2000)]


async def test_stream_is_left_in_the_task_that_entered_it(busmicro_client, notes, until, spawn):
    """A block belongs to its task; leaving it elsewhere says so and leaves nothing open."""
    session = busmicro_client.stream("chat", "Chat.count", Number(n=-1), returns=Number)
    await spawn(session.__aenter__())

    with pytest.raises(RuntimeError, match="in the task that entered it"):
        await session.__aexit__(None, None, None)
    with pytest.raises(RuntimeError, match="entered before"):
        await session.__aenter__()
    await until(lambda: notes == ["count closed"])


async def test_relay_of_a_stub_iterator_as_input(busmicro_client, chat, notes, until):
    """What one stream gives can be what another one sends; both end together."""

    async def first_hundred() -> AsyncIterator[Number]:
        async with aclosing(chat.count(Number(n=-1))) as ticks:
            async for tick in ticks:
                if tick.n == 100:
                    return
                yield tick

    assert await chat.total(first_hundred()) == Number(n=sum(range(100)))
    assert [line.n async for line in chat.talk(chat.count(Number(n=3)))] == [0, 2, 4]
    with pytest.raises(CallError):
        await chat.total(busmicro_client.stub(Fails, service="chat").soon())
    await until(lambda: notes.count("count closed") == 2)
