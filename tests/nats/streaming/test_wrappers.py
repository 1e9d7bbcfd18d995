"""Wrappers around streams: the law that all of them rely on, at both ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from busmicro import (
    Call,
    CallError,
    DeadlineExceeded,
    Internal,
    NatsServer,
    NotFound,
    Unauthenticated,
)
from busmicro.call import Handler
from tests.nats.streaming.wrapped import Ends, Item, Stamp, Witness, connected, items

Until = Callable[[Callable[[], object]], Awaitable[None]]
Use = Callable[[Ends], Awaitable[list[Item]]]


@pytest.fixture(params=["server", "memory"])
def url(request: pytest.FixtureRequest, busmicro_server: NatsServer, busmicro_memory: str) -> str:
    """A bus of either sort."""
    return busmicro_server.url if request.param == "server" else busmicro_memory


async def count(ends: Ends) -> list[Item]:
    async with ends.open("count", 1) as stream:
        return [item async for item in stream]


async def count_by_stub(ends: Ends) -> list[Item]:
    return [item async for item in ends.stub.count(Item(n=1))]


async def total(ends: Ends) -> list[Item]:
    async with ends.talk("total") as stream:
        await stream.send(Item(n=1))
        return [await stream.result()]


async def total_by_stub(ends: Ends) -> list[Item]:
    return [await ends.stub.total(items(1))]


async def echo(ends: Ends) -> list[Item]:
    async with ends.talk() as stream:
        await stream.send(Item(n=1))
        answer = await anext(stream)
        await stream.close_send()
        return [answer, *[item async for item in stream]]


async def echo_by_stub(ends: Ends) -> list[Item]:
    return [item async for item in ends.stub.echo(items(1))]


SHAPES = [count, count_by_stub, total, total_by_stub, echo, echo_by_stub]
each_shape = pytest.mark.parametrize("use", SHAPES, ids=lambda use: use.__name__)


# --- the order ----------------------------------------------------------------------------------


@each_shape
async def test_chain_spans_the_whole_life_at_both_ends(url: str, use: Use):
    """The first wrapper given is the outermost; each sees the beginning, and then the end."""
    seen: list[str] = []

    async with connected(
        url,
        client=[Witness("c1", seen), Witness("c2", seen)],
        handler=[Witness("h1", seen), Witness("h2", seen)],
    ) as ends:
        await use(ends)

    assert seen == [
        "c1 begins", "c2 begins", "h1 begins", "h2 begins",
        "h2 ends", "h1 ends", "c2 ends", "c1 ends",
    ]  # fmt: skip


@each_shape
async def test_taps_see_each_message_in_the_order_of_the_onion(url: str, use: Use):
    """On its way to the handler a message passes the outermost first, on its way back last."""
    async with connected(
        url, client=[Stamp("c1"), Stamp("c2")], handler=[Stamp("h1"), Stamp("h2")]
    ) as ends:
        (answer,) = await use(ends)

    assert answer.path == ["c1", "c2", "h1", "h2", "handler", "h2", "h1", "c2", "c1"]


async def test_taps_see_each_of_many_messages_once(busmicro_memory: str):
    """Nothing passes twice, nothing passes by, however many there are."""
    seen: list[tuple[str, int]] = []

    class Tell:
        def __init__(self, way: str) -> None:
            self.way = way

        async def __call__(self, call: Call, call_next: Handler, /) -> object:
            call.taps.append(self)
            return await call_next(call)

        def outgoing(self, message: Item, /) -> object:
            seen.append((f"{self.way} out", message.n))
            return message

        def incoming(self, message: Item, /) -> object:
            seen.append((f"{self.way} in", message.n))
            return message

    async with connected(
        busmicro_memory, client=[Tell("client")], handler=[Tell("handler")]
    ) as ends:
        assert len([item async for item in ends.stub.echo(items(*range(300)))]) == 300

    for way in ("client out", "client in", "handler out", "handler in"):
        assert [n for told, n in seen if told == way] == list(range(300))


async def test_block_runs_within_the_clients_chain(busmicro_memory: str):
    """What a wrapper does before and after is around the block, and the handler's within it."""
    seen: list[str] = []

    witnesses = {"client": [Witness("client", seen)], "handler": [Witness("handler", seen)]}
    async with connected(busmicro_memory, **witnesses) as ends, ends.open("count", 2) as stream:
        seen.append("block")
        seen += [f"got {item.n}" async for item in stream]
        seen.append("done")

    assert seen[:2] == ["client begins", "handler begins"]
    assert seen[-2:] == ["done", "client ends"]
    assert [said for said in seen if "handler" not in said][1:-2] == ["block", "got 0", "got 1"]


async def test_handlers_chain_ends_after_its_last_message_was_sent(
    busmicro_memory: str, until: Until
):
    """A caller that takes its time keeps the chain waiting: what was not sent is not over."""
    seen: list[str] = []

    async with connected(busmicro_memory, handler=[Witness("handler", seen)]) as ends:
        async with ends.open("count", 1000) as stream:  # more than fits into the window
            await until(lambda: ends.feed.entered)
            first = await anext(stream)
            assert (first.n, seen) == (0, ["handler begins"])
            assert len([item async for item in stream]) == 999
        await until(lambda: seen[1:] == ["handler ends"])


# --- the end ------------------------------------------------------------------------------------


async def fail_in_block(ends: Ends) -> None:
    async with ends.open("fail", 2) as stream:
        async for _ in stream:
            pass


async def fail_by_stub(ends: Ends) -> None:
    async for _ in ends.stub.fail(Item(n=2)):
        pass


async def fail_unseen(ends: Ends) -> None:
    """Leave a block when its stream has failed already, and nobody has looked."""
    async with ends.open("fail", 2) as stream:
        async with asyncio.timeout(10):
            while not stream.is_over:
                await asyncio.sleep(0.001)


async def fail_seen(ends: Ends) -> None:
    """Deal with the failure within the block."""
    async with ends.open("fail", 2) as stream:
        with pytest.raises(NotFound):
            async for _ in stream:
                pass
    raise NotFound("dealt with")


@pytest.mark.parametrize(
    "use", [fail_in_block, fail_by_stub, fail_unseen, fail_seen], ids=lambda use: use.__name__
)
async def test_error_at_the_end_reaches_every_wrapper(
    url: str, use: Callable[[Ends], Awaitable[None]]
):
    """However a caller hears of it, its wrappers and the handler's see how the stream ended."""
    seen: list[str] = []

    async with connected(
        url,
        client=[Witness("c1", seen), Witness("c2", seen)],
        handler=[Witness("h1", seen), Witness("h2", seen)],
    ) as ends:
        with pytest.raises(NotFound):
            await use(ends)

    ended = [said for said in seen if "begins" not in said]
    assert ended == [f"{name}: NotFound" for name in ("h2", "h1", "c2", "c1")]


async def test_error_of_the_block_reaches_the_clients_wrappers(busmicro_memory: str, until: Until):
    """A caller that fails ends its chain with its own error; the handler is cancelled."""
    seen: list[str] = []

    async with connected(
        busmicro_memory, client=[Witness("client", seen)], handler=[Witness("handler", seen)]
    ) as ends:
        with pytest.raises(ZeroDivisionError):
            async with ends.open("hold", 1) as stream:
                await anext(stream)
                1 / 0
        await until(lambda: ends.feed.left)

    assert seen[2:] == ["client: ZeroDivisionError", "handler: CancelledError"]


@pytest.mark.parametrize("way", ["block", "stub"])
async def test_leaving_early_ends_the_clients_chain_well_and_cancels_the_handlers(
    busmicro_memory: str, until: Until, way: str
):
    """To have enough is no failure; the handler's wrappers see that it was cancelled."""
    seen: list[str] = []

    async with connected(
        busmicro_memory, client=[Witness("client", seen)], handler=[Witness("handler", seen)]
    ) as ends:
        if way == "block":
            async with ends.open("hold", 1) as stream:
                await anext(stream)
        else:
            async for _ in ends.stub.hold(Item(n=1)):
                break
        await until(lambda: len(seen) == 4)

    assert seen[2:] == ["client ends", "handler: CancelledError"]


async def test_cancelled_caller_cancels_both_chains(busmicro_memory: str, until: Until):
    """Wrappers of both ends get the cancellation, and the handler is closed."""
    seen: list[str] = []

    async with connected(
        busmicro_memory, client=[Witness("client", seen)], handler=[Witness("handler", seen)]
    ) as ends:

        async def listen() -> None:
            async with ends.open("hold") as stream:
                await anext(stream)

        task = asyncio.get_running_loop().create_task(listen())
        await until(lambda: ends.feed.entered)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await until(lambda: ends.feed.left)

    assert seen[2:] == ["client: CancelledError", "handler: CancelledError"]


async def test_deadline_of_a_stream_ends_both_chains(busmicro_memory: str, until: Until):
    """A stream whose time is up ends at the client as that, and its handler is cancelled."""
    seen: list[str] = []

    async with connected(
        busmicro_memory, client=[Witness("client", seen)], handler=[Witness("handler", seen)]
    ) as ends:
        with pytest.raises(DeadlineExceeded):
            async with ends.open("hold", timeout=0.1) as stream:
                await anext(stream)
        await until(lambda: len(seen) == 4)

    assert set(seen[2:]) == {"client: DeadlineExceeded", "handler: CancelledError"}


# --- refusing -----------------------------------------------------------------------------------


async def refuse(_call: Call, _call_next: Handler) -> object:
    raise Unauthenticated("say who you are", not_run=True)


@each_shape
async def test_wrapper_refuses_the_opening_at_the_handler(url: str, use: Use):
    """Nothing runs, the block is not entered, and the outer wrappers of both ends see it."""
    seen: list[str] = []

    async with connected(
        url, client=[Witness("client", seen)], handler=[Witness("handler", seen), refuse]
    ) as ends:
        with pytest.raises(Unauthenticated, match="say who you are") as refused:
            await use(ends)

    assert refused.value.not_run
    assert ends.feed.entered == 0
    assert seen[2:] == ["handler: Unauthenticated", "client: Unauthenticated"]


@each_shape
async def test_wrapper_refuses_the_opening_at_the_client(url: str, use: Use):
    """The service hears nothing of it."""
    seen: list[str] = []

    async with connected(
        url, client=[Witness("client", seen), refuse], handler=[Witness("handler", seen)]
    ) as ends:
        with pytest.raises(Unauthenticated):
            await use(ends)

    assert seen == ["client begins", "client: Unauthenticated"]


@pytest.mark.parametrize("side", ["client", "handler"])
async def test_block_of_a_refused_stream_is_not_entered(busmicro_memory: str, side: str):
    """Whoever refuses, a stream that is not open is not used."""
    wrappers = {side: [refuse]}

    async with connected(busmicro_memory, **wrappers) as ends:
        with pytest.raises(Unauthenticated):
            async with ends.open("count", 1):
                pytest.fail("the block was entered")


@pytest.mark.parametrize("side", ["client", "handler"])
async def test_wrapper_that_ends_a_stream_without_opening_it_is_named(
    busmicro_memory: str, side: str, caplog: pytest.LogCaptureFixture
):
    """There is no reply that could stand for a stream, so it is an error that says so."""

    async def answers_itself(_call: Call, _call_next: Handler) -> object:
        return None

    wrappers = {side: [answers_itself]}
    async with connected(busmicro_memory, **wrappers) as ends:
        with pytest.raises((CallError, ValueError)) as wrong:
            async with ends.open("count", 1):
                pytest.fail("the block was entered")

    assert "answers_itself ended a stream" in (caplog.text if side == "handler" else "") + str(
        wrong.value
    )


async def test_wrapper_that_fails_after_the_stream_decides_how_it_ends(busmicro_memory: str):
    """Every message has come, and then the error of the handler's wrapper."""
    got: list[Item] = []

    async def audit(call: Call, call_next: Handler) -> object:
        await call_next(call)
        raise Internal("the books do not balance")

    async with connected(busmicro_memory, handler=[audit]) as ends:
        with pytest.raises(Internal, match="books"):
            async for item in ends.stub.count(Item(n=3)):
                got.append(item)  # noqa: PERF401 - what came before the error counts

    assert [item.n for item in got] == [0, 1, 2]


async def test_headers_of_wrappers_travel(busmicro_memory: str):
    """What a client's wrapper adds arrives; what a handler's adds comes back, at either end."""

    async def ask(call: Call, call_next: Handler) -> object:
        call.headers["Tenant"] = "t1"
        await call_next(call)
        assert call.reply_headers["Tenant"] == "t1"
        assert call.reply_headers["Late"] == "yes"
        return None

    async def answer(call: Call, call_next: Handler) -> object:
        call.reply_headers["Tenant"] = call.headers["Tenant"]
        await call_next(call)
        call.reply_headers["Late"] = "yes"
        return None

    async with (
        connected(busmicro_memory, client=[ask], handler=[answer]) as ends,
        ends.open("count", 1) as stream,
    ):
        assert dict(stream.reply_headers) == {"Tenant": "t1"}
        assert len([item async for item in stream]) == 1
        assert dict(stream.reply_headers) == {"Tenant": "t1", "Late": "yes"}
