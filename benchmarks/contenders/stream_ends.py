"""Both ends of streaming calls: a server that sends, and a client that looks at every message."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from benchmarks.contenders.grpc_aio import OPTIONS, port_file
from benchmarks.messages import Count, ProtoTick, Tick
from benchmarks.processes import rss_mb
from benchmarks.worker import Answer

CHUNK_BYTES = 1024 * 1024
CHUNK = os.urandom(CHUNK_BYTES)
PAD = "x" * 110
MOST_IDLE = 1_000


async def serve_busmicro(stack: AsyncExitStack, *, url: str) -> None:
    from busmicro import Service, Settings

    settings = Settings.load(nats_url=url, max_streams_per_caller=MOST_IDLE)
    service = Service("bench", settings=settings)

    @service.rpc("json")
    async def ticks(request: Count) -> AsyncIterator[Tick]:
        for n in range(request.to):
            yield Tick(n=n, pad=PAD)

    @service.rpc("protobuf")
    async def proto_ticks(request: ProtoTick) -> AsyncIterator[ProtoTick]:
        for n in range(request.n):
            yield ProtoTick(n=n, pad=PAD)

    @service.rpc("chunks")
    async def chunks(request: Count) -> AsyncIterator[bytes]:
        for _ in range(request.to):
            yield CHUNK

    serve_idle(service)
    await service.start()
    stack.push_async_callback(service.stop)


def serve_idle(service) -> None:
    @service.rpc("idle")
    async def idle(lines: AsyncIterator[Tick]) -> AsyncIterator[Tick]:
        async for line in lines:
            yield line

    @service.rpc("rss")
    async def rss() -> float:
        return rss_mb()


async def serve_grpc(stack: AsyncExitStack, *, url: str) -> None:
    import grpc

    async def ticks(request: Count, _context) -> AsyncIterator[Tick]:
        for n in range(request.to):
            yield Tick(n=n, pad=PAD)

    async def proto_ticks(request: Count, _context) -> AsyncIterator[ProtoTick]:
        for n in range(request.to):
            yield ProtoTick(n=n, pad=PAD)

    async def chunks(request: Count, _context) -> AsyncIterator[bytes]:
        for _ in range(request.to):
            yield CHUNK

    def handler(function, serializer):
        return grpc.unary_stream_rpc_method_handler(function, Count.model_validate_json, serializer)

    server = grpc.aio.server(options=OPTIONS)
    handlers = {
        "json": handler(ticks, to_json),
        "protobuf": handler(proto_ticks, ProtoTick.SerializeToString),
        "chunks": handler(chunks, None),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.push_async_callback(server.stop, None)
    port_file(url).write_text(str(port), "ascii")
    stack.callback(port_file(url).unlink, missing_ok=True)


async def serve_nats(stack: AsyncExitStack, *, url: str) -> None:
    """Publish messages to whoever asks, by hand: nothing holds the sender back."""
    import nats

    client = await nats.connect(url)
    stack.push_async_callback(client.close)

    async def ticks(message) -> None:
        for n in range(Count.model_validate_json(message.data).to):
            await client.publish(message.reply, to_json(Tick(n=n, pad=PAD)))

    async def proto_ticks(message) -> None:
        for n in range(Count.model_validate_json(message.data).to):
            await client.publish(message.reply, ProtoTick(n=n, pad=PAD).SerializeToString())

    await client.subscribe("ticks.json", queue="q", cb=ticks)
    await client.subscribe("ticks.protobuf", queue="q", cb=proto_ticks)
    await client.flush()


def to_json(message) -> bytes:
    return message.model_dump_json().encode()


async def take(case: str, stream: AsyncIterator[object], count: int) -> None:
    """Look at every message."""
    expected = 0
    async for message in stream:
        if case == "chunks":
            assert len(message) == CHUNK_BYTES
        else:
            assert message.n == expected
        expected += 1
    assert expected == count


async def take_busmicro(stack: AsyncExitStack, *, url: str) -> Answer:
    from busmicro import Client

    client = await stack.enter_async_context(Client(url))
    await client.call("bench", "rss")  # warm
    returns = {"json": Tick, "protobuf": ProtoTick, "chunks": bytes}

    async def answer(*, case: str, count: int) -> float:
        request = ProtoTick(n=count) if case == "protobuf" else Count(to=count)
        began = time.perf_counter()
        async with client.stream("bench", case, request, returns=returns[case]) as stream:
            await take(case, stream, count)
        return count / (time.perf_counter() - began)

    return answer


async def take_grpc(stack: AsyncExitStack, *, url: str) -> Answer:
    import grpc

    parse = {"json": Tick.model_validate_json, "protobuf": ProtoTick.FromString, "chunks": None}
    target = f"127.0.0.1:{port_file(url).read_text('ascii')}"
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(target, options=OPTIONS))
    await channel.channel_ready()

    async def answer(*, case: str, count: int) -> float:
        method = channel.unary_stream(f"/bench/{case}", to_json, parse[case])
        began = time.perf_counter()
        await take(case, method(Count(to=count)), count)
        return count / (time.perf_counter() - began)

    return answer


async def take_nats(stack: AsyncExitStack, *, url: str) -> Answer:
    import nats

    parse = {"json": Tick.model_validate_json, "protobuf": ProtoTick.FromString}
    client = await nats.connect(url)
    stack.push_async_callback(client.close)

    async def answer(*, case: str, count: int) -> float:
        inbox = client.new_inbox()
        coming = await client.subscribe(
            inbox, pending_msgs_limit=count, pending_bytes_limit=1 << 30
        )

        async def messages() -> AsyncIterator[object]:
            for _ in range(count):
                yield parse[case]((await coming.next_msg(timeout=10)).data)

        began = time.perf_counter()
        await client.publish(f"ticks.{case}", to_json(Count(to=count)), reply=inbox)
        await take(case, messages(), count)
        return count / (time.perf_counter() - began)

    return answer


async def code(_stack: AsyncExitStack) -> Answer:
    """Return what tells how many µs it takes to make, encode and decode a message."""
    coders = {
        "json": lambda n: Tick.model_validate_json(to_json(Tick(n=n, pad=PAD))),
        "protobuf": lambda n: ProtoTick.FromString(ProtoTick(n=n, pad=PAD).SerializeToString()),
    }

    async def answer(*, case: str, count: int) -> float:
        began = time.perf_counter()
        for n in range(count):
            coders[case](n)
        return (time.perf_counter() - began) / count * 1e6

    return answer


async def hold_idle(stack: AsyncExitStack, *, url: str) -> Answer:
    """Return what opens so many streams, and tells how much the node grew, in MB."""
    from busmicro import Client

    client = await stack.enter_async_context(Client(url))

    async def hold_open(count: int) -> float:
        async with contextlib.AsyncExitStack() as streams:
            for _ in range(count):
                session = client.stream("bench", "idle", sends=Tick, returns=Tick)
                await streams.enter_async_context(session)
            return await client.call("bench", "rss", returns=float)

    async def answer(*, count: int) -> float:
        await hold_open(10)  # what the first ones load and keep is no cost of a stream
        before = await client.call("bench", "rss", returns=float)
        return await hold_open(count) - before

    return answer
