"""A node that is asked to stop: what runs is finished, or ended, and its caller knows."""

from __future__ import annotations

import asyncio
import signal

import pytest

from busmicro import Client, NatsServer, Service, Unavailable
from tests.faults.calls.nodes import start_nodes
from tests.faults.processes import Programs


async def test_second_signal_ends_what_still_runs(server: NatsServer, programs: Programs, until):
    """SIGTERM waits for the running request; a second one ends it, and its caller is told."""
    await start_nodes(programs, server.url, "n0")
    node = programs.running["n0"]
    async with Client(server.url) as client:
        call = asyncio.get_running_loop().create_task(
            client.call("greeter", "sleep", 30.0, timeout=40.0)
        )
        await until(lambda: _running(client, 2))
        node.send_signal(signal.SIGTERM)

        async def left() -> bool:
            try:
                return await client.bus.discovery.service("greeter") is None
            except Unavailable:  # it cannot be said just now
                return False

        await until(left)
        assert node.poll() is None
        node.send_signal(signal.SIGTERM)
        assert await programs.wait("n0", within=20.0) == {"n0": 0}
        with pytest.raises(Unavailable, match="stopped"):
            await call


async def _running(client: Client, count: int) -> bool:
    stats = await client.call("greeter", "Debug.Stats")
    return bool(stats["running"] == count)


async def test_lifespan_surrounds_all_requests(server: NatsServer, until):
    """`lifespan` is entered before the first request and left after the last one."""
    order: list[str] = []

    class Life:
        def __init__(self, service: Service) -> None:
            self.service = service

        async def __aenter__(self) -> None:
            order.append(f"open, connected={self.service.bus.transport.connected}")

        async def __aexit__(self, *_: object) -> None:
            order.append("close")

    service = Service("living", url=server.url, lifespan=Life)

    @service.rpc
    async def work() -> None:
        order.append("begin")
        await asyncio.sleep(0.1)
        order.append("work")

    async with Client(server.url) as client:
        await service.start()
        call = asyncio.get_running_loop().create_task(client.call("living", "work"))
        await until(lambda: "begin" in order)
        await service.stop()
        await call

    assert order == ["open, connected=True", "begin", "work", "close"]
