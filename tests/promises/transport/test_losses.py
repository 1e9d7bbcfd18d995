"""A connection that is lost comes back, and nobody waits for what will not come."""

from __future__ import annotations

import asyncio
import re
import time

import pytest

from busmicro import DeadlineExceeded, Disconnected, NoResponders, ResourceExhausted
from tests.promises.transport.buses import AnyBus, Collected, Ear, echo, returned


async def test_lives_for_ever_when_the_server_is_killed(bus: AnyBus):
    """After a crash of the server everything is subscribed again, without anybody's help."""
    transport = await bus.connect()
    heard = Collected()
    transport.subscribe("after", heard)
    await transport.barrier()

    bus.kill()
    await bus.restart()
    await returned(transport, 1)
    transport.publish(b"after", b"still here")
    async with asyncio.timeout(5):
        while not heard.payloads:
            await transport.barrier()

    assert heard.payloads == [b"still here"]


async def test_lives_for_ever_over_twenty_cuts_and_leaks_nothing(bus: AnyBus):
    """Each cut is mended, calls work in between, and no task or future is left behind."""
    way = await bus.way()
    transport = await bus.connect(way=way)
    replies = await bus.replies(transport)
    transport.subscribe("echo", echo(transport), queue="q")
    await transport.barrier()
    way.cut()
    await returned(transport, 1)
    await transport.barrier()
    count = len(asyncio.all_tasks())

    for number in range(2, 21):
        way.cut()
        await returned(transport, number)
        _header, payload = await replies.ask(b"echo", b"%d" % number, timeout=5)
        assert payload == b"%d" % number

    async with asyncio.timeout(5):
        while len(asyncio.all_tasks()) > count:
            await asyncio.sleep(0.01)
    assert len(replies) == 0
    assert len(transport._subscriptions) == 2


async def test_request_in_flight_ends_at_once_when_the_connection_drops(bus: AnyBus):
    """A caller whose connection breaks hears of it in milliseconds, not after its time-out."""
    way = await bus.way()
    node, caller = await bus.connect(), await bus.connect(way=way)
    replies = await bus.replies(caller)
    arrived = asyncio.Event()
    node.subscribe("silent", lambda *_: arrived.set())
    await node.barrier()

    async def call() -> float:
        with pytest.raises(Disconnected) as failed:
            await replies.ask(b"silent", b"", timeout=30)
        assert not failed.value.not_run
        return time.perf_counter()

    calls = [asyncio.get_running_loop().create_task(call()) for _ in range(50)]
    async with asyncio.timeout(5):
        await arrived.wait()
    began = time.perf_counter()
    way.cut()
    ended = await asyncio.gather(*calls)

    assert max(ended) - began < 1.0
    assert len(replies) == 0


async def test_request_ends_at_once_when_the_connection_is_down(bus: AnyBus):
    """A call made while there is no connection fails at once and says that nothing ran."""
    way = await bus.way()
    transport = await bus.connect(way=way)
    replies = await bus.replies(transport)
    ear = Ear(transport)
    way.refuse()
    way.cut()
    async with asyncio.timeout(5):
        await ear.gone.wait()

    began = time.perf_counter()
    with pytest.raises(Disconnected) as failed:
        await replies.ask(b"anything", b"", timeout=30)
    with pytest.raises(Disconnected):
        await transport.barrier()

    assert failed.value.not_run
    assert time.perf_counter() - began < 0.5
    assert not transport.connected


async def test_request_ends_at_once_when_nobody_listens(bus: AnyBus):
    """Nobody there is known within milliseconds."""
    replies = await bus.replies(await bus.connect())

    began = time.perf_counter()
    with pytest.raises(NoResponders) as failed:
        await replies.ask(b"nobody.home", b"", timeout=30)

    assert failed.value.not_run
    assert time.perf_counter() - began < 0.5


async def test_request_without_an_answer_ends_with_its_time(bus: AnyBus):
    """A service that never answers costs a caller its time-out and no more, and leaves no trace."""
    transport = await bus.connect()
    replies = await bus.replies(transport)
    abandoned = Collected()
    transport.subscribe("silent", lambda *_: None)
    transport.subscribe("abandoned", abandoned)
    await transport.barrier()

    with pytest.raises(DeadlineExceeded, match="silent"):
        await replies.request(
            b"silent",
            b"",
            deadline=asyncio.get_running_loop().time() + 0.05,
            abandon=b"abandoned",
        )
    async with asyncio.timeout(5):
        while not abandoned.payloads:
            await transport.barrier()

    assert len(replies) == 0
    assert abandoned.payloads[0].startswith(replies.inbox.encode())


async def test_messages_published_while_down_arrive_in_order_when_it_is_back(bus: AnyBus):
    """A short loss of the connection delays messages, it does not lose those that waited."""
    way = await bus.way()
    sender, receiver = await bus.connect(way=way), await bus.connect()
    arrived = Collected()
    receiver.subscribe("held", arrived)
    await receiver.barrier()
    ear = Ear(sender)
    way.refuse()
    way.cut()
    async with asyncio.timeout(5):
        await ear.gone.wait()

    for number in range(100):
        sender.publish(b"held", b"%d" % number)
    way.refuse(refuses=False)
    async with asyncio.timeout(10):
        while len(arrived.payloads) < 100:
            await asyncio.sleep(0.005)

    assert arrived.payloads == [b"%d" % number for number in range(100)]


async def test_subscription_that_ended_while_down_is_not_restored(bus: AnyBus):
    """What a process stopped listening to without a connection, it does not hear with the next."""
    way = await bus.way()
    transport = await bus.connect(way=way)
    ended, kept = Collected(), Collected()
    subscription = transport.subscribe("ended", ended)
    transport.subscribe("kept", kept)
    await transport.barrier()
    ear = Ear(transport)
    way.refuse()
    way.cut()
    async with asyncio.timeout(5):
        await ear.gone.wait()

    transport.unsubscribe(subscription)
    way.refuse(refuses=False)
    await returned(transport, 1)
    transport.publish(b"ended", b"x")
    transport.publish(b"kept", b"x")
    async with asyncio.timeout(5):
        while not kept.payloads:
            await transport.barrier()

    assert kept.payloads == [b"x"]
    assert ended.payloads == []


@pytest.mark.parametrize("size_bytes", [0, 1000])
async def test_what_waits_while_down_is_bounded(bus: AnyBus, size_bytes: int):
    """A server that is gone for a day does not fill the memory, even with empty messages."""
    transport = await bus.connect(max_buffered_bytes=100_000)
    ear = Ear(transport)
    bus.kill()
    async with asyncio.timeout(5):
        await ear.gone.wait()

    accepted = 0
    with pytest.raises(ResourceExhausted, match="BUSMICRO_MAX_BUFFERED_BYTES"):
        for _ in range(100_000):
            transport.publish(b"held", bytes(size_bytes))
            accepted += 1

    assert accepted >= 50


async def test_close_sends_what_waits_and_ends_every_task(bus: AnyBus):
    """Nothing that was published before the end is lost, and nothing runs after it."""
    receiver = await bus.connect()
    arrived = Collected()
    receiver.subscribe("last", arrived)
    await receiver.barrier()
    before = asyncio.all_tasks()
    sender = await bus.connect()

    for number in range(1000):
        sender.publish(b"last", b"%d" % number)
    await sender.close()
    await sender.close()

    async with asyncio.timeout(5):
        while len(arrived.payloads) < 1000 or asyncio.all_tasks() - before:
            await asyncio.sleep(0.005)
    with pytest.raises(Disconnected, match="closed"):
        sender.publish(b"last", b"")


@pytest.mark.parametrize("bus", ["nats", "memory"], indirect=True)
async def test_close_does_not_wait_for_a_connection_that_is_being_made_again(bus: AnyBus):
    """A process that stops in the middle of coming back stops, at whatever moment that is."""
    before = asyncio.all_tasks()

    for turns in range(60):
        transport = await bus.connect()
        transport.lose()
        for _ in range(turns % 30):
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await transport.close()

    async with asyncio.timeout(5):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.005)


async def test_server_that_is_not_there_is_told_at_once_and_leaves_nothing(bus: AnyBus):
    """Connecting to nobody fails with the address, and no task stays behind."""
    before = asyncio.all_tasks()
    url = bus.nowhere()

    with pytest.raises(Disconnected, match=re.escape(url)) as failed:
        await bus.connect(url=url)

    async with asyncio.timeout(5):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.005)
    assert failed.value.not_run
