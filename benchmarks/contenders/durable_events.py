"""Events that a stream keeps: published with an id each and acknowledged, then handled.

Each contender is told how many, and returns how many a second.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid

from benchmarks.contenders.core_events import Countdown
from benchmarks.messages import Paid

IN_FLIGHT = 1_000
FETCH = 200


def durable_topic():
    from busmicro import Stream, Topic

    name = f"BUS{uuid.uuid4().hex[:8]}"
    return Topic(f"{name}.a", Paid, stream=Stream(name, subjects=[f"{name}.>"]))


async def delete(client, topic) -> None:
    await client.publisher.declarations.jetstream.api(f"STREAM.DELETE.{topic.stream.name}")


async def fill(client, name: str, count: int) -> tuple[object, float]:
    """Make a stream and publish so many events to it; return it, and the seconds that took."""
    jetstream = client.jetstream(publish_async_max_pending=IN_FLIGHT)
    await jetstream.add_stream(name=name, subjects=[f"{name}.>"])
    events = [Paid(order=number) for number in range(count)]
    began = time.perf_counter()
    for number, event in enumerate(events):
        payload = event.model_dump_json().encode()
        await jetstream.publish_async(f"{name}.a", payload, headers={"Nats-Msg-Id": f"h{number}"})
    await jetstream.publish_async_completed()
    return jetstream, time.perf_counter() - began


async def store_nats_py(url: str, count: int) -> float:
    import nats

    client = await nats.connect(url)
    name = f"HAND{uuid.uuid4().hex[:8]}"
    jetstream, took = await fill(client, name, count)
    await jetstream.delete_stream(name)
    await client.close()
    return count / took


async def store_busmicro(url: str, count: int) -> float:
    from busmicro import Client

    topic = durable_topic()
    async with Client(url) as client:
        await client.publish(topic, Paid(order=-1))
        events = [Paid(order=number) for number in range(count)]
        began = time.perf_counter()
        await client.publish_many(topic, events)
        took = time.perf_counter() - began
        await delete(client, topic)
    return count / took


async def store_faststream(url: str, count: int) -> float:
    import nats
    from faststream.nats import NatsBroker

    client = await nats.connect(url)
    name = f"FAST{uuid.uuid4().hex[:8]}"
    jetstream = client.jetstream()
    await jetstream.add_stream(name=name, subjects=[f"{name}.>"])
    broker = NatsBroker(url, logger=None)
    await broker.start()
    events = iter([Paid(order=number) for number in range(count)])

    async def publish_some() -> None:
        for event in events:
            given = {"Nats-Msg-Id": f"h{event.order}"}
            await broker.publish(event, f"{name}.a", stream=name, headers=given)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(publish_some())
    took = time.perf_counter() - began
    await broker.stop()
    await jetstream.delete_stream(name)
    await client.close()
    return count / took


async def handle_nats_py(url: str, count: int) -> float:
    """Have events pushed to a callback, the quickest that nats-py has."""
    import nats
    from nats.js.api import ConsumerConfig

    client = await nats.connect(url)
    name = f"HAND{uuid.uuid4().hex[:8]}"
    jetstream, _took = await fill(client, name, count)
    countdown = Countdown(count)

    async def on_paid(message) -> None:
        Paid.model_validate_json(message.data)
        await message.ack()
        countdown.one()

    began = time.perf_counter()
    await jetstream.subscribe(
        f"{name}.a",
        durable="d",
        cb=on_paid,
        manual_ack=True,
        config=ConsumerConfig(max_ack_pending=5000),
        pending_msgs_limit=1_000_000,
        pending_bytes_limit=1 << 30,
    )
    await countdown.reached()
    took = time.perf_counter() - began
    await jetstream.delete_stream(name)
    await client.close()
    return count / took


async def fetch_nats_py(url: str, count: int) -> float:
    """Fetch events, as whoever wants no more than there is room for."""
    import nats
    from nats.js.api import ConsumerConfig

    client = await nats.connect(url)
    name = f"HAND{uuid.uuid4().hex[:8]}"
    jetstream, _took = await fill(client, name, count)
    config = ConsumerConfig(max_ack_pending=5000)
    subscription = await jetstream.pull_subscribe(f"{name}.a", durable="d", config=config)
    handled = 0
    began = time.perf_counter()
    while handled < count:
        messages = await subscription.fetch(FETCH, timeout=5)
        for message in messages:
            Paid.model_validate_json(message.data)
            await message.ack()
        handled += len(messages)
    took = time.perf_counter() - began
    await jetstream.delete_stream(name)
    await client.close()
    return count / took


async def handle_busmicro(url: str, count: int) -> float:
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


async def handle_faststream(url: str, count: int) -> float:
    import nats
    from faststream.nats import JStream, NatsBroker, PullSub

    client = await nats.connect(url)
    name = f"FAST{uuid.uuid4().hex[:8]}"
    jetstream, _took = await fill(client, name, count)
    broker = NatsBroker(url, logger=None, log_level=logging.CRITICAL)
    countdown = Countdown(count)
    stream = JStream(name, subjects=[f"{name}.>"], declare=False)

    @broker.subscriber(f"{name}.a", stream=stream, durable="d", pull_sub=PullSub(batch_size=FETCH))
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


PUBLISHERS = {
    "nats-py": store_nats_py,
    "busmicro": store_busmicro,
    "FastStream": store_faststream,
}
HANDLERS = {
    "nats-py": handle_nats_py,
    "nats-py, fetch(200)": fetch_nats_py,
    "busmicro": handle_busmicro,
    "FastStream": handle_faststream,
}
