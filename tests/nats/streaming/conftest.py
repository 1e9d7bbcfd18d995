"""What the tests of streams share: services and clients that are looked over after the test."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

import nats
import pytest

from busmicro import Client, NatsServer, Service, SetupError
from busmicro.bus import Bus
from tests.nats.streaming.peer import Peer

Serve = Callable[..., Awaitable[Service]]
Spawn = Callable[[Coroutine[object, object, object]], asyncio.Task[object]]
_OURS = {"busmicro pump", "busmicro stream"}


class Remains:
    """What streams may have left behind in this process."""

    def __init__(self) -> None:
        self._buses: list[Bus] = []
        self._nodes: list[Service] = []
        self.complaints: list[str] = []
        """What the event loop had to say, such as of failures that nobody looked at."""

    def watch(self, whose: Service | Client) -> None:
        """Look there too, when the test has ended."""
        self._buses.append(whose.bus)
        if isinstance(whose, Service):
            self._nodes.append(whose)

    async def look(self) -> list[str]:
        """Say what is there that should not be."""
        found = [f"{len(bus.frames)} ends of streams" for bus in self._buses if len(bus.frames)]
        found += [task.get_name() for task in asyncio.all_tasks() if task.get_name() in _OURS]
        for node in self._nodes:
            try:
                itself = node.client.with_options(node=node.id)
            except SetupError:
                continue  # the test has stopped it
            stats = await itself.call(node.name, "Debug.Stats", returns=dict[str, object])
            if stats["running"] != 1:  # this very request
                found.append(f"{stats['running']} requests")
        return found


@pytest.fixture
async def remains(busmicro_client: Client, busmicro_start: Serve) -> AsyncIterator[Remains]:
    """Make sure, after the test, that no stream has left anything behind."""
    remains = Remains()
    remains.watch(busmicro_client)
    asyncio.get_running_loop().set_exception_handler(
        lambda _loop, context: remains.complaints.append(str(context))
    )
    yield remains
    found: list[str] = ["nothing was looked at"]
    for _ in range(300):
        gc.collect(1)
        found = await remains.look()
        if not found:
            break
        await asyncio.sleep(0.01)
    assert not found
    assert not remains.complaints


@pytest.fixture
async def spawn() -> AsyncIterator[Spawn]:
    """Start tasks that are cancelled after the test, if they have not ended by then."""
    tasks: list[asyncio.Task[object]] = []

    def spawn(work: Coroutine[object, object, object]) -> asyncio.Task[object]:
        tasks.append(asyncio.get_running_loop().create_task(work))
        return tasks[-1]

    yield spawn
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def raw(busmicro_server: NatsServer) -> AsyncIterator[nats.NATS]:
    """A client that knows nothing of busmicro."""
    client = await nats.connect(busmicro_server.url)
    yield client
    await client.flush()
    await client.close()


@pytest.fixture
async def peer(raw: nats.NATS) -> Peer:
    """One end of a stream, made by hand."""
    peer = Peer(raw)
    await peer.listen()
    return peer


@pytest.fixture
def serve(busmicro_start: Serve, remains: Remains) -> Serve:
    """Start a service, or one named `chat` that handles an object; both are looked over."""

    async def serve(what: object, **options: object) -> Service:
        service = what if isinstance(what, Service) else Service("chat", **options)  # type: ignore[arg-type]
        if service is not what:
            service.handle(what)
        await busmicro_start(service)
        remains.watch(service)
        return service

    return serve
