"""Chains of one wrapper around an empty handler, and what each costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AsyncExitStack

from benchmarks.worker import Answer
from busmicro.call import Call, Handler, Kind, Side, Spec, Wrapper, compose
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


async def passes(call: Call, call_next: Handler) -> object:
    return await call_next(call)


CLIENT, HANDLER = "recommended, client", "recommended, handler"
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
    CLIENT: lambda: [make() for make in RECOMMENDED.client],
    HANDLER: lambda: [make() for make in RECOMMENDED.handler],
}


async def empty(_call: Call) -> object:
    return None


def spec_for(name: str) -> Spec:
    safe = name.endswith(", idempotent")
    return Spec(service="s", endpoint="m", kind=Kind.UNARY, side=Side.CLIENT, idempotent=safe)


async def time_chain(chain: Handler, spec: Spec, *, calls: int, deadline: bool) -> float:
    """Return the microseconds that one call takes; making the call is part of every figure."""
    until = time.monotonic() + 60 if deadline else None
    calls = calls // 10 if spec.idempotent else calls
    for _ in range(calls // 20):
        await chain(Call(spec, "John", deadline=until))
    began = time.perf_counter()
    for _ in range(calls):
        await chain(Call(spec, "John", deadline=until))
    return (time.perf_counter() - began) / calls * 1e6


async def alone(_stack: AsyncExitStack) -> Answer:
    """Return what times every wrapper once, less the empty handler without any."""

    async def answer(*, calls: int) -> dict[str, float]:
        found = {}
        for name, make in WRAPPERS.items():
            spec, deadline = spec_for(name), not name.endswith("has none")
            bare = await time_chain(empty, spec, calls=calls, deadline=deadline)
            chain = compose(make(), empty)
            found[name] = await time_chain(chain, spec, calls=calls, deadline=deadline) - bare
        return found

    return answer


async def traced(stack: AsyncExitStack) -> Answer:
    """Return what tells how much tracing adds to both ends, with an exporter that does nothing."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import (
        BatchSpanProcessor,
        SpanExporter,
        SpanExportResult,
    )

    class Nowhere(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:  # noqa: ARG002 - its signature
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    trace.set_tracer_provider(provider)
    stack.callback(provider.shutdown)

    async def answer(*, calls: int) -> dict[str, float]:
        bare = await time_both_ends([], calls)
        more = await time_both_ends([Trace()], calls) - bare
        return {"more": more, "spans": time_two_spans(trace.get_tracer("alone"), calls)}

    return answer


def time_two_spans(tracer, calls: int) -> float:
    """Return the microseconds that the SDK alone needs for two spans, one within the other."""
    began = time.perf_counter()
    for _ in range(calls):
        with tracer.start_as_current_span("client"), tracer.start_as_current_span("handler"):
            pass
    return (time.perf_counter() - began) / calls * 1e6


async def time_both_ends(wrappers: list[Wrapper], calls: int) -> float:
    """Return the microseconds of a call's two chains, the trace handed from one to the other."""
    ask = Spec(service="s", endpoint="m", kind=Kind.UNARY, side=Side.CLIENT)
    answer = Spec(service="s", endpoint="m", kind=Kind.UNARY, side=Side.HANDLER)
    client, handler = compose(wrappers, empty), compose(wrappers, empty)
    until = time.monotonic() + 60
    began = time.perf_counter()
    for _ in range(calls):
        call = Call(ask, "John", deadline=until)
        await client(call)
        await handler(Call(answer, "John", headers=call.headers, deadline=until))
    return (time.perf_counter() - began) / calls * 1e6
