"""What is subscribed is known, what is published arrives in order, and faults hurt nobody else."""

from __future__ import annotations

import asyncio
import logging

import pytest

from busmicro import PayloadTooLarge
from busmicro.transport import Subscription
from tests.promises.transport.buses import AnyBus, Collected, echo


async def test_after_subscribe_and_barrier_the_subscription_is_known(bus: AnyBus):
    """A node that has said it is ready is found by the very next caller, every time."""
    node, caller = await bus.connect(), await bus.connect()
    replies = await bus.replies(caller)

    for number in range(200 if bus.scheme == "ws" else 1000):
        subscription = node.subscribe(f"ready.{number}", echo(node), queue="q")
        await node.barrier()
        header, _payload = await replies.ask(b"ready.%d" % number, b"", timeout=5)
        assert not header
        node.unsubscribe(subscription)


async def test_after_unsubscribe_and_barrier_nothing_that_was_routed_here_is_lost(bus: AnyBus):
    """A hundred nodes leave a service one after another under load and not one call fails."""
    steady, leaving, caller = [await bus.connect() for _ in range(3)]
    replies = await bus.replies(caller)
    steady.subscribe("work", echo(steady), queue="q")
    await steady.barrier()
    done, answered = asyncio.Event(), 0

    async def call() -> None:
        nonlocal answered
        while not done.is_set():
            await replies.ask(b"work", b"x", timeout=5)
            answered += 1

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for _ in range(16):
            group.create_task(call())
        for _ in range(100):
            subscription = leaving.subscribe("work", echo(leaving), queue="q")
            await leaving.barrier()
            leaving.unsubscribe(subscription)
            await leaving.barrier()
        done.set()

    assert answered > 100
    assert not leaving._subscriptions


async def test_messages_of_one_publisher_arrive_in_order(bus: AnyBus):
    """What is sent first arrives first, over any number of messages, and none is missing."""
    count = 20_000 if bus.scheme == "ws" else 100_000
    sender, receiver = await bus.connect(), await bus.connect()
    arrived = Collected()
    receiver.subscribe("in.order", arrived)
    await receiver.barrier()

    for number in range(count):
        if not sender.writable:
            await sender.drained()
        sender.publish(b"in.order", b"%d" % number)

    async with asyncio.timeout(20):
        await sender.barrier(timeout=20)
        while len(arrived.payloads) < count:
            await asyncio.sleep(0.005)
    assert arrived.payloads == [b"%d" % number for number in range(count)]


async def test_callback_that_raises_hurts_nobody_else(
    bus: AnyBus, caplog: pytest.LogCaptureFixture
):
    """Ten thousand faults in a handler leave the connection, and other handlers, as they were."""
    transport = await bus.connect()
    heard = Collected()

    def fail(_subject: bytes, _reply: bytes, _header: bytes, payload: bytes) -> None:
        raise asyncio.CancelledError if payload.endswith(b"7") else ZeroDivisionError

    transport.subscribe("faulty", fail)
    transport.subscribe("faulty", heard)
    await transport.barrier()

    with caplog.at_level(logging.CRITICAL, "busmicro.transport"):
        for number in range(10_000):
            if not transport.writable:
                await transport.drained()
            transport.publish(b"faulty", b"%d" % number)
        async with asyncio.timeout(20):
            while len(heard.payloads) < 10_000:
                await asyncio.sleep(0.005)

    assert transport.connected
    assert transport.reconnects == 0


async def test_fault_of_a_callback_is_logged(bus: AnyBus, caplog: pytest.LogCaptureFixture):
    """Who writes a handler that fails finds the subject and the traceback in the log."""
    transport = await bus.connect()
    transport.subscribe("faulty", lambda *_: 1 / 0)

    transport.publish(b"faulty", b"")
    async with asyncio.timeout(5):
        while "ZeroDivisionError" not in caplog.text:
            await transport.barrier()

    assert "<Subscription faulty> failed" in caplog.text


@pytest.mark.parametrize("with_header", [False, True])
async def test_what_is_too_large_with_headers_counted_is_refused_before_the_wire(
    bus: AnyBus, with_header: bool
):
    """A message of just the limit passes, one byte more is refused and the connection lives."""
    transport = await bus.connect()
    heard = Collected()
    transport.subscribe("large", heard)
    header = b"NATS/1.0\r\nA: 1\r\n\r\n" if with_header else b""
    most = transport.max_payload_bytes - len(header)
    await transport.barrier()

    transport.publish(b"large", b"x" * most, b"", header)
    with pytest.raises(PayloadTooLarge) as refused:
        transport.publish(b"large", b"x" * (most + 1), b"", header)
    async with asyncio.timeout(10):
        while not heard.payloads:
            await transport.barrier()

    assert refused.value.not_run
    assert [len(payload) for payload in heard.payloads] == [most]
    assert transport.reconnects == 0


def test_subscription_shows_what_it_is():
    """A subscription in a log says what it listens to, with whom and whether it may."""
    subscription = Subscription(b"b1", "a.b", "q", lambda *_: None)
    subscription.denied = True

    assert repr(subscription) == "<Subscription a.b queue=q DENIED>"
