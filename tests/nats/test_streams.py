"""Declaring streams: made, widened, or left as they are with the difference said."""

from __future__ import annotations

import asyncio
import json

import nats
import pytest
from pydantic import BaseModel

from busmicro import (
    Client,
    NatsCluster,
    Service,
    Stored,
    Stream,
    StreamConflict,
    StreamMissing,
    Topic,
)
from busmicro.pubsub import DeadLetters


class Order(BaseModel):
    n: int


DAY = 86_400.0
SECOND = 10**9


def topic(stream: Stream, subject: str = "orders.paid") -> Topic[Order]:
    return Topic(subject, Order, stream=stream)


def shop(server, *topics: Topic[Order], **options: str) -> Service:
    service = Service("shop", url=server.url, **options)
    service.publishes(*topics)
    return service


async def test_stream_is_there_before_the_first_event(server, ask):
    """A service that starts has made its streams, bounded by 7 days and 1 GiB."""
    async with shop(server, topic(Stream("ORDERS"))):
        config = (await ask("STREAM.INFO.ORDERS"))["config"]

    assert set(config["subjects"]) - {"schedules.ORDERS.>"} == {"orders.paid"}
    assert config["max_age"] == 7 * DAY * SECOND
    assert config["max_bytes"] == 1024**3
    assert (config["max_msgs"], config["discard"], config["storage"]) == (-1, "old", "file")
    assert config["duplicate_window"] == 120 * SECOND
    assert config["retention"] == "limits"


async def test_stream_is_made_as_it_was_said(server, ask):
    """Every option of a `Stream` reaches the server, under the namespace's name."""
    stream = Stream(
        "JOBS",
        subjects=["jobs.>", "orders.*"],
        work_queue=True,
        max_age=60.0,
        max_bytes=10_000,
        max_events=5,
        discard="new",
        storage="memory",
        dedup_window=10.0,
    )
    async with shop(server, topic(stream), namespace="prod") as service:
        stored = await service.publish(topic(stream), Order(n=1))
        config = (await ask("STREAM.INFO.prod-JOBS"))["config"]

    assert stored == Stored("prod-JOBS", 1)
    assert config["subjects"] == ["prod.jobs.>", "prod.orders.*"]
    assert (config["retention"], config["discard"]) == ("workqueue", "new")
    assert (config["max_age"], config["duplicate_window"]) == (60 * SECOND, 10 * SECOND)
    assert (config["max_bytes"], config["max_msgs"], config["storage"]) == (10_000, 5, "memory")


async def test_unbounded_is_possible_when_it_is_said(server, ask):
    """None means no limit."""
    async with shop(server, topic(Stream("ORDERS", max_age=None, max_bytes=None))):
        config = (await ask("STREAM.INFO.ORDERS"))["config"]

    assert (config["max_age"], config["max_bytes"]) == (0, -1)


async def test_streams_grow_and_their_limits_widen(server, ask):
    """A later version adds subjects and raises limits; what is stored stays."""
    old = Stream("ORDERS", max_age=DAY, max_bytes=1_000_000, max_events=10, dedup_window=1.0)
    wide = Stream("ORDERS", max_age=None, max_bytes=2_000_000, dedup_window=60.0)
    async with Client(server.url) as client:
        await client.publish(topic(old), Order(n=1))
    async with Client(server.url) as client:
        await client.publish(topic(wide, "orders.shipped"), Order(n=2))
    async with Client(server.url) as client:
        await client.publish(
            topic(Stream("ORDERS", subjects=["orders.>"], max_age=None, max_bytes=2_000_000)),
            Order(n=3),
        )

    info = await ask("STREAM.INFO.ORDERS")
    config = info["config"]
    assert set(config["subjects"]) - {"schedules.ORDERS.>"} == {"orders.>"}
    assert (config["max_age"], config["max_bytes"], config["max_msgs"]) == (0, 2_000_000, -1)
    assert config["duplicate_window"] == 120 * SECOND
    assert info["state"]["messages"] == 3


async def test_topics_of_several_services_share_a_stream(server, ask):
    """Services that start together, each with topics of its own, make one stream of all.

    None writes over what another has just added: who publishes without busmicro is heard, too.
    """
    letters = "abcdefghijkl"
    services = [shop(server, topic(Stream("ORDERS"), f"orders.{letter}")) for letter in letters]
    await asyncio.gather(*(service.start() for service in services))
    try:
        config = (await ask("STREAM.INFO.ORDERS"))["config"]
        for service in services:
            assert await service.publish(service.published[0], Order(n=1))
    finally:
        await asyncio.gather(*(service.stop() for service in services))

    assert set(config["subjects"]) >= {f"orders.{letter}" for letter in letters}


@pytest.mark.parametrize(
    "stream", [Stream("ORDERS", replicas=3), Stream("ORDERS", storage="memory")]
)
async def test_services_that_start_together_on_three_servers_all_start(
    stream: Stream, caplog, until
):
    """Six services whose streams, consumers and registry nobody has made yet: all of them work.

    Two nodes of each share a group, and who makes the same thing at once may get no answer.  Dead
    letters are on as many servers as the events: one that is down must not keep them away.
    """
    got: list[str] = []

    def node(url: str, name: str) -> Service:
        service = Service(name, url=url)
        mine, others = (
            topic(stream, f"orders.{of}") for of in (name, "abca"["abca".index(name) + 1])
        )
        service.publishes(mine)

        @service.subscribe(others, group=name, key=lambda order: order.n)
        async def on_order(_order: Order) -> None:
            got.append(name)

        return service

    async with NatsCluster(3) as cluster, asyncio.timeout(40):
        urls = [server.url for server in cluster.servers]
        nodes = [node(urls[number % 3], "abc"[number // 2]) for number in range(6)]
        await asyncio.gather(*(service.start() for service in nodes))
        try:
            raw = await nats.connect(urls[0])
            reply = await raw.request("$JS.API.STREAM.INFO.DEAD-LETTERS", timeout=5)
            await raw.close()
            assert json.loads(reply.data)["config"]["num_replicas"] == stream.replicas
            for service in nodes:
                assert await service.publish(service.published[0], Order(n=1))
            await until(lambda: sorted(got) == sorted("aabbcc"), timeout=20)
        finally:
            await asyncio.gather(*(service.stop() for service in nodes))

    assert "nodes are found by asking them" not in caplog.text, "the registry could be used at once"


async def test_stream_that_somebody_has_put_on_more_servers_stays_there():
    """An operator raises the replicas of a stream: services start as before, and leave it so."""
    async with NatsCluster(3) as cluster:
        async with shop(cluster, topic(Stream("ORDERS"))):
            raw = await nats.connect(cluster.servers[0].url)
            config = json.loads((await raw.request("$JS.API.STREAM.INFO.ORDERS")).data)["config"]
            wanted = json.dumps({**config, "num_replicas": 3}).encode()
            await raw.request("$JS.API.STREAM.UPDATE.ORDERS", wanted, timeout=5)
        other = Topic("orders.sent", Order, stream=Stream("ORDERS"))
        async with shop(cluster, topic(Stream("ORDERS")), other) as service:
            assert await service.publish(other, Order(n=1))
            config = json.loads((await raw.request("$JS.API.STREAM.INFO.ORDERS")).data)["config"]
            await raw.close()

    assert config["num_replicas"] == 3
    assert "orders.sent" in config["subjects"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"max_age": DAY / 2}, "max_age is 86400 and should be 43200"),
        ({"max_bytes": 999}, "max_bytes is 1e+06 and should be 999"),
        ({"max_events": 9}, "max_events is 10 and should be 9"),
        ({"dedup_window": 59.0}, "dedup_window is 60 and should be 59"),
        ({"storage": "memory"}, "storage is 'file' and should be 'memory'"),
        ({"discard": "new"}, "discard is 'old' and should be 'new'"),
        ({"work_queue": True}, "retention is 'limits' and should be 'workqueue'"),
    ],
)
async def test_what_could_lose_events_is_a_conflict(server, ask, changed, says):
    """The error shows both values of each difference, and nothing has changed."""
    settings = {"max_age": DAY, "max_bytes": 1_000_000, "max_events": 10, "dedup_window": 60.0}
    async with shop(server, topic(Stream("ORDERS", **settings))) as service:
        await service.publish(topic(Stream("ORDERS", **settings)), Order(n=1))
    before = await ask("STREAM.INFO.ORDERS")
    narrower = topic(Stream("ORDERS", subjects=["orders.>"], **{**settings, **changed}))

    with pytest.raises(StreamConflict) as caught:
        await shop(server, narrower).start()
    async with Client(server.url) as client:
        with pytest.raises(StreamConflict):
            await client.publish(narrower, Order(n=2))

    after = await ask("STREAM.INFO.ORDERS")
    assert caught.value.differences == [says]
    assert (after["config"], after["state"]) == (before["config"], before["state"])


async def test_every_difference_is_shown_at_once(server, ask):
    """Nobody has to start three times to learn of three differences."""
    async with shop(server, topic(Stream("ORDERS"))):
        pass

    with pytest.raises(StreamConflict) as caught:
        await shop(
            server, topic(Stream("ORDERS", storage="memory", max_age=3600.0, discard="new"))
        ).start()

    assert [text.split()[0] for text in caught.value.differences] == [
        "storage",
        "discard",
        "max_age",
    ]
    assert "ORDERS" in str(caught.value)
    assert "managed=False" in str(caught.value)


async def test_stream_of_somebody_else_is_not_touched(server, ask):
    """A stream that busmicro did not make is used if it fits, and never changed."""
    await ask("STREAM.CREATE.ORDERS", {"name": "ORDERS", "subjects": ["orders.paid"]})
    before = (await ask("STREAM.INFO.ORDERS"))["config"]

    with pytest.raises(StreamConflict) as caught:
        await shop(server, topic(Stream("ORDERS"), "orders.shipped")).start()
    assert "it does not keep orders.shipped" in caught.value.differences
    assert "max_age is without limit and should be 604800" in caught.value.differences

    fits = Stream("ORDERS", max_age=None, max_bytes=None)
    async with shop(server, topic(fits)) as service:
        assert await service.publish(topic(fits), Order(n=1)) == Stored("ORDERS", 1)
    assert (await ask("STREAM.INFO.ORDERS"))["config"] == before


async def test_unmanaged_stream_has_to_be_there_and_stays_as_it_is(server, ask, until):
    """`managed=False`: missing is an error at the start; there, anything goes."""
    theirs = topic(Stream("ORDERS", managed=False, max_age=60.0))
    with pytest.raises(StreamMissing, match="ORDERS"):
        await shop(server, theirs).start()

    await ask("STREAM.CREATE.ORDERS", {"name": "ORDERS", "subjects": ["orders.>"]})
    before = (await ask("STREAM.INFO.ORDERS"))["config"]
    got: list[int] = []
    service = shop(server, theirs)

    @service.subscribe(theirs, group="billing")
    async def on_paid(order: Order) -> None:
        got.append(order.n)

    async with service:
        await service.publish(theirs, Order(n=1))
        await until(lambda: got)
    assert (await ask("STREAM.INFO.ORDERS"))["config"] == before


async def test_overlapping_streams_are_refused_by_name(server):
    """Two streams cannot keep one subject; the server's word for it reaches the user."""
    async with shop(server, topic(Stream("ORDERS", subjects=["orders.>"]))):
        with pytest.raises(Exception, match="overlap"):
            await shop(server, topic(Stream("OTHER"))).start()


async def test_older_servers_keep_events_too(older, until, server):
    """A server before 2.11 keeps, delivers and buries; only what it cannot do is left out."""
    got: list[int] = []
    async with older(0) as url:
        paid = topic(Stream("ORDERS"))
        service = Service("shop", url=url)

        @service.subscribe(paid, group="billing", max_deliver=1)
        async def on_paid(order: Order) -> None:
            got.append(order.n)
            if order.n == 1:
                raise ValueError("no")

        async with service:
            await service.publish_many(paid, [Order(n=n) for n in range(3)])
            await until(lambda: len(got) == 3)
            letters = DeadLetters(service.bus)

            async def buried() -> bool:
                return len(await letters.list()) == 1

            await until(buried)
