"""Start-up and memory: the import, a script's first answer, and a service that does nothing."""

from __future__ import annotations

import asyncio
import importlib.util
import statistics
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from typing import TypeVar

from benchmarks.bench import Bench
from benchmarks.processes import ROOT, Worker, rss_mb, with_bytecode
from benchmarks.worker import Answer

T = TypeVar("T")

SUBJECT = "Start and memory"
TIMES = 5
NAMES = "from busmicro import Service, Client"
NEEDED, BASE = "what busmicro needs", "nats-py and pydantic"
IMPORTS = {
    "busmicro": NAMES,
    NEEDED: "import nats, nats.js, pydantic, pydantic_settings, opentelemetry.trace, uvloop",
    BASE: "import nats, pydantic",
    "FastStream": "from faststream.nats import NatsBroker",
    "a Python that imports nothing": "pass",
}
GREETERS = {
    "busmicro": ("examples/01_greeter.py", "rpc.greeter.hello"),
    BASE: ("benchmarks/contenders/greeter_nats_py.py", "greeter.nats-py"),
    "FastStream": ("benchmarks/contenders/greeter_faststream.py", "greeter.faststream"),
}
"""Scripts, and where they listen."""
_ASK_EVERY = 0.005


def measure(bench: Bench) -> None:
    """Measure, several times whatever the rounds: a start is short and its time uneven."""
    times = bench.count(TIMES)
    bench.say("start-up and memory")
    codes, greeters = installed(IMPORTS), installed(GREETERS)
    for code in codes.values():
        run(code)  # compiled once, like every installed package
    imports: dict[str, list[float]] = {of: [] for of in codes}
    answers: dict[str, list[dict[str, float]]] = {of: [] for of in greeters}
    with Worker("benchmarks.start:greeter", url=bench.url) as worker:
        for _ in range(times):
            for of, code in codes.items():
                imports[of].append(run(code))
            for of, greeter in greeters.items():
                answers[of].append(worker.ask(script=greeter[0], subject=greeter[1]))
    report = bench.report
    report.add_all(SUBJECT, "import, s", imports, BASE)
    needed, whole = (statistics.median(imports[of]) for of in (NEEDED, "busmicro"))
    why = f"its dependencies alone take {needed:.2f} s"
    report.add(SUBJECT, f"{NAMES}, s", "busmicro", imports["busmicro"], target="≤ 0.25", why=why)
    for figure, key, target in (
        ("python greeter.py to first answer, s", "took", "≤ 0.6"),
        ("idle service, MB", "rss_mb", "≤ 70"),
    ):
        found = {of: [answer[key] for answer in some] for of, some in answers.items()}
        report.add_all(SUBJECT, figure, found, BASE)
        why = f"the import alone takes {whole:.2f} s"
        report.add(
            SUBJECT, f"{figure}: target", "busmicro", found["busmicro"], target=target, why=why
        )


def installed(given: dict[str, T]) -> dict[str, T]:
    """Leave out FastStream where it is not."""
    there = importlib.util.find_spec("faststream") is not None
    return {of: what for of, what in given.items() if there or of != "FastStream"}


def run(code: str) -> float:
    """Run a line of Python in a process of its own, and return the seconds it took."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], env=with_bytecode(), cwd=ROOT, check=True)
    return time.perf_counter() - began


async def greeter(stack: AsyncExitStack, *, url: str) -> Answer:
    """Return what starts a script, and asks it every few milliseconds until it answers."""
    import nats

    env = with_bytecode(BUSMICRO_NATS_URL=url)
    client = await nats.connect(url)
    stack.push_async_callback(client.close)

    async def answered(subject: str) -> None:
        async with asyncio.timeout(20):
            while True:
                try:
                    await client.request(subject, b'{"name":"John"}', timeout=10)
                except nats.errors.NoRespondersError:
                    await asyncio.sleep(_ASK_EVERY)
                else:
                    return

    async def answer(*, script: str, subject: str) -> dict[str, float]:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-P", script],  # not beside modules called like libraries
            env=env,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            await answered(subject)
            return {"took": time.perf_counter() - began, "rss_mb": rss_mb(process.pid)}
        finally:
            process.terminate()
            process.wait()

    return answer
