"""Who gets a message: the same on every bus, wildcards and queue groups in any mixture."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import pytest

from busmicro.transport import Transport, matches
from tests.promises.transport.buses import AnyBus, Collected

WORDS = ("a", "b", "c")
PATTERNS = ("a", "a.b", "a.*", "*.b", "a.>", ">", "*", "a.b.c", "*.*.c", "a.*.>", "b.>")
QUEUES = ("", "", "q", "r")
MESSAGES = 300


def collect(heard: Counter[tuple[int, bytes]], number: int) -> Callable[..., None]:
    def on_message(_subject: bytes, _reply: bytes, _header: bytes, payload: bytes) -> None:
        heard[number, payload] += 1

    return on_message


async def all_arrived(*transports: Transport) -> None:
    for _ in range(2):  # what the first round sends on its way, the second has behind it
        for transport in transports:
            await transport.barrier()


@pytest.mark.parametrize("seed", range(3))
async def test_message_goes_to_all_that_match_and_to_one_of_each_queue_group(
    bus: AnyBus, seed: int
):
    """Everybody whose pattern matches hears it once; of a group, one, whatever its patterns."""
    rng = random.Random(seed)
    nodes = [await bus.connect() for _ in range(3)]
    sender = await bus.connect()
    heard: Counter[tuple[int, bytes]] = Counter()
    listening = [(rng.choice(PATTERNS), rng.choice(QUEUES)) for _ in range(40)]
    for number, (pattern, queue) in enumerate(listening):
        rng.choice(nodes).subscribe(pattern, collect(heard, number), queue=queue)
    await all_arrived(*nodes)
    subjects = [".".join(rng.choices(WORDS, k=rng.randint(1, 4))) for _ in range(MESSAGES)]

    for at, subject in enumerate(subjects):
        sender.publish(subject.encode(), b"%d" % at)
    expected = sum(len(receivers(listening, subject)) for subject in subjects)
    async with asyncio.timeout(10):
        while heard.total() < expected:
            await all_arrived(sender, *nodes)

    for at, subject in enumerate(subjects):
        payload = b"%d" % at
        got = Counter(
            listening[number][1] or number
            for number in range(len(listening))
            for _ in range(heard[number, payload])
        )
        assert got == Counter(receivers(listening, subject))
        assert all(
            matches(listening[number][0], subject)
            for number in range(len(listening))
            if heard[number, payload]
        )


def receivers(listening: list[tuple[str, str]], subject: str) -> list[object]:
    """Name who must hear it: subscriptions by number, groups by name."""
    found = [
        queue or number
        for number, (pattern, queue) in enumerate(listening)
        if matches(pattern, subject)
    ]
    return list(dict.fromkeys(found))


async def test_every_member_of_a_queue_group_gets_its_share(bus: AnyBus):
    """Work spreads over a group at random: of 3,000 messages each of three gets about 1,000."""
    nodes = [await bus.connect() for _ in range(3)]
    sender = await bus.connect()
    heard: Counter[tuple[int, bytes]] = Counter()
    for number, node in enumerate(nodes):
        node.subscribe("work", collect(heard, number), queue="q")
    await all_arrived(*nodes)

    for _ in range(3000):
        sender.publish(b"work", b"")
    async with asyncio.timeout(10):
        while heard.total() < 3000:
            await all_arrived(sender, *nodes)

    assert heard.total() == 3000
    assert all(800 < heard[number, b""] < 1200 for number in range(3))


async def test_nothing_arrives_while_it_is_being_published(bus: AnyBus):
    """Code after `publish` runs before any handler does, even one in the same process."""
    transport = await bus.connect()
    heard = Collected()
    transport.subscribe("own", heard)
    await transport.barrier()

    transport.publish(b"own", b"x")
    at_once = list(heard.payloads)
    async with asyncio.timeout(5):
        while not heard.payloads:
            await transport.barrier()

    assert at_once == []
    assert heard.payloads == [b"x"]


async def test_message_that_nobody_listens_to_is_not_kept(bus: AnyBus):
    """Who subscribes later hears what comes later, in the order of publishing and subscribing."""
    transport = await bus.connect()
    heard = Collected()

    transport.publish(b"kept", b"before")
    transport.subscribe("kept", heard)
    transport.publish(b"kept", b"after")
    async with asyncio.timeout(5):
        while not heard.payloads:
            await transport.barrier()

    assert heard.payloads == [b"after"]


async def test_subject_reply_and_header_arrive_as_they_were_sent(bus: AnyBus):
    """A handler sees what a caller wrote, down to the reply subject and the headers."""
    transport = await bus.connect()
    arrived: list[tuple[bytes, ...]] = []
    transport.subscribe("seen.*", lambda *message: arrived.append(message))
    await transport.barrier()
    header = b"NATS/1.0\r\nA: 1\r\nb: two words\r\n\r\n"

    transport.publish(b"seen.one", b"payload", b"_INBOX.x", header)
    transport.publish(b"seen.two", b"")
    async with asyncio.timeout(5):
        while len(arrived) < 2:
            await transport.barrier()

    assert arrived == [(b"seen.one", b"_INBOX.x", header, b"payload"), (b"seen.two", b"", b"", b"")]
