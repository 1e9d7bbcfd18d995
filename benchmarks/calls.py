"""The processes of the calls: a service that answers, and a client that makes calls for a while."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

from benchmarks.contenders.base import Ask
from benchmarks.contenders.every import CONTENDERS
from benchmarks.messages import request_of
from benchmarks.worker import Answer

_WARM = 0.1
_ERROR_CHARS = 120


async def serve(stack: AsyncExitStack, *, contender: str, url: str) -> None:
    """Answer calls."""
    await CONTENDERS[contender].serve(stack, url)


async def make_calls(stack: AsyncExitStack, *, contender: str, url: str) -> Answer:
    """Connect, and return what makes calls as it is told."""
    caller = await CONTENDERS[contender].connect(stack, url)
    functions: dict[tuple[str, bool], Ask] = {}

    async def answer(
        *, seconds: float, flights: int, codec: str, headers: bool, size_bytes: int
    ) -> dict[str, object]:
        key = (codec, headers)
        ask = functions[key] = functions.get(key) or caller(codec, headers=headers)
        request = request_of(codec, size_bytes)
        if seconds == 0:  # only to warm up
            await timed(ask, request, flights, _WARM)
            return {}
        return await timed(ask, request, flights, seconds)

    return answer


async def timed(ask: Ask, request: object, flights: int, seconds: float) -> dict[str, object]:
    """Make calls for so long, so many at a time, and return how many, and latencies in µs."""
    took: list[float] = []
    failures: list[str] = []
    clock = time.perf_counter
    began = clock()
    end = began + seconds

    async def work() -> None:
        while True:  # one call at least, however late this begins
            before = clock()
            try:
                await ask(request)
            except Exception as failure:
                failures.append(repr(failure).replace("\n", " ")[:_ERROR_CHARS])
            else:
                took.append(clock() - before)
            if clock() >= end:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(flights):
            group.create_task(work())
    elapsed = clock() - began
    if not took:
        raise RuntimeError(f"not one of {len(failures)} calls succeeded: {failures[0]}")
    took.sort()
    return {
        "calls": len(took),
        "per_second": len(took) / elapsed,
        "p50_us": took[len(took) // 2] * 1e6,
        "p99_us": took[int(len(took) * 0.99)] * 1e6,
        "failures": len(failures),
        "failure": failures[0] if failures else "",
    }
