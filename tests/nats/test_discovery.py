"""Registry and discovery on real servers that die, restart and lack JetStream."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import nats
import nats.micro
import pytest

from busmicro.embedded import NatsServer
from busmicro.registry import (
    Change,
    Description,
    Discovery,
    EndpointRecord,
    EndpointStats,
    KvRegistry,
    Node,
    ServiceStats,
    SrvRegistry,
)
from busmicro.registry.kv import MAX_HEARTBEAT_BYTES
from busmicro.settings import Settings
from busmicro.timers import Timers
from busmicro.transport import Bucket, JetStream, NatsTransport, Replies

Until = Callable[..., Awaitable[None]]


class Process:
    """The registry parts of one process."""

    def __init__(self, transport: NatsTransport, replies: Replies) -> None:
        self.transport = transport
        self.replies = replies
        self.closing: list[Callable[[], Awaitable[None]]] = []

    def discovery(self, *, ttl: float = 1.0, namespace: str = "") -> Discovery:
        made = Discovery(self.transport, self.replies, ttl=ttl, namespace=namespace)
        self.closing.append(made.close)
        return made

    def kv(self, *, ttl: float = 1.0, namespace: str = "", description_ttl: float = 3600.0):
        made = KvRegistry(
            self.transport,
            self.replies,
            ttl=ttl,
            namespace=namespace,
            description_ttl=description_ttl,
        )
        self.closing.append(made.close)
        return made

    def srv(self, *, namespace: str = "", poll: float = 0.2) -> SrvRegistry:
        made = SrvRegistry(self.transport, self.replies, namespace=namespace, poll=poll)
        self.closing.append(made.close)
        return made

    async def bucket(self, name: str = "bus-registry") -> Bucket:
        made = Bucket(JetStream(self.transport, self.replies), name)
        await made.open()
        return made

    async def close(self) -> None:
        for close in self.closing:
            await close()
        await self.transport.close()


Connect = Callable[[str], Awaitable[Process]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Connect processes that are closed in order after the test."""
    started: list[Process] = []

    async def one_more(url: str) -> Process:
        transport = NatsTransport(Settings(nats_url=url))
        await transport.connect()
        replies = Replies(transport, Timers())
        await replies.start()
        started.append(Process(transport, replies))
        return started[-1]

    yield one_more
    for process in started:
        await process.close()


def node(id: str, service: str = "greeter") -> Node:
    return Node(service=service, id=id, started="2026-01-01T00:00:00.000Z")


def described(*names: str, service: str = "greeter") -> Description:
    return Description(
        service=service,
        endpoints=tuple(EndpointRecord(name=n, subject=f"rpc.{service}.{n}") for n in names),
    )


HELLO = described("hello", "Greeter.wave")


async def ids(registry: Discovery | KvRegistry | SrvRegistry) -> list[str]:
    record = await registry.service("greeter")
    return [found.id for found in record.nodes] if record else []


async def hear(changes: AsyncIterator[Change], count: int) -> list[tuple[str, str]]:
    async with asyncio.timeout(10):
        found = [await anext(changes) for _ in range(count)]
    return [(change.kind.value, change.node.id) for change in found]


# --- the key-value registry ---------------------------------------------------------------------


async def test_a_description_is_stored_once_for_all_nodes_and_goes_after_its_last_use(
    server: NatsServer, connect: Connect, until: Until
) -> None:
    """Three nodes of the same code write it once, keep it while they live, and not longer."""
    processes = [await connect(server.url) for _ in range(3)]
    registries = [process.kv(description_ttl=2.0) for process in processes]
    bucket = await (await connect(server.url)).bucket()
    written: list[str] = []
    bucket.listen(lambda key, _value: written.append(key) if key[0] == "s" else None)
    for n, registry in enumerate(registries):
        await registry.register(node(f"n{n}"), HELLO)
    stored = list(await bucket.snapshot("service.>"))
    first = list(written)

    await asyncio.sleep(2.5)
    kept = list(await bucket.snapshot("service.>"))
    for n, registry in enumerate(registries):
        await registry.deregister(node(f"n{n}"))

    async def gone() -> bool:
        return await bucket.snapshot("service.>") == {}

    await until(gone, timeout=3.5)
    assert len(stored) == 1
    assert first in ([], stored)
    assert kept == stored


async def test_a_heartbeat_is_small_and_carries_the_load_of_the_moment(
    server: NatsServer, connect: Connect, until: Until
) -> None:
    """At most 512 bytes, again every third of the time to live, with a header that ends it."""
    here, there = await connect(server.url), await connect(server.url)
    registry = here.kv()
    load = iter(range(1000))
    registry.running = lambda: next(load)
    beats: list[tuple[float, bytes, bytes]] = []
    there.transport.subscribe(
        "$KV.bus-registry.node.greeter.n1",
        lambda _s, _r, header, value: beats.append((time.monotonic(), header, value)),
    )
    await there.transport.barrier()

    await registry.register(node("n1"), HELLO)
    await until(lambda: len(beats) == 4)

    gaps = [later[0] - earlier[0] for earlier, later in itertools.pairwise(beats)]
    assert all(0.8 / 3 - 0.05 < gap < 1.2 / 3 + 0.3 for gap in gaps)
    assert all(len(value) <= MAX_HEARTBEAT_BYTES for _, _, value in beats)
    assert [json.loads(value).get("running", 0) for _, _, value in beats] == [0, 1, 2, 3]
    assert all(header == b"NATS/1.0\r\nNats-TTL: 1s\r\n\r\n" for _, header, _ in beats)


async def test_a_heartbeat_made_long_by_metadata_is_sent_and_said(
    server: NatsServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is lost, but the author hears what it costs."""
    here = await connect(server.url)
    registry = here.kv()
    long = node("n1").model_copy(update={"metadata": {"essay": "x" * 600}})

    with caplog.at_level(logging.WARNING):
        await registry.register(long, HELLO)

    found = await registry.service("greeter")
    assert found is not None
    assert found.nodes[0].metadata == long.metadata
    assert "keep it short" in caplog.text


@pytest.mark.parametrize("kind", ["kv", "srv", "discovery"])
async def test_two_namespaces_do_not_see_one_another(
    server: NatsServer, connect: Connect, kind: str
) -> None:
    """The same service in two namespaces, and in none, are three services."""
    process = await connect(server.url)
    registries = {ns: getattr(process, kind)(namespace=ns) for ns in ("", "one", "two.deep")}
    for number, registry in enumerate(registries.values()):
        await registry.register(node(f"n{number}"), HELLO)

    assert [await ids(registry) for registry in registries.values()] == [["n0"], ["n1"], ["n2"]]
    assert [len(await registry.services()) for registry in registries.values()] == [1, 1, 1]


async def test_a_view_is_true_again_soon_after_the_server_was_killed_and_restarted(
    server: NatsServer, connect: Connect, until: Until
) -> None:
    """The bucket is lost; nodes write anew, nobody is reported as gone who came back."""
    a, b, there = [await connect(server.url) for _ in range(3)]
    first, second = a.discovery(ttl=30.0), b.discovery(ttl=30.0)
    watching, asking = there.kv(ttl=30.0), (await connect(server.url)).discovery(ttl=30.0)
    await first.register(node("n1"), HELLO)
    await second.register(node("n2"), HELLO)

    async with watching.watch() as changes:
        assert await hear(changes, 2) == [("joined", "n1"), ("joined", "n2")]
        server.kill()
        await b.transport.close()
        await server.restart()
        began = time.monotonic()
        assert await hear(changes, 1) == [("left", "n2")]
        took = time.monotonic() - began
        await first.register(node("n3"), HELLO)
        assert await hear(changes, 1) == [("joined", "n3")]

    assert took < 5.0
    assert await ids(asking.kv) == ["n1", "n3"]
    found = await asking.service("greeter")
    assert found is not None
    assert found.descriptions["n1"] == HELLO


async def test_a_node_is_written_again_at_once_after_a_restart(
    server: NatsServer, connect: Connect, until: Until
) -> None:
    """Not at its next heartbeat, ten seconds later."""
    here, there = await connect(server.url), await connect(server.url)
    await here.kv(ttl=30.0).register(node("n1"), HELLO)
    asking = there.kv(ttl=30.0)

    server.kill()
    await server.restart()
    await until(lambda: here.transport.connected and there.transport.connected)

    async def known() -> bool:
        found = await asking.service("greeter")
        return found is not None and found.descriptions == {"n1": HELLO}

    await until(known, timeout=2.0)


async def test_the_last_good_view_stays_while_nobody_can_be_heard(
    server: NatsServer, connect: Connect, until: Until
) -> None:
    """A server that is down for longer than the time to live makes nobody leave."""
    here, there = await connect(server.url), await connect(server.url)
    registry, watching = here.kv(ttl=1.0), there.kv(ttl=1.0)
    await registry.register(node("n1"), HELLO)

    async with watching.watch() as changes:
        assert await hear(changes, 1) == [("joined", "n1")]
        server.kill()
        await asyncio.sleep(1.3)
        meanwhile = await ids(watching)
        await server.restart()
        await until(lambda: here.transport.connected and there.transport.connected)
        await registry.register(node("n2"), HELLO)
        heard = await hear(changes, 1)

    assert meanwhile == ["n1"]
    assert heard == [("joined", "n2")]


NODE_PROGRAM = """
import asyncio, sys
from busmicro.registry import Discovery, Description, Node
from busmicro.settings import Settings
from busmicro.timers import Timers
from busmicro.transport import NatsTransport, Replies

async def main():
    transport = NatsTransport(Settings())
    await transport.connect()
    replies = Replies(transport, Timers())
    await replies.start()
    discovery = Discovery(transport, replies, ttl=1.0)
    node = Node(service="greeter", id=sys.argv[1])
    await discovery.register(node, Description(service="greeter"))
    print("up", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_killed_process_is_gone_within_the_time_to_live(
    server: NatsServer, connect: Connect, start_program, until: Until
) -> None:
    """SIGKILL: no good-bye, yet watchers and whoever asks know within a second."""
    program = start_program("-c", NODE_PROGRAM, "dead", url=server.url)
    there = (await connect(server.url)).discovery()
    await until(lambda: ids_are(there, ["dead"]))

    async with there.watch() as changes:
        assert await hear(changes, 1) == [("joined", "dead")]
        program.kill()
        began = time.monotonic()
        assert await hear(changes, 1) == [("left", "dead")]
        took = time.monotonic() - began

    assert took < 1.5
    assert await there.services() == []


async def ids_are(registry: Discovery, expected: list[str]) -> bool:
    return await ids(registry) == expected


async def test_a_process_that_hangs_is_still_shown_and_then_forgotten(
    server: NatsServer, connect: Connect, start_program, until: Until
) -> None:
    """SIGSTOP: it answers nobody, the bucket knows it until its time is over; then it returns."""
    program = start_program("-c", NODE_PROGRAM, "hung", url=server.url)
    there = (await connect(server.url)).discovery()
    await until(lambda: ids_are(there, ["hung"]))
    os.kill(program.pid, signal.SIGSTOP)

    listed = [n.id for record in await there.services() for n in record.nodes]
    answering = await there.srv.services()
    await until(lambda: ids_are_in(there.kv, []), timeout=1.5)
    os.kill(program.pid, signal.SIGCONT)
    await until(lambda: ids_are_in(there.kv, ["hung"]), timeout=2.0)

    assert listed == ["hung"]
    assert answering == []


async def ids_are_in(registry: KvRegistry, expected: list[str]) -> bool:
    return await ids(registry) == expected


async def test_a_bucket_that_is_deleted_by_hand_is_made_anew(
    server: NatsServer, connect: Connect, until: Until
) -> None:
    """The next heartbeat finds out and makes it."""
    here, there = await connect(server.url), await connect(server.url)
    await here.kv().register(node("n1"), HELLO)
    jetstream = JetStream(there.transport, there.replies)

    await jetstream.api("STREAM.DELETE.KV_bus-registry")

    await until(lambda: ids_are_in(there.kv(), ["n1"]), timeout=3.0)


async def test_two_hundred_nodes_are_read_in_one_go(
    server: NatsServer, connect: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    """A snapshot of 200 nodes of ten services takes milliseconds; the figure is printed."""
    here, there = await connect(server.url), await connect(server.url)
    registry, asking = here.kv(ttl=30.0), there.kv(ttl=30.0)
    nodes = [node(f"n{n}", service=f"s{n % 10}") for n in range(200)]
    await asyncio.gather(*(registry.register(n, described("a", service=n.service)) for n in nodes))
    await asking.services()

    began = time.perf_counter()
    found = await asking.services()
    took = time.perf_counter() - began

    assert sum(len(record.nodes) for record in found) == 200
    assert all(record.descriptions for record in found)
    assert took < 0.5
    with capsys.disabled():
        sys.stdout.write(f"\n200 nodes of 10 services read in {took * 1000:.1f} ms\n")


async def test_a_watcher_works_where_acknowledgements_have_the_second_format(
    connect: Connect, tmp_path: Path
) -> None:
    """With js_ack_fc_v2 nats-py's watcher kills its connection; this one has no consumer."""
    config = tmp_path / "nats.conf"
    config.write_text("feature_flags { js_ack_fc_v2: true }\njetstream {}\n")
    async with NatsServer(config=config) as server:
        here, there = await connect(server.url), await connect(server.url)
        registry = here.discovery()

        async with there.discovery().watch() as changes:
            await registry.register(node("n1"), HELLO)
            assert await hear(changes, 1) == [("joined", "n1")]
            await registry.deregister(node("n1"))
            assert await hear(changes, 1) == [("left", "n1")]
        await here.close()
        await there.close()


# --- discovery without JetStream ----------------------------------------------------------------


async def test_without_jetstream_everything_works_through_srv_with_one_warning(
    connect: Connect, caplog: pytest.LogCaptureFixture, until: Until
) -> None:
    """It says what is missing, what still works and how to enable it, and says so once."""
    async with NatsServer(jetstream=False) as server:
        here, there = await connect(server.url), await connect(server.url)
        with caplog.at_level(logging.WARNING):
            registry, asking = here.discovery(), there.discovery()
            await registry.register(node("n1"), HELLO)
            await registry.register(node("n2"), HELLO)
            warnings = caplog.text.count("nats-server -js")
            caplog.clear()
            found = await asking.service("greeter")
            everyone = await asking.services()
            subjects = await asking.stream_subjects()
            async with asking.watch() as changes:
                heard = await hear(changes, 2)
            await registry.deregister(node("n1"))
            there.transport.lose()
            await until(lambda: there.transport.reconnects)
            assert not await asking.kv_usable()

        assert warnings == 1
        assert caplog.text.count("nats-server -js") == 1
        assert found is not None
        assert found.descriptions == {"n1": HELLO, "n2": HELLO}
        assert [record.name for record in everyone] == ["greeter"]
        assert subjects == []
        assert sorted(heard) == [("joined", "n1"), ("joined", "n2")]
        assert await ids(asking) == ["n2"]
        await here.close()
        await there.close()


async def test_jetstream_that_appears_later_is_used(
    connect: Connect, tmp_path: Path, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    """After a restart with JetStream the node is in the bucket by itself."""
    config = tmp_path / "nats.conf"
    config.write_text("max_payload: 1000000\n")
    async with NatsServer(config=config, jetstream=False) as server:
        here, there = await connect(server.url), await connect(server.url)
        registry, asking = here.discovery(ttl=30.0), there.discovery(ttl=30.0)
        await registry.register(node("n1"), HELLO)
        assert not await asking.kv_usable()

        config.write_text("jetstream {}\n")
        await server.restart()
        await until(lambda: here.transport.connected and there.transport.connected)
        await until(lambda: in_bucket(asking.kv), timeout=5.0)

        assert await asking.kv_usable()
        assert await ids(asking) == ["n1"]
        await here.close()
        await there.close()


async def in_bucket(registry: KvRegistry) -> bool:
    try:
        return await ids(registry) == ["n1"]
    except Exception:
        return False


async def test_a_bucket_that_does_not_fit_stops_nobody(
    server: NatsServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A service starts, is found on `$SRV`, and one warning names the difference."""
    here, there = await connect(server.url), await connect(server.url)
    jetstream = JetStream(here.transport, here.replies)
    config = {"name": "KV_bus-registry", "subjects": ["$KV.bus-registry.>"], "allow_direct": False}
    await jetstream.api("STREAM.CREATE.KV_bus-registry", config)

    with caplog.at_level(logging.WARNING):
        await here.discovery().register(node("n1"), HELLO)

    assert caplog.text.count("allow_direct is False and must be True") == 1
    assert await ids(there.discovery()) == ["n1"]


async def test_discovery_raises_nothing_while_the_server_is_down(
    server: NatsServer, connect: Connect, until: Until
) -> None:
    """A service that starts or stops at that moment starts or stops; it is known afterwards."""
    here, there = await connect(server.url), await connect(server.url)
    registry, asking = here.discovery(), there.discovery()
    await registry.register(node("n0"), HELLO)
    server.kill()
    await until(lambda: not here.transport.connected)

    async with asyncio.timeout(1):
        await registry.register(node("n1"), HELLO)
        await registry.deregister(node("n0"))
        assert await registry.stream_subjects() == []
        assert await registry.lookup("greeter") == {}
    await server.restart()
    await until(lambda: here.transport.connected and there.transport.connected)

    await until(lambda: ids_are_in(asking.kv, ["n1"]), timeout=3.0)
    assert list(await asking.lookup("greeter")) == ["hello", "Greeter.wave"]


# --- $SRV ---------------------------------------------------------------------------------------


async def test_srv_answers_are_what_adr_32_says(server: NatsServer, connect: Connect) -> None:
    """Every field, on each of the nine subjects."""
    process = await connect(server.url)
    registry = process.discovery()
    figures = EndpointStats(
        name="Greeter.wave",
        num_requests=7,
        num_errors=1,
        last_error="not_found: no such hand",
        processing_time=7000,
        average_processing_time=1000,
    )
    registry.publishes(stats=lambda: ServiceStats(endpoints=(figures,)))
    rich = EndpointRecord(
        name="Greeter.wave",
        subject="rpc.greeter.Greeter.wave",
        idempotent=True,
        timeout=2.5,
        doc="Waves.",
        request={"type": "string"},
        metadata={"team": "red"},
    )
    me = node("n1").model_copy(update={"version": "1.2.3", "metadata": {"zone": "a"}})
    await registry.register(me, Description(service="greeter", endpoints=(rich,)))
    client = await nats.connect(server.url)

    async def ask(subject: str) -> dict[str, object]:
        reply = await client.request(subject)
        return dict(json.loads(reply.data))

    answers = {
        verb: [await ask(f"$SRV.{verb}{tail}") for tail in ("", ".greeter", ".greeter.n1")]
        for verb in ("PING", "INFO", "STATS")
    }
    await client.close()

    identity = {
        "name": "greeter",
        "id": "n1",
        "version": "1.2.3",
        "metadata": {"zone": "a", "busmicro.started": "2026-01-01T00:00:00.000Z"},
    }
    address = {
        "name": "Greeter_wave",
        "subject": "rpc.greeter.Greeter.wave",
        "queue_group": "q",
    }
    ping = {"type": "io.nats.micro.v1.ping_response", **identity}
    info = {
        "type": "io.nats.micro.v1.info_response",
        **identity,
        "description": "",
        "endpoints": [
            {
                **address,
                "metadata": {
                    "team": "red",
                    "busmicro.idempotent": "true",
                    "busmicro.timeout": "2.5",
                    "busmicro.doc": "Waves.",
                    "busmicro.request": '{"type":"string"}',
                },
            }
        ],
    }
    stats = {
        "type": "io.nats.micro.v1.stats_response",
        **identity,
        "started": "2026-01-01T00:00:00.000Z",
        "endpoints": [
            {
                **address,
                "num_requests": 7,
                "num_errors": 1,
                "last_error": "not_found: no such hand",
                "processing_time": 7000,
                "average_processing_time": 1000,
            }
        ],
    }
    assert answers == {"PING": [ping] * 3, "INFO": [info] * 3, "STATS": [stats] * 3}
    (gathered,) = await registry.stats("greeter")
    assert gathered.node == me
    assert gathered.endpoints == (figures,)


async def test_a_long_schema_is_left_out_of_srv_and_kept_in_the_bucket(
    server: NatsServer, connect: Connect
) -> None:
    """What everybody answers at once must stay small."""
    process = await connect(server.url)
    registry = process.discovery()
    schema = {"enum": ["x" * 100] * 50}
    wide = EndpointRecord(name="hello", subject="rpc.greeter.hello", request=schema)
    await registry.register(node("n1"), Description(service="greeter", endpoints=(wide,)))

    by_srv = await registry.srv.service("greeter")
    by_kv = await registry.kv.service("greeter")

    assert by_srv is not None
    assert by_kv is not None
    assert by_srv.endpoints[0].request is None
    assert by_kv.endpoints[0].request == schema


async def test_services_of_another_framework_are_seen_with_their_own_subjects(
    server: NatsServer, connect: Connect
) -> None:
    """nats-py's micro service shows up in the list, in `lookup` and in `stats`."""
    client = await nats.connect(server.url)
    service = await nats.micro.add_service(client, name="legacy", version="0.9.0")

    async def handler(request: nats.micro.Request) -> None:
        await request.respond(b"ok")

    group = service.add_group(name="old")
    await group.add_endpoint(name="sum", handler=handler)
    process = await connect(server.url)
    discovery = process.discovery(namespace="any")
    await discovery.register(node("n1"), HELLO)

    everyone = await discovery.services()
    subjects = await discovery.lookup("legacy")
    stats = await discovery.stats("legacy")
    async with process.srv(namespace="any").watch() as changes:
        heard = await hear(changes, 2)
        await service.stop()
        heard += await hear(changes, 1)
    await client.close()

    assert [record.name for record in everyone] == ["greeter", "legacy"]
    assert everyone[1].versions == ["0.9.0"]
    assert subjects == {"sum": "old.sum"}
    assert [e.name for e in stats[0].endpoints] == ["sum"]
    legacy = everyone[1].nodes[0].id
    assert sorted(heard[:2]) == sorted([("joined", "n1"), ("joined", legacy)])
    assert heard[2] == ("left", legacy)


async def test_a_good_bye_on_srv_is_noticed_at_the_next_look(
    server: NatsServer, connect: Connect
) -> None:
    """Who did not answer is asked again; if nobody is there, that is certain at once."""
    here, there = await connect(server.url), await connect(server.url)
    registry = here.srv()
    await registry.register(node("n1"), HELLO)

    async with there.srv(poll=0.8).watch() as changes:
        assert await hear(changes, 1) == [("joined", "n1")]
        await registry.deregister(node("n1"))
        began = time.monotonic()
        assert await hear(changes, 1) == [("left", "n1")]

    assert time.monotonic() - began < 2.0  # silence alone would take 2.5


async def test_a_node_that_comes_back_later_than_the_watcher_has_not_left_srv(
    server: NatsServer, connect: Connect, until: Until
) -> None:
    """After a restart everybody gets a moment to connect again."""
    here, there = await connect(server.url), await connect(server.url)
    await here.srv().register(node("n1"), HELLO)

    async with there.srv().watch() as changes:
        assert await hear(changes, 1) == [("joined", "n1")]
        server.kill()
        await here.transport.close()
        await server.restart()
        await until(lambda: there.transport.connected)
        await asyncio.sleep(0.5)
        back = (await connect(server.url)).srv()
        await back.register(node("n1"), HELLO)
        await back.register(node("n2"), HELLO)
        heard = await hear(changes, 1)

    assert heard == [("joined", "n2")]


async def test_lookup_is_quick_whoever_is_there(
    server: NatsServer, connect: Connect, start_program, until: Until
) -> None:
    """Nobody there is known at once; a service that hangs costs 50 ms."""
    program = start_program("-c", NODE_PROGRAM, "hung", url=server.url)
    there = (await connect(server.url)).discovery()
    await until(lambda: ids_are(there, ["hung"]))
    os.kill(program.pid, signal.SIGSTOP)

    began = time.perf_counter()
    nobody = await there.lookup("nobody")
    first = time.perf_counter() - began
    hung = await there.lookup("greeter")
    second = time.perf_counter() - began - first

    assert nobody == {}
    assert hung == {}
    assert first < 0.045
    assert 0.045 < second < 0.2


async def test_srv_answers_only_where_answers_may_go(server: NatsServer, connect: Connect) -> None:
    """A request that names a reserved subject for its reply is not answered there."""
    process = await connect(server.url)
    await process.srv().register(node("n1"), HELLO)
    stranger = await nats.connect(server.url)
    got: list[str] = []

    async def on_message(message: nats.aio.msg.Msg) -> None:
        got.append(message.subject)

    for subject in ("$KV.>", "rpc.>", "_INBOX.mine", "free.subject"):
        await stranger.subscribe(subject, cb=on_message)
    for reply in ("$KV.bus-registry.node.x.y", "rpc.pay.now", "free.subject", "_INBOX.mine"):
        await stranger.publish("$SRV.INFO", b"", reply=reply)
    await stranger.publish("$SRV.INFO", b"")
    while "_INBOX.mine" not in got:
        await asyncio.sleep(0.005)
    await stranger.close()

    assert got == ["free.subject", "_INBOX.mine"]


async def test_a_node_that_may_not_answer_on_srv_is_told_which_permission_it_lacks(
    connect: Connect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Discovery goes on without `$SRV`; the warning names the subject."""
    config = tmp_path / "nats.conf"
    config.write_text(
        "authorization { users = [ { user: u, password: p, permissions: { "
        'subscribe: { deny: ["$SRV.>"] } } } ] }\njetstream {}\n'
    )
    async with NatsServer(config=config) as server:
        process = await connect(server.url.replace("//", "//u:p@"))
        discovery = process.discovery()

        with caplog.at_level(logging.WARNING):
            await discovery.register(node("n1"), HELLO)

        assert "not shown on $SRV" in caplog.text
        assert "$SRV.PING" in caplog.text
        assert await ids(discovery) == ["n1"]
        await process.close()
