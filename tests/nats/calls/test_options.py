"""Options: waiting for a node, wrappers at both ends, namespaces."""

from __future__ import annotations

import asyncio

import pytest

from busmicro import Call, Client, Handler, InvalidArgument, NatsServer, Service, Unavailable
from tests.nats.calls.greeter import greeter


async def test_wait_for_ready_waits_for_a_node(busmicro_server):
    """With `wait_for_ready` a call made before its service is up gets through once it is."""
    async with Client(busmicro_server.url, wait_for_ready=True) as client:
        call = asyncio.get_running_loop().create_task(
            client.call("greeter", "hello", {"name": "J"}, timeout=10)
        )
        await asyncio.sleep(0.1)
        assert not call.done()
        async with greeter(url=busmicro_server.url):
            assert await call == {"greeting": "Hello J"}


async def test_wrappers_run_in_order_at_both_ends(busmicro_server, busmicro_start):
    """The first wrapper given is the outermost, and a bad payload passes through them all."""
    order: list[str] = []

    def note(name: str):
        async def wrapper(call: Call, call_next: Handler) -> object:
            order.append(f"{name}>")
            try:
                return await call_next(call)
            finally:
                order.append(f"<{name}")

        return wrapper

    await busmicro_start(greeter(handler_wrappers=[note("h1"), note("h2")]))
    async with Client(busmicro_server.url, wrappers=[note("c1"), note("c2")]) as client:
        with pytest.raises(InvalidArgument):
            await client.call("greeter", "hello", {"nam": 1})

    assert order == ["c1>", "c2>", "h1>", "h2>", "<h2", "<h1", "<c2", "<c1"]


async def test_namespaces_keep_services_apart(busmicro_server):
    """Two services of one name in two namespaces never get each other's calls."""
    async with (
        _named("blue", busmicro_server),
        _named("red", busmicro_server),
        Client(busmicro_server.url, namespace="blue") as blue,
        Client(busmicro_server.url, namespace="red") as red,
        Client(busmicro_server.url) as none,
    ):
        assert {await blue.call("who", "name") for _ in range(10)} == {"blue"}
        assert {await red.call("who", "name") for _ in range(10)} == {"red"}
        with pytest.raises(Unavailable):
            await none.call("who", "name")


def _named(namespace: str, server: NatsServer) -> Service:
    service = Service("who", namespace=namespace, url=server.url)

    @service.rpc
    async def name() -> str:
        return namespace

    return service
