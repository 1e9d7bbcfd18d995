"""Many calls, and how long they took."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from busmicro.cli.options import given
from busmicro.cli.output import print_json, print_text
from busmicro.cli.words import complain
from busmicro.errors import CallError, exit_code


@dataclass(slots=True)
class _Result:
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    failures: list[CallError] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        calls = len(self.latencies)
        return {
            "calls": calls,
            "failed": len(self.failures),
            "seconds": round(self.seconds, 6),
            "calls_per_second": round(calls / self.seconds, 1) if self.seconds else 0.0,
            "latency_ms": self.latency_ms(),
            "errors": dict(Counter(failure.code.value for failure in self.failures)),
        }

    def latency_ms(self) -> dict[str, float]:
        ordered = sorted(self.latencies)
        last = len(ordered) - 1
        at = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
        return {name: round(ordered[round(part * last)] * 1000, 3) for name, part in at.items()}


async def measure(send: Callable[[], Awaitable[object]], count: int, concurrency: int) -> int:
    """Call so often, so many at once, and print a summary.

    Returns:
        The exit code: that of the first failure, if there was one.
    """
    result = _Result()
    turns = iter(range(count))
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(min(count, concurrency)):
            group.create_task(_work(send, turns, result))
    result.seconds = time.perf_counter() - began
    _print(result)
    return exit_code(result.failures[0]) if result.failures else 0


async def _work(send: Callable[[], Awaitable[object]], turns: Iterator[int], into: _Result) -> None:
    for _ in turns:
        began = time.perf_counter()
        try:
            await send()
        except CallError as failure:
            into.failures.append(failure)
        into.latencies.append(time.perf_counter() - began)


def _print(result: _Result) -> None:
    figures = result.as_json()
    if given().json:
        print_json(figures)
    else:
        print_text(
            f"{figures['calls']} calls in {result.seconds:.2f} s "
            f"({figures['calls_per_second']} a second), {figures['failed']} failed"
        )
        latencies = (f"{name} {ms:.2f}" for name, ms in result.latency_ms().items())
        print_text(f"latency in ms: {', '.join(latencies)}")
    if result.failures:
        complain("the first failure:", str(result.failures[0]))
