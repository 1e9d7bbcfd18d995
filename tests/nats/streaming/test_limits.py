"""What streams may take: how many are open, how much waits, and what a flood can do."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from busmicro import Client, ResourceExhausted, Settings
from tests.nats.streaming.chat import Chat, Number, gather, numbers


def open_talk(client: Client):  # its type is long
    """A stream that stays open until its block ends."""
    return client.stream("chat", "Chat.talk", sends=Number, returns=Number)


async def test_caller_has_a_limit_of_streams(busmicro_server, serve, remains):
    """Beyond `max_streams` opening fails at once, saying which setting; a closed one makes room."""
    await serve(Chat())

    async with Client(settings=Settings(nats_url=busmicro_server.url, max_streams=3)) as client:
        remains.watch(client)
        async with AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(open_talk(client))
            with pytest.raises(ResourceExhausted, match="BUSMICRO_MAX_STREAMS") as caught:
                async with open_talk(client):
                    pass
            assert caught.value.not_run
        async with open_talk(client) as stream:
            await stream.send(Number(n=1))
            assert await anext(stream) == Number(n=2)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("max_streams", "BUSMICRO_MAX_STREAMS"),
        ("max_streams_per_caller", "BUSMICRO_MAX_STREAMS_PER_CALLER"),
        ("max_running", "requests run on this node already"),
    ],
)
async def test_node_has_limits_of_streams(busmicro_client, serve, until, setting, says):
    """Whoever is over is refused, not run, and told which limit; there is room afterwards."""
    chat = Chat()
    service = await serve(chat, settings=Settings(**{setting: 3}))

    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(open_talk(busmicro_client))
        with pytest.raises(ResourceExhausted, match=says) as caught:
            async with busmicro_client.stream("chat", "Chat.count", Number(n=1)):
                pass
        assert caught.value.not_run
        assert caught.value.origin == "chat"

    await until(lambda: not len(service.bus.frames))
    assert [n.n async for n in busmicro_client.stub(Chat, service="chat").count(Number(n=2))] == [
        0,
        1,
    ]
    assert chat.notes.count("count closed") == 1


async def test_one_callers_streams_do_not_keep_others_out(
    busmicro_server, busmicro_client, serve, remains
):
    """`max_streams_per_caller` counts each connection alone, and holds for each alone."""
    await serve(Chat(), settings=Settings(max_streams_per_caller=1))

    async with Client(busmicro_server.url) as other, open_talk(busmicro_client):
        remains.watch(other)
        async with open_talk(other):
            for client in (other, busmicro_client):
                with pytest.raises(ResourceExhausted, match="of this caller"):
                    async with open_talk(client):
                        pass


async def test_refused_openings_are_not_counted_as_open(busmicro_client, serve):
    """Refusals, of whatever kind, leave a caller all of its streams."""
    await serve(Chat(), settings=Settings(max_streams_per_caller=2))

    for _ in range(5):
        with pytest.raises(Exception, match="n"):
            async with busmicro_client.stream("chat", "Chat.count", {"n": "x"}):
                pass
    async with open_talk(busmicro_client), open_talk(busmicro_client) as stream:
        await stream.send(Number(n=1))
        assert await anext(stream) == Number(n=2)


# --- windows --------------------------------------------------------------------------------------


class Fast:
    """Gives and takes as fast as it can; tells how far it came."""

    def __init__(self) -> None:
        self.given = 0
        self.taken = 0
        self.go = asyncio.Event()

    async def give(self, size: int) -> AsyncIterator[bytes]:
        while True:
            yield b"x" * size
            self.given += 1

    async def take(self, chunks: AsyncIterator[bytes]) -> int:
        await self.go.wait()
        async for _chunk in chunks:
            self.taken += 1
        return self.taken


async def until_still(count) -> int:
    """Wait until a figure does not change any more."""
    last, same = -1, 0
    async with asyncio.timeout(10):
        while same < 10:
            await asyncio.sleep(0.01)
            same = same + 1 if count() == last else 0
            last = count()
    return last


@pytest.mark.parametrize(("size", "most"), [(1, 50), (100_000, 5)], ids=["messages", "bytes"])
async def test_slow_reader_makes_the_handler_wait(busmicro_server, serve, remains, size, most):
    """A handler is no more than the reader's window ahead, in messages and in bytes."""
    fast = Fast()
    await serve(fast)
    settings = Settings(nats_url=busmicro_server.url, stream_window=50, stream_window_bytes=450_000)

    async with Client(settings=settings) as client:
        remains.watch(client)
        async with client.stream("chat", "Fast.give", size, returns=bytes) as stream:
            assert await until_still(lambda: fast.given) == most
            for read in range(1, 4 * most):
                await anext(stream)
                assert fast.given <= most + read
            assert most < await until_still(lambda: fast.given) <= 5 * most


async def test_slow_handler_makes_the_caller_wait(busmicro_client, serve, spawn):
    """A caller is no more than the node's window ahead; then its iterator is not asked."""
    fast = Fast()
    await serve(fast, settings=Settings(stream_window=50))
    asked = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal asked
        for _ in range(500):
            asked += 1
            yield b"x"

    calling = spawn(busmicro_client.stub(Fast, service="chat").take(chunks()))

    assert await until_still(lambda: asked) == 51  # the last one waits to be sent
    fast.go.set()
    assert await calling == 500


async def test_smallest_window_carries_everything(busmicro_server, serve, remains):
    """Windows of one message, or of one byte, are slow and lose nothing."""
    await serve(Chat(), settings=Settings(stream_window=1))
    settings = Settings(nats_url=busmicro_server.url, stream_window_bytes=1)

    async with Client(settings=settings) as client:
        remains.watch(client)
        chat = client.stub(Chat, service="chat")
        assert [line.n async for line in chat.talk(numbers(100))] == [*range(0, 200, 2)]


# --- floods ---------------------------------------------------------------------------------------


async def test_flood_of_pings_and_repairs_leaves_nothing(serve, peer, until):
    """However often a caller asks, each ping gets one word, and nothing piles up at the node."""
    await serve(Chat())
    await peer.ask("rpc.chat.Chat.talk")

    async def flood(count: int) -> None:
        for _ in range(count):
            await peer.send("q", b"256 2097152 0 0", ask=True)
            await peer.send("r", b"256 2097152 0 0")
        for _ in range(count):
            assert (await peer.next()).name == "c"

    await flood(300)
    tracemalloc.start()
    try:
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(10):
            await flood(300)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert after - before < 200_000
    await peer.send("x")


async def test_flood_of_repairs_is_not_answered_with_a_flood(serve, peer, settled, raw):
    """Whoever asks for everything again and again gets it again once in a while."""
    await serve(Chat())
    await peer.ask("rpc.chat.Chat.count", b'{"n":200}')
    await peer.next("s201")

    began = time.monotonic()
    for _ in range(1000):
        await peer.send("r", b"256 2097152 0 0")
    await settled(raw)
    await peer.send("q", b"256 2097152 0 0")
    took = time.monotonic() - began
    again = 0
    while (await peer.next()).name != "c":
        again += 1

    assert 201 <= again <= 201 * (2 + took / 0.1)
    await peer.send("c", b"256 2097152 201 0")


async def test_abandoned_streams_do_not_stay(busmicro_client, serve, until):
    """Three hundred streams, left in every way, leave nothing at either end."""
    chat = Chat()
    service = await serve(chat)
    stub = busmicro_client.stub(Chat, service="chat")

    async def leave(n: int) -> None:
        if n % 3 == 0:
            async for tick in stub.count(Number(n=-1)):
                if tick.n == 3:
                    break
        elif n % 3 == 1:
            async with open_talk(busmicro_client):
                pass
        else:
            await gather(stub.count(Number(n=5)), [])

    for start in range(0, 300, 100):
        await asyncio.gather(*(leave(n) for n in range(start, start + 100)))

    await until(lambda: not len(service.bus.frames))
    await until(lambda: not len(busmicro_client.bus.frames))
    await until(lambda: chat.notes.count("count closed") == 200)
