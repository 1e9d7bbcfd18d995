"""Events: without a stream, published to handled; stored by a stream; handled from one."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from benchmarks.bench import Bench
from benchmarks.contenders import core_events, durable_events
from benchmarks.messages import Paid
from benchmarks.processes import once, rss_mb
from benchmarks.worker import Answer

SUBJECT, BASE = "Events", "nats-py"
FASTSTREAM_SHARE = 0.15
"""FastStream gets fewer events; it would take a minute a round."""
BURST = 10_000

Publish = Callable[[str, int], Awaitable[float]]


@dataclass(frozen=True, slots=True)
class Case:
    """What is done with so many events, by whom, and how many times faster than by hand it is."""

    figure: str
    count: int
    contenders: dict[str, Publish]
    target: str


def core(*, headers: bool) -> dict[str, Publish]:
    """Return who publishes without a stream."""
    contenders = core_events.CONTENDERS.items()
    return {of: partial(function, headers=headers) for of, function in contenders}


CASES = (
    Case("published to handled, events/s", 60_000, core(headers=False), "≥ 2.0"),
    Case("the same, two headers, events/s", 60_000, core(headers=True), "≥ 3.0"),
    Case("stored, 1,000 under way, events/s", 30_000, durable_events.PUBLISHERS, "≥ 2.0"),
    Case("handled from a stream, events/s", 40_000, durable_events.HANDLERS, "≥ 3.0"),
)


async def timed(_stack: AsyncExitStack, *, url: str, case: int, of: str) -> Answer:
    """Return what measures one case of one contender."""

    async def answer(*, count: int) -> float:
        return await CASES[case].contenders[of](url, count)

    return answer


def measure(bench: Bench) -> None:
    """Measure events, the rounds going round all cases and contenders."""
    runs: list[dict[str, list[float]]] = [{} for _ in CASES]
    faststream = importlib.util.find_spec("faststream") is not None
    for number in range(bench.rounds):
        bench.say(f"events, round {number + 1} of {bench.rounds}")
        for at, case in enumerate(CASES):
            for of in case.contenders:
                if of == "FastStream" and not faststream:
                    continue
                count = bench.count(int(case.count * share(of)))
                target = "benchmarks.events:timed"
                rate = once(target, {"count": count}, url=bench.url, case=at, of=of)
                runs[at].setdefault(of, []).append(rate)
    coding_us = once("benchmarks.events:coding", {"count": bench.count(100_000)})
    for case, found in zip(CASES, runs, strict=True):
        add_case(bench, case, found, coding_us)
        if not faststream and "FastStream" in case.contenders:
            bench.report.absent(SUBJECT, case.figure, "FastStream", "not installed")
    bench.say("events, memory")
    burst = bench.count(BURST)
    grown = [
        once("benchmarks.events:memory", url=bench.url, burst=burst) for _ in range(bench.rounds)
    ]
    bench.report.add(
        SUBJECT, "slow handler, 50,000 events more, MB", "busmicro", grown, target="≤ 10"
    )


def share(of: str) -> float:
    """Return which part of the events a contender gets."""
    return FASTSTREAM_SHARE if of == "FastStream" else 1.0


def add_case(bench: Bench, case: Case, found: dict[str, list[float]], coding_us: float) -> None:
    """Add the figures of a case, and how many times faster than by hand busmicro is."""
    report = bench.report
    report.add_all(SUBJECT, case.figure, found, BASE)
    ours = report.median(case.figure, "busmicro")
    why = f"encoding and decoding alone take {coding_us:.1f} of the {1e6 / ours:.1f} µs of an event"
    for base in found:
        if base.startswith(BASE):
            ratios = report.ratios(case.figure, "busmicro", base)
            figure = case.figure.replace("events/s", f"× {base}")
            target = case.target if base == BASE else ""
            report.add(SUBJECT, figure, "busmicro", ratios, target=target, why=why)


async def coding(_stack: AsyncExitStack) -> Answer:
    """Return what tells how many µs it takes to encode an event and decode it again."""

    async def answer(*, count: int) -> float:
        events = [Paid(order=number) for number in range(count)]
        began = time.perf_counter()
        for event in events:
            Paid.model_validate_json(event.model_dump_json().encode())
        return (time.perf_counter() - began) / count * 1e6

    return answer


async def memory(_stack: AsyncExitStack, *, url: str, burst: int) -> Answer:
    """Return what tells how much a process grows whose handler is slower than its publisher."""
    from busmicro import Client, Service

    async def answer() -> float:
        topic = durable_events.durable_topic()
        service = Service("bench", url=url)

        @service.subscribe(topic, group="slow", concurrency=4)
        async def on_paid(_event: Paid) -> None:
            await asyncio.sleep(0.01)

        grown: list[float] = []
        async with service, Client(url) as client:
            for _ in range(6):
                await client.publish_many(topic, (Paid(order=n) for n in range(burst)))
                grown.append(rss_mb())
            await service.stop(grace=0.1)
            await durable_events.delete(client, topic)
        return grown[-1] - grown[0]

    return answer
