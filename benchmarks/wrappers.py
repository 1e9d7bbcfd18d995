"""What a wrapper costs: a chain of one around an empty handler, less the empty handler alone.

    python benchmarks/wrappers.py [--rounds 9] [--json FILE]

The rounds go round all of them, so that a noisy moment of the machine hits each alike.  What the
recommended set does to calls over a real server is in `benchmarks/rpc.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from busmicro.call import Call, Handler, Kind, Side, Spec, Wrapper, compose
from busmicro.service import fast_loop
from busmicro.wrappers import (
    RECOMMENDED,
    AdaptiveLimit,
    Cache,
    CircuitBreaker,
    ConcurrencyLimit,
    Deadline,
    Fault,
    Hedge,
    Log,
    Metrics,
    RateLimit,
    Recover,
    Retry,
    Trace,
    Validate,
    checked,
    only,
)

ROUNDS = 9
CALLS = 20_000
MOST_IN_ALL_US = 25.0
"""The whole recommended client set may add so much to a call; a call alone takes some 300 µs."""
TRACING_US = 40.0
"""A span at each end of a call, with the SDK's batch processor."""


async def passes(call: Call, call_next: Handler) -> object:
    return await call_next(call)


WRAPPERS: dict[str, Callable[[], list[Wrapper]]] = {
    "a function that passes": lambda: [passes],
    "the same, checked": lambda: [checked(passes)],
    "the same, only elsewhere": lambda: [only(passes, services=["others"])],
    "Recover": lambda: [Recover()],
    "Deadline, call has one": lambda: [Deadline(5.0)],
    "Deadline, call has none": lambda: [Deadline(5.0)],
    "Retry": lambda: [Retry()],
    "Retry, idempotent": lambda: [Retry()],
    "Hedge, not idempotent": lambda: [Hedge()],
    "Hedge, idempotent": lambda: [Hedge()],
    "CircuitBreaker": lambda: [CircuitBreaker()],
    "RateLimit": lambda: [RateLimit(1e9)],
    "RateLimit by caller": lambda: [RateLimit(1e9, key="caller")],
    "RateLimit by endpoint": lambda: [RateLimit(1e9, key="endpoint")],
    "ConcurrencyLimit": lambda: [ConcurrencyLimit(64)],
    "AdaptiveLimit": lambda: [AdaptiveLimit()],
    "Cache, hit, idempotent": lambda: [Cache(60.0)],
    "Cache, not idempotent": lambda: [Cache(60.0)],
    "Trace, no SDK": lambda: [Trace()],
    "Metrics, no SDK": lambda: [Metrics()],
    "Log": lambda: [Log()],
    "Validate": lambda: [Validate(lambda _message: None)],
    "Fault, at rest": lambda: [Fault()],
    "recommended, client": lambda: [make() for make in RECOMMENDED.client],
    "recommended, handler": lambda: [make() for make in RECOMMENDED.handler],
}


def spec_for(name: str) -> Spec:
    safe = name.endswith(", idempotent")
    return Spec(service="s", endpoint="m", kind=Kind.UNARY, side=Side.CLIENT, idempotent=safe)


async def empty(_call: Call) -> object:
    return None


async def time_chain(chain: Handler, spec: Spec, *, deadline: bool) -> float:
    """Return the microseconds that one call takes; making the call is part of every figure."""
    until = time.monotonic() + 60 if deadline else None
    calls = CALLS // 10 if spec.idempotent else CALLS
    for _ in range(500):
        await chain(Call(spec, "John", deadline=until))
    began = time.perf_counter()
    for _ in range(calls):
        await chain(Call(spec, "John", deadline=until))
    return (time.perf_counter() - began) / calls * 1e6


async def bench_chains(rounds: int) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in WRAPPERS}
    for _ in range(rounds):
        for name, make in WRAPPERS.items():
            spec, deadline = spec_for(name), not name.endswith("has none")
            alone = await time_chain(empty, spec, deadline=deadline)
            wrapped = await time_chain(compose(make(), empty), spec, deadline=deadline)
            found[name].append(wrapped - alone)
    return {name: statistics.median(figures) for name, figures in found.items()}


async def time_both_ends(wrappers: list[Wrapper]) -> float:
    """Return the microseconds of a call's two chains, the trace handed from one to the other."""
    ask = Spec(service="s", endpoint="m", kind=Kind.UNARY, side=Side.CLIENT)
    answer = Spec(service="s", endpoint="m", kind=Kind.UNARY, side=Side.HANDLER)
    client, handler = compose(wrappers, empty), compose(wrappers, empty)
    until = time.monotonic() + 60
    began = time.perf_counter()
    for _ in range(CALLS // 4):
        call = Call(ask, "John", deadline=until)
        await client(call)
        await handler(Call(answer, "John", headers=call.headers, deadline=until))
    return (time.perf_counter() - began) / (CALLS // 4) * 1e6


async def bench_tracing(rounds: int) -> float | None:
    """Return what tracing adds to a call with an exporter that does nothing; needs the SDK."""
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import (
            BatchSpanProcessor,
            SpanExporter,
            SpanExportResult,
        )
    except ImportError:
        return None

    class Nowhere(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:  # noqa: ARG002 - its signature
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    trace.set_tracer_provider(provider)
    more = []
    for _ in range(rounds):
        alone = await time_both_ends([])
        more.append(await time_both_ends([Trace()]) - alone)
    provider.shutdown()
    return statistics.median(more)


def main(rounds: int, out: Path | None) -> None:
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        table = runner.run(bench_chains(rounds))
        tracing = runner.run(bench_tracing(rounds))
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, medians of {rounds}\n")
    print(f"{'':28}{'µs a call':>10}")
    for name, figure in table.items():
        print(f"{name:28}{figure:>10.2f}")
    both = table["recommended, client"] + table["recommended, handler"]
    verdict = "met" if both <= MOST_IN_ALL_US else "MISSED"
    print(f"\n{'recommended, both ends, µs':42}{both:8.2f}  target <= {MOST_IN_ALL_US}  {verdict}")
    if tracing is not None:
        table["tracing on, both ends"] = tracing
        met = "met" if tracing <= TRACING_US else "MISSED"
        print(
            f"{'tracing on, exporter that does nothing, µs':42}{tracing:8.2f}  "
            f"target <= {TRACING_US}  {met}"
        )
    if out:
        out.write_text(json.dumps({"wrappers_us": table}, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    main(given.rounds, given.json)
