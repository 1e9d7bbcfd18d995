"""Reply subjects: where a node answers, and where it does not."""

from __future__ import annotations

import json
import logging

import nats
import pytest

from busmicro import Client, Service, Settings
from tests.nats.calls.greeter import greeter


@pytest.mark.parametrize(
    "reply",
    [
        "$SYS.x",
        "$JS.API.STREAM.DELETE.ORDERS",
        "rpc.greeter.hello",
        "node.greeter.x.hello",
        "cancel.greeter",
        "dlq.x",
    ],
)
async def test_reply_into_reserved_space_is_not_published(
    busmicro_server,
    busmicro_client,
    busmicro_start,
    reply,
    caplog,
    settled,
):
    """Nobody can make a service write where it may and they may not; it is counted and logged."""
    caplog.set_level(logging.WARNING)
    ran = []
    service = Service("victim")

    @service.rpc
    async def run() -> str:
        ran.append(1)
        return "written"

    await busmicro_start(service)
    raw = await nats.connect(busmicro_server.url)
    written = await raw.subscribe(reply)
    await settled(raw)

    await raw.publish("rpc.victim.run", b"", reply=reply)
    await settled(raw)

    stats = await busmicro_client.call("victim", "Debug.Stats")
    assert stats["refused_replies"] == 1
    assert not ran
    assert written.pending_msgs == 0
    assert any("must not publish" in record.getMessage() for record in caplog.records)
    await raw.close()


async def test_reply_into_a_stream_is_not_published(server, settled):
    """A stream's subjects are reserved too: no caller can store events through a service."""
    raw = await nats.connect(server.url)
    await raw.jetstream().add_stream(name="ORDERS", subjects=["orders.>"])
    async with greeter(url=server.url), Client(server.url) as client:
        await raw.publish("rpc.greeter.hello", b'{"name":"J"}', reply="orders.created")
        await settled(raw)
        await client.call("greeter", "hello", {"name": "J"})

        info = await raw.jetstream().stream_info("ORDERS")
        stats = await client.call("greeter", "Debug.Stats")

    await raw.close()
    assert info.state.messages == 0
    assert stats["refused_replies"] == 1


async def test_strict_replies_allow_inboxes_only(server, settled):
    """With `strict_replies` an answer goes below `_INBOX.` or nowhere."""
    settings = Settings(nats_url=server.url, strict_replies=True)
    raw = await nats.connect(server.url)
    replies = await raw.subscribe("my.own.subject")
    async with greeter(settings=settings), Client(server.url) as client:
        await raw.publish("rpc.greeter.hello", b'{"name":"J"}', reply="my.own.subject")
        await settled(raw)

        assert await client.call("greeter", "hello", {"name": "J"})
        assert (await client.call("greeter", "Debug.Stats"))["refused_replies"] == 1

    assert replies.pending_msgs == 0
    await raw.close()


async def test_any_other_reply_subject_is_answered(busmicro_server, busmicro_start):
    """Without `strict_replies` a foreign caller may choose its own reply subject."""
    await busmicro_start(greeter())
    raw = await nats.connect(busmicro_server.url)
    replies = await raw.subscribe("my.own.subject")

    await raw.publish("rpc.greeter.hello", b'{"name":"J"}', reply="my.own.subject")

    assert json.loads((await replies.next_msg(timeout=2)).data) == {"greeting": "Hello J"}
    await raw.close()
