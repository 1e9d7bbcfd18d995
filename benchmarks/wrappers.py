"""What a wrapper costs: a chain of one around an empty handler, less the empty handler alone.

What the recommended set does to calls over a real server stands among the calls.
"""

from __future__ import annotations

import importlib.util
import statistics

from benchmarks.bench import Bench
from benchmarks.contenders.chains import CLIENT, HANDLER, WRAPPERS
from benchmarks.processes import Worker

SUBJECT = "Wrappers"
CHAINS = "benchmarks.contenders.chains"
CALLS, TRACED_CALLS = 20_000, 5_000
BOTH = "recommended, both ends, µs"
TRACING = "tracing on, exporter that does nothing, both ends, µs"


def measure(bench: Bench) -> None:
    """Measure each wrapper, the rounds going round all of them."""
    rounds = bench.rounds if bench.quick else 3 * bench.rounds
    bench.say(f"wrappers, {rounds} rounds")
    with Worker(f"{CHAINS}:alone") as worker:
        found = [worker.ask(calls=bench.count(CALLS)) for _ in range(rounds)]
    for name in WRAPPERS:
        bench.report.add(SUBJECT, f"{name}, µs", "busmicro", [one[name] for one in found])
    both = [one[CLIENT] + one[HANDLER] for one in found]
    bench.report.add(SUBJECT, BOTH, "busmicro", both, target="≤ 25")
    if importlib.util.find_spec("opentelemetry.sdk") is None:
        bench.report.absent(SUBJECT, TRACING, "busmicro", "opentelemetry-sdk is not installed")
        return
    with Worker(f"{CHAINS}:traced") as worker:
        found = [worker.ask(calls=bench.count(TRACED_CALLS)) for _ in range(rounds)]
    spans = [one["spans"] for one in found]
    bench.report.add(SUBJECT, "two spans, without any wrapper, µs", "the SDK alone", spans)
    why = f"two spans of the SDK alone take {statistics.median(spans):.0f} µs"
    more = [one["more"] for one in found]
    bench.report.add(SUBJECT, TRACING, "busmicro", more, target="≤ 40", why=why)
