"""What others may put on a real bus: it goes where it belongs, and nobody acts for them."""

from __future__ import annotations

import asyncio

import nats
import pytest
from pydantic import BaseModel

from busmicro import Client, FailedPrecondition, NotFound, Service, Stream, Topic
from busmicro.pubsub import DeadLetters
from busmicro.rpc.monitor import Stats
from tests.nats.calls.greeter import greeter


class Order(BaseModel):
    n: int


PAID = Topic("orders.paid", Order, stream=Stream("ORDERS", subjects=["orders.>"]))


@pytest.mark.parametrize("blank", [b"\x0b", b"\x0c"])
async def test_blank_in_a_subject_does_not_lead_to_another_subscription(server, blank):
    """NATS lets a few blanks into subjects; with them nobody reaches what is meant for others."""
    async with greeter(url=server.url, id="n1") as service:
        transport = service.bus.transport
        private: list[bytes] = []
        inbox = transport.subscribe("private.things", lambda *got: private.append(got[3]))
        await transport.barrier()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await reader.readline()
        subject = b"node.greeter.n1.x" + blank + inbox.sid
        writer.write(b'CONNECT {"verbose":false}\r\nSUB _INBOX.me 1\r\n')
        writer.write(b"PUB %b 3\r\nbad\r\n" % subject)
        writer.write(b"PUB %b _INBOX.me 3\r\nbad\r\nPING\r\n" % subject)
        answer = b""
        async with asyncio.timeout(10):
            while b"unimplemented" not in answer:
                answer += await reader.read(4096)
        await transport.barrier()
        writer.close()

    assert private == []


async def test_forged_dead_letter_is_not_replayed_to_the_server(server):
    """Who may write dead letters cannot have them published where only their reader may."""
    shop = Service("shop", url=server.url)

    @shop.subscribe(PAID, group="billing")
    async def on_paid(order: Order) -> None:
        """Handle it."""

    raw = await nats.connect(server.url)
    async with shop, Client(server.url) as client:
        forged = {"Bus-Dead-Subject": "$JS.API.STREAM.DELETE.ORDERS"}
        stored = await raw.jetstream().publish("dlq.ORDERS.billing", b"", headers=forged)
        letters = DeadLetters(client.bus)
        with pytest.raises(FailedPrecondition, match="cannot be"):
            await letters.replay(stored.seq)

        assert [letter.number for letter in await letters.list()] == [stored.seq]
        assert (await raw.jetstream().stream_info("ORDERS")).config.name == "ORDERS"
    await raw.close()


async def test_error_with_half_a_character_leaves_the_figures_readable(server):
    """A text that cannot be sent comes into the figures of a node with `?` where it is broken."""
    service = Service("shop", url=server.url)

    @service.rpc
    async def find() -> None:
        raise NotFound("no \ud800")

    async with service, Client(server.url) as client:
        with pytest.raises(NotFound):
            await client.call("shop", "find")
        stats = await client.call("shop", "Debug.Stats", returns=Stats)

    assert [each.last_error for each in stats.endpoints if each.name == "find"] == [
        "not_found: no ?"
    ]
