"""A server that says it leaves is left before it closes the connection, and nobody notices."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from busmicro import Client, NatsCluster, NatsServer, Service, Settings
from busmicro.transport import NatsTransport
from busmicro.transport.handover import Handover
from tests.promises.transport.buses import Collected

Until = Callable[..., Awaitable[None]]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Move within half a second, where a cluster full of clients is given four."""
    monkeypatch.setattr("busmicro.transport.nats._MOVE_WITHIN", 0.5)


@pytest.fixture
async def cluster() -> AsyncIterator[NatsCluster]:
    """Three servers; tests begin on the first."""
    async with NatsCluster(3) as own:
        yield own


async def connected(url: str) -> NatsTransport:
    transport = NatsTransport(Settings.load(nats_url=url))
    await transport.connect()
    return transport


class Telling:
    """Publishes numbers without a break, from another server, until it is told to stop."""

    def __init__(self, transport: NatsTransport, *subjects: bytes) -> None:
        self.told = 0
        self._transport = transport
        self._subjects = subjects
        self._task = asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        while True:
            for _ in range(5):
                for subject in self._subjects:
                    self._transport.publish(subject, b"%d" % self.told)
                self.told += 1
            await asyncio.sleep(0.001)

    async def stop(self) -> list[bytes]:
        """Stop, and return everything that was published on each subject."""
        self._task.cancel()
        await asyncio.wait({self._task})
        return [b"%d" % number for number in range(self.told)]


async def known(teller: NatsTransport, heard: dict[bytes, Collected], until: Until) -> None:
    """Wait until what is published on one server is heard by whoever listens on another."""

    async def each_heard() -> bool:
        for subject in heard:
            teller.publish(subject, b"")
        await teller.barrier()
        return all(collected.payloads for collected in heard.values())

    await until(each_heard)
    await asyncio.sleep(0.1)  # the last ones may be on their way
    for collected in heard.values():
        collected.payloads.clear()


def moved_from(transport: NatsTransport, server: NatsServer) -> Callable[[], bool]:
    return lambda: transport.connected and transport.server_url != server.url


async def test_no_message_is_lost_or_comes_twice(cluster: NatsCluster, until: Until):
    """Under thousands of messages a second the move costs none, and none comes twice or late."""
    first = cluster.servers[0]
    listener, teller = await connected(first.url), await connected(cluster.servers[1].url)
    all_of_them, shared = Collected(), Collected()
    listener.subscribe("told.all", all_of_them)
    listener.subscribe("told.shared", shared, queue="q")
    await known(teller, {b"told.all": all_of_them, b"told.shared": shared}, until)
    telling = Telling(teller, b"told.all", b"told.shared")
    await until(lambda: len(all_of_them.payloads) > 100)

    first.lame_duck()
    await until(moved_from(listener, first))
    so_far = telling.told
    await until(lambda: telling.told > so_far + 500)
    told = await telling.stop()

    await until(lambda: len(shared.payloads) >= len(told), timeout=3.0)
    await until(lambda: len(all_of_them.payloads) >= len(told), timeout=3.0)
    assert all_of_them.payloads == told
    # two connections are two members of a queue group, each of which gets its share in order
    assert sorted(shared.payloads, key=int) == told
    assert listener.reconnects == 0
    await listener.close()
    await teller.close()


async def test_what_is_published_meanwhile_arrives_in_order(cluster: NatsCluster, until: Until):
    """A publisher that moves loses nothing and overtakes itself nowhere."""
    first = cluster.servers[0]
    listener, teller = await connected(cluster.servers[1].url), await connected(first.url)
    heard = Collected()
    listener.subscribe("told", heard)
    await known(teller, {b"told": heard}, until)
    telling = Telling(teller, b"told")
    await until(lambda: len(heard.payloads) > 100)

    first.lame_duck()
    await until(moved_from(teller, first))
    so_far = telling.told
    await until(lambda: telling.told > so_far + 100)
    told = await telling.stop()
    await until(lambda: len(heard.payloads) >= len(told))

    assert heard.payloads == told
    await listener.close()
    await teller.close()


async def test_calls_in_flight_are_answered(cluster: NatsCluster, until: Until):
    """A call that began on the old connection gets its reply on the new one, at both ends."""
    first = cluster.servers[0]
    service = Service("slow", url=first.url)

    @service.rpc
    async def work(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    async with service, Client(first.url) as client:
        running = asyncio.get_running_loop().create_task(client.call("slow", "work", 2.5))
        await until(lambda: service._running.server.running == 1)
        first.lame_duck()
        both = (client.bus.transport, service.bus.transport)
        for transport in both:
            await until(lambda transport=transport: transport.server_url != first.url)
        assert not running.done()

        assert await running == 2.5
        assert await client.call("slow", "work", 0.0) == 0.0
        assert [transport.reconnects for transport in both] == [0, 0]


async def test_subjects_can_be_listened_to_and_left_during_the_move(
    cluster: NatsCluster, until: Until
):
    """Whatever is subscribed to or left while two connections are open counts on the one kept."""
    first = cluster.servers[0]
    listener, teller = await connected(first.url), await connected(cluster.servers[1].url)
    left, found = Collected(), Collected()
    old = listener.subscribe("old", left)
    await listener.barrier()

    first.lame_duck()
    await until(lambda: listener._handover is not None)
    listener.unsubscribe(old)
    listener.subscribe("new", found)
    await listener.barrier()
    await until(moved_from(listener, first))
    await listener.barrier()
    teller.publish(b"old", b"1")

    async def heard() -> bool:
        teller.publish(b"new", b"2")
        await teller.barrier()
        return bool(found.payloads)

    await until(heard)
    assert left.payloads == []
    assert list(listener._subscriptions.values()) != [old]
    await listener.close()
    await teller.close()


def as_the_old_one_is_left(
    monkeypatch: pytest.MonkeyPatch, then: Callable[[Handover], object]
) -> None:
    """Do something at the moment when messages are held and the old connection is emptied."""
    leave_old = Handover.leave_old

    def left(handover: Handover) -> None:
        leave_old(handover)
        then(handover)

    monkeypatch.setattr(Handover, "leave_old", left)


async def test_subject_of_a_group_listened_to_at_the_last_moment_loses_nothing(
    cluster: NatsCluster, until: Until, monkeypatch: pytest.MonkeyPatch
):
    """A subscription made as the old connection is emptied is made on the new one alone."""
    first = cluster.servers[0]
    listener, teller = await connected(first.url), await connected(cluster.servers[1].url)
    shared = Collected()
    monkeypatch.setattr("busmicro.transport.nats._LISTEN_TO_BOTH", 0.6)
    as_the_old_one_is_left(
        monkeypatch, lambda _handover: listener.subscribe("shared", shared, queue="q")
    )

    first.lame_duck()
    await until(moved_from(listener, first))
    await asyncio.sleep(0.2)
    for number in range(100):  # while the old connection is still open
        teller.publish(b"shared", b"%d" % number)
    await teller.barrier()

    await until(lambda: len(shared.payloads) >= 100)
    await listener.close()
    await teller.close()


async def test_group_left_at_the_last_moment_loses_nothing(
    cluster: NatsCluster, until: Until, monkeypatch: pytest.MonkeyPatch
):
    """What is on its way to a subscription that is left as the new connection takes over comes."""
    first, *others = cluster.servers
    leaver, stayer, teller = [await connected(s.url) for s in (first, *others)]
    lefts, stays = Collected(), Collected()
    ears = leaver.subscribe("shared", lefts, queue="q")
    stayer.subscribe("shared", stays, queue="q")
    await known(teller, {b"shared": lefts}, until)
    stays.payloads.clear()
    switch = NatsTransport._switch

    def switched(transport: NatsTransport, *new: object) -> None:
        transport.unsubscribe(ears)
        switch(transport, *new)  # type: ignore[arg-type]

    monkeypatch.setattr(NatsTransport, "_switch", switched)
    telling = Telling(teller, b"shared")
    first.lame_duck()
    await until(moved_from(leaver, first))
    await leaver.barrier()
    told = await telling.stop()

    await until(lambda: len(lefts.payloads) + len(stays.payloads) >= len(told))
    assert sorted(lefts.payloads + stays.payloads, key=int) == told
    assert ears not in leaver._subscriptions.values()
    for transport in (leaver, stayer, teller):
        await transport.close()


async def test_what_is_held_survives_the_death_of_the_new_connection(
    cluster: NatsCluster, until: Until, monkeypatch: pytest.MonkeyPatch
):
    """What is published as both connections are lost leaves by the third."""
    first = cluster.servers[0]
    teller = await connected(first.url)
    listeners = [await connected(server.url) for server in cluster.servers[1:]]
    heard = Collected()
    for listener in listeners:
        listener.subscribe("told", heard)
        await listener.barrier()
    left: list[Handover] = []

    def die(handover: Handover) -> None:
        left.append(handover)
        handover.new.abort()
        teller.publish(b"told", b"held")

    as_the_old_one_is_left(monkeypatch, die)
    first.lame_duck()
    await until(lambda: len(left) == 1 and teller.reconnects == 1 and teller.connected)

    await until(lambda: heard.payloads == [b"held", b"held"])
    for transport in (teller, *listeners):
        await transport.close()


async def test_new_connection_that_dies_early_is_no_loss(cluster: NatsCluster, until: Until):
    """The old connection, which works still, is kept, and the next server is moved to."""
    first = cluster.servers[0]
    transport = await connected(first.url)
    first.lame_duck()
    await until(lambda: transport._handover is not None)
    handover = transport._handover
    assert handover is not None
    passing = asyncio.get_running_loop().create_task(transport.barrier())
    await asyncio.sleep(0)
    handover.new.abort()

    await passing
    await transport.barrier()
    await until(moved_from(transport, first))
    assert transport.reconnects == 0
    await transport.close()


async def test_next_server_that_leaves_at_once_is_left_too(cluster: NatsCluster, until: Until):
    """A server that says so while it is being moved to says it only once, and is heard."""
    first = cluster.servers[0]
    transport = await connected(first.url)
    first.lame_duck()
    await until(lambda: transport._handover is not None)
    for server in cluster.servers[1:]:
        if str(server.port) in str(transport._handover.new._wire.get_extra_info("peername")):
            second = server
    second.lame_duck()

    await until(moved_from(transport, first))
    await until(moved_from(transport, second), timeout=8.0)
    assert transport.server_url not in {first.url, second.url}
    assert transport.reconnects == 0
    await transport.close()


async def test_server_that_leaves_alone_is_kept_to_the_end(until: Until):
    """With no other server to go to, calls go on until the connection is closed."""
    async with NatsServer() as server:
        transport = await connected(server.url)
        heard = Collected()
        transport.subscribe("still", heard)
        await transport.barrier()

        server.lame_duck()
        await asyncio.sleep(1.0)  # the time in which it looks for another server
        transport.publish(b"still", b"here")
        await transport.barrier()

        assert heard.payloads == [b"here"]
        server.kill()
        await until(lambda: not transport.connected)
        await server.restart()
        await until(lambda: transport.connected)
        await transport.close()


@pytest.mark.parametrize("turns", range(6))
async def test_connection_may_be_closed_or_lost_at_any_moment_of_the_move(
    cluster: NatsCluster, until: Until, turns: int
):
    """A process that ends, or whose old connection breaks, in the middle leaves no task behind."""
    first = cluster.servers[0]
    before = asyncio.all_tasks()
    closing, losing = await connected(first.url), await connected(first.url)
    heard = Collected()
    losing.subscribe("heard", heard)
    first.lame_duck()
    await until(lambda: closing._handover is not None or closing.server_url != first.url)
    await asyncio.sleep(0.05 * turns)
    await closing.close()
    await until(lambda: losing._handover is not None or losing.server_url != first.url)
    await asyncio.sleep(0.05 * turns)
    losing.lose()

    async def back() -> bool:
        if not losing.connected:
            return False
        losing.publish(b"heard", b"x")
        return bool(heard.payloads)

    await until(back)
    assert losing.server_url != first.url
    await losing.close()
    await until(lambda: not asyncio.all_tasks() - before)


async def test_object_under_way_is_stored_or_goes_in_pieces(
    cluster: NatsCluster, until: Until, caplog: pytest.LogCaptureFixture
):
    """A stream whose messages lie in the object store shows nothing of the move, whole or not."""
    first = cluster.servers[0]
    settings = Settings.load(nats_url=first.url, claim_check_bytes=100_000)
    service = Service("files", settings=settings)

    @service.rpc
    async def back(files: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for file in files:
            yield file

    sent = [secrets.token_bytes(600_000) for _ in range(30)]
    with caplog.at_level(logging.ERROR):
        async with service, Client(settings=settings) as client:
            received: list[bytes] = []
            async with client.stream("files", "back", sends=bytes, returns=bytes) as stream:
                first.lame_duck()
                for file in sent:
                    await stream.send(file)
                    received.append(await anext(stream))
                    await asyncio.sleep(0.03)
                await stream.close_send()
            assert client.bus.transport.server_url != first.url

    assert received == sent
    assert caplog.records == []
