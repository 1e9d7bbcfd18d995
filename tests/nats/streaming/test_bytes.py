"""Bytes of any amount through streams, on real servers: whole, in order, in little memory."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import nats
import pytest
from nats.aio.msg import Msg
from pydantic import BaseModel

from busmicro import (
    Call,
    CallError,
    Client,
    DataLoss,
    NatsServer,
    PayloadTooLarge,
    ResourceExhausted,
    Service,
    Settings,
)
from busmicro.embedded import ServerOptions
from tests.nats.streaming.conftest import Serve

Until = Callable[[Callable[[], object]], Awaitable[None]]
T = TypeVar("T")
LIMIT = 16 * 1024
MIB = 1024 * 1024


class Text(BaseModel):
    text: str


class Store:
    """Takes bytes and gives bytes; it notes what it has heard."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    async def echo(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk

    async def digests(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
        try:
            async for chunk in chunks:
                yield digest(chunk)
        except CallError as failure:
            self.heard.append(type(failure))
            raise
        except asyncio.CancelledError:
            self.heard.append("cancelled")
            raise
        self.heard.append("end")

    async def upload(self, chunks: AsyncIterator[bytes]) -> str:
        whole = hashlib.sha256()
        async for chunk in chunks:
            whole.update(chunk)
        return whole.hexdigest()

    async def download(self, mebibytes: int) -> AsyncIterator[bytes]:
        for chunk in chunks_of(mebibytes):
            yield chunk

    async def texts(self, texts: AsyncIterator[Text], call: Call) -> AsyncIterator[Text]:
        call.reply_headers["X-First"] = "yes"
        async for text in texts:
            yield text


def content(size_bytes: int) -> bytes:
    return random.Random(size_bytes).randbytes(size_bytes)


def digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


def chunks_of(mebibytes: int) -> list[bytes]:
    """So many MiB in few objects, cut unlike frames are."""
    return [content(65_521)] * (mebibytes * MIB // 65_521)


@pytest.fixture
async def small() -> AsyncIterator[NatsServer]:
    """A server that takes little at once."""
    async with NatsServer(options=ServerOptions(max_payload_bytes=LIMIT)) as server:
        yield server


@pytest.fixture
async def store(small: NatsServer) -> AsyncIterator[Store]:
    """A store on that server."""
    handlers = Store()
    service = Service("store", url=small.url)
    service.handle(handlers)
    async with service:
        yield handlers


@pytest.mark.usefixtures("store")
async def test_messages_around_the_limit_arrive_whole(small: NatsServer):
    """Of exactly what the server takes, one byte more or less, twice as much, and nothing."""
    around = [times * LIMIT + more for times in (1, 2, 3) for more in (-1, 0, 1)]
    sizes = [0, 1, *around, 0, 40 * LIMIT + 7, 1]
    async with Client(small.url) as client:
        echo = client.stream("store", "Store.echo", sends=bytes, returns=bytes, timeout=30.0)
        async with echo as stream, asyncio.TaskGroup() as tasks:

            async def send() -> None:
                for size in sizes:
                    await stream.send(content(size))
                await stream.close_send()

            tasks.create_task(send())
            received = [(len(chunk), digest(chunk)) async for chunk in stream]

    assert received == [(size, digest(content(size))) for size in sizes]


async def test_messages_around_the_usual_limit_arrive_whole(serve: Serve, busmicro_client: Client):
    """With 1 MiB, as nats-server has it unless somebody changes it."""
    await serve(Store())
    sent = [content(size) for size in (MIB - 1, MIB, MIB + 1, 5 * MIB)]

    upload = busmicro_client.stub(Store, service="chat").digests(each(sent))

    assert [said async for said in upload] == [digest(chunk) for chunk in sent]


async def each(chunks: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@pytest.mark.usefixtures("store")
async def test_text_larger_than_the_limit_arrives_with_headers(small: NatsServer):
    """JSON is cut like bytes; the headers of the first reply come along, the bus' own do not."""
    text = Text(text="ü" * 3 * LIMIT)
    async with (
        Client(small.url) as client,
        client.stream("store", "Store.texts", sends=Text, returns=Text, timeout=10.0) as stream,
    ):
        await stream.send(text)
        assert await anext(stream) == text
        assert dict(stream.reply_headers) == {"X-First": "yes"}
        await stream.close_send()
        assert [more async for more in stream] == []


@pytest.mark.usefixtures("store")
async def test_a_request_that_is_too_large_is_refused(small: NatsServer):
    """What opens a stream is one NATS message; it is refused before it is sent."""
    async with Client(small.url) as client:
        opening = client.stream("store", "Store.download", Text(text="x" * LIMIT), returns=bytes)
        with pytest.raises(PayloadTooLarge, match="max_payload"):
            async with opening:
                pass


def begin(work: Coroutine[object, object, T]) -> asyncio.Task[T]:
    return asyncio.get_running_loop().create_task(work)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * 4096


async def largest_growth(work: Awaitable[str]) -> tuple[str, int]:
    """Do some work, and tell how much memory the process needed besides, at most."""
    before = resident_bytes()
    most = before

    async def look() -> None:
        nonlocal most
        while True:
            most = max(most, resident_bytes())
            await asyncio.sleep(0.005)

    looking = begin(look())
    result = await work
    looking.cancel()
    with suppress(asyncio.CancelledError):
        await looking
    return result, most - before


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_much_goes_through_little_memory(
    direction: str, serve: Serve, busmicro_client: Client
):
    """64 MiB in chunks of 64 KiB; both ends are in this process and together need few MiB."""
    await serve(Store())
    store = busmicro_client.stub(Store, service="chat")
    chunks = chunks_of(64)
    whole = hashlib.sha256()
    for chunk in chunks:
        whole.update(chunk)

    async def download() -> str:
        received = hashlib.sha256()
        async for chunk in store.download(64):
            received.update(chunk)
        return received.hexdigest()

    work = store.upload(each(chunks)) if direction == "up" else download()
    result, grown_bytes = await largest_growth(work)

    assert result == whole.hexdigest()
    assert grown_bytes < 24 * MIB


@pytest.mark.usefixtures("store")
async def test_two_tasks_send_at_once(small: NatsServer):
    """Each message arrives whole, whoever else sends meanwhile, large ones and small ones."""
    mine = [content(3 * LIMIT + number) for number in range(20)]
    yours = [content(number) for number in range(1, 200)]
    async with (
        Client(small.url) as client,
        client.stream("store", "Store.digests", sends=bytes, returns=str, timeout=30.0) as stream,
    ):

        async def send(chunks: list[bytes]) -> None:
            for chunk in chunks:
                await stream.send(chunk)
                await asyncio.sleep(0)

        async def send_all() -> None:
            await asyncio.gather(send(mine), send(yours))
            await stream.close_send()

        sending = begin(send_all())
        received = [said async for said in stream]
        await sending

    assert sorted(received) == sorted(map(digest, [*mine, *yours]))


@pytest.mark.usefixtures("store")
async def test_the_end_comes_after_a_message_that_is_being_sent(small: NatsServer):
    """`close_send` of another task does not cut it off."""
    large = content(5 * MIB)
    async with (
        Client(small.url) as client,
        client.stream("store", "Store.digests", sends=bytes, returns=str, timeout=30.0) as stream,
    ):
        sending = begin(stream.send(large))
        await asyncio.sleep(0)
        await stream.close_send()
        await sending
        assert [said async for said in stream] == [digest(large)]


async def test_a_send_that_is_cancelled_half_way_ends_the_stream(small: NatsServer, until: Until):
    """Both ends are told; no half of a message arrives, and none is missing in silence."""
    begun = asyncio.Event()
    ended: list[str] = []
    service = Service("slow", url=small.url)

    @service.rpc
    async def sink(chunks: AsyncIterator[bytes]) -> int:
        begun.set()
        try:
            await asyncio.Event().wait()  # takes nothing, so the sender has to wait half-way
        finally:
            ended.append("sink")
        return len([chunk async for chunk in chunks])

    async with service, Client(small.url) as client:
        with pytest.raises(DataLoss, match="cut off"):
            async with client.stream("slow", "sink", sends=bytes, returns=int) as stream:
                sending = begin(stream.send(content(4 * MIB)))
                await begun.wait()
                end = next(iter(client.bus.frames._ends.values())).end
                await until(lambda: end.outgoing.sent > 3)
                sending.cancel()
                await asyncio.wait([sending])
                with pytest.raises(DataLoss):
                    await stream.send(b"more")
                raise DataLoss("cut off")
        await until(lambda: ended == ["sink"])


@pytest.mark.usefixtures("store")
async def test_a_receiver_that_is_cancelled_half_way_loses_nothing(small: NatsServer):
    """Whoever receives next gets the whole message, though others had taken pieces of it."""
    sent = [content(2 * MIB + number) for number in range(3)]
    received: list[str] = []
    cancelled = 0
    async with (
        Client(small.url) as client,
        client.stream("store", "Store.echo", sends=bytes, returns=bytes, timeout=30.0) as stream,
    ):

        async def send() -> None:
            for chunk in sent:
                await stream.send(chunk)
            await stream.close_send()

        sending = begin(send())
        while len(received) < len(sent):
            try:
                async with asyncio.timeout(0.002):
                    received.append(digest(await anext(stream)))
            except TimeoutError:
                cancelled += 1
        await sending

    assert received == [digest(chunk) for chunk in sent]
    assert cancelled


@pytest.mark.usefixtures("store")
async def test_several_tasks_may_receive(small: NatsServer):
    """Each message goes to one of them, whole."""
    sent = [content(3 * LIMIT + number) for number in range(12)]
    received: list[str] = []
    async with (
        Client(small.url) as client,
        client.stream("store", "Store.echo", sends=bytes, returns=bytes, timeout=30.0) as stream,
    ):

        async def receive() -> None:
            received.extend([digest(chunk) async for chunk in stream])

        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(receive())
            for chunk in sent:
                await stream.send(chunk)
            await stream.close_send()

    assert sorted(received) == sorted(map(digest, sent))


class Shrinking:
    """Streams on a server that is killed just after something was sent."""

    def __init__(self, server: NatsServer, sender: str) -> None:
        self.server = server
        self.sender = sender
        self.killed = asyncio.Event()
        self.ended: asyncio.Future[BaseException] = asyncio.Future()
        self.settings = Settings.load(nats_url=server.url, stream_grace=5.0)
        self.service = Service("store", settings=self.settings)
        self.service.rpc(self.both)

    def lose(self, whose: Client | Service) -> None:
        """Kill the server before what was sent in this turn of the loop has left."""
        self.server.kill()
        whose.bus.transport.lose()
        self.killed.set()

    async def both(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            yield await anext(chunks)
            if self.sender == "node":
                await anext(chunks)
                yield content(4 * LIMIT)
                self.lose(self.service)
            async for chunk in chunks:
                yield chunk
        except BaseException as failure:
            self.ended.set_result(failure)
            raise

    async def use(self, client: Client) -> None:
        opened = client.stream("store", "both", sends=bytes, returns=bytes)
        async with opened as stream:
            await stream.send(b"begin")
            await anext(stream)
            await stream.send(content(4 * LIMIT) if self.sender == "caller" else b"go on")
            if self.sender == "caller":
                self.lose(client)
            async for _chunk in stream:
                pass


@pytest.mark.parametrize("sender", ["caller", "node"])
async def test_a_server_that_suddenly_takes_less_ends_the_stream(sender: str, tmp_path: Path):
    """What was sent and lost, and fits no more, ends in an error at both ends; nothing hangs."""
    config = tmp_path / "nats.conf"
    config.write_text(f"max_payload: {4 * LIMIT}", "utf-8")
    async with NatsServer(config=config) as server:
        ends = Shrinking(server, sender)
        async with ends.service, Client(settings=ends.settings) as client, asyncio.timeout(20):
            using = begin(ends.use(client))
            await ends.killed.wait()
            config.write_text(f"max_payload: {LIMIT}", "utf-8")
            await server.restart()
            with pytest.raises(ResourceExhausted, match="max_payload"):
                await using
            assert isinstance(await ends.ended, asyncio.CancelledError | ResourceExhausted)


async def test_messages_are_cut_for_the_server_of_the_moment(tmp_path: Path):
    """A server that takes less after a restart gets smaller pieces, and the stream goes on."""
    config = tmp_path / "nats.conf"
    config.write_text(f"max_payload: {4 * LIMIT}", "utf-8")
    async with NatsServer(config=config) as server:
        usual = Settings.load(nats_url=server.url, stream_grace=5.0)
        service = Service("store", settings=usual)
        service.handle(Store())
        async with (
            service,
            Client(settings=usual) as client,
            client.stream("store", "Store.echo", sends=bytes, returns=bytes) as stream,
        ):
            async with asyncio.timeout(30):
                await stream.send(content(9 * LIMIT))
                assert digest(await anext(stream)) == digest(content(9 * LIMIT))
                config.write_text(f"max_payload: {LIMIT}", "utf-8")
                await server.restart()
                await stream.send(content(9 * LIMIT))
                assert digest(await anext(stream)) == digest(content(9 * LIMIT))


Frames = list[tuple[str, bytes, dict[str, str]]]


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([("p1", b"half", {}), ("e2", b"", {})], id="the end in the middle"),
        pytest.param([("p1", b"a", {}), ("d2", b"b", {})], id="no checksum"),
        pytest.param([("p1", b"a", {}), ("d2", b"b", {"Bus-Checksum": "00"})], id="other checksum"),
    ],
)
async def test_a_caller_that_sends_half_a_message_is_told(
    frames: Frames, busmicro_server: NatsServer, raw: nats.NATS
):
    """The handler gets an error, not a message that was never sent, and so does the caller."""
    store = Store()
    service = Service("store", url=busmicro_server.url)
    service.handle(store)
    async with service:
        arrived = await raw.subscribe("_INBOX.half.>")
        opening = {"Bus-Stream": "9 9999", "Content-Type": "application/octet-stream"}
        await raw.publish("rpc.store.Store.digests", b"", "_INBOX.half.1", opening)
        accepted = await arrived.next_msg(5)
        for name, payload, headers in frames:
            await raw.publish(f"{accepted.reply}.{name}", payload, headers=headers or None)
        status = await next_frame(arrived, "s")

    assert status.headers is not None
    assert status.headers["Bus-Status"] == "data_loss"
    assert store.heard == [DataLoss]


async def next_frame(arrived: nats.aio.subscription.Subscription, kind: str) -> Msg:
    while True:
        frame = await arrived.next_msg(5)
        if frame.subject.rpartition(".")[2].startswith(kind):
            return frame


async def test_a_node_that_sends_half_a_message_is_not_believed(
    busmicro_server: NatsServer, raw: nats.NATS, settled: Callable[[nats.NATS], Awaitable[None]]
):
    """The stream ended well, says the node; the caller has got half a message and says so."""

    async def answer(request: Msg) -> None:
        await raw.publish(f"{request.reply}.a", b"9 9999 0 0", "_INBOX.node.1")
        await raw.publish(f"{request.reply}.p1", b'"half')
        await raw.publish(f"{request.reply}.s2", b"")

    await raw.subscribe("rpc.store.half", cb=answer)
    await settled(raw)
    async with Client(busmicro_server.url) as client:
        with pytest.raises(DataLoss, match="middle of a message"):
            async with client.stream("store", "half", returns=str, timeout=5.0) as stream:
                async for _text in stream:
                    pass
