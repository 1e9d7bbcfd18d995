"""Start-up and memory: the import, a script's first answer, and a service that does nothing."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from contextlib import AsyncExitStack

from benchmarks.bench import Bench
from benchmarks.processes import ROOT, Worker, rss_mb, with_bytecode
from benchmarks.worker import Answer

SUBJECT = "Start and memory"
TIMES = 5
NAMES = "from busmicro import Service, Client"
DEPENDENCIES = "import nats, nats.js, pydantic, pydantic_settings, opentelemetry.trace, uvloop"


def measure(bench: Bench) -> None:
    """Measure, several times whatever the rounds: a start is short and its time uneven."""
    times = bench.count(TIMES)
    bench.say("start-up and memory")
    run(NAMES)  # compiled once, like every installed package
    whole, needed, nothing = [], [], []
    for _ in range(times):
        whole.append(run(NAMES))
        needed.append(run(DEPENDENCIES))
        nothing.append(run("pass"))
    with Worker("benchmarks.start:greeter", url=bench.url) as worker:
        answers = [worker.ask() for _ in range(times)]
    add = bench.report.add
    add(SUBJECT, "a Python that imports nothing, s", "Python", nothing)
    add(SUBJECT, "import of what busmicro needs, s", "its dependencies", needed)
    why = f"its dependencies alone take {statistics.median(needed):.2f} s"
    add(SUBJECT, f"{NAMES}, s", "busmicro", whole, target="≤ 0.25", why=why)
    first = [answer["took"] for answer in answers]
    idle = [answer["rss_mb"] for answer in answers]
    why = f"the import alone takes {statistics.median(whole):.2f} s"
    add(SUBJECT, "python greeter.py to first answer, s", "busmicro", first, target="≤ 0.6", why=why)
    add(SUBJECT, "idle service, MB", "busmicro", idle, target="≤ 70")


def run(code: str) -> float:
    """Run a line of Python in a process of its own, and return the seconds it took."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], env=with_bytecode(), cwd=ROOT, check=True)
    return time.perf_counter() - began


async def greeter(stack: AsyncExitStack, *, url: str) -> Answer:
    """Return what starts the first example as a script, and calls it until it answers."""
    from busmicro import Client

    script = ROOT / "examples" / "01_greeter.py"
    env = with_bytecode(BUSMICRO_NATS_URL=url)
    client = await stack.enter_async_context(Client(url, wait_for_ready=True))

    async def answer() -> dict[str, float]:
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, script], env=env, stderr=subprocess.DEVNULL)
        try:
            await client.call("greeter", "hello", {"name": "John"}, timeout=10)
            return {"took": time.perf_counter() - began, "rss_mb": rss_mb(process.pid)}
        finally:
            process.terminate()
            process.wait()

    return answer
