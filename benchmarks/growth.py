"""Growth: more nodes of a service, more endpoints of a node, more subscribers, a larger registry.

How calls grow with those in flight stands among the calls.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, ExitStack

from benchmarks import crowd
from benchmarks.bench import Bench
from benchmarks.calls import timed
from benchmarks.contenders.core_events import Countdown, publish_all
from benchmarks.messages import Paid, Reply, Request, greet, request_of
from benchmarks.processes import Worker, rss_mb
from benchmarks.worker import Answer

SUBJECT = "Growth"
NODES, ENDPOINTS, SUBSCRIBERS = (1, 10, 50, 200), (1, 10, 100, 1_000), (1, 10, 100, 500)
FLIGHTS, SIZE_BYTES = (64, 1_024), 128
DELIVERIES = 60_000
SECONDS = 0.7
HERE = "benchmarks.growth"


def measure(bench: Bench) -> None:
    """Measure each at each size."""
    nodes, endpoints, subscribers = (
        sizes[:2] if bench.quick else sizes for sizes in (NODES, ENDPOINTS, SUBSCRIBERS)
    )
    measure_calls(bench, "nodes", "nodes of a service", nodes)
    measure_calls(bench, "endpoints", "endpoints of a node", endpoints)
    measure_events(bench, subscribers)
    crowd.measure(bench)


def measure_calls(bench: Bench, name: str, what: str, sizes: tuple[int, ...]) -> None:
    """Start services of each size, each in a process of its own, and call them in turn."""
    bench.say(f"growth: {what}")
    took: dict[str, list[float]] = {}
    rates: dict[int, dict[str, list[float]]] = {flights: {} for flights in FLIGHTS}
    with ExitStack() as stack:
        services, clients = {}, {}
        for size in sizes:
            began = time.perf_counter()
            of, given = f"{size:,}", {"url": bench.url, "count": size}
            services[of] = stack.enter_context(Worker(f"{HERE}:serve_{name}", **given)).ready()
            took[of] = [time.perf_counter() - began]
            clients[of] = stack.enter_context(Worker(f"{HERE}:call_{name}", **given))
        for client in clients.values():
            client.ready()  # nobody starts while others are measured
        for _ in range(bench.rounds):
            for flights, found in rates.items():
                for of, client in clients.items():
                    rate = client.ask(seconds=bench.seconds(SECONDS), flights=flights)
                    found.setdefault(of, []).append(rate)
        held = {of: [rss_mb(service.pid)] for of, service in services.items()}
    add(bench, f"{what}: process and all of them started, s", took)
    for flights, found in rates.items():
        add(bench, f"{what}: calls/s, {flights:,} in flight", found)
    add(bench, f"{what}: memory of the process, MB", held)


def add(bench: Bench, figure: str, found: dict[str, list[float]]) -> None:
    """Add a figure at every size, beside that of the smallest."""
    bench.report.add_all(SUBJECT, figure, found, next(iter(found)))


async def serve_nodes(stack: AsyncExitStack, *, url: str, count: int) -> None:
    """Start so many nodes of one service, each with a connection of its own."""
    from busmicro import Service

    for _ in range(count):
        service = Service(f"nodes{count}")

        @service.rpc
        async def hello(request: Request) -> Reply:
            return Reply(greeting=greet(request.name))

        await service.start(url=url)
        stack.push_async_callback(service.stop, grace=0.1)


async def serve_endpoints(stack: AsyncExitStack, *, url: str, count: int) -> None:
    """Start one node with so many endpoints."""
    from busmicro import Service

    service = Service(f"endpoints{count}")
    for number in range(count):

        @service.rpc(f"hello{number}")
        async def hello(request: Request) -> Reply:
            return Reply(greeting=greet(request.name))

    await service.start(url=url)
    stack.push_async_callback(service.stop, grace=0.1)


async def call_nodes(stack: AsyncExitStack, *, url: str, count: int) -> Answer:
    """Return what calls whichever node gets it."""
    return await calling(stack, url, f"nodes{count}", ["hello"])


async def call_endpoints(stack: AsyncExitStack, *, url: str, count: int) -> Answer:
    """Return what calls one endpoint after another."""
    names = [f"hello{number}" for number in range(count)]
    return await calling(stack, url, f"endpoints{count}", names)


async def calling(stack: AsyncExitStack, url: str, service: str, endpoints: list[str]) -> Answer:
    """Return what measures calls a second to endpoints in turn."""
    from busmicro import Client

    client = await stack.enter_async_context(Client(url))
    turn = 0

    async def ask(request: object) -> object:
        nonlocal turn
        turn = (turn + 1) % len(endpoints)
        return await client.call(service, endpoints[turn], request, returns=Reply)

    request = request_of("json", SIZE_BYTES)
    for _ in endpoints:  # what the first call of an endpoint makes, it makes once
        await ask(request)

    async def answer(*, seconds: float, flights: int) -> float:
        found = await timed(ask, request, flights, seconds)
        return found["per_second"]

    return answer


def measure_events(bench: Bench, sizes: tuple[int, ...]) -> None:
    """Publish to so many subscribers, each with a connection of its own, in one process."""
    what = "subscribers of an event"
    bench.say(f"growth: {what}")
    rates: dict[str, list[float]] = {}
    with ExitStack() as stack:
        workers = {
            size: stack.enter_context(Worker(f"{HERE}:fan_out", url=bench.url, count=size))
            for size in sizes
        }
        for worker in workers.values():
            worker.ready()  # nobody starts while others are measured
        for _ in range(bench.rounds):
            for size, worker in workers.items():
                events = max(5, bench.count(DELIVERIES) // size)
                rates.setdefault(f"{size:,}", []).append(worker.ask(events=events))
        held = {f"{size:,}": [rss_mb(worker.pid)] for size, worker in workers.items()}
    add(bench, f"{what}: handled/s, all together", rates)
    add(bench, f"{what}: memory of the process, MB", held)


async def fan_out(stack: AsyncExitStack, *, url: str, count: int) -> Answer:
    """Return what publishes events and waits until every subscriber has handled each."""
    from busmicro import Client, Service, Topic

    topic = Topic(f"fan.out.to{count}", Paid)
    countdown = Countdown(0)

    async def on_paid(_event: Paid) -> None:
        countdown.one()

    for number in range(count):
        service = Service(f"subscriber{number}of{count}")
        service.subscribe(topic, waiting=65_536)(on_paid)
        await service.start(url=url)
        stack.push_async_callback(service.stop, grace=0.1)
    client = await stack.enter_async_context(Client(url))

    async def answer(*, events: int) -> float:
        nonlocal countdown
        countdown = Countdown(events * count)
        began = await publish_all(events, lambda event: client.publish(topic, event))
        await countdown.reached()
        return events * count / (time.perf_counter() - began)

    return answer
