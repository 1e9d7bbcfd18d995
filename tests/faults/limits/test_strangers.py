"""A stranger sends requests that are wrong: each is told so or dropped, none misuses the node."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from busmicro import Client, NatsServer, Settings
from busmicro.transport import NatsTransport
from fuzz.served import served
from tests.faults.limits.nodes import Until
from tests.faults.limits.strangers import Stranger
from tests.faults.report import Report

STRANGER = "S20 malformed requests"
CONFIG = """
jetstream: enabled
authorization { users: [
  { user: node, password: pw, permissions: {
      publish: { allow: ["_INBOX.>", "$JS.API.>", "$KV.>", "$SRV.>"],
                 deny: ["$JS.API.STREAM.DELETE.ORDERS", "$KV.some.key"] } } }
  { user: stranger, password: pw }
] }
"""
"""What the node publishes anywhere else the server refuses, and that is logged as an error."""


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A server that lets the node answer, and keep itself in the registry, and no more."""
    config = tmp_path / "nats.conf"
    config.write_text(CONFIG)
    async with NatsServer(config=config) as server:
        yield server


def settings(server: NatsServer, user: str) -> Settings:
    return Settings.load(nats_url=server.url, user=user, password="pw", strict_replies=True)


async def send(stranger: Stranger, transport: NatsTransport, count: int) -> set[bytes]:
    """Send so many requests; return the reply subjects of those that have to be answered."""
    owed: set[bytes] = set()
    for number in range(count):
        request = stranger.request()
        transport.publish(request.subject, request.payload, request.reply, request.header)
        owed.update([request.reply] if request.is_owed else [])
        if number % 200 == 0:
            await transport.barrier()
    return owed


def crashes(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged as an error, but for headers that cannot be sent back."""
    return [
        record.getMessage() for record in caplog.records if "reply headers of" not in record.msg
    ]


@pytest.mark.timeout(180)
async def test_node_survives_a_stranger_and_publishes_only_to_inboxes(
    guarded: NatsServer,
    until: Until,
    report: Report,
    full: bool,
    seed: int,
    caplog: pytest.LogCaptureFixture,
):
    """Thousands of malformed requests: who may be answered is, once; nothing goes elsewhere."""
    count, answers = 1_000_000 if full else 2_000, Counter[bytes]()
    caplog.set_level(logging.ERROR, "busmicro")
    service = served(settings(guarded, "node"))
    transport = NatsTransport(settings(guarded, "stranger"))
    await transport.connect()
    transport.subscribe("_INBOX.stranger.>", lambda subject, *_: answers.update([subject]))
    async with service, Client(settings=settings(guarded, "stranger")) as client:
        owed = await send(Stranger(seed), transport, count)
        await until(lambda: owed <= answers.keys(), timeout=30.0)
        service._running.server.end_all()
        await transport.barrier()
        assert await client.call("fuzz", "raw", b"well", returns=bytes) == b"well"
        lost = service.bus.transport.reconnects + transport.reconnects
        refused = service._running.server.refused_replies
        await asyncio.sleep(0)
    await transport.close()

    errors = crashes(caplog)
    outside = sum("does not permit" in text for text in errors)
    how = f"{STRANGER}, {count:,} of them, strict_replies"
    report.add(how, "crashes and lost connections", len(errors) - outside + lost, "0")
    report.add(how, "publishes outside _INBOX.", outside, "0")
    report.add(how, "refused for their reply subject", refused)
    assert errors == []
    assert lost == 0
    assert {answers[reply] for reply in owed} == {1}
    assert refused > count / 10
