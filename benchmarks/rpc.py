"""Calls beside hand-written nats-py, interleaved in one run; also FastStream and grpc.aio.

    python benchmarks/rpc.py [--rounds 5] [--json FILE]

Every contender runs its server in a process of its own and its client in another; the rounds go
round all of them, so that a noisy moment of the machine hits each alike.  Typed pydantic in and
out everywhere; "3 headers" means that both sides send content type, timeout and traceparent.
"recommended" is busmicro with the whole recommended set of wrappers at both ends.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from pydantic import BaseModel

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HEADERS = {"Content-Type": "application/json", "Bus-Timeout": "5000", "traceparent": TRACE}
ROUNDS = 5
GRPC_PORT = 50951


class Request(BaseModel):
    name: str


class Reply(BaseModel):
    greeting: str


Call = Callable[[Request], Awaitable[Reply]]


# --- servers: each prints "ready" and serves until it is killed -----------------------------------


async def serve_nats_py(url: str) -> None:
    import nats

    client = await nats.connect(url)

    async def hello(message) -> None:
        request = Request.model_validate_json(message.data)
        reply = Reply(greeting=f"Hello {request.name}")
        await message.respond(reply.model_dump_json().encode())

    await client.subscribe("hand.hello", queue="q", cb=hello)
    await client.flush()


async def serve_busmicro(url: str) -> None:
    await serve_hello("bench", url, defaults=False)


async def serve_recommended(url: str) -> None:
    await serve_hello("bench-recommended", url, defaults=True)


async def serve_hello(name: str, url: str, *, defaults: bool) -> None:
    from busmicro import Service

    service = Service(name, defaults=defaults)

    @service.rpc
    async def hello(request: Request) -> Reply:
        return Reply(greeting=f"Hello {request.name}")

    await service.start(url=url)


async def serve_faststream(url: str) -> None:
    import logging

    from faststream.nats import NatsBroker

    broker = NatsBroker(url, logger=None, log_level=logging.CRITICAL)

    @broker.subscriber("fast.hello", queue="q", max_workers=64)
    async def hello(request: Request) -> Reply:
        return Reply(greeting=f"Hello {request.name}")

    await broker.start()


async def serve_grpc(_url: str) -> object:
    import grpc

    async def hello(payload: bytes, _context) -> bytes:
        request = Request.model_validate_json(payload)
        return Reply(greeting=f"Hello {request.name}").model_dump_json().encode()

    server = grpc.aio.server()
    handlers = {"hello": grpc.unary_unary_rpc_method_handler(hello)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench", handlers)])
    server.add_insecure_port(f"127.0.0.1:{GRPC_PORT}")
    await server.start()
    return server


# --- clients: each opens what it needs on a stack and returns the function to call ----------------


async def nats_py_client(url: str, stack: AsyncExitStack, *, headers: bool) -> Call:
    import nats

    client = await nats.connect(url)
    stack.push_async_callback(client.close)

    async def call(request: Request) -> Reply:
        payload = request.model_dump_json().encode()
        given = HEADERS if headers else None
        message = await client.request("hand.hello", payload, timeout=5, headers=given)
        return Reply.model_validate_json(message.data)

    return call


async def busmicro_client(url: str, stack: AsyncExitStack, *, headers: bool) -> Call:
    from busmicro import Client

    return await hello_of("bench", Client(url), stack, headers=headers)


async def recommended_client(url: str, stack: AsyncExitStack, *, headers: bool) -> Call:
    from busmicro import Client
    from busmicro.wrappers import RECOMMENDED

    wrappers = [make() for make in RECOMMENDED.client]
    return await hello_of(
        "bench-recommended", Client(url, wrappers=wrappers), stack, headers=headers
    )


async def hello_of(service: str, client, stack: AsyncExitStack, *, headers: bool) -> Call:
    await stack.enter_async_context(client)
    if headers:  # Bus-Timeout is always sent
        given = {name: value for name, value in HEADERS.items() if name != "Bus-Timeout"}
        client = client.with_options(headers=given)

    async def call(request: Request) -> Reply:
        return await client.call(service, "hello", request, returns=Reply)

    return call


async def faststream_client(url: str, stack: AsyncExitStack, *, headers: bool) -> Call:
    from faststream.nats import NatsBroker

    broker = NatsBroker(url, logger=None)
    await broker.start()
    stack.push_async_callback(broker.stop)
    given = {"traceparent": TRACE} if headers else None

    async def call(request: Request) -> Reply:
        message = await broker.request(request, "fast.hello", timeout=5, headers=given)
        return Reply.model_validate(await message.decode())

    return call


async def grpc_client(_url: str, stack: AsyncExitStack, *, headers: bool) -> Call:
    import grpc

    channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{GRPC_PORT}"))
    method = channel.unary_unary("/bench/hello")
    metadata = [("traceparent", TRACE)] if headers else None

    async def call(request: Request) -> Reply:
        reply = await method(request.model_dump_json().encode(), timeout=5, metadata=metadata)
        return Reply.model_validate_json(reply)

    return call


CONTENDERS = {
    "nats-py": (serve_nats_py, nats_py_client, "nats"),
    "busmicro": (serve_busmicro, busmicro_client, "busmicro"),
    "recommended": (serve_recommended, recommended_client, "busmicro"),
    "FastStream": (serve_faststream, faststream_client, "faststream"),
    "grpc.aio": (serve_grpc, grpc_client, "grpc"),
}


# --- measuring ------------------------------------------------------------------------------------


async def measure(name: str, url: str, flights: int, *, headers: bool) -> dict[str, float]:
    """Make calls, so many at a time, and return calls a second and latencies in µs."""
    slow = name in ("FastStream", "grpc.aio")
    calls = 1_500 if flights == 1 else 6_400 if slow else 19_200
    took: list[float] = []
    async with AsyncExitStack() as stack:
        call = await CONTENDERS[name][1](url, stack, headers=headers)

        async def work(count: int) -> None:
            for _ in range(count):
                began = time.perf_counter()
                await call(Request(name="John"))
                took.append(time.perf_counter() - began)

        await work(200)
        took.clear()
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(flights):
                group.create_task(work(calls // flights))
        elapsed = time.perf_counter() - began
    took.sort()
    return {
        "per_second": len(took) / elapsed,
        "p50_us": took[len(took) // 2] * 1e6,
        "p99_us": took[int(len(took) * 0.99)] * 1e6,
    }


def run_in_loop(work: Awaitable[object]) -> object:
    from busmicro.service import fast_loop

    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        return runner.run(work)


async def serve(name: str, url: str) -> None:
    kept = await CONTENDERS[name][0](url)
    print("ready", flush=True)
    await asyncio.sleep(3600)
    del kept  # grpc.aio stops a server that nobody holds


def start_server(name: str, url: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", name, "--url", url], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    if process.stdout.readline().strip() != b"ready":
        raise SystemExit(f"the {name} server did not start")
    return process


def bench_calls(url: str, rounds: int) -> dict[str, dict[str, float]]:
    present = [n for n, c in CONTENDERS.items() if importlib.util.find_spec(c[2])]
    servers = [start_server(name, url) for name in present]
    runs: dict[str, list[dict[str, float]]] = {}
    try:
        for _ in range(rounds):
            for flights in (1, 64):
                for headers in (False, True):
                    for name in present:
                        key = f"{name}|{flights}|{3 if headers else 0}"
                        found = run_in_loop(measure(name, url, flights, headers=headers))
                        runs.setdefault(key, []).append(found)
    finally:
        for server in servers:
            server.kill()
            server.wait()
    return {key: summary(found) for key, found in runs.items()}


def summary(runs: list[dict[str, float]]) -> dict[str, float]:
    rates = [run["per_second"] for run in runs]
    return {
        **{key: statistics.median(run[key] for run in runs) for key in runs[0]},
        "slowest_per_second": min(rates),
        "fastest_per_second": max(rates),
    }


def print_calls(table: dict[str, dict[str, float]]) -> None:
    print(f"{'':12}{'in flight':>10}{'headers':>9}{'calls/s':>10}{'× nats-py':>11}", end="")
    print(f"{'p50 µs':>9}{'p50 ×':>8}{'p99 µs':>9}   spread")
    for key, row in table.items():
        name, flights, headers = key.split("|")
        base = table[f"nats-py|{flights}|{headers}"]
        spread = f"{row['slowest_per_second']:,.0f}-{row['fastest_per_second']:,.0f}"
        print(
            f"{name:12}{flights:>10}{headers:>9}{row['per_second']:>10,.0f}"
            f"{row['per_second'] / base['per_second']:>11.2f}{row['p50_us']:>9.0f}"
            f"{row['p50_us'] / base['p50_us']:>8.2f}{row['p99_us']:>9.0f}   {spread}"
        )


def report_targets(table: dict[str, dict[str, float]], start: dict[str, float]) -> None:
    many, hand = table["busmicro|64|3"], table["nats-py|64|3"]
    whole = table["recommended|64|3"]
    one, hand_one = table["busmicro|1|3"], table["nats-py|1|3"]
    rows = [
        ("64 in flight, 3 headers, × nats-py", many["per_second"] / hand["per_second"], ">=", 2.0),
        ("the same, recommended wrappers", whole["per_second"] / hand["per_second"], ">=", 1.7),
        ("one at a time, 3 headers, p50 × nats-py", one["p50_us"] / hand_one["p50_us"], "<=", 0.9),
        ("import busmicro, s", start["import_s"], "<=", 0.25),
        ("python greeter.py to first answer, s", start["first_answer_s"], "<=", 0.6),
        ("idle service, MB", start["idle_rss_mb"], "<=", 70.0),
    ]
    print()
    for what, figure, sign, target in rows:
        met = figure >= target if sign == ">=" else figure <= target
        print(f"{what:42}{figure:8.2f}  target {sign} {target:<5} {'met' if met else 'MISSED'}")


# --- start-up and memory --------------------------------------------------------------------------


def bench_start(url: str) -> dict[str, float]:
    """Time `import busmicro` with all of its names, and a script from start to first answer."""
    imports, answers = [], []
    names = [sys.executable, "-c", "from busmicro import Service, Client"]
    subprocess.run(names, env=with_bytecode(), check=True)
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run(names, env=with_bytecode(), check=True)
        imports.append(time.perf_counter() - began)
    memory = 0.0
    for _ in range(5):
        took, memory = run_in_loop(first_answer(url))  # type: ignore[misc]
        answers.append(took)
    return {
        "import_s": statistics.median(imports),
        "first_answer_s": statistics.median(answers),
        "idle_rss_mb": memory,
    }


def with_bytecode(**more: str) -> dict[str, str]:
    """The environment of an ordinary start: compiled once, like every installed package."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | more


async def first_answer(url: str) -> tuple[float, float]:
    from busmicro import Client

    greeter = Path(__file__).parent.parent / "examples" / "01_greeter.py"
    env = with_bytecode(BUSMICRO_NATS_URL=url)
    async with Client(url, wait_for_ready=True) as client:
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, greeter], env=env, stderr=subprocess.DEVNULL)
        try:
            await client.call("greeter", "hello", {"name": "John"}, timeout=10)
            took = time.perf_counter() - began
            stats = await client.call("greeter", "Debug.Stats")
            assert isinstance(stats, dict)
            return took, stats["rss_bytes"] / 1e6
        finally:
            process.terminate()
            process.wait()


async def main(rounds: int, out: Path | None) -> None:
    from busmicro import NatsServer

    async with NatsServer() as server:
        table = await asyncio.to_thread(bench_calls, server.url, rounds)
        start = await asyncio.to_thread(bench_start, server.url)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, medians of {rounds}\n")
    print_calls(table)
    report_targets(table, start)
    if out:
        out.write_text(json.dumps({"calls": table, "start": start}, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", choices=CONTENDERS)
    parser.add_argument("--url", default="")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.serve:
        run_in_loop(serve(given.serve, given.url))
    else:
        asyncio.run(main(given.rounds, given.json))
