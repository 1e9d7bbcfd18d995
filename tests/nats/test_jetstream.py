"""JetStream's API and buckets on a real server, beside nats-py where both must agree."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import nats
import pytest

from busmicro.embedded import NatsCluster, NatsServer
from busmicro.errors import (
    AlreadyExists,
    Disconnected,
    FailedPrecondition,
    InvalidArgument,
    NoResponders,
    NotFound,
    SetupError,
    Unavailable,
)
from busmicro.settings import Settings
from busmicro.timers import Timers
from busmicro.transport import Bucket, JetStream, NatsTransport, Replies, err_code
from busmicro.transport.buckets import is_gone

Until = Callable[..., Awaitable[None]]
Connect = Callable[[str], Awaitable[JetStream]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Connect to a server, as often as you like."""
    opened: list[NatsTransport] = []

    async def one_more(url: str) -> JetStream:
        transport = NatsTransport(Settings(nats_url=url))
        opened.append(transport)
        await transport.connect()
        replies = Replies(transport, Timers())
        await replies.start()
        return JetStream(transport, replies)

    yield one_more
    for transport in opened:
        await transport.close()


@pytest.fixture
async def jetstream(server: NatsServer, connect: Connect) -> JetStream:
    """The JetStream of a server of the test's own."""
    return await connect(server.url)


@pytest.fixture
async def bucket(jetstream: JetStream) -> Bucket:
    """An open bucket."""
    made = Bucket(jetstream, "things")
    await made.open()
    return made


async def test_jetstream_is_found_where_it_is_enabled(jetstream: JetStream) -> None:
    """And the level of its API with it."""
    assert await jetstream.available()
    assert jetstream.level >= 1


async def test_jetstream_is_missed_at_once_where_it_is_not(connect: Connect) -> None:
    """A server without `-js` is recognised without waiting; a bucket says what to do."""
    async with NatsServer(jetstream=False) as server:
        jetstream = await connect(server.url)

        async with asyncio.timeout(0.5):
            assert not await jetstream.available()
            with pytest.raises(Unavailable, match="nats-server -js") as caught:
                await Bucket(jetstream, "things").open()

    assert caught.value.not_run


async def test_an_error_of_the_server_is_the_class_that_fits_with_the_servers_number(
    jetstream: JetStream,
) -> None:
    """`err_code` tells errors of one class apart."""
    with pytest.raises(NotFound, match="stream not found") as missing:
        await jetstream.api("STREAM.INFO.nothing")
    with pytest.raises(InvalidArgument) as wrong:
        await jetstream.api("STREAM.CREATE.x", {"name": "y"})
    await jetstream.api("STREAM.CREATE.x", {"name": "x", "subjects": ["x"]})
    with pytest.raises(AlreadyExists) as taken:
        await jetstream.api("STREAM.CREATE.x", {"name": "x", "subjects": ["z"]})

    assert err_code(missing.value) == 10059
    assert err_code(wrong.value) > 0
    assert err_code(taken.value) == 10058


async def test_a_request_ends_at_once_when_the_connection_drops(
    server: NatsServer, jetstream: JetStream, until: Until
) -> None:
    """Nothing waits out its time, and what comes later is refused while the connection is down."""
    server.pause()
    asking = asyncio.gather(jetstream.api("INFO", timeout=30.0), return_exceptions=True)
    await asyncio.sleep(0)
    server.kill()

    async with asyncio.timeout(2):
        assert isinstance((await asking)[0], Disconnected)
        with pytest.raises(Disconnected):
            await jetstream.available()


async def test_subjects_of_all_streams_are_listed_over_many_pages(jetstream: JetStream) -> None:
    """Also of more streams than the server tells at once (256)."""
    await asyncio.gather(
        *(
            jetstream.api(
                f"STREAM.CREATE.S{n}",
                {"name": f"S{n}", "subjects": [f"s.{n}.>", f"t.{n}"], "storage": "memory"},
                timeout=20.0,
            )
            for n in range(260)
        )
    )

    subjects = await jetstream.stream_subjects()

    assert sorted(subjects) == sorted(s for n in range(260) for s in (f"s.{n}.>", f"t.{n}"))


async def test_a_value_is_read_as_it_was_written_until_it_is_deleted(bucket: Bucket) -> None:
    """Put, get, snapshot and delete agree with one another."""
    first = await bucket.put("a.b", b"one")
    second = await bucket.put("a.b", b"two")
    await bucket.put("a.c", b"\x00\xff")

    found = await bucket.get("a.b")
    everything = await bucket.snapshot()
    await bucket.delete("a.b")

    assert second > first
    assert found is not None
    assert (found.value, found.revision) == (b"two", second)
    assert 0 <= found.age < 5
    assert {key: entry.value for key, entry in everything.items()} == {
        "a.b": b"two",
        "a.c": b"\x00\xff",
    }
    assert await bucket.get("a.b") is None
    assert list(await bucket.snapshot()) == ["a.c"]
    await bucket.delete("a.b")
    await bucket.delete("never.there")


async def test_a_snapshot_takes_what_is_asked_for(bucket: Bucket) -> None:
    """Several patterns at once; what falls under two of them comes once; nothing is fine too."""
    for key in ("node.a.1", "node.a.2", "node.b.1", "service.a.x"):
        await bucket.put(key, b"v")

    assert sorted(await bucket.snapshot("node.a.*", "service.a.*")) == [
        "node.a.1",
        "node.a.2",
        "service.a.x",
    ]
    assert sorted(await bucket.snapshot("node.a.*", "node.*.1")) == [
        "node.a.1",
        "node.a.2",
        "node.b.1",
    ]
    assert await bucket.snapshot("nobody.>") == {}


async def test_a_snapshot_of_more_than_the_server_gives_at_once_is_whole(
    bucket: Bucket, jetstream: JetStream
) -> None:
    """The server's limit is 1,024 keys; page after page brings 2,500."""
    for n in range(2500):
        jetstream.transport.publish(b"$KV.things.many.%d" % n, b"v%d" % n)
    await bucket.put("other", b"v")

    found = await bucket.snapshot("many.>")

    assert {key: entry.value for key, entry in found.items()} == {
        f"many.{n}": b"v%d" % n for n in range(2500)
    }


async def test_a_value_with_a_time_to_live_is_gone_when_it_is_over(
    bucket: Bucket, until: Until
) -> None:
    """Each key has its own; a further put begins it anew."""
    await bucket.put("short", b"v", ttl=1.0)
    await bucket.put("long", b"v", ttl=60.0)

    async def gone() -> bool:
        return await bucket.get("short") is None

    await until(gone, timeout=2.5)
    assert list(await bucket.snapshot()) == ["long"]


async def test_the_marker_of_a_key_whose_time_is_over_is_no_value(
    jetstream: JetStream, until: Until
) -> None:
    """In a bucket that somebody made with markers, an expired key is gone all the same."""
    config = {
        "name": "KV_marked",
        "subjects": ["$KV.marked.>"],
        "max_msgs_per_subject": 1,
        "storage": "memory",
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "allow_msg_ttl": True,
        "subject_delete_marker_ttl": 60_000_000_000,
    }
    await jetstream.api("STREAM.CREATE.KV_marked", config)
    bucket = Bucket(jetstream, "marked")
    await bucket.open()
    revision = await bucket.put("k", b"v", ttl=1.0)

    async def marked() -> bool:
        info = await jetstream.api("STREAM.INFO.KV_marked")
        return int(info["state"]["last_seq"]) > revision

    await until(marked)
    assert await bucket.get("k") is None
    assert await bucket.snapshot() == {}


@pytest.mark.parametrize(
    ("header", "payload", "expected"),
    [
        (b"", b"v", False),
        (b"NATS/1.0\r\nNats-TTL: 5s\r\n\r\n", b"v", False),
        (b"", b"", True),
        (b"NATS/1.0\r\nKV-Operation: DEL\r\n\r\n", b"", True),
        (b"NATS/1.0\r\nKV-Operation: PURGE\r\n\r\n", b"with a word of farewell", True),
        (b"NATS/1.0\r\nNats-Marker-Reason: MaxAge\r\nNats-TTL: 1s\r\n\r\n", b"x", True),
    ],
)
async def test_what_says_that_a_key_is_gone(header: bytes, payload: bytes, expected: bool) -> None:
    """A deletion, the end of a time to live, or nothing at all."""
    assert is_gone(header, payload) is expected


async def test_what_marks_a_deleted_key_does_not_stay_for_ever(
    bucket: Bucket, jetstream: JetStream
) -> None:
    """Or a bucket of nodes with random ids would grow with every good-bye."""
    await bucket.put("k", b"v")
    await bucket.delete("k")

    header, _value = await jetstream.request("$JS.API.DIRECT.GET.KV_things.$KV.things.k", b"")

    assert b"KV-Operation: DEL\r\n" in header
    assert b"Nats-TTL: 60s\r\n" in header


async def test_listening_hears_puts_and_deletes(
    bucket: Bucket, jetstream: JetStream, connect: Connect, server: NatsServer, until: Until
) -> None:
    """In order, from whichever process they come."""
    heard: list[tuple[str, bytes | None]] = []
    bucket.listen(lambda key, value: heard.append((key, value)))
    await jetstream.transport.barrier()
    other = Bucket(await connect(server.url), "things")
    await other.open()

    await other.put("a.b", b"one")
    await other.put("a.b", b"two", ttl=5.0)
    await other.delete("a.b")

    await until(lambda: len(heard) == 3)
    assert heard == [("a.b", b"one"), ("a.b", b"two"), ("a.b", None)]


async def test_nats_py_reads_the_bucket_and_the_bucket_reads_nats_py(
    server: NatsServer, bucket: Bucket
) -> None:
    """It is an ordinary key-value bucket (ADR-8)."""
    client = await nats.connect(server.url)
    kv = await client.jetstream().key_value("things")
    await bucket.put("ours", b"1")
    await kv.put("theirs", b"2")
    await kv.put("deleted", b"3")
    await kv.delete("deleted")
    await kv.put("purged", b"3")
    await kv.purge("purged")

    value = (await kv.get("ours")).value
    everything = {key: entry.value for key, entry in (await bucket.snapshot()).items()}
    await client.close()

    assert value == b"1"
    assert everything == {"ours": b"1", "theirs": b"2"}


async def test_a_bucket_that_exists_and_fits_is_taken(jetstream: JetStream) -> None:
    """Whoever wants it on disk, with more history, may make it so beforehand."""
    config = {
        "name": "KV_things",
        "subjects": ["$KV.things.>"],
        "max_msgs_per_subject": 5,
        "storage": "file",
        "allow_direct": True,
        "allow_msg_ttl": True,
    }
    await jetstream.api("STREAM.CREATE.KV_things", config)
    bucket = Bucket(jetstream, "things")

    assert await bucket.open()
    await bucket.put("k", b"one")
    await bucket.put("k", b"two")

    assert {key: entry.value for key, entry in (await bucket.snapshot()).items()} == {"k": b"two"}


async def test_a_bucket_that_exists_and_does_not_fit_is_refused_with_the_difference(
    jetstream: JetStream,
) -> None:
    """The error names each setting, what it is, what it must be and what to do."""
    config = {"name": "KV_things", "subjects": ["$KV.things.a.>"], "allow_direct": False}
    await jetstream.api("STREAM.CREATE.KV_things", config)

    with pytest.raises(FailedPrecondition) as caught:
        await Bucket(jetstream, "things").open()

    text = caught.value.message
    assert "allow_direct is False and must be True" in text
    assert "allow_msg_ttl is False and must be True" in text
    assert "['$KV.things.a.>'] and must have $KV.things.>" in text
    assert "nats kv del things" in text


async def test_readers_do_not_make_a_bucket(jetstream: JetStream) -> None:
    """Looking leaves nothing behind."""
    bucket = Bucket(jetstream, "things")

    assert not await bucket.open(create=False)
    assert await jetstream.stream_subjects() == []


async def test_many_who_make_a_bucket_at_once_all_get_it(
    server: NatsServer, connect: Connect
) -> None:
    """Ten processes that start together do not trip over one another."""
    buckets = [Bucket(await connect(server.url), "things") for _ in range(10)]

    assert await asyncio.gather(*(bucket.open() for bucket in buckets)) == [True] * 10


async def test_a_bucket_that_was_deleted_is_missed_and_made_anew(
    bucket: Bucket, jetstream: JetStream
) -> None:
    """After `forget`, `open` looks again."""
    born = bucket.created
    await jetstream.api("STREAM.DELETE.KV_things")
    with pytest.raises(NoResponders):
        await bucket.put("k", b"v")
    with pytest.raises(NoResponders):
        await bucket.snapshot()

    bucket.forget()
    await bucket.open()

    assert await bucket.put("k", b"v") == 1
    assert bucket.created != born


async def test_a_bucket_in_a_cluster_survives_the_loss_of_a_server(
    connect: Connect, until: Until
) -> None:
    """With three servers it has three replicas, and is made on one where there is one."""
    async with NatsCluster(3) as cluster:
        jetstream = await connect(",".join(server.url for server in cluster.servers))
        bucket = Bucket(jetstream, "things")
        await bucket.open()
        await bucket.put("k", b"v")
        info = await jetstream.api("STREAM.INFO.KV_things")
        (mine,) = (s for s in cluster.servers if s.url == jetstream.transport.server_url)
        mine.kill()

        async def readable() -> bool:
            try:
                return await bucket.get("k") is not None
            except Unavailable:
                return False

        await until(readable)

    assert info["config"]["num_replicas"] == 3


async def test_a_bucket_is_written_while_its_leader_changes(connect: Connect) -> None:
    """Between two leaders nobody listens to its keys; a write waits for the next one."""
    async with NatsCluster(3) as cluster:
        jetstream = await connect(cluster.url)
        bucket = Bucket(jetstream, "things")
        await bucket.open()
        await bucket.put("k", b"0")
        for number in range(3):
            await jetstream.api("STREAM.LEADER.STEPDOWN.KV_things")
            await bucket.put("k", b"%d" % number)
            await jetstream.api("STREAM.LEADER.STEPDOWN.KV_things")
            await bucket.delete("k")

        assert await bucket.put("k", b"v") >= 8  # more, where a leader took one and stepped down


class OldJetStream(JetStream):
    """Never learns that the server can do more than 2.10."""

    async def available(self) -> bool:
        return True


async def test_servers_before_2_11_keep_every_key_as_long_and_it_is_said_once(
    jetstream: JetStream, caplog: pytest.LogCaptureFixture
) -> None:
    """The reduced mode: no time to live a key, no batches; reading and writing work."""
    old = OldJetStream(jetstream.transport, jetstream.replies)
    bucket = Bucket(old, "old", oldest=900.0)
    with caplog.at_level(logging.WARNING):
        await bucket.open()
        bucket.forget()
        await bucket.open()
    await bucket.put("a.1", b"v", ttl=1.0)
    await bucket.put("a.2", b"v", ttl=1.0)
    await bucket.delete("a.2")
    info = await jetstream.api("STREAM.INFO.KV_old")

    assert list(await bucket.snapshot("a.*")) == ["a.1"]
    assert info["config"]["max_age"] == 900_000_000_000
    assert not info["config"].get("allow_msg_ttl")
    assert caplog.text.count("older than 2.11") == 1


@pytest.mark.parametrize("name", ["", "a.b", "a b", "ä"])
async def test_a_bad_name_is_refused_before_anything_is_sent(
    jetstream: JetStream, name: str
) -> None:
    """Of a bucket, and of a key."""
    with pytest.raises(SetupError, match="letters, digits"):
        Bucket(jetstream, name)
    bucket = Bucket(jetstream, "things")
    await bucket.open()
    with pytest.raises(SetupError, match="letters, digits"):
        await bucket.put(f"{name}.", b"v")
