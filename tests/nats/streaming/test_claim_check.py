"""Claim checks: large messages of streams lie in JetStream's object store while they travel."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import nats
import pytest
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.object_store import ObjectStore

from busmicro import (
    Call,
    CallError,
    Client,
    DataLoss,
    DeadlineExceeded,
    NatsServer,
    ResourceExhausted,
    Service,
    Settings,
    Unimplemented,
)
from busmicro.transport import bucket_name

Until = Callable[[Callable[[], object]], Awaitable[None]]
Ask = Callable[..., Awaitable[dict[str, Any]]]
Damage = Callable[[JetStreamContext, ObjectStore, str], Awaitable[object]]

THRESHOLD = 50_000
BUCKET = "bus-objects"
RAW = "application/octet-stream"


class Echo:
    """Gives back what it gets, once it may; it notes what ended it."""

    def __init__(self) -> None:
        self.may_take = asyncio.Event()
        self.may_take.set()
        self.ended: list[CallError] = []

    async def echo(self, chunks: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        call.reply_headers["X-Echo"] = "yes"
        await self.may_take.wait()
        try:
            async for chunk in chunks:
                yield chunk
        except CallError as failure:
            self.ended.append(failure)
            raise


def content(size_bytes: int) -> bytes:
    return random.Random(size_bytes).randbytes(size_bytes)


def options(url: str, **more: object) -> Settings:
    return Settings.load(nats_url=url, claim_check_bytes=THRESHOLD, **more)


@pytest.fixture
async def raw(server: NatsServer) -> AsyncIterator[nats.NATS]:
    """A client of the same server that knows nothing of busmicro."""
    client = await nats.connect(server.url)
    yield client
    await client.close()


@pytest.fixture
async def echo(server: NatsServer) -> AsyncIterator[Echo]:
    """A service that sends back claims, on a server with JetStream."""
    handlers = Echo()
    service = Service("echo", settings=options(server.url))
    service.handle(handlers)
    async with service:
        yield handlers


@pytest.fixture
async def names(raw: nats.NATS, settled: Callable[[nats.NATS], Awaitable[None]]) -> list[str]:
    """The names of all frames that pass by: how messages travel."""
    seen: list[str] = []

    async def note(frame: Msg) -> None:
        seen.append(frame.subject.rpartition(".")[2])

    await raw.subscribe("_INBOX.*.*.*", cb=note)
    await settled(raw)
    return seen


async def exchange(client: Client, sent: list[bytes]) -> list[bytes]:
    """Send these to the service, and return what comes back."""
    opened = client.stream("echo", "Echo.echo", sends=bytes, returns=bytes, timeout=20.0)
    async with opened as stream, asyncio.TaskGroup() as tasks:

        async def send() -> None:
            for chunk in sent:
                await stream.send(chunk)
            await stream.close_send()

        tasks.create_task(send())
        return [chunk async for chunk in stream]


def digests(chunks: list[bytes]) -> list[str]:
    return [hashlib.sha256(chunk).hexdigest() for chunk in chunks]


async def chunks_kept(ask: Ask) -> int:
    """How many chunks the object store keeps."""
    asked = {"subjects_filter": f"$O.{BUCKET}.C.>"}
    state = (await ask(f"STREAM.INFO.OBJ_{BUCKET}", asked))["state"]
    return sum((state.get("subjects") or {}).values())


@pytest.mark.usefixtures("echo")
async def test_large_messages_go_through_the_object_store_in_order(
    server: NatsServer, names: list[str], ask: Ask, until: Until
):
    """Smaller ones do not; all arrive as they were sent, and none stays in the store."""
    sizes = [THRESHOLD, THRESHOLD + 1, 20, 3_000_000, 10, 7_000_000, 0]
    sent = [content(size) for size in sizes]

    async with Client(settings=options(server.url)) as client:
        assert digests(await exchange(client, sent)) == digests(sent)
        await until(lambda: sum(name.startswith("e") for name in names) == 1)
        assert [name for name in names if name[0] == "o"].count("o2") == 2
        assert sum(name[0] == "o" for name in names) == 6
        assert not any(name[0] == "p" for name in names)

        async def is_empty() -> bool:
            return await chunks_kept(ask) == 0

        await until(is_empty)


@pytest.mark.usefixtures("echo")
async def test_the_bucket_is_one_that_forgets(server: NatsServer, ask: Ask):
    """It keeps an object for an hour, on disk, and no more than 1 GiB of them."""
    async with Client(settings=options(server.url)) as client:
        await exchange(client, [content(THRESHOLD + 1)])

    config = (await ask(f"STREAM.INFO.OBJ_{BUCKET}"))["config"]
    assert config["max_age"] == 3600 * 10**9
    assert (config["storage"], config["num_replicas"]) == ("file", 1)
    assert (config["max_bytes"], config["discard"]) == (2**30, "new")


async def test_each_namespace_has_a_bucket_of_its_own(server: NatsServer, ask: Ask):
    """Whose messages are kept apart, has them kept apart here too."""
    settings = options(server.url, namespace="team.a")
    service = Service("echo", settings=settings)
    service.handle(Echo())
    async with service, Client(settings=settings) as client:
        await exchange(client, [content(THRESHOLD + 1)])

    streams = (await ask("STREAM.NAMES"))["streams"]
    assert f"OBJ_{bucket_name('team.a', 'objects')}" in streams
    assert f"OBJ_{BUCKET}" not in streams


@pytest.mark.usefixtures("echo")
async def test_headers_come_with_a_claim(server: NatsServer):
    """Those of the first reply, as with any other message."""
    async with (
        Client(settings=options(server.url)) as client,
        client.stream("echo", "Echo.echo", sends=bytes, returns=bytes, timeout=10.0) as stream,
    ):
        await stream.send(content(THRESHOLD + 1))
        assert await anext(stream) == content(THRESHOLD + 1)
        assert dict(stream.reply_headers)["X-Echo"] == "yes"


async def test_nothing_is_stored_unless_it_was_asked_for(
    server: NatsServer, names: list[str], ask: Ask
):
    """Off by default; but who does not send claims takes them."""
    service = Service("echo", url=server.url)
    service.handle(Echo())
    async with service:
        async with Client(server.url) as client:
            assert await exchange(client, [content(3_000_000)]) == [content(3_000_000)]
        assert "error" in await ask(f"STREAM.INFO.OBJ_{BUCKET}")
        assert not any(name[0] == "o" for name in names)
        async with Client(settings=options(server.url)) as client:
            assert await exchange(client, [content(3_000_001)]) == [content(3_000_001)]
    assert sum(name[0] == "o" for name in names) == 1


@pytest.mark.parametrize("bus", ["memory", "server without JetStream"])
async def test_without_jetstream_messages_go_in_pieces(
    bus: str, busmicro_memory: str, caplog: pytest.LogCaptureFixture
):
    """Claim checks are asked for and cannot be had: that is said once, and nothing is lost."""
    async with NatsServer(jetstream=False) as server:
        settings = options(busmicro_memory if bus == "memory" else server.url)
        service = Service("echo", settings=settings)
        service.handle(Echo())
        sent = [content(size) for size in (THRESHOLD + 1, 2_500_000, 1)]
        with caplog.at_level(logging.WARNING, "busmicro.transport"):
            async with service, Client(settings=settings) as client:
                assert digests(await exchange(client, sent)) == digests(sent)
                assert digests(await exchange(client, sent)) == digests(sent)

    said = [record.message for record in caplog.records if "object store" in record.message]
    assert len(said) == 2  # the client, and the service
    assert all("JetStream is not enabled" in text for text in said)


async def test_what_does_not_fit_the_store_goes_in_pieces(
    server: NatsServer, raw: nats.NATS, names: list[str], echo: Echo
):
    """A bucket that somebody has made smaller, and is full, costs nothing but its benefit."""
    await raw.jetstream().create_object_store(BUCKET, max_bytes=300_000)
    sent = [content(THRESHOLD + 1), content(3_000_000), content(THRESHOLD + 2)]

    async with Client(settings=options(server.url)) as client:
        assert digests(await exchange(client, sent)) == digests(sent)

    assert any(name[0] == "p" for name in names)
    assert not echo.ended


async def change(_js: JetStreamContext, store: ObjectStore, name: str) -> None:
    await store.put(name, content(3_000_001)[:-1])


async def delete(_js: JetStreamContext, store: ObjectStore, name: str) -> None:
    await store.delete(name)


async def purge_chunks(js: JetStreamContext, _store: ObjectStore, _name: str) -> None:
    await js.purge_stream(f"OBJ_{BUCKET}", subject=f"$O.{BUCKET}.C.>")


async def purge_half(js: JetStreamContext, _store: ObjectStore, _name: str) -> None:
    await js.purge_stream(f"OBJ_{BUCKET}", seq=5)


async def rewrite(js: JetStreamContext, store: ObjectStore, name: str, **changes: object) -> None:
    """Write other information about an object, as a program that means harm would."""
    info = (await store.get_info(name)).as_dict() | changes
    subject = f"$O.{BUCKET}.M.{urlsafe_b64encode(name.encode()).decode()}"
    await js.publish(subject, json.dumps(info).encode(), headers={"Nats-Rollup": "sub"})


async def link(js: JetStreamContext, store: ObjectStore, name: str) -> None:
    others = await js.create_object_store("others")
    await others.put("secret", content(3_000_000))
    await rewrite(js, store, name, options={"link": {"bucket": "others", "name": "secret"}})


async def aim(js: JetStreamContext, store: ObjectStore, name: str) -> None:
    await rewrite(js, store, name, nuid=">")


async def garble(js: JetStreamContext, store: ObjectStore, name: str) -> None:
    await rewrite(js, store, name, digest="SHA-256=?")


async def grow(js: JetStreamContext, store: ObjectStore, name: str) -> None:
    info = await store.get_info(name)
    await js.publish(f"$O.{BUCKET}.C.{info.nuid}", bytes(100_000))


@pytest.mark.parametrize(
    "damage", [change, delete, purge_chunks, purge_half, link, aim, garble, grow]
)
async def test_an_object_that_is_not_what_was_sent_ends_the_stream(
    damage: Damage, server: NatsServer, raw: nats.NATS, echo: Echo
):
    """Changed, gone, or leading elsewhere: both ends are told within seconds, nothing arrives."""
    echo.may_take.clear()
    js = raw.jetstream()
    async with Client(settings=options(server.url)) as client, asyncio.timeout(15):
        opened = client.stream("echo", "Echo.echo", sends=bytes, returns=bytes)
        received: list[bytes] = []
        with pytest.raises(DataLoss):
            async with opened as stream:
                await stream.send(b"first")
                await stream.send(content(3_000_000))
                store = await js.object_store(BUCKET)
                (stored,) = await store.list()
                await damage(js, store, stored.name)
                echo.may_take.set()
                received.extend([chunk async for chunk in stream])

    assert [type(ended) for ended in echo.ended] == [DataLoss]
    assert received == []
    if damage is link:
        assert (await js.stream_info("OBJ_others")).state.messages > 1


async def test_what_is_too_large_is_refused_before_it_is_fetched(server: NatsServer, ask: Ask):
    """The claim says the size; the object is left where it is, and both ends are told."""
    handlers = Echo()
    service = Service("echo", settings=options(server.url, max_message_bytes=1_000_000))
    service.handle(handlers)
    async with service, Client(settings=options(server.url)) as client:
        with pytest.raises(ResourceExhausted, match="BUSMICRO_MAX_MESSAGE_BYTES"):
            await exchange_alone(client, content(1_000_001))
    assert [type(ended) for ended in handlers.ended] == [ResourceExhausted]
    assert await chunks_kept(ask) > 0


async def exchange_alone(client: Client, message: bytes) -> list[bytes]:
    opened = client.stream("echo", "Echo.echo", sends=bytes, returns=bytes, timeout=10.0)
    async with opened as stream:
        await stream.send(message)
        return [chunk async for chunk in stream]


NAME = "0123456789abcdef0123456789abcdef"
CLAIM = {"bucket": BUCKET, "object": NAME, "size": 6, "digest": f"SHA-256={'A' * 43}="}


@pytest.mark.parametrize(
    ("claim", "code"),
    [
        pytest.param(CLAIM | {"bucket": "others", "object": "secret"}, "internal", id="bucket"),
        pytest.param(CLAIM | {"bucket": "others"}, "internal", id="bucket of others"),
        pytest.param(CLAIM | {"object": "secret"}, "internal", id="a name to be guessed"),
        pytest.param(CLAIM | {"object": f"{NAME[:-1]}>"}, "internal", id="a wildcard"),
        pytest.param(CLAIM | {"size": -1}, "internal", id="no size"),
        pytest.param({"bucket": BUCKET}, "internal", id="half a claim"),
        pytest.param("claim", "internal", id="no claim"),
        pytest.param(CLAIM, "data_loss", id="nothing there"),
    ],
)
async def test_a_claim_is_not_believed(claim: object, code: str, raw: nats.NATS, echo: Echo):
    """A caller cannot make a node read, or delete, what is not a message of a stream."""
    others = await raw.jetstream().create_object_store("others")
    await others.put("secret", b"secret")
    ours = await raw.jetstream().create_object_store(BUCKET)
    await ours.put("secret", b"secret")
    arrived = await raw.subscribe("_INBOX.claim.>")
    opening = {"Bus-Stream": "9 9999", "Content-Type": RAW}
    await raw.publish("rpc.echo.Echo.echo", b"", "_INBOX.claim.1", opening)
    accepted = await arrived.next_msg(5)
    await raw.publish(f"{accepted.reply}.o1", json.dumps(claim).encode())
    async with asyncio.timeout(5):
        while (frame := await arrived.next_msg(5)).subject != "_INBOX.claim.1.s1":
            pass

    assert frame.headers is not None
    assert frame.headers["Bus-Status"] == code
    assert [ended.code.value for ended in echo.ended] == [code]
    assert (await others.get("secret")).data == b"secret"
    assert (await ours.get("secret")).data == b"secret"


@pytest.mark.usefixtures("echo")
async def test_no_more_is_fetched_than_was_claimed(raw: nats.NATS):
    """A claim that makes a large object small does not get it past the limit."""
    ours = await raw.jetstream().create_object_store(BUCKET)
    stored = await ours.put(NAME, bytes(3_000_000))
    claim = CLAIM | {"size": 1000, "digest": stored.digest}
    arrived = await raw.subscribe("_INBOX.claim.>")
    opening = {"Bus-Stream": "9 9999", "Content-Type": RAW}
    await raw.publish("rpc.echo.Echo.echo", b"", "_INBOX.claim.1", opening)
    accepted = await arrived.next_msg(5)
    await raw.publish(f"{accepted.reply}.o1", json.dumps(claim).encode())
    async with asyncio.timeout(5):
        while (frame := await arrived.next_msg(5)).subject != "_INBOX.claim.1.s1":
            pass

    assert "larger than the 1,000 bytes" in json.loads(frame.data)["message"]


@pytest.mark.usefixtures("echo")
async def test_a_receiver_that_is_cancelled_loses_nothing(server: NatsServer):
    """Whoever receives next gets the message, from a store that still has it."""
    sent = [content(4_000_000), content(4_000_001)]
    received: list[bytes] = []
    cancelled = 0
    async with (
        Client(settings=options(server.url)) as client,
        client.stream("echo", "Echo.echo", sends=bytes, returns=bytes, timeout=30.0) as stream,
    ):
        for chunk in sent:
            await stream.send(chunk)
        await stream.close_send()
        patience = 0.001
        while len(received) < len(sent):
            try:
                async with asyncio.timeout(patience):
                    received.append(await anext(stream))
            except TimeoutError:
                cancelled += 1
                patience *= 2
        assert [more async for more in stream] == []
        assert len(client.bus.transport.client._subs) <= 1  # replies; no consumer is left behind

    assert digests(received) == digests(sent)
    assert cancelled


async def test_a_lost_connection_is_waited_for(server: NatsServer, until: Until, echo: Echo):
    """A claim outlives the connections of both ends, like the stream that it belongs to."""
    echo.may_take.clear()
    settings = options(server.url, stream_grace=5.0)
    sent = content(8_000_000)
    async with (
        Client(settings=settings) as client,
        client.stream("echo", "Echo.echo", sends=bytes, returns=bytes, timeout=30.0) as stream,
    ):
        await stream.send(sent)
        server.kill()
        await until(lambda: not client.bus.transport.connected)
        echo.may_take.set()
        await server.restart()
        await stream.close_send()
        first = asyncio.get_running_loop().create_task(anext(stream))
        for _ in range(2):  # while the node stores its answer, and while that is fetched
            await asyncio.wait([first], timeout=0.05)
            client.bus.transport.lose()
        assert digests([await first]) == digests([sent])


async def test_a_fetch_that_is_cut_off_begins_anew(server: NatsServer, until: Until):
    """What had arrived when the connection dropped is not taken for all of it."""
    sent = content(24_000_000)
    async with Client(settings=options(server.url)) as client:
        transport = client.bus.transport
        claim = await client.bus.objects.put(sent)
        assert claim is not None
        fetching = asyncio.get_running_loop().create_task(client.bus.objects.get(claim))
        await until(lambda: len(transport.client._subs) > 1)  # it has begun
        transport.lose()
        while transport.connected:  # `until` might be too slow to see it
            await asyncio.sleep(0)
        again = await client.bus.objects.get(claim)  # begun without a connection

        assert digests([await fetching, again]) == digests([sent, sent])


async def test_a_deadline_does_not_wait_for_the_store(
    server: NatsServer, raw: nats.NATS, until: Until
):
    """A message that takes for ever to fetch does not keep the caller longer than it said."""

    async def answer(request: Msg) -> None:
        await raw.publish(f"{request.reply}.a", b"9 9999 0 0", "_INBOX.node.1")
        await raw.publish(f"{request.reply}.o1", json.dumps(CLAIM | {"size": 600_000}).encode())

    js = raw.jetstream()
    store = await js.create_object_store(BUCKET)
    await store.put(NAME, bytes(600_000))
    await raw.subscribe("_INBOX.node.>")
    await raw.subscribe("rpc.slow.fetch", cb=answer)
    await raw.flush()
    async with Client(server.url) as client:
        loop = asyncio.get_running_loop()
        opened = client.stream("slow", "fetch", returns=bytes, timeout=1.0)
        with pytest.raises(DeadlineExceeded):
            async with opened as stream:
                (end,) = client.bus.frames._ends.values()
                await until(lambda: end.end.incoming.waiting)
                server.pause()
                loop.call_later(3.0, server.resume)
                began = loop.time()
                await anext(stream)
        assert loop.time() - began < 2.5


async def test_a_claim_where_there_is_no_store_is_refused(busmicro_memory: str):
    """Both ends are told what is missing, and where."""
    handlers = Echo()
    service = Service("echo", url=busmicro_memory)
    service.handle(handlers)
    async with service, Client(busmicro_memory) as client:
        opened = client.stream("echo", "Echo.echo", sends=bytes, returns=bytes, timeout=5.0)
        with pytest.raises(Unimplemented, match="no JetStream"):
            async with opened as stream:
                (link,) = client.bus.frames._ends.values()
                link.send_frame(b"o", json.dumps(CLAIM).encode(), b"")
                await anext(stream)
    assert [type(ended) for ended in handlers.ended] == [Unimplemented]


def test_settings_refuse_a_threshold_of_nothing():
    """Every message would go through the store, also empty ones."""
    with pytest.raises(ValueError, match="claim_check_bytes"):
        Settings.load(claim_check_bytes=0)
