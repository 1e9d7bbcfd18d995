"""The key-value registry on real servers that die and restart."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from busmicro.embedded import NatsServer
from busmicro.registry.kv import MAX_HEARTBEAT_BYTES
from busmicro.transport import JetStream
from tests.nats.registry.processes import (
    HELLO,
    NODE_PROGRAM,
    Connect,
    Until,
    described,
    hear,
    ids,
    ids_are,
    ids_are_in,
    node,
)


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

    assert 2.0 < took < 5.0  # a moment to come back, and no more
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
