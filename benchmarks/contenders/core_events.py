"""Events without a stream, from publisher to handler: a process each, with two connections.

Each contender is told how many events, and whether two headers travel with each; it returns how
many a second were published, encoded, decoded and handled.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from benchmarks.messages import Paid, traces

Given = Callable[[], dict[str, str] | None]
BREATH = 500
"""Events after which a publisher lets others run, in the same loop as it is."""


def two(*, headers: bool) -> Given:
    """Make the function that makes the headers of an event: a tenant, and a trace of its own."""
    trace = traces()

    def given() -> dict[str, str] | None:
        return {"Bus-Tenant": "of-the-benchmark", "traceparent": next(trace)} if headers else None

    return given


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
        async with asyncio.timeout(60):
            await self._done.wait()


async def publish_all(count: int, publish: Callable[[Paid], Awaitable[object]]) -> float:
    """Publish, and return the moment of the first."""
    events = [Paid(order=number) for number in range(count)]
    began = time.perf_counter()
    for number, event in enumerate(events):
        await publish(event)
        if number % BREATH == 0:
            await asyncio.sleep(0)
    return began


async def nats_py(url: str, count: int, *, headers: bool) -> float:
    import nats

    publisher, subscriber = await nats.connect(url), await nats.connect(url)
    countdown = Countdown(count)

    async def on_paid(message) -> None:
        Paid.model_validate_json(message.data)
        countdown.one()

    unbounded = {"pending_msgs_limit": 10**7, "pending_bytes_limit": 10**10}
    await subscriber.subscribe("core.hand", cb=on_paid, **unbounded)
    await subscriber.flush()
    given = two(headers=headers)

    async def publish(event: Paid) -> None:
        await publisher.publish("core.hand", event.model_dump_json().encode(), headers=given())

    began = await publish_all(count, publish)
    await publisher.flush()
    await countdown.reached()
    took = time.perf_counter() - began
    await publisher.close()
    await subscriber.close()
    return count / took


async def busmicro(url: str, count: int, *, headers: bool) -> float:
    from busmicro import Client, Service, Topic

    topic = Topic("core.busmicro", Paid)
    service = Service("bench", url=url)
    countdown = Countdown(count)

    @service.subscribe(topic, waiting=65_536)
    async def on_paid(_event: Paid) -> None:
        countdown.one()

    given = two(headers=headers)
    async with service, Client(url) as client:
        began = await publish_all(
            count, lambda event: client.publish(topic, event, headers=given())
        )
        await countdown.reached()
        return count / (time.perf_counter() - began)


async def faststream(url: str, count: int, *, headers: bool) -> float:
    from faststream.nats import NatsBroker

    publisher = NatsBroker(url, logger=None, log_level=logging.CRITICAL)
    subscriber = NatsBroker(url, logger=None, log_level=logging.CRITICAL)
    countdown = Countdown(count)

    @subscriber.subscriber("core.fast")
    async def on_paid(_event: Paid) -> None:
        countdown.one()

    await subscriber.start()
    await publisher.start()
    await subscriber.ping(5.0)
    given = two(headers=headers)
    began = await publish_all(
        count, lambda event: publisher.publish(event, "core.fast", headers=given())
    )
    await countdown.reached()
    took = time.perf_counter() - began
    await publisher.stop()
    await subscriber.stop()
    return count / took


CONTENDERS = {"nats-py": nats_py, "busmicro": busmicro, "FastStream": faststream}
