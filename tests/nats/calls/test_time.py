"""Time: deadlines, what is left of them further down, and calls that are cancelled."""

from __future__ import annotations

import asyncio
import time

import nats
import pytest

from busmicro import Call, DeadlineExceeded, Service


async def test_deadline_ends_the_call_at_both_ends(busmicro_client, busmicro_start):
    """A call over its time ends as DeadlineExceeded, close to it, and its handler is cancelled."""
    ended = asyncio.Event()
    service = Service("slow")

    @service.rpc
    async def wait() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    await busmicro_start(service)
    began = time.perf_counter()

    with pytest.raises(DeadlineExceeded):
        await busmicro_client.call("slow", "wait", timeout=0.2)

    assert 0.19 < time.perf_counter() - began < 0.3
    async with asyncio.timeout(1):
        await ended.wait()


async def test_endpoints_own_timeout_counts_when_the_caller_says_none(
    busmicro_server, busmicro_start
):
    """A foreign caller without Bus-Timeout gets the time that the endpoint advertises."""
    service = Service("slow")

    @service.rpc("wait", timeout=0.1)
    async def wait() -> None:
        await asyncio.sleep(30)

    await busmicro_start(service)
    raw = await nats.connect(busmicro_server.url)
    began = time.perf_counter()

    reply = await raw.request("rpc.slow.wait", b"", timeout=5)

    await raw.close()
    assert reply.headers["Bus-Status"] == "deadline_exceeded"
    assert time.perf_counter() - began < 0.5


async def test_expired_request_is_refused_before_its_handler(busmicro_server, busmicro_start):
    """A request that arrives with no time left is answered without running anything."""
    ran = []
    service = Service("late")

    @service.rpc
    async def run() -> None:
        ran.append(1)

    await busmicro_start(service)
    raw = await nats.connect(busmicro_server.url)

    reply = await raw.request("rpc.late.run", b"", timeout=5, headers={"Bus-Timeout": "0"})

    await raw.close()
    assert reply.headers["Bus-Status"] == "deadline_exceeded"
    assert not ran


async def test_nested_calls_get_what_is_left(busmicro_client, busmicro_start):
    """A -> B -> C: each has no more time than the one that called it, whatever it asks for."""
    left: list[float] = []
    service = Service("chain")

    @service.rpc
    async def outer(call: Call) -> None:
        left.append((call.deadline or 0) - time.monotonic())
        await asyncio.sleep(0.1)
        await service.client.call("chain", "middle", timeout=60)

    @service.rpc
    async def middle(call: Call) -> None:
        left.append((call.deadline or 0) - time.monotonic())
        await service.client.call("chain", "inner", timeout=60)

    @service.rpc
    async def inner(call: Call) -> None:
        left.append((call.deadline or 0) - time.monotonic())

    await busmicro_start(service)

    await busmicro_client.call("chain", "outer", timeout=1.0)

    assert 1.0 >= left[0] > 0.9 >= left[1] >= left[2] > 0.5


async def test_only_trace_and_deadline_go_on_to_the_next_hop(busmicro_client, busmicro_start):
    """Credentials and other headers of a caller do not leak through a service."""
    seen: list[dict[str, str]] = []
    service = Service("hop")

    @service.rpc
    async def first() -> None:
        await service.client.call("hop", "second")

    @service.rpc
    async def second(call: Call) -> None:
        seen.append(dict(call.headers))

    await busmicro_start(service)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    await busmicro_client.call(
        "hop", "first", headers={"Authorization": "secret", "traceparent": trace}
    )

    assert set(seen[0]) == {"Bus-Timeout", "Bus-Caller", "traceparent"}
    assert seen[0]["Bus-Caller"] == "hop"
    assert seen[0]["traceparent"] == trace


async def test_cancelling_a_call_cancels_its_handler(busmicro_client, busmicro_start):
    """1,000 callers give up: at least 999 handlers are cancelled within 100 ms, none replies."""
    running, cancelled = 0, 0
    service = Service("slow")

    @service.rpc
    async def wait() -> None:
        nonlocal running, cancelled
        running += 1
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled += 1
            raise

    await busmicro_start(service)
    loop = asyncio.get_running_loop()
    calls = [
        loop.create_task(busmicro_client.call("slow", "wait", timeout=20)) for _ in range(1000)
    ]
    async with asyncio.timeout(5):
        while running < 1000:
            await asyncio.sleep(0.001)

    began = time.perf_counter()
    for call in calls:
        call.cancel()
    while cancelled < 999 and time.perf_counter() - began < 2:
        await asyncio.sleep(0.001)

    assert cancelled >= 999
    assert time.perf_counter() - began < 0.5  # 0.1 s is the figure of the benchmark machine
    await asyncio.gather(*calls, return_exceptions=True)
