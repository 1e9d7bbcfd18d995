"""What users make at the top of a module, before any event loop runs."""

from __future__ import annotations

import asyncio

from busmicro import Client, Service


def test_service_and_client_are_made_before_there_is_a_loop():
    """`client = Client(…)` may stand at the top of a module; it connects when it is entered."""
    service, client = Service("early", url="memory://early"), Client("memory://early")

    @service.rpc
    async def double(n: int) -> int:
        return 2 * n

    async def call() -> int:
        async with service, client:
            return await client.call("early", "double", 21, returns=int)

    assert asyncio.run(call()) == 42
