"""Events beside hand-written nats-py, interleaved in one run; also FastStream where installed.

    python benchmarks/events.py [--rounds 5] [--json FILE]

Every measurement runs in a process of its own, with one connection that publishes and one that
handles; the rounds go round all contenders, so that a noisy moment of the machine hits each alike.
Typed pydantic events, encoded, decoded and, where a stream keeps them, acknowledged, everywhere.

- core: encoded and published, then decoded by a handler; without headers, and with two.
- durable publish: 1,000 under way, each with an id and an acknowledgement.
- durable consume: decoded and acknowledged; by hand a loop around `fetch(200)`.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

from pydantic import BaseModel

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TWO = {"Bus-Tenant": "of-the-benchmark", "traceparent": TRACE}
CORE, STORED, CONSUMED = 60_000, 30_000, 40_000
SLOW = {"faststream": 0.15}
"""FastStream gets fewer events; it would take a minute a round."""
ROUNDS = 5


class Paid(BaseModel):
    order: int
    amount: float = 1.0


def some_events(count: int) -> list[Paid]:
    return [Paid(order=number) for number in range(count)]


class Countdown:
    """Tells when so many events have been handled."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._done = asyncio.Event()

    def one(self) -> None:
        self._left -= 1
        if not self._left:
            self._done.set()

    async def reached(self) -> None:
        async with asyncio.timeout(120):
            await self._done.wait()


# --- core: publish to handler ---------------------------------------------------------------------


async def core_nats_py(url: str, count: int, headers: dict[str, str] | None) -> float:
    import nats

    publisher, subscriber = await nats.connect(url), await nats.connect(url)
    countdown = Countdown(count)

    async def on_paid(message) -> None:
        Paid.model_validate_json(message.data)
        countdown.one()

    unbounded = {"pending_msgs_limit": 10**7, "pending_bytes_limit": 10**10}
    await subscriber.subscribe("core.hand", cb=on_paid, **unbounded)
    await subscriber.rtt()
    await asyncio.sleep(0.1)
    events = some_events(count)
    began = time.perf_counter()
    for number, event in enumerate(events):
        payload = event.model_dump_json().encode()
        await publisher.publish("core.hand", payload, headers=headers)
        if number % 500 == 0:
            await asyncio.sleep(0)
    await publisher.flush()
    await countdown.reached()
    took = time.perf_counter() - began
    await publisher.close()
    await subscriber.close()
    return count / took


async def core_busmicro(url: str, count: int, headers: dict[str, str] | None) -> float:
    from busmicro import Client, Service, Topic

    topic = Topic("core.busmicro", Paid)
    service = Service("bench", url=url)
    countdown = Countdown(count)

    @service.subscribe(topic, waiting=65_536)
    async def on_paid(_event: Paid) -> None:
        countdown.one()

    async with service, Client(url) as client:
        events = some_events(count)
        began = time.perf_counter()
        for number, event in enumerate(events):
            await client.publish(topic, event, headers=headers)
            if number % 500 == 0:
                await asyncio.sleep(0)
        await countdown.reached()
        return count / (time.perf_counter() - began)


async def core_faststream(url: str, count: int, headers: dict[str, str] | None) -> float:
    from faststream.nats import NatsBroker

    publisher = NatsBroker(url, logger=None, log_level=logging.CRITICAL)
    subscriber = NatsBroker(url, logger=None, log_level=logging.CRITICAL)
    countdown = Countdown(count)

    @subscriber.subscriber("core.fast")
    async def on_paid(_event: Paid) -> None:
        countdown.one()

    await subscriber.start()
    await publisher.start()
    await asyncio.sleep(0.2)
    given = {"traceparent": TRACE} if headers else None
    events = some_events(count)
    began = time.perf_counter()
    for number, event in enumerate(events):
        await publisher.publish(event, "core.fast", headers=given)
        if number % 500 == 0:
            await asyncio.sleep(0)
    await countdown.reached()
    took = time.perf_counter() - began
    await publisher.stop()
    await subscriber.stop()
    return count / took


# --- durable: publish -----------------------------------------------------------------------------


async def store_nats_py(url: str, count: int, _headers: object) -> float:
    import nats

    client = await nats.connect(url)
    name = f"HAND{uuid.uuid4().hex[:8]}"
    jetstream = client.jetstream(publish_async_max_pending=1000)
    await jetstream.add_stream(name=name, subjects=[f"{name}.>"])
    events = some_events(count)
    began = time.perf_counter()
    for number, event in enumerate(events):
        payload = event.model_dump_json().encode()
        await jetstream.publish_async(f"{name}.a", payload, headers={"Nats-Msg-Id": f"h{number}"})
    await jetstream.publish_async_completed()
    took = time.perf_counter() - began
    await jetstream.delete_stream(name)
    await client.close()
    return count / took


async def store_busmicro(url: str, count: int, _headers: object) -> float:
    from busmicro import Client

    topic = durable_topic()
    async with Client(url) as client:
        await client.publish(topic, Paid(order=-1))
        events = some_events(count)
        began = time.perf_counter()
        await client.publish_many(topic, events)
        took = time.perf_counter() - began
        await delete(client, topic)
    return count / took


def durable_topic():
    from busmicro import Stream, Topic

    name = f"BUS{uuid.uuid4().hex[:8]}"
    return Topic(f"{name}.a", Paid, stream=Stream(name, subjects=[f"{name}.>"]))


async def delete(client, topic) -> None:
    assert topic.stream is not None
    await client.publisher.declarations.jetstream.api(f"STREAM.DELETE.{topic.stream.name}")


# --- durable: consume -----------------------------------------------------------------------------


async def consume_nats_py(url: str, count: int, _headers: object) -> float:
    import nats
    from nats.js.api import ConsumerConfig

    client = await nats.connect(url)
    name = f"HAND{uuid.uuid4().hex[:8]}"
    jetstream = client.jetstream(publish_async_max_pending=1000)
    await jetstream.add_stream(name=name, subjects=[f"{name}.>"])
    for number in range(count):
        payload = Paid(order=number).model_dump_json().encode()
        await jetstream.publish_async(f"{name}.a", payload, headers={"Nats-Msg-Id": f"h{number}"})
    await jetstream.publish_async_completed()
    config = ConsumerConfig(max_ack_pending=5000)
    subscription = await jetstream.pull_subscribe(f"{name}.a", durable="d", config=config)
    handled = 0
    began = time.perf_counter()
    while handled < count:
        messages = await subscription.fetch(200, timeout=5)
        for message in messages:
            Paid.model_validate_json(message.data)
            await message.ack()
        handled += len(messages)
    took = time.perf_counter() - began
    await jetstream.delete_stream(name)
    await client.close()
    return count / took


async def consume_busmicro(url: str, count: int, _headers: object) -> float:
    from busmicro import Client, Service

    topic = durable_topic()
    async with Client(url) as client:
        await client.publish_many(topic, (Paid(order=n) for n in range(count)))
        service = Service("bench", url=url)
        countdown = Countdown(count)

        @service.subscribe(topic, group="d")
        async def on_paid(_event: Paid) -> None:
            countdown.one()

        began = time.perf_counter()
        async with service:
            await countdown.reached()
            took = time.perf_counter() - began
        await delete(client, topic)
    return count / took


async def consume_faststream(url: str, count: int, _headers: object) -> float:
    import nats
    from faststream.nats import JStream, NatsBroker, PullSub

    client = await nats.connect(url)
    name = f"FAST{uuid.uuid4().hex[:8]}"
    jetstream = client.jetstream(publish_async_max_pending=1000)
    await jetstream.add_stream(name=name, subjects=[f"{name}.>"])
    for number in range(count):
        payload = Paid(order=number).model_dump_json().encode()
        await jetstream.publish_async(f"{name}.a", payload)
    await jetstream.publish_async_completed()
    broker = NatsBroker(url, logger=None, log_level=logging.CRITICAL)
    countdown = Countdown(count)
    stream = JStream(name, subjects=[f"{name}.>"], declare=False)

    @broker.subscriber(f"{name}.a", stream=stream, durable="d", pull_sub=PullSub(batch_size=200))
    async def on_paid(_event: Paid) -> None:
        countdown.one()

    began = time.perf_counter()
    await broker.start()
    await countdown.reached()
    took = time.perf_counter() - began
    await broker.stop()
    await jetstream.delete_stream(name)
    await client.close()
    return count / took


Case = Callable[[str, int, dict[str, str] | None], Awaitable[float]]
CASES: dict[str, tuple[int, dict[str, str] | None, dict[str, Case]]] = {
    "core": (
        CORE,
        None,
        {"nats-py": core_nats_py, "busmicro": core_busmicro, "faststream": core_faststream},
    ),
    "core, two headers": (
        CORE,
        TWO,
        {"nats-py": core_nats_py, "busmicro": core_busmicro, "faststream": core_faststream},
    ),
    "durable publish": (STORED, None, {"nats-py": store_nats_py, "busmicro": store_busmicro}),
    "durable consume": (
        CONSUMED,
        None,
        {
            "nats-py": consume_nats_py,
            "busmicro": consume_busmicro,
            "faststream": consume_faststream,
        },
    ),
}
TARGETS = {"core": 2.0, "core, two headers": 3.0, "durable publish": 2.0, "durable consume": 3.0}


# --- memory ---------------------------------------------------------------------------------------


async def memory(url: str) -> dict[str, float]:
    """How much a process grows whose handler is slower than its publisher, both kinds of topic."""
    from busmicro import Client, Service

    topic = durable_topic()
    service = Service("bench", url=url)

    @service.subscribe(topic, group="slow", concurrency=4)
    async def on_paid(_event: Paid) -> None:
        await asyncio.sleep(0.01)

    grown: list[float] = []
    async with service, Client(url) as client:
        for _ in range(6):
            await client.publish_many(topic, (Paid(order=n) for n in range(10_000)))
            grown.append(rss_mb())
        await service.stop(grace=0.1)
        await delete(client, topic)
    return {"after_10k_mb": grown[0], "after_60k_mb": grown[-1], "growth_mb": grown[-1] - grown[0]}


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


# --- running --------------------------------------------------------------------------------------


def run_in_loop(work: Awaitable[object]) -> object:
    from busmicro.service import fast_loop

    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        return runner.run(work)


def one(case: str, contender: str, url: str) -> None:
    """Measure once, in this process, and print the figure."""
    if case == "memory":
        print(json.dumps(run_in_loop(memory(url))))
        return
    count, headers, contenders = CASES[case]
    count = int(count * SLOW.get(contender, 1.0))
    print(json.dumps(run_in_loop(contenders[contender](url, count, headers))))


def in_process(case: str, contender: str, url: str) -> object:
    command = [sys.executable, __file__, "--case", case, "--contender", contender, "--url", url]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300)
    return json.loads(done.stdout.splitlines()[-1])


def bench(url: str, rounds: int) -> dict[str, dict[str, list[float]]]:
    table: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for case, (_count, _headers, contenders) in CASES.items():
            for contender in contenders:
                if contender == "faststream" and not importlib.util.find_spec("faststream"):
                    continue
                rate = in_process(case, contender, url)
                assert isinstance(rate, float)
                table.setdefault(case, {}).setdefault(contender, []).append(rate)
    return table


def show(table: dict[str, dict[str, list[float]]]) -> None:
    print(f"{'':20}{'':12}{'events/s':>10}{'× nats-py':>11}   spread")
    for case, rows in table.items():
        base = statistics.median(rows["nats-py"])
        for contender, rates in rows.items():
            middle = statistics.median(rates)
            spread = f"{min(rates):,.0f}-{max(rates):,.0f}"
            print(f"{case:20}{contender:12}{middle:>10,.0f}{middle / base:>11.2f}   {spread}")
    print()
    for case, target in TARGETS.items():
        times = statistics.median(table[case]["busmicro"]) / statistics.median(
            table[case]["nats-py"]
        )
        met = "met" if times >= target else "MISSED"
        print(f"{case + ', × nats-py':42}{times:8.2f}  target >= {target:<5} {met}")


async def main(rounds: int, out: Path | None) -> None:
    from busmicro import NatsServer

    async with NatsServer() as server:
        table = await asyncio.to_thread(bench, server.url, rounds)
        grown = await asyncio.to_thread(in_process, "memory", "busmicro", server.url)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, medians of {rounds}\n")
    show(table)
    assert isinstance(grown, dict)
    met = "met" if grown["growth_mb"] <= 10 else "MISSED"
    more = grown["growth_mb"]
    print(f"{'slow handler, 50,000 events more, MB':42}{more:8.2f}  target <= 10    {met}")
    if out:
        out.write_text(json.dumps({"events": table, "memory": grown}, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=[*CASES, "memory"])
    parser.add_argument("--contender", default="busmicro")
    parser.add_argument("--url", default="")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.case:
        one(given.case, given.contender, given.url)
    else:
        asyncio.run(main(given.rounds, given.json))
