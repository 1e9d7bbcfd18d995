"""The broker of a bus in memory: who is told what, what it takes, and how long it lives."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections import Counter

import pytest

from busmicro import (
    Disconnected,
    NoResponders,
    PayloadTooLarge,
    ResourceExhausted,
    Settings,
    SetupError,
)
from busmicro.timers import Timers
from busmicro.transport import MemoryBroker, MemoryTransport, NatsTransport, Replies, transport_for
from tests.unit.transport.leaping import leaping


async def connected(bus: str = "bus", **settings: object) -> MemoryTransport:
    transport = MemoryTransport(Settings.load(nats_url=f"memory://{bus}", **settings))
    await transport.connect()
    return transport


async def close(*transports: MemoryTransport) -> None:
    for transport in transports:
        await transport.close()


# --- where ----------------------------------------------------------------------------------------


def test_the_url_decides_what_carries_the_messages():
    """`memory://` needs no server; every other URL leads to one."""
    assert isinstance(transport_for(Settings(nats_url="memory://test")), MemoryTransport)
    assert isinstance(transport_for(Settings(nats_url="nats://127.0.0.1")), NatsTransport)
    assert isinstance(transport_for(Settings()), NatsTransport)


@pytest.mark.parametrize(
    "url", ["memory://", "memory://a b", "memory://a,nats://b", "x,memory://a"]
)
def test_url_that_is_not_one_name_in_memory_is_refused(url: str):
    """A bus in memory has a name, and is the only one."""
    with pytest.raises(SetupError, match="memory://name"):
        Settings.load(nats_url=url)


async def test_names_keep_buses_apart():
    """What is said on one bus is not heard on another."""
    here, there = await connected("here"), await connected("there")
    heard: list[bytes] = []
    there.subscribe(">", lambda subject, *_: heard.append(subject))
    await there.barrier()

    here.publish(b"anything", b"")
    await here.barrier()
    await there.barrier()

    assert heard == []
    await close(here, there)


def test_event_loops_keep_buses_apart():
    """A bus that was left open in one loop is not met in the next."""

    async def leave_open() -> MemoryTransport:
        return await connected()

    async def names() -> list[str]:
        mine = await connected(name="mine")
        found = MemoryBroker.named("bus").connections
        await mine.close()
        return found

    left = leaping(leave_open())

    assert left.connected
    assert leaping(names()) == ["mine"]


async def test_a_bus_lives_as_long_as_somebody_is_connected():
    """What one test left behind is gone when the next one begins."""
    one, other = await connected(), await connected()
    broker = weakref.ref(MemoryBroker.named("bus"))

    await one.close()
    gc.collect()
    assert broker() is MemoryBroker.named("bus")
    await other.close()
    gc.collect()

    assert broker() is None


async def test_the_url_is_shown_while_it_is_connected():
    """Where it is connected to can be seen, and that it is not any more."""
    transport = await connected()
    shown = transport.server_url

    await transport.close()

    assert (shown, transport.server_url) == ("memory://bus", "")


# --- what it does ---------------------------------------------------------------------------------


async def test_who_asks_nobody_is_told_so_and_nobody_else_is():
    """503 comes to the requester alone, as from a server; who overhears inboxes hears nothing."""
    caller, other = await connected(), await connected()
    told: list[tuple[bytes, ...]] = []
    overheard: list[bytes] = []
    caller.subscribe("_INBOX.me.*", lambda *message: told.append(message))
    other.subscribe("_INBOX.>", lambda subject, *_: overheard.append(subject))
    await other.barrier()

    caller.publish(b"nobody", b"x", b"_INBOX.me.7")
    caller.publish(b"nobody", b"x")
    await caller.barrier()
    await other.barrier()

    assert told == [(b"_INBOX.me.7", b"", b"NATS/1.0 503\r\n\r\n", b"")]
    assert overheard == []
    await close(caller, other)


async def test_jetstream_is_asked_for_in_vain():
    """Who needs a stream learns at once that there is none."""
    transport = await connected()
    replies = Replies(transport, Timers())
    await replies.start()

    with pytest.raises(NoResponders):
        await replies.ask(b"$JS.API.INFO", b"", timeout=30)

    await transport.close()


@pytest.mark.parametrize("seed", [1, 2])
async def test_members_of_a_group_are_chosen_by_the_random_numbers_given(seed: int):
    """With the same seed the same members get the same messages."""

    async def run() -> list[int]:
        nodes = [await connected() for _ in range(3)]
        MemoryBroker.named("bus").rng = random.Random(seed)
        order: list[int] = []
        for number, node in enumerate(nodes):
            node.subscribe("w", lambda *_, number=number: order.append(number), queue="q")
            await node.barrier()
        for _ in range(50):
            nodes[0].publish(b"w", b"")
        await nodes[0].barrier()
        await close(*nodes)
        return order

    first, second = await run(), await run()

    assert first == second
    assert len(first) == 50
    assert set(first) == {0, 1, 2}


async def test_largest_message_is_what_the_broker_says():
    """A test may have a small limit, to see what its service does with what is too large."""
    broker = MemoryBroker.named("bus")
    broker.max_payload_bytes = 100
    transport = await connected()

    with pytest.raises(PayloadTooLarge):
        transport.publish(b"large", bytes(90), b"", b"NATS/1.0\r\n\r\n")
    transport.publish(b"large", bytes(88), b"", b"NATS/1.0\r\n\r\n")

    assert transport.max_payload_bytes == 100
    await transport.close()


async def test_who_publishes_without_a_pause_is_told_to():
    """Messages do not pile up without end in one turn of the loop, and leave in the next one."""
    transport = await connected(max_buffered_bytes=100_000)
    heard: list[int] = []
    transport.subscribe("fast", lambda *message: heard.append(len(message[3])))
    await transport.barrier()

    with pytest.raises(ResourceExhausted, match="BUSMICRO_MAX_BUFFERED_BYTES"):
        for _ in range(1000):
            transport.publish(b"fast", bytes(1000))
    at_once = len(heard)
    await transport.barrier()

    assert at_once == 0
    assert 80 <= len(heard) <= 101
    transport.publish(b"fast", b"again")
    await transport.barrier()
    assert heard[-1] == 5
    await transport.close()


async def test_room_is_waited_for_until_the_messages_have_left():
    """Who asks before publishing more is let through a turn later."""
    transport = await connected()
    while transport.writable:
        transport.publish(b"fast", bytes(100_000))

    async with asyncio.timeout(5):
        await transport.drained()

    assert transport.writable
    await transport.close()


# --- stopped --------------------------------------------------------------------------------------


def test_everybody_waits_for_a_broker_that_is_stopped():
    """Who was there comes back when it starts again, and who waited for it is let in."""

    async def test() -> None:
        broker = MemoryBroker.named("bus")
        there = await connected()
        heard: list[bytes] = []
        there.subscribe("news", lambda *message: heard.append(message[3]))
        broker.stop()
        with pytest.raises(Disconnected, match="memory://bus"):
            await connected()
        late = MemoryTransport(Settings(nats_url="memory://bus"))
        connecting = asyncio.get_running_loop().create_task(late.connect(wait=True))
        await asyncio.sleep(3600)
        assert (there.connected, late.connected) == (False, False)

        broker.start()
        await connecting
        await there.wait_connected()
        late.publish(b"news", b"back")
        await asyncio.sleep(1)

        assert heard == [b"back"]
        assert (there.reconnects, late.reconnects) == (1, 0)
        await close(there, late)

    leaping(test())


def test_one_connection_can_be_cut_while_the_others_go_on():
    """A test can take the network away from one node by name."""

    async def test() -> None:
        broker = MemoryBroker.named("bus")
        alone, other = await connected(name="alone"), await connected(name="other")
        broker.stop("alone")
        await asyncio.sleep(60)
        assert (alone.connected, other.connected) == (False, True)
        assert broker.connections == ["other"]

        broker.start("alone")
        await asyncio.sleep(60)
        assert (alone.connected, other.reconnects) == (True, 0)
        broker.stop("alone")
        await asyncio.sleep(60)
        broker.start()  # for everybody, so for it too
        await asyncio.sleep(60)

        assert (alone.connected, other.reconnects) == (True, 0)
        await close(alone, other)

    leaping(test())


async def test_barrier_on_a_connection_that_has_just_been_lost_ends_at_once():
    """Nobody waits out a time for what cannot come, even in the turn of the loss."""
    transport = await connected()
    waits = asyncio.get_running_loop().create_task(transport.barrier(timeout=60))
    await asyncio.sleep(0)

    transport.lose()
    with pytest.raises(Disconnected):
        await transport.barrier(timeout=60)
    async with asyncio.timeout(5):
        with pytest.raises(Disconnected):
            await waits

    await transport.close()


async def test_callback_that_cuts_the_connection_hurts_nobody_else():
    """A handler may end its own connection in the middle of a burst."""
    first, second, sender = await connected(), await connected(), await connected()
    heard: Counter[str] = Counter()

    def cut(*_message: bytes) -> None:
        heard["first"] += 1
        first.lose()

    first.subscribe("burst", cut)
    second.subscribe("burst", lambda *_: heard.update(["second"]))
    await first.barrier()
    await second.barrier()

    for _ in range(10):
        sender.publish(b"burst", b"")
    await sender.barrier()

    assert heard == {"first": 1, "second": 10}
    await close(first, second, sender)


async def test_close_while_it_is_down_ends_every_attempt_to_come_back():
    """A process that leaves while its broker is stopped leaves nothing behind."""
    broker = MemoryBroker.named("bus")
    transport = await connected()
    broker.stop()
    await asyncio.sleep(0)
    transport.publish(b"held", b"")

    await transport.close()
    broker.start()
    await asyncio.sleep(0.1)

    assert broker.connections == []
    with pytest.raises(Disconnected, match="closed"):
        transport.publish(b"held", b"")


def test_connecting_while_it_comes_back_makes_one_connection():
    """Whoever does not wait for the next attempt but connects has one connection, not two."""

    async def test() -> None:
        broker = MemoryBroker.named("bus")
        transport = await connected(name="one")
        for end in (asyncio.sleep(60), transport.close()):
            broker.stop()
            await asyncio.sleep(60)
            await end
            broker.start()
            await transport.connect()
            await asyncio.sleep(60)
            assert broker.connections == ["one"]
        await transport.close()

    leaping(test())


async def test_what_had_not_left_is_lost_with_the_connection():
    """A message that is published in the turn of a loss goes the way of the connection."""
    here, there = await connected(), await connected()
    heard: list[bytes] = []
    there.subscribe("x", lambda *message: heard.append(message[3]))
    await there.barrier()

    here.publish(b"x", b"lost")
    here.lose()
    here.publish(b"x", b"lost too")
    await asyncio.sleep(0)
    here.publish(b"x", b"held")
    async with asyncio.timeout(5):
        while not heard:
            await asyncio.sleep(0)

    assert heard == [b"held"]
    await close(here, there)
