"""Discovery where JetStream is missing, comes later, does not fit or is down."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from busmicro.embedded import NatsServer
from busmicro.registry import KvRegistry
from busmicro.transport import JetStream
from tests.nats.registry.processes import HELLO, Connect, Until, hear, ids, ids_are_in, node


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
        assert subjects is None
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
        assert await registry.stream_subjects() is None
        assert await registry.lookup("greeter") == {}
    await server.restart()
    await until(lambda: here.transport.connected and there.transport.connected)

    await until(lambda: ids_are_in(asking.kv, ["n1"]), timeout=3.0)
    assert list(await asking.lookup("greeter")) == ["hello", "Greeter.wave"]
