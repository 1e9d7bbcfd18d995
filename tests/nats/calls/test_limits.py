"""Limits: full nodes, slow handlers, nodes that stop, messages that nobody can answer."""

from __future__ import annotations

import asyncio
import time

import nats

from busmicro import Client, ResourceExhausted, Service, Settings
from tests.nats.calls.greeter import greeter


async def test_full_node_answers_resource_exhausted_at_once(busmicro_server):
    """Beyond `max_running` a request is refused with a time to stay away, it does not wait."""
    service = greeter(settings=Settings(nats_url=busmicro_server.url, max_running=10))
    async with service, Client(busmicro_server.url) as client:
        loop = asyncio.get_running_loop()
        held = [loop.create_task(client.call("greeter", "sleep", 1.0)) for _ in range(10)]
        async with asyncio.timeout(2):
            while service._life.server.running < 10:
                await asyncio.sleep(0.001)
        began = time.perf_counter()

        refused = await asyncio.gather(
            *(client.call("greeter", "hello", {"name": "J"}, timeout=0.3) for _ in range(100)),
            return_exceptions=True,
        )

        assert {type(error) for error in refused} == {ResourceExhausted}
        assert all(error.retry_after for error in refused)
        assert time.perf_counter() - began < 0.5
        assert await asyncio.gather(*held) == [1.0] * 10


async def test_slow_handlers_do_not_block_one_another(busmicro_client, busmicro_start):
    """Eight calls of 100 ms each take 100 ms and not 800: handlers run side by side."""
    await busmicro_start(greeter())
    began = time.perf_counter()

    await asyncio.gather(*(busmicro_client.call("greeter", "sleep", 0.1) for _ in range(8)))

    assert time.perf_counter() - began < 0.4


async def test_service_that_calls_itself_does_not_deadlock(busmicro_client, busmicro_start):
    """A calls B calls A on one connection each, and the answer comes."""
    a, b = Service("a"), Service("b")

    @a.rpc
    async def start() -> str:
        return f"a{await a.client.call('b', 'go')}"

    @a.rpc
    async def end() -> str:
        return "a"

    @b.rpc
    async def go() -> str:
        return f"b{await b.client.call('a', 'end')}"

    await busmicro_start(a)
    await busmicro_start(b)

    assert await busmicro_client.call("a", "start") == "aba"


async def test_running_handler_can_still_call_others_while_its_service_stops(
    busmicro_server, busmicro_client
):
    """A request taken before the stop finishes, calls to other services included."""
    other, service = Service("other"), Service("stopping")
    began = asyncio.Event()

    @other.rpc
    async def name() -> str:
        return "other"

    @service.rpc
    async def work() -> object:
        began.set()
        await asyncio.sleep(0.2)
        return await service.client.call("other", "name")

    await other.start(url=busmicro_server.url)
    await service.start(url=busmicro_server.url)
    call = asyncio.get_running_loop().create_task(busmicro_client.call("stopping", "work"))
    await began.wait()

    await service.stop()

    assert await call == "other"
    await other.stop()


async def test_message_without_a_reply_subject_is_dropped(
    busmicro_server,
    busmicro_client,
    busmicro_start,
    settled,
):
    """A message that nobody could be answered for runs nothing and harms nothing."""
    ran = []
    service = Service("quiet")

    @service.rpc
    async def run() -> None:
        ran.append(1)

    await busmicro_start(service)
    raw = await nats.connect(busmicro_server.url)

    await raw.publish("rpc.quiet.run", b"")
    await settled(raw)

    await busmicro_client.call("quiet", "Debug.Health")
    assert not ran
    await raw.close()
