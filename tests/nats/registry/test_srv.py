"""`$SRV`: what busmicro answers there, and how it reads what others answer."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from pathlib import Path

import nats
import nats.micro
import pytest

from busmicro.embedded import NatsServer
from busmicro.registry import Description, EndpointRecord, EndpointStats, ServiceStats
from tests.nats.registry.processes import (
    HELLO,
    NODE_PROGRAM,
    Connect,
    Until,
    hear,
    ids,
    ids_are,
    node,
)


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
