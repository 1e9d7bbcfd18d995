"""A network that delays, loses and doubles messages on a bus in memory, in a time that leaps."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busmicro import DeadlineExceeded, NoResponders, ResourceExhausted, Settings
from busmicro.timers import Timers
from busmicro.transport import MemoryBroker, MemoryTransport, Network, Overtaking, Replies
from tests.unit.transport.leaping import leaping


class Wires:
    """A network that does what a test says for each message, and remembers what it was asked."""

    def __init__(self, *delays: Sequence[float], then: Sequence[float] = (0.0,)) -> None:
        self._delays = list(delays)
        self._then = then
        self.asked: list[tuple[str, str, str, int]] = []

    def deliver(self, source: str, target: str, subject: str, size_bytes: int) -> Sequence[float]:
        self.asked.append((source, target, subject, size_bytes))
        return self._delays.pop(0) if self._delays else self._then


class Heard:
    """What arrived, and when."""

    def __init__(self) -> None:
        self.at: list[tuple[float, bytes]] = []

    def __call__(self, _subject: bytes, _reply: bytes, _header: bytes, payload: bytes) -> None:
        self.at.append((round(asyncio.get_running_loop().time(), 6), payload))

    @property
    def payloads(self) -> list[bytes]:
        return [payload for _at, payload in self.at]


class Lab:
    """A bus with a network of a test's own."""

    def __init__(self, network: Network) -> None:
        self.broker = MemoryBroker.named("lab")
        self.network = network
        self.opened: list[MemoryTransport] = []

    async def connect(self, name: str = "", **settings: object) -> MemoryTransport:
        given = Settings.load(nats_url="memory://lab", name=name, **settings)
        transport = MemoryTransport(given)
        await transport.connect()
        self.opened.append(transport)
        return transport

    async def hear(self, transport: MemoryTransport, subject: str = "x") -> Heard:
        heard = Heard()
        transport.subscribe(subject, heard)
        await transport.barrier()
        return heard

    def begin(self) -> None:
        self.broker.network = self.network


def in_lab(network: Network, test: Callable[[Lab], Coroutine[object, object, None]]) -> None:
    async def run() -> None:
        lab = Lab(network)
        await test(lab)
        lab.broker.network = None
        for transport in lab.opened:
            await transport.close()

    leaping(run())


def say(transport: MemoryTransport, *payloads: bytes) -> None:
    for payload in payloads:
        transport.publish(b"x", payload)


def test_message_arrives_when_the_network_says():
    """A delay is what passes between publishing and hearing, and `[0.0]` is at once."""

    async def test(lab: Lab) -> None:
        here, there = await lab.connect(), await lab.connect()
        heard = await lab.hear(there)
        lab.begin()

        say(here, b"slow")
        await asyncio.sleep(100)
        say(here, b"quick")
        await asyncio.sleep(1)

        assert heard.at == [(2.5, b"slow"), (100.0, b"quick")]

    in_lab(Wires([2.5]), test)


def test_network_is_asked_with_the_names_of_both_ends():
    """A network can tell who speaks to whom, on what subject, and how much."""
    wires = Wires()

    async def test(lab: Lab) -> None:
        here, there, nameless = (
            await lab.connect("here"),
            await lab.connect("there"),
            await lab.connect(),
        )
        await lab.hear(there)
        await lab.hear(nameless)
        lab.begin()

        here.publish(b"x", b"1234", b"", b"NATS/1.0\r\n\r\n")
        await here.barrier()

        assert wires.asked == [("here", "there", "x", 16), ("here", nameless.name, "x", 16)]
        assert nameless.name not in {"", "here", "there"}

    in_lab(wires, test)


def test_lost_message_is_lost_for_one_receiver_and_nobody_hears_of_it():
    """Loss looks like silence: no error, no 503, and others get their copy."""

    async def test(lab: Lab) -> None:
        here, there, other = [await lab.connect() for _ in range(3)]
        heard, heard_too = await lab.hear(there), await lab.hear(other)
        replies = Replies(here, Timers())
        await replies.start()
        lab.begin()

        with pytest.raises(DeadlineExceeded):
            await replies.ask(b"x", b"gone", timeout=1.0)
        say(here, b"next")
        await asyncio.sleep(1)

        assert heard.payloads == [b"next"]
        assert heard_too.payloads == [b"gone", b"next"]

    in_lab(Wires([]), test)


def test_doubled_message_arrives_twice_each_at_its_time():
    """Two delays are two copies."""

    async def test(lab: Lab) -> None:
        here, there = await lab.connect(), await lab.connect()
        heard = await lab.hear(there)
        lab.begin()

        say(here, b"twice")
        await asyncio.sleep(10)

        assert heard.at == [(0.0, b"twice"), (3.0, b"twice")]

    in_lab(Wires([0.0, 3.0]), test)


def test_quick_message_waits_for_the_slow_one_ahead_of_it():
    """What one connection sends to one subscription stays in order, whatever the delays."""

    async def test(lab: Lab) -> None:
        here, there = await lab.connect(), await lab.connect()
        heard = await lab.hear(there)
        lab.begin()

        say(here, b"slow", b"quick")
        await asyncio.sleep(1.0)
        say(here, b"later")
        await asyncio.sleep(9.0)

        assert heard.at == [(5.0, b"slow"), (5.0, b"quick"), (5.0, b"later")]

    in_lab(Wires([5.0], [1.0], [2.0]), test)


def test_overtaking_message_waits_for_nobody_and_nobody_waits_for_it():
    """A network that says so delivers out of order; what it does not say so of stays in order."""

    async def test(lab: Lab) -> None:
        here, there = await lab.connect(), await lab.connect()
        heard = await lab.hear(there)
        lab.begin()

        say(here, b"slow", b"ahead", b"behind", b"quick")
        await asyncio.sleep(20.0)

        assert heard.at == [(1.0, b"ahead"), (5.0, b"slow"), (5.0, b"quick"), (9.0, b"behind")]

    in_lab(Wires([5.0], [Overtaking(1.0)], [Overtaking(9.0)], [1.0]), test)


def test_others_do_not_wait_for_a_slow_pair():
    """Only messages between the same two ends wait for one another."""

    async def test(lab: Lab) -> None:
        here, there, other = [await lab.connect() for _ in range(3)]
        heard, heard_too = await lab.hear(there), await lab.hear(other)
        lab.begin()

        say(here, b"a")
        say(other, b"b")
        await asyncio.sleep(20.0)

        assert heard.at == [(0.0, b"b"), (9.0, b"a")]
        assert heard_too.at == [(0.0, b"b"), (1.0, b"a")]

    in_lab(Wires([9.0], [1.0]), test)


delays = st.lists(st.floats(0, 3) | st.floats(0, 3).map(Overtaking), min_size=0, max_size=2)
sendings = st.lists(
    st.tuples(st.sampled_from([0, 1]), st.sampled_from([0.0, 0.0, 0.1, 1.0]), delays), max_size=20
)


@given(sendings)
def test_order_holds_for_all_delays(sent: list[tuple[int, float, list[float]]]):
    """Never early; overtaking ones exactly in time; the others in order; none lost or added."""
    plan: list[Sequence[float]] = [copies for _source, _pause, copies in sent]
    due: dict[bytes, list[tuple[float, bool]]] = defaultdict(list)

    async def test(lab: Lab) -> None:
        sources = [await lab.connect(), await lab.connect()]
        heard = await lab.hear(await lab.connect())
        lab.begin()
        loop = asyncio.get_running_loop()
        for number, (source, pause, copies) in enumerate(sent):
            await asyncio.sleep(pause)
            payload = b"%d %d" % (source, number)
            due[payload] = [(loop.time() + d, isinstance(d, Overtaking)) for d in copies]
            say(sources[source], payload)
            await asyncio.sleep(0)
        await asyncio.sleep(100)
        check(heard.at, due)

    in_lab(Wires(*plan), test)


def check(heard: list[tuple[float, bytes]], due: dict[bytes, list[tuple[float, bool]]]) -> None:
    """Take out what overtook, at its exact time; what is left is in order and not early."""
    left = list(heard)
    for payload, copies in due.items():
        for at, overtakes in copies:
            if overtakes:
                left.remove((round(at, 6), payload))
    for source in (b"0", b"1"):
        mine = [entry for entry in left if entry[1].startswith(source)]
        expected = [
            (payload, at)
            for payload, copies in due.items()
            for at, overtakes in copies
            if not overtakes and payload.startswith(source)
        ]
        assert [payload for _at, payload in mine] == [payload for payload, _at in expected]
        assert all(
            at >= soonest - 1e-5 for (at, _), (_, soonest) in zip(mine, expected, strict=True)
        )


def test_barrier_after_unsubscribe_waits_for_all_that_was_routed_here():
    """A node that leaves has heard everything that was on its way, however slow."""

    async def test(lab: Lab) -> None:
        here, there = await lab.connect(), await lab.connect()
        heard = Heard()
        subscription = there.subscribe("x", heard)
        await there.barrier()
        lab.begin()

        say(here, b"slow", b"behind")
        await here.barrier()
        there.unsubscribe(subscription)
        await there.barrier()
        at_the_barrier = list(heard.at)
        say(here, b"too late")
        await asyncio.sleep(10)

        assert at_the_barrier == heard.at == [(1.0, b"slow"), (4.0, b"behind")]

    in_lab(Wires([1.0], [Overtaking(4.0)]), test)


def test_what_travels_to_a_connection_that_ends_is_lost_with_it():
    """After a cut a node hears what is sent from then on, not what was under way."""

    async def test(lab: Lab) -> None:
        here, there = await lab.connect(), await lab.connect()
        heard = await lab.hear(there)
        lab.begin()

        say(here, b"under way")
        await asyncio.sleep(1.0)
        there.lose()
        await asyncio.sleep(1.0)
        say(here, b"later")
        await asyncio.sleep(10.0)

        assert heard.payloads == [b"later"]

    in_lab(Wires([5.0]), test)


def test_message_arrives_although_its_sender_has_gone():
    """What has left a node does not need it any more."""

    async def test(lab: Lab) -> None:
        here, there = await lab.connect(), await lab.connect()
        heard = await lab.hear(there)
        lab.begin()

        say(here, b"last words")
        await here.close()
        await asyncio.sleep(10.0)

        assert heard.payloads == [b"last words"]

    in_lab(Wires([5.0]), test)


def test_what_travels_is_bounded_and_room_is_told():
    """Slow networks make publishing refuse, and it goes on when the messages have arrived."""

    async def test(lab: Lab) -> None:
        here, there = await lab.connect(max_buffered_bytes=4_000_000), await lab.connect()
        heard = await lab.hear(there)
        lab.begin()

        with pytest.raises(ResourceExhausted, match="BUSMICRO_MAX_BUFFERED_BYTES"):
            for _ in range(1000):
                say(here, bytes(10_000))
                await asyncio.sleep(0)
        assert not here.writable
        began = asyncio.get_running_loop().time()
        await here.drained()
        assert asyncio.get_running_loop().time() - began == pytest.approx(5.0)
        await asyncio.sleep(5)
        say(here, b"again")
        await asyncio.sleep(5)

        assert 300 < len(heard.at) < 402
        assert heard.payloads[-1] == b"again"

    in_lab(Wires(then=[5.0]), test)


def test_bus_does_not_outlive_its_connections_for_what_still_travels():
    """A message that nobody is left to get is forgotten with the bus."""

    async def test(lab: Lab) -> None:
        here = await lab.connect()
        heard = await lab.hear(here)
        lab.begin()
        broker = weakref.ref(lab.broker)
        say(here, b"never")
        await asyncio.sleep(0)

        here.lose()
        await asyncio.sleep(0)
        await here.close()
        lab.broker = MemoryBroker("another")
        gc.collect()

        assert broker() is None
        assert heard.at == []

    in_lab(Wires([3600.0]), test)


def test_nobody_being_there_is_known_after_the_way_to_oneself():
    """503 is delayed as everything else; the network can tell it by its source and target."""
    wires = Wires(then=[0.25])

    async def test(lab: Lab) -> None:
        here = await lab.connect("here")
        replies = Replies(here, Timers())
        await replies.start()
        lab.begin()

        with pytest.raises(NoResponders):
            await replies.ask(b"nobody", b"", timeout=60.0)

        assert asyncio.get_running_loop().time() == pytest.approx(0.25, abs=0.01)
        assert [(source, target) for source, target, *_ in wires.asked] == [("here", "here")]

    in_lab(wires, test)


def test_network_that_is_taken_away_leaves_the_order_as_it_was():
    """What travels still arrives, and nothing sent afterwards comes before it."""

    async def test(lab: Lab) -> None:
        here, there = await lab.connect(), await lab.connect()
        heard = await lab.hear(there)
        lab.begin()

        say(here, b"slow")
        await asyncio.sleep(1)
        lab.broker.network = None
        say(here, b"quick")
        await asyncio.sleep(10)
        say(here, b"at once")
        await asyncio.sleep(0.0)
        await asyncio.sleep(0.0)

        assert heard.at == [(5.0, b"slow"), (5.0, b"quick"), (11.0, b"at once")]

    in_lab(Wires([5.0]), test)
