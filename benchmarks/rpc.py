"""Calls: every contender, JSON and protobuf, few and many in flight, small and large."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks.bench import Bench
from benchmarks.contenders.bare import BARE, WITH_TASKS
from benchmarks.contenders.base import Contender
from benchmarks.contenders.busmicro import WRAPPED
from benchmarks.contenders.every import CONTENDERS
from benchmarks.processes import Worker, WorkerFailed, cpu_s

CALLS, CPU, TARGETS = "Calls", "CPU of a call", "Calls, targets"
SECONDS = 0.4
GROWTH = (1, 4, 16, 64, 256, 1024)
FLIGHTS, LARGE = (1, 64, 256), (4096, 256 * 1024)
BASE = "nats-py"
_KINDS = {"json": "JSON", "protobuf": "protobuf"}
_SIZES = {128: "128 B", 4096: "4 KiB", 256 * 1024: "256 KiB"}


@dataclass(frozen=True, slots=True)
class Case:
    """How calls are made."""

    flights: int
    codec: str = "json"
    size_bytes: int = 128
    headers: bool = True

    def __str__(self) -> str:
        headers = "" if self.headers else ", no headers"
        return (
            f"{self.flights:,} in flight, {_KINDS[self.codec]}, {_SIZES[self.size_bytes]}{headers}"
        )


MAIN, ALONE = Case(64), Case(1)
WHOLE = f"{MAIN}: all three, µs"
PASSES = {ALONE: 3, MAIN: 3}
"""How often a round measures a case, if more than once: the targets hang on these."""
CASES = (
    *(Case(flights) for flights in GROWTH),
    *(Case(flights, "protobuf") for flights in FLIGHTS),
    *(Case(n, codec, size) for codec in _KINDS for size in LARGE for n in FLIGHTS),
    *(Case(flights, headers=False) for flights in (1, 64)),
)
QUICK_CASES = (ALONE, MAIN, Case(64, "protobuf"))

Found = dict[str, Any]
Runs = dict[Case, dict[str, list[Found]]]


@dataclass(frozen=True, slots=True)
class Pair:
    """A contender's two processes."""

    service: Worker
    client: Worker


def measure(bench: Bench) -> None:
    """Measure calls, the rounds going round all contenders.

    Raises:
        WorkerFailed: A contender broke; whatever was measured has been added.
        AssertionError: A call of busmicro failed; likewise.
    """
    present = [contender for contender in CONTENDERS.values() if not contender.absent]
    cases = QUICK_CASES if bench.quick else CASES
    runs: Runs = {case: {contender.name: [] for contender in present} for case in cases}
    with ExitStack() as stack:
        broken = go_round(bench, runs, start(bench, present, stack))
    runs = {case: {of: some for of, some in found.items() if some} for case, found in runs.items()}
    for case, found in runs.items():
        add_case(bench, case, found)
    for contender in CONTENDERS.values():
        if contender.absent:
            bench.report.absent(CALLS, "calls/s", contender.name, contender.absent)
    add_cpu(bench, runs)
    add_targets(bench)
    for failure in broken.values():
        raise failure
    for case, found in runs.items():
        require_no_failures(case, found)


def go_round(bench: Bench, runs: Runs, pairs: dict[str, Pair]) -> dict[str, WorkerFailed]:
    """Measure every case of every contender so many times; return who broke, and how."""
    broken: dict[str, WorkerFailed] = {}
    for number in range(bench.rounds):
        for case, found in runs.items():
            bench.say(f"calls, round {number + 1} of {bench.rounds}: {case}")
            for turn in range(PASSES.get(case, 1)):
                in_turn = deque(pairs.items())
                in_turn.rotate(number + turn)  # nobody always comes after the same one
                go_through(bench, case, found, in_turn, broken)
    return broken


def go_through(
    bench: Bench,
    case: Case,
    found: dict[str, list[Found]],
    pairs: Iterable[tuple[str, Pair]],
    broken: dict[str, WorkerFailed],
) -> None:
    """Measure a case once for every contender that has it and has not broken."""
    for of, pair in pairs:
        if of in broken or case.codec not in CONTENDERS[of].codecs:
            continue
        try:
            found[of].append(one(bench, pair, case))
        except WorkerFailed as failure:
            broken[of] = failure


def start(bench: Bench, present: list[Contender], stack: ExitStack) -> dict[str, Pair]:
    """Start the two processes of every contender, the services before the clients."""

    def all_of(what: str) -> list[Worker]:
        target = f"benchmarks.calls:{what}"
        started = [
            stack.enter_context(Worker(target, contender=contender.name, url=bench.url))
            for contender in present
        ]
        return [worker.ready() for worker in started]

    services, clients = all_of("serve"), all_of("make_calls")
    names = [contender.name for contender in present]
    return dict(zip(names, map(Pair, services, clients), strict=True))


def one(bench: Bench, pair: Pair, case: Case) -> Found:
    """Measure once: calls a second, latencies, and what a call costs each process."""
    how = {
        "flights": case.flights,
        "codec": case.codec,
        "size_bytes": case.size_bytes,
        "headers": case.headers,
    }
    pids = {"client": pair.client.pid, "service": pair.service.pid, "nats": bench.server_pid}
    pair.client.ask(seconds=0, **how)
    before = {who: cpu_s(pid) for who, pid in pids.items()}
    found = pair.client.ask(seconds=bench.seconds(SECONDS), **how)
    spent = {who: (cpu_s(pid) - before[who]) / found["calls"] * 1e6 for who, pid in pids.items()}
    return found | spent


def add_case(bench: Bench, case: Case, runs: dict[str, list[Found]]) -> None:
    """Add what was found in one case."""

    def add(figure: str, key: str) -> None:
        found = {of: [one[key] for one in some] for of, some in runs.items()}
        bench.report.add_all(CALLS, f"{case}: {figure}", found, BASE, notes)

    notes = {of: note for of, some in runs.items() if (note := failures(some))}
    add("calls/s", "per_second")
    if case in (ALONE, MAIN):
        add("p50, µs", "p50_us")
        add("p99, µs", "p99_us")


def require_no_failures(case: Case, runs: dict[str, list[Found]]) -> None:
    """Raise if a call of busmicro failed: a rival's failures only stand in the table."""
    for of in ("busmicro", WRAPPED.name):
        if note := failures(runs.get(of, [])):
            raise AssertionError(f"{case}, {of}: {note}")


def failures(some: list[Found]) -> str:
    """Say how many calls failed, and how the first one did."""
    failed = sum(one["failures"] for one in some)
    if not failed:
        return ""
    whole = failed + sum(one["calls"] for one in some)
    first = next(one["failure"] for one in some if one["failure"])
    return f"{failed:,} of {whole:,} calls failed: {first}"


def add_cpu(bench: Bench, runs: Runs) -> None:
    """Add what a call costs client, service and nats-server, so that the bottleneck is seen."""
    for case in (ALONE, MAIN):
        for figure, name in (("client", "client"), ("service", "service"), ("nats-server", "nats")):
            found = {of: [one[name] for one in some] for of, some in runs[case].items()}
            bench.report.add_all(CPU, f"{case}: {figure}, µs", found, BASE)
    found = {of: [whole(one) for one in some] for of, some in runs[MAIN].items()}
    bench.report.add_all(CPU, WHOLE, found, BASE)
    for of, some in runs[MAIN].items():
        busy = [whole(one) * one["per_second"] / 1e6 for one in some]
        bench.report.add(CPU, f"{MAIN}: cores kept busy", of, busy)


def whole(found: Found) -> float:
    """Return the µs that a call costs all three processes."""
    return found["client"] + found["service"] + found["nats"]


def add_targets(bench: Bench) -> None:
    """Set busmicro beside what somebody writes by hand, and beside the floor."""
    report, rate, p50 = bench.report, f"{MAIN}: calls/s", f"{ALONE}: p50, µs"
    ours, wrapped, bare, tasks = "busmicro", WRAPPED.name, BARE.name, WITH_TASKS.name
    for figure, ratios, target in (
        (f"{MAIN}: × nats-py", report.ratios(rate, ours, BASE), "≥ 2.5"),
        (f"{MAIN}, recommended wrappers: × nats-py", report.ratios(rate, wrapped, BASE), "≥ 1.7"),
        (f"{ALONE}: p50, × nats-py", report.ratios(p50, ours, BASE), "≤ 0.9"),
        (
            f"{MAIN}: the bare protocol is so many times faster",
            report.ratios(rate, bare, ours),
            "≤ 1.3",
        ),
        (f"{MAIN}: the one with a task a request", report.ratios(rate, tasks, ours), ""),
        (f"{MAIN}: CPU of a call, × the bare protocol's", report.ratios(WHOLE, ours, bare), ""),
    ):
        report.add(TARGETS, figure, ours, ratios, target=target, why=costs(bench))


def costs(bench: Bench) -> str:
    """Say what a call costs whom: where all cores are busy, that is what decides."""
    cost = {of: bench.report.median(WHOLE, of) for of in ("busmicro", BASE, BARE.name)}
    spent = ", ".join(f"{of} {us:.0f}" for of, us in cost.items())
    return f"CPU of a call, µs, all three processes: {spent}"
