"""Services and clients work on a bus in memory as they do on a server, and nothing takes time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from contextvars import ContextVar

import pytest
from pydantic import BaseModel

from busmicro import (
    Client,
    Disconnected,
    NoJetStream,
    NotFound,
    Service,
    Settings,
    Stream,
    Topic,
    Unavailable,
    Unimplemented,
)
from busmicro.transport import MemoryBroker
from tests.unit.transport.leaping import leaping

URL = "memory://test"


class Order(BaseModel):
    n: int


SEEN = Topic("orders.seen", Order)
KEPT = Topic("orders.kept", Order, stream=Stream("ORDERS"))


class Shop(Service):
    """A node that says who it is, takes its time, and hears of orders."""

    def __init__(self, id: str = "one", url: str = URL) -> None:
        super().__init__("shop", id=id, url=url)
        self.alone: list[int] = []
        self.shared: list[int] = []
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()

        @self.rpc
        async def who() -> str:
            return self.id

        @self.rpc
        async def fail() -> None:
            raise NotFound("no such order")

        @self.rpc(timeout=3600)
        async def wait(seconds: float) -> str:
            self.began.set()
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
            return "waited"

        @self.subscribe(SEEN)
        async def on_seen(order: Order) -> None:
            self.alone.append(order.n)

        @self.subscribe(SEEN, group="billing")
        async def bill(order: Order) -> None:
            self.shared.append(order.n)


def timed(work: Coroutine[object, object, None]) -> float:
    """Run on a clock that leaps; the seconds that somebody waited for something."""

    async def run() -> float:
        await work
        return asyncio.get_running_loop().time()

    return leaping(run())


async def test_call_is_answered_by_a_service_without_a_server(busmicro_memory: str):
    """The way to test a service that the documentation shows works."""
    shop = Shop()
    await shop.start(url=busmicro_memory)
    async with Client(busmicro_memory) as client:
        reply = await client.call("shop", "who", returns=str)
    await shop.stop()

    assert reply == "one"


def test_start_call_publish_and_stop_wait_for_nothing():
    """A test of a service on a bus in memory takes no time but what its handlers take."""

    async def test() -> None:
        async with Shop() as shop, Client(URL) as client:
            for _ in range(100):
                await client.call("shop", "who")
            await client.publish(SEEN, Order(n=1))
            assert await shop.client.call("shop", "who") == "one"

    assert timed(test()) < 0.01


def test_failures_reach_the_caller_as_what_they_are():
    """An error of a handler, a missing endpoint and a missing service are told apart."""

    async def test() -> None:
        async with Shop(), Client(URL) as client:
            with pytest.raises(NotFound, match="no such order"):
                await client.call("shop", "fail")
            with pytest.raises(Unimplemented, match="did you mean who"):
                await client.call("shop", "woh")
            with pytest.raises(Unavailable, match="nobody"):
                await client.call("nobody", "who")

    assert timed(test()) < 0.2


async def test_events_reach_everybody_and_one_of_each_group(until):
    """Without a group every node gets every event; the nodes of a group share."""
    async with Shop("one") as one, Shop("two") as two, Client(URL) as client:
        for n in range(50):
            assert await client.publish(SEEN, Order(n=n)) is None
        await until(lambda: len(one.shared) + len(two.shared) == 50 and len(two.alone) == 50)

    assert one.alone == two.alone == list(range(50))
    assert sorted(one.shared + two.shared) == list(range(50))
    assert one.shared
    assert two.shared


async def test_events_are_heard_by_a_client_that_iterates():
    """`async for event in events` works without a server."""
    async with Client(URL) as client, client.subscribe(SEEN) as events:
        await client.publish(SEEN, Order(n=7))
        async with asyncio.timeout(5):
            event = await anext(aiter(events))

    assert event.n == 7


async def test_calls_to_all_and_to_one_find_their_nodes():
    """Every node answers a call to all; a call to one reaches that one."""
    async with Shop("one"), Shop("two"), Client(URL) as client:
        answers = await client.call_all("shop", "who", returns=str)
        chosen = [await client.with_options(node="two").call("shop", "who") for _ in range(5)]

    assert answers == ["one", "two"]
    assert chosen == ["two"] * 5


async def test_nodes_are_found_and_say_how_they_are():
    """Discovery and health work by asking the nodes themselves."""
    async with Shop("one"), Shop("two"), Client(URL) as client:
        (record,) = await client.bus.discovery.services()
        health = await client.with_options(node="two").call("shop", "Debug.Health")
    async with Client(URL) as client:
        left = await client.bus.discovery.services()

    assert [node.id for node in record.nodes] == ["one", "two"]
    assert isinstance(health, dict)
    assert health["status"] == "serving"
    assert left == []


async def test_node_that_stops_finishes_what_runs():
    """A call that has begun is answered; one that comes later goes to the other node."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client(URL))
        leaving = Shop("leaving")
        await leaving.start()
        under_way = asyncio.get_running_loop().create_task(client.call("shop", "wait", 0.05))
        await leaving.began.wait()
        await stack.enter_async_context(Shop("staying"))

        await leaving.stop()

        assert await under_way == "waited"
        assert {await client.call("shop", "who") for _ in range(10)} == {"staying"}


async def test_caller_that_gives_up_cancels_the_handler():
    """Cancellation travels on a bus in memory too."""
    async with Shop() as shop, Client(URL) as client:
        call = asyncio.get_running_loop().create_task(client.call("shop", "wait", 60.0))
        await shop.began.wait()

        call.cancel()
        async with asyncio.timeout(5):
            await shop.cancelled.wait()


def test_service_survives_a_bus_that_stops_for_an_hour():
    """Calls under way fail at once, and when the bus is back both ends are, by themselves."""

    async def test() -> None:
        async with Shop() as shop, Client(URL) as client:
            call = asyncio.get_running_loop().create_task(
                client.call("shop", "wait", 3000.0, timeout=3600)
            )
            await shop.began.wait()
            broker = MemoryBroker.named("test")

            broker.stop()
            with pytest.raises(Disconnected):
                await call
            await asyncio.sleep(3600)
            broker.start()
            await asyncio.sleep(10)

            assert await client.call("shop", "who") == "one"
            assert client.bus.transport.reconnects == 1

    assert timed(test()) >= 3600


async def test_events_that_must_be_kept_are_refused():
    """There is no JetStream: who publishes or handles durable events is told, and at once."""
    keeper = Service("keeper", url=URL)

    @keeper.subscribe(KEPT, group="keepers")
    async def keep(order: Order) -> None:
        """Never hear of one."""

    async with asyncio.timeout(5), Client(URL) as client:
        with pytest.raises(NoJetStream):
            await client.publish(KEPT, Order(n=1))
        with pytest.raises(NoJetStream):
            await keeper.start()


async def test_the_environment_can_say_that_there_is_no_server(monkeypatch: pytest.MonkeyPatch):
    """Code that names no URL runs on a bus in memory when `BUSMICRO_NATS_URL` says so."""
    monkeypatch.setenv("BUSMICRO_NATS_URL", "memory://env")
    echo = Service("echo")

    @echo.rpc
    async def say(word: str) -> str:
        return word

    async with echo, Client() as client:
        assert await client.call("echo", "say", "hello") == "hello"
        assert len(MemoryBroker.named("env").connections) == 2
    assert Settings().urls == ["memory://env"]


def test_bus_in_memory_is_not_warned_about(caplog: pytest.LogCaptureFixture):
    """Nobody who tests without a server is told to start one with JetStream."""

    async def run() -> None:
        async with Shop(), Client(URL) as client:
            assert await client.call("shop", "who", returns=str) == "one"

    leaping(run())

    assert not [record for record in caplog.records if record.levelname == "WARNING"]


async def test_context_variables_stay_with_the_caller():
    """A handler sees no variable of a caller in its process, let alone of another caller."""
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
    service = Service("who", url=URL)

    @service.rpc
    async def asks() -> str:
        return tenant.get()

    async def call(client: Client, name: str) -> object:
        tenant.set(name)
        return await client.call("who", "asks")

    async with service, Client(URL) as one, Client(URL) as other:
        answers = await asyncio.gather(call(one, "a"), call(other, "b"), call(one, "c"))

    assert answers == ["nobody"] * 3
