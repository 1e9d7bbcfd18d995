"""Faults of go-micro that busmicro must not have, one test each, named by what go wrong there.

Source: go-micro v6.10, read in its source; the numbers are those of the project's own review.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import nats
import pytest
from pydantic import BaseModel

from busmicro import (
    Call,
    Client,
    DeadlineExceeded,
    Disconnected,
    FailedPrecondition,
    Handler,
    Internal,
    NatsServer,
    Service,
    Settings,
    Stream,
    Topic,
    Unavailable,
    Unimplemented,
)


class Order(BaseModel):
    number: int


async def test_fault_1_hung_handler_runs_once_and_not_five_times(busmicro_client, busmicro_start):
    """A call that times out is not tried again unless the endpoint says it may run twice."""
    runs = 0
    service = Service("slow")

    @service.rpc
    async def charge(order: Order) -> None:
        nonlocal runs
        runs += 1
        await asyncio.sleep(30)

    await busmicro_start(service)

    with pytest.raises(DeadlineExceeded):
        await busmicro_client.call("slow", "charge", Order(number=1), timeout=0.5)

    assert runs == 1


async def test_fault_2_timeout_header_is_what_the_caller_has_left(busmicro_client, busmicro_start):
    """The handler sees the caller's remaining time, and is cancelled when the caller gives up."""
    left: list[float] = []
    cancelled = asyncio.Event()
    service = Service("timed")

    @service.rpc
    async def wait(call: Call) -> None:
        left.append((call.deadline or 0) - time.monotonic())
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def dawdle(call: Call, call_next: Handler) -> object:
        await asyncio.sleep(0.2)
        return await call_next(call)

    await busmicro_start(service)
    async with Client(busmicro_client.bus.settings.nats_url, wrappers=[dawdle]) as client:
        call = asyncio.get_running_loop().create_task(client.call("timed", "wait", timeout=3.0))
        async with asyncio.timeout(2):
            while not left:
                await asyncio.sleep(0.001)
        call.cancel()
        async with asyncio.timeout(1):
            await cancelled.wait()

    assert 2.5 < left[0] <= 2.8


async def test_fault_3_errors_keep_their_class_over_the_wire(busmicro_client, busmicro_start):
    """A caller catches a class with fields, it does not parse a text."""
    service = Service("typed")

    @service.rpc
    async def ship() -> None:
        raise FailedPrecondition("not paid", details=[{"order": 17}])

    await busmicro_start(service)

    with pytest.raises(FailedPrecondition) as caught:
        await busmicro_client.call("typed", "ship")

    assert caught.value.details == [{"order": 17}]


async def test_fault_4_outage_and_missing_service_and_missing_endpoint_are_told_apart(server):
    """No NATS, no node and no such endpoint are three different errors."""
    service = Service("here", url=server.url)

    @service.rpc
    async def hello() -> str:
        return "hello"

    async with service, Client(server.url) as client:
        with pytest.raises(Unimplemented):
            await client.call("here", "goodbye")
        with pytest.raises(Unavailable, match="no node serves"):
            await client.call("elsewhere", "hello")
        server.kill()
        with pytest.raises(Disconnected):
            async with asyncio.timeout(2):
                while True:
                    await client.call("here", "hello")
        await server.restart()


async def test_fault_5_one_connection_carries_everything(server):
    """A service and its client share one connection, whatever runs over it, JSON as it is."""
    service = Service("lean", url=server.url)

    @service.rpc
    async def hello(order: Order) -> Order:
        return order

    async with service:
        await asyncio.gather(
            *(service.client.call("lean", "hello", Order(number=n)) for n in range(200))
        )
        raw = await nats.connect(server.url)
        reply = await raw.request("rpc.lean.hello", b'{"number":1}', timeout=1)
        assert reply.data == b'{"number":1}'  # no envelope, no base64
        await raw.close()
        pid_files = [
            link
            for fd in Path(f"/proc/{os.getpid()}/fd").iterdir()
            if (link := _link(fd)) and link.startswith("socket:")
        ]
        inodes = {link[8:-1] for link in pid_files}
        established = [
            line.split()
            for line in Path("/proc/self/net/tcp").read_text(encoding="ascii").splitlines()[1:]
        ]
        to_server = [
            row
            for row in established
            if row[9] in inodes and int(row[2].split(":")[1], 16) == server.port and row[3] == "01"
        ]
        assert len(to_server) == 1


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


async def test_fault_6_lookup_is_quick_and_a_dead_node_leaves(server, start_program, until):
    """Finding a service takes milliseconds, not a fixed wait, and a killed node is forgotten."""
    node = start_program(
        "-c",
        "from busmicro import Service\nservice = Service('mortal')\n"
        "@service.rpc\nasync def hello() -> str:\n    return 'hello'\nservice.run()",
        url=server.url,
        BUSMICRO_REGISTRY_TTL="1",
    )
    async with Client(server.url) as client:
        find = client.bus.discovery.kv.service
        await until(lambda: find("mortal"))

        took = []
        for _ in range(20):
            began = time.perf_counter()
            assert await find("mortal")
            took.append(time.perf_counter() - began)
        node.kill()
        node.wait()

        assert sorted(took)[10] < 0.050

        async def gone() -> bool:
            return await find("mortal") is None

        await until(gone, timeout=5.0)


async def test_fault_8_handler_that_blows_up_is_answered(busmicro_client, busmicro_start):
    """Whatever a handler raises, even SystemExit, the caller hears at once and the node lives."""
    service = Service("brittle")

    @service.rpc
    async def divide(number: int) -> float:
        return 1 / number

    @service.rpc
    async def leave() -> None:
        raise SystemExit(1)

    await busmicro_start(service)
    began = time.perf_counter()

    with pytest.raises(Internal):
        await busmicro_client.call("brittle", "divide", 0)
    with pytest.raises(Internal):
        await busmicro_client.call("brittle", "leave")

    assert time.perf_counter() - began < 1.0
    assert await busmicro_client.call("brittle", "divide", 2) == 0.5


async def test_fault_11_health_and_stats_are_there_by_default(busmicro_client, busmicro_start):
    """Every service answers Debug.Health and Debug.Stats, and names itself to whom it calls."""
    callers: list[str | None] = []
    service = Service("plain", version="1.2.3")

    @service.rpc
    async def who(call: Call) -> None:
        callers.append(call.headers.get("Bus-Caller"))

    await busmicro_start(service)
    await service.client.call("plain", "who")

    health = await busmicro_client.call("plain", "Debug.Health")
    stats = await busmicro_client.call("plain", "Debug.Stats")

    assert (health["status"], health["version"]) == ("serving", "1.2.3")
    assert stats["endpoints"][0] == stats["endpoints"][0] | {"name": "who", "requests": 1}
    assert callers == ["plain"]


async def test_fault_12_stopping_finishes_what_runs(busmicro_server, busmicro_client):
    """A service that stops answers the requests it has taken, without being told to."""
    service = Service("careful")

    @service.rpc
    async def work() -> str:
        await asyncio.sleep(0.3)
        return "done"

    await service.start(url=busmicro_server.url)
    loop = asyncio.get_running_loop()
    calls = [loop.create_task(busmicro_client.call("careful", "work")) for _ in range(50)]
    async with asyncio.timeout(2):
        while service._life.server.running < 50:
            await asyncio.sleep(0.001)

    await service.stop()

    assert await asyncio.gather(*calls) == ["done"] * 50


async def test_fault_13_handler_outlives_silence_on_the_connection(server):
    """A handler that works long past the time after which a silent connection is given up."""
    settings = Settings(nats_url=server.url, ping_interval=0.1)
    service = Service("patient", settings=settings)

    @service.rpc("work", timeout=10.0)
    async def work() -> str:
        await asyncio.sleep(1.0)
        return "done"

    async with service, Client(settings=settings) as client:
        assert await client.call("patient", "work", timeout=10.0) == "done"
        assert client.bus.transport.reconnects == 0


async def test_fault_14_service_answers_again_after_nats_was_restarted(server: NatsServer):
    """A restart of NATS leaves nobody deaf: service, client and registry come back."""
    service = Service("lasting", url=server.url)

    @service.rpc
    async def hello() -> str:
        return "hello"

    async with service, Client(server.url, wait_for_ready=True) as client:
        assert await client.call("lasting", "hello") == "hello"
        server.kill()
        await server.restart()

        assert await client.call("lasting", "hello", timeout=10.0) == "hello"
        async with asyncio.timeout(5):
            while await client.bus.discovery.service("lasting") is None:
                await asyncio.sleep(0.05)


async def test_fault_7_event_is_acknowledged_after_its_handler_and_topics_have_dots(server, until):
    """The first event is kept before anybody listens, bounded, and comes again if a handler fails.

    There: the first publish makes no stream and is lost, a topic is a stream's name and so has no
    dots, streams keep everything for ever, and events are acknowledged before the handler runs.
    """
    topic = Topic("shop.eu.orders.paid", Order, stream=Stream("SHOP", subjects=["shop.>"]))
    async with Client(server.url) as client:
        await client.publish(topic, Order(number=1))

    got: list[int] = []
    acknowledged: list[int] = []
    raw = await nats.connect(server.url)
    service = Service("billing", url=server.url)

    @service.subscribe(topic, group="billing", backoff=[0.05])
    async def on_paid(order: Order) -> None:
        got.append(order.number)
        info = await raw.jetstream().consumer_info("SHOP", "billing-shop-eu-orders-paid")
        acknowledged.append(info.ack_floor.stream_seq)
        if len(got) == 1:
            raise ValueError("died half-way")

    async with service:
        await until(lambda: len(got) == 2)
    config = (await raw.jetstream().stream_info("SHOP")).config
    await raw.close()

    assert (got, acknowledged) == ([1, 1], [0, 0])
    assert config.max_age == 7 * 86_400
    assert config.max_bytes == 1024**3


async def test_fault_10_handlers_of_one_topic_are_never_merged(server, until):
    """Each handler has its own group and gets each event once, however often nodes register.

    There: the second queue of a topic is ignored, and after n heartbeats a handler runs n times.
    """
    topic = Topic("orders.paid", Order)
    got: list[str] = []
    settings = Settings(nats_url=server.url, registry_ttl=1)  # registers again every third second

    def node() -> Service:
        service = Service("shop", settings=settings)

        @service.subscribe(topic, group="billing")
        async def bill(order: Order) -> None:
            got.append(f"billing {order.number}")

        @service.subscribe(topic, group="stock")
        async def count(order: Order) -> None:
            got.append(f"stock {order.number}")

        return service

    async with node(), node(), Client(server.url) as client:
        await asyncio.sleep(1.2)
        for number in range(20):
            await client.publish(topic, Order(number=number))
        await until(lambda: len(got) >= 40)
        await client.bus.transport.barrier()

    assert sorted(got) == sorted(f"{g} {n}" for g in ("billing", "stock") for n in range(20))
