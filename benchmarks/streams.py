"""Streaming calls beside grpc.aio, interleaved in one run.

    python benchmarks/streams.py [--rounds 5] [--json FILE]

A server streams to a client in another process.  Both ends of both contenders do the same with the
same messages: typed, made, encoded, decoded and looked at one by one.

- json, protobuf: messages of about 128 bytes, pydantic as JSON and protobuf.
- chunks: 1 MiB of bytes each.
- idle: what 1,000 open two-way streams without traffic cost a node, in memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from pydantic import BaseModel

GRPC_PORT = 50_198
ROUNDS = 5
CHUNK_BYTES = 1024 * 1024
IDLE = 1_000
PAD = "x" * 110
COUNTS = {"json": 60_000, "protobuf": 60_000, "chunks": 400}
GRPC_SHARE = 0.25
"""grpc.aio gets fewer messages; it would take a minute a round."""
TARGETS = {"json": 7.0, "protobuf": 7.0}
CHUNKS_TARGET_MB, IDLE_TARGET_MB = 300.0, 30.0


class Count(BaseModel):
    to: int


class Tick(BaseModel):
    n: int
    pad: str


def proto_tick() -> type:
    """Make a protobuf message like `Tick`, without a compiler."""
    file = descriptor_pb2.FileDescriptorProto(name="bench.proto", package="bench", syntax="proto3")
    message = file.message_type.add(name="ProtoTick")
    message.field.add(name="n", number=1, type=5, label=1)
    message.field.add(name="pad", number=2, type=9, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("bench.ProtoTick"))


ProtoTick = proto_tick()
CHUNK = os.urandom(CHUNK_BYTES)


# --- servers --------------------------------------------------------------------------------------


async def serve_busmicro(url: str) -> object:  # noqa: C901 - one handler for each case
    from busmicro import Service, Settings

    service = Service("bench", settings=Settings.load(nats_url=url, max_streams_per_caller=IDLE))

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

    @service.rpc("idle")
    async def idle(lines: AsyncIterator[Tick]) -> AsyncIterator[Tick]:
        async for line in lines:
            yield line

    @service.rpc("rss")
    async def rss() -> float:
        return rss_mb()

    await service.start()
    return service


async def serve_grpc(_url: str) -> object:
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

    server = grpc.aio.server()
    handlers = {
        "json": handler(ticks, to_json),
        "protobuf": handler(proto_ticks, ProtoTick.SerializeToString),
        "chunks": handler(chunks, None),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench", handlers)])
    server.add_insecure_port(f"127.0.0.1:{GRPC_PORT}")
    await server.start()
    return server


def to_json(message: BaseModel) -> bytes:
    return message.model_dump_json().encode()


# --- clients --------------------------------------------------------------------------------------


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


async def busmicro_client(url: str, case: str, count: int) -> float:
    from busmicro import Client

    returns = {"json": Tick, "protobuf": ProtoTick, "chunks": bytes}[case]
    async with Client(url) as client:
        await client.call("bench", "rss")  # warm
        began = time.perf_counter()
        request = ProtoTick(n=count) if case == "protobuf" else Count(to=count)
        async with client.stream("bench", case, request, returns=returns) as stream:
            await take(case, stream, count)
        return count / (time.perf_counter() - began)


async def grpc_client(_url: str, case: str, count: int) -> float:
    import grpc

    parse = {"json": Tick.model_validate_json, "protobuf": ProtoTick.FromString, "chunks": None}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{GRPC_PORT}") as channel:
        await channel.channel_ready()
        method = channel.unary_stream(f"/bench/{case}", to_json, parse[case])
        began = time.perf_counter()
        await take(case, method(Count(to=count)), count)
        return count / (time.perf_counter() - began)


async def idle_client(url: str, _case: str, count: int) -> float:
    from busmicro import Client, Settings

    settings = Settings.load(nats_url=url)
    async with Client(settings=settings) as client:
        await hold_open(client, 10)  # what the first ones load and keep is no cost of a stream
        before = await client.call("bench", "rss", returns=float)
        during = await hold_open(client, count)
        return during - before


async def hold_open(client, count: int) -> float:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(count):
            session = client.stream("bench", "idle", sends=Tick, returns=Tick)
            await stack.enter_async_context(session)
        return await client.call("bench", "rss", returns=float)


Contender = Callable[[str], Awaitable[object]]
Measure = Callable[[str, str, int], Awaitable[float]]
CONTENDERS: dict[str, tuple[Contender, Measure]] = {
    "busmicro": (serve_busmicro, busmicro_client),
    "grpc.aio": (serve_grpc, grpc_client),
}


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


# --- running --------------------------------------------------------------------------------------


def run_in_loop(work: Awaitable[object]) -> object:
    from busmicro.service import fast_loop

    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        return runner.run(work)


async def serve(name: str, url: str) -> None:
    kept = await CONTENDERS[name][0](url)
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    del kept


def start_server(name: str, url: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", name, "--url", url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    if process.stdout.readline().strip() != b"ready":
        raise SystemExit(f"the {name} server did not start")
    return process


def measured(case: str, name: str, url: str) -> float:
    """Measure once, in a process of its own."""
    command = [sys.executable, __file__, "--case", case, "--contender", name, "--url", url]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300)
    return float(done.stdout.splitlines()[-1])


def bench(url: str, rounds: int) -> dict[str, dict[str, list[float]]]:
    table: dict[str, dict[str, list[float]]] = {}
    servers = [start_server(name, url) for name in CONTENDERS]
    try:
        for _ in range(rounds):
            for case in COUNTS:
                for name in CONTENDERS:
                    rate = measured(case, name, url)
                    table.setdefault(case, {}).setdefault(name, []).append(rate)
        table["idle"] = {"busmicro": [measured("idle", "busmicro", url)]}
    finally:
        for server in servers:
            server.kill()
            server.wait()
    return table


def show(table: dict[str, dict[str, list[float]]]) -> None:
    print(f"{'':12}{'':12}{'messages/s':>12}{'× grpc.aio':>12}   spread")
    for case in COUNTS:
        base = statistics.median(table[case]["grpc.aio"])
        for name, rates in table[case].items():
            middle = statistics.median(rates)
            spread = f"{min(rates):,.0f}-{max(rates):,.0f}"
            print(f"{case:12}{name:12}{middle:>12,.0f}{middle / base:>12.2f}   {spread}")
    print()
    for case, target in TARGETS.items():
        rates = table[case]
        times = statistics.median(rates["busmicro"]) / statistics.median(rates["grpc.aio"])
        met = "met" if times >= target else "MISSED"
        print(f"{case + ', × grpc.aio':42}{times:8.2f}  target >= {target:<5} {met}")
    rate = statistics.median(table["chunks"]["busmicro"]) * CHUNK_BYTES / 1e6
    met = "met" if rate >= CHUNKS_TARGET_MB else "MISSED"
    print(f"{'chunks of 1 MiB, MB/s':42}{rate:8.0f}  target >= {CHUNKS_TARGET_MB:<5.0f} {met}")
    (grown,) = table["idle"]["busmicro"]
    met = "met" if grown <= IDLE_TARGET_MB else "MISSED"
    idle = "1,000 idle streams on a node, MB"
    print(f"{idle:42}{grown:8.1f}  target <= {IDLE_TARGET_MB:<5.0f} {met}")


async def main(rounds: int, out: Path | None) -> None:
    from busmicro import NatsServer

    async with NatsServer() as server:
        table = await asyncio.to_thread(bench, server.url, rounds)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, medians of {rounds}\n")
    show(table)
    if out:
        out.write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", choices=CONTENDERS)
    parser.add_argument("--case", choices=[*COUNTS, "idle"])
    parser.add_argument("--contender", default="busmicro")
    parser.add_argument("--url", default="")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.serve:
        run_in_loop(serve(given.serve, given.url))
    elif given.case == "idle":
        print(run_in_loop(idle_client(given.url, "idle", IDLE)))
    elif given.case:
        share = GRPC_SHARE if given.contender == "grpc.aio" else 1.0
        work = CONTENDERS[given.contender][1](
            given.url, given.case, int(COUNTS[given.case] * share)
        )
        print(run_in_loop(work))
    else:
        asyncio.run(main(given.rounds, given.json))
