"""Callers and services that are not busmicro's, and what they do that busmicro never does."""

from __future__ import annotations

import asyncio

import nats
import pytest
from nats.aio.msg import Msg

from busmicro import Service, Unavailable
from busmicro.errors import NoResponders


async def test_request_that_is_cancelled_with_the_same_bytes_is_soon_forgotten(
    busmicro_server, until
):
    """A node that gets request and cancellation at once runs nothing, and does not wait for it."""
    ran = []
    service = Service("quick")

    @service.rpc
    async def run() -> None:
        ran.append(1)

    await service.start(url=busmicro_server.url)
    reader, writer = await asyncio.open_connection("127.0.0.1", busmicro_server.port)
    line = b"PUB rpc.quick.run _INBOX.gone 0\r\n\r\nPUB cancel.quick 11\r\n_INBOX.gone\r\n"
    writer.write(b'CONNECT {"verbose":false}\r\n' + line * 100 + b"PING\r\n")
    while await reader.readline() != b"PONG\r\n":
        pass
    await service.client.bus.transport.barrier()
    await until(lambda: service._life.server.running == 0)

    async with asyncio.timeout(5):
        await service.stop()
    assert len(ran) < 100
    writer.close()


async def test_reply_with_a_status_and_a_payload_is_a_reply(busmicro_server, busmicro_client):
    """A foreign service may put a status of its own on its reply; it has answered all the same."""
    raw = await nats.connect(busmicro_server.url)

    async def answer(message: Msg) -> None:
        block = b"NATS/1.0 503 Busy\r\nNats-Service-Error-Code: 503\r\nNats-Service-Error: busy\r\n"
        frame = b"HPUB %b %d %d\r\n%b\r\n" % (
            message.reply.encode(),
            len(block) + 2,
            len(block) + 6,
            block + b"\r\nlate",
        )
        raw._transport.write(frame)
        await raw.flush()

    await raw.subscribe("rpc.foreign.work", cb=answer)
    await raw.flush()

    with pytest.raises(Unavailable) as refused:
        await busmicro_client.call("foreign", "work")

    assert not isinstance(refused.value, NoResponders)
    assert refused.value.message == "busy"
    assert not refused.value.not_run
    await raw.close()
