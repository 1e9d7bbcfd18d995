"""Nodes with checks on a real bus: an ill node leaves without losing a call, the last one stays."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter

import pytest

from busmicro import Client, NatsServer, Service, Settings, SetupError
from busmicro.errors import Unavailable


class Shop(Service):
    """A node whose database can be broken."""

    def __init__(self, id: str, url: str, **check: float) -> None:
        super().__init__("shop", id=id, url=url)
        self.broken = False
        options = {"interval": 0.05, **check}

        @self.check("database", **options)  # type: ignore[arg-type]
        async def database() -> None:
            if self.broken:
                raise Unavailable("no database")

        @self.rpc
        async def who() -> str:
            await asyncio.sleep(0.001)
            return self.id


async def status(client: Client, node: str) -> str:
    health = await client.with_options(node=node).call("shop", "Debug.Health")
    assert isinstance(health, dict)
    return str(health["status"])


async def answered_by(client: Client, calls: int = 40) -> Counter[object]:
    return Counter(await asyncio.gather(*(client.call("shop", "who") for _ in range(calls))))


async def test_ill_node_leaves_under_load_and_no_call_is_lost(
    server: NatsServer, until, caplog: pytest.LogCaptureFixture
):
    """Its requests go to the other node, calls meant for it still reach it, and it comes back."""
    ill, well = Shop("ill", server.url), Shop("well", server.url)
    async with ill, well, Client(server.url) as client:
        assert set(await answered_by(client)) == {"ill", "well"}
        answers: list[object] = []
        going = True

        async def load() -> None:
            while going:
                answers.append(await client.call("shop", "who"))

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(load())
            with caplog.at_level(logging.INFO, "busmicro.health"):
                ill.broken = True
                await until(lambda: _is(client, "ill", "away"))
                assert set(await answered_by(client)) == {"well"}
                assert await client.with_options(node="ill").call("shop", "who") == "ill"
                ill.broken = False
                await until(lambda: _is(client, "ill", "serving"))
            going = False

        assert set(await answered_by(client)) == {"ill", "well"}
        assert len(answers) > 50
    assert "shop ill takes no requests that others can answer: database" in caplog.text
    assert "shop ill is well and takes requests" in caplog.text


async def _is(client: Client, node: str, wanted: str) -> bool:
    return await status(client, node) == wanted


async def test_last_node_stays_and_says_that_it_is_ill(server: NatsServer, until):
    """With nobody to take over, an ill node goes on answering."""
    only = Shop("only", server.url)
    async with only, Client(server.url) as client:
        only.broken = True
        await until(lambda: _is(client, "only", "failing"))

        assert await client.call("shop", "who") == "only"
        async with Shop("second", server.url):
            await until(lambda: _is(client, "only", "away"))
            assert set(await answered_by(client)) == {"second"}
        # the second one has stopped, so the ill one must be back
        await until(lambda: _is(client, "only", "failing"))
        assert await client.call("shop", "who") == "only"


async def test_two_nodes_that_both_fall_ill_both_stay(server: NatsServer, until):
    """If what is broken is broken for all, the service goes on as well as it can."""
    nodes = [Shop("a", server.url), Shop("b", server.url)]
    async with nodes[0], nodes[1], Client(server.url) as client:
        for node in nodes:
            node.broken = True

        async def both() -> bool:
            ill = [await _is(client, node.id, "failing") for node in nodes]
            return all(ill) and set(await answered_by(client)) == {"a", "b"}

        await until(both)


async def test_ill_node_does_not_begin_to_take_requests(server: NatsServer, until):
    """A node that starts without its database leaves the work to the others from the first."""
    ill = Shop("ill", server.url)
    ill.broken = True
    async with Shop("well", server.url), Client(server.url) as client, ill:
        assert await status(client, "ill") == "away"
        assert set(await answered_by(client)) == {"well"}


async def test_registry_and_stats_tell_of_it(server: NatsServer, until, raw):
    """Whoever looks sees which node is ill and why: registry, `$SRV.STATS`, `Debug.Health`."""
    ill = Shop("ill", server.url)
    async with Shop("well", server.url), ill, Client(server.url) as client:
        ill.broken = True

        async def known() -> bool:
            record = await client.bus.discovery.service("shop")
            said = {node.id: node.metadata.get("health") for node in record.nodes} if record else {}
            return said == {"ill": "away", "well": None}

        await until(known)
        reply = await raw.request("$SRV.STATS.shop.ill", timeout=2)
        data = [e["data"] for e in json.loads(reply.data)["endpoints"] if e.get("data")]
        assert data[0]["status"] == "away"
        assert data[0]["checks"][0]["error"] == "unavailable: no database"
        health = await client.with_options(node="ill").call("shop", "Debug.Health")
        assert isinstance(health, dict)
        check = health["checks"][0]
        assert (check["name"], check["passed"], check["critical"]) == ("database", False, True)


async def test_check_that_is_not_critical_only_tells(server: NatsServer, until):
    """A node without its cache is slower, not ill."""
    service = Shop("n1", server.url)

    @service.check("cache", critical=False, interval=0.05)
    async def cache() -> bool:
        return False

    async with Shop("n2", server.url), service, Client(server.url) as client:
        assert await status(client, "n1") == "serving"
        assert set(await answered_by(client)) == {"n1", "n2"}


async def test_stopping_while_away_leaves_nothing_behind(server: NatsServer, until):
    """A node that is away stops like any other, and its next run starts afresh."""
    before = len(asyncio.all_tasks())
    ill = Shop("ill", server.url)
    async with Shop("well", server.url), Client(server.url) as client:
        async with ill:
            ill.broken = True
            await until(lambda: _is(client, "ill", "away"))
        ill.broken = False
        async with ill:
            assert await status(client, "ill") == "serving"
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == before


async def test_port_that_is_taken_ends_the_start_and_leaves_nothing_behind(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
):
    """Two nodes of one machine cannot answer on one port; the second one says so."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")  # it would last for the whole process
    settings = Settings(nats_url=server.url, metrics_port=0)
    first = Service("first", settings=settings)
    async with first:
        before = len(asyncio.all_tasks())
        probes = first._running.probes
        assert probes is not None
        taken = settings.model_copy(update={"metrics_port": probes.port})
        with pytest.raises(SetupError, match="BUSMICRO_METRICS_PORT"):
            await Service("second", settings=taken).start()
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == before
