"""Streaming calls beside grpc.aio: messages, chunks, and what idle streams cost."""

from __future__ import annotations

import importlib.util
from contextlib import ExitStack

from benchmarks.bench import Bench
from benchmarks.contenders.stream_ends import CHUNK_BYTES, MOST_IDLE
from benchmarks.processes import Worker, once

SUBJECT, BASE = "Streams", "grpc.aio"
ENDS = "benchmarks.contenders.stream_ends"
CASES = {"json": 60_000, "protobuf": 60_000, "chunks": 400}
FIGURES = {
    "json": "pydantic as JSON, 128 B, messages/s",
    "protobuf": "protobuf, 128 B, messages/s",
    "chunks": "chunks of 1 MiB, MB/s",
}
FACTOR = {"chunks": CHUNK_BYTES / 1e6}
GRPC_SHARE = 0.25
"""grpc.aio gets fewer messages; it would take a minute a round."""
CONTENDERS = {"grpc.aio": "grpc", "busmicro": "busmicro", "nats-py": "nats"}
"""Whoever sends streams, and the package that it needs."""
UNABLE = {("chunks", "nats-py"): "nothing holds it back: the client drops what comes too quickly"}


def measure(bench: Bench) -> None:
    """Measure streams, the rounds going round all cases and contenders."""
    present = {
        of: name for of, name in CONTENDERS.items() if importlib.util.find_spec(name) is not None
    }
    runs: dict[str, dict[str, list[float]]] = {case: {} for case in CASES}
    with ExitStack() as stack:
        for name in present.values():
            stack.enter_context(Worker(f"{ENDS}:serve_{name}", url=bench.url)).ready()
        for number in range(bench.rounds):
            bench.say(f"streams, round {number + 1} of {bench.rounds}")
            for case, usual in CASES.items():
                for of, name in present.items():
                    if (case, of) in UNABLE:
                        continue
                    count = bench.count(int(usual * (GRPC_SHARE if of == BASE else 1.0)), least=10)
                    question = {"case": case, "count": count}
                    rate = once(f"{ENDS}:take_{name}", question, url=bench.url)
                    runs[case].setdefault(of, []).append(rate * FACTOR.get(case, 1.0))
        bench.say("streams, memory")
        count = bench.count(MOST_IDLE)
        hold = f"{ENDS}:hold_idle"
        grown = [once(hold, {"count": count}, url=bench.url) for _ in range(bench.rounds)]
    add_all(bench, runs, grown)


def add_all(bench: Bench, runs: dict[str, dict[str, list[float]]], grown: list[float]) -> None:
    """Add the figures, and those with a target once more."""
    report = bench.report
    for case, found in runs.items():
        figure = FIGURES[case]
        report.add_all(SUBJECT, figure, found, BASE)
        for (of_case, of), why in UNABLE.items():
            if of_case == case:
                report.absent(SUBJECT, figure, of, why)
        if case == "chunks":
            continue
        if BASE not in found:
            report.absent(SUBJECT, figure, BASE, "not installed")
            continue
        ours = report.median(figure, "busmicro")
        coding_us = once(f"{ENDS}:code", {"case": case, "count": bench.count(100_000)})
        why = (
            f"making and coding alone take {coding_us:.1f} of the {1e6 / ours:.1f} µs of a message"
        )
        ratios = report.ratios(figure, "busmicro", BASE)
        name = figure.replace("messages/s", "× grpc.aio")
        report.add(SUBJECT, name, "busmicro", ratios, target="≥ 7.0", why=why)
    rates = report.runs[FIGURES["chunks"]]["busmicro"]
    report.add(SUBJECT, "chunks of 1 MiB, MB/s of busmicro", "busmicro", rates, target="≥ 300")
    report.add(SUBJECT, "1,000 idle streams on a node, MB", "busmicro", grown, target="≤ 30")
