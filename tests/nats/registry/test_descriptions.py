"""Descriptions in the bucket, for as long as a node uses them."""

from __future__ import annotations

import asyncio

from busmicro.embedded import NatsServer
from tests.nats.registry.processes import HELLO, Connect, node


async def test_a_description_is_renewed_before_its_time_is_over(
    server: NatsServer, connect: Connect
) -> None:
    """Whoever looks a service up never finds nodes of it that nobody describes."""
    here, there = await connect(server.url), await connect(server.url)
    await here.kv(ttl=1.0, description_ttl=4.0).register(node("n1"), HELLO)
    bucket = await there.bucket()
    [(key, first)] = (await bucket.snapshot("service.>")).items()

    found = first
    async with asyncio.timeout(10):
        while found.revision == first.revision:
            await asyncio.sleep(0.02)
            now = await bucket.get(key)
            assert now is not None
            assert now.age < 4.0
            found = now

    assert found.value == first.value
