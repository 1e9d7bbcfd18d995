"""The buses that the promises are tried on: a real server by TCP or WebSocket, and none at all.

Tests speak to all of them with the same words; what only sockets can do (to hang, to ask for a
password) is on `ServerBus` alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Protocol

from busmicro import NatsServer, Settings
from busmicro.timers import Timers
from busmicro.transport import MemoryBroker, Replies, Transport, transport_for


class Way(Protocol):
    """A way to the server that can be broken without the server."""

    def cut(self) -> None:
        """End every connection on it."""
        ...

    def refuse(self, *, refuses: bool = True) -> None:
        """Let nobody connect again, or let everybody."""
        ...


class Proxy:
    """A TCP proxy that can lose, freeze and refuse connections."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._wires: set[asyncio.StreamWriter] = set()
        self._gates: set[asyncio.Event] = set()
        self._refuses = False
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self._server is not None
        return self._server.sockets[0].getsockname()[1]

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        async with asyncio.timeout(5):
            while self._wires:
                await asyncio.sleep(0.001)

    def cut(self) -> None:
        """End every connection as a router does that forgets them."""
        self.thaw()
        for wire in self._wires:
            wire.transport.abort()

    def freeze(self) -> None:
        """Let every connection there is hang; later ones work."""
        for gate in self._gates:
            gate.clear()

    def thaw(self) -> None:
        for gate in self._gates:
            gate.set()

    def refuse(self, *, refuses: bool = True) -> None:
        """End new connections at once."""
        self._refuses = refuses

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.transport.abort()
            return
        gate = asyncio.Event()
        gate.set()
        wires = {writer}
        self._wires |= wires
        self._gates.add(gate)
        try:
            with contextlib.suppress(OSError):
                far_reader, far_writer = await asyncio.open_connection(
                    "127.0.0.1", self._target_port
                )
                wires.add(far_writer)
                self._wires.add(far_writer)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, far_writer, gate))
                    group.create_task(self._pump(far_reader, writer, gate))
        finally:
            for wire in wires:
                wire.transport.abort()
            self._wires -= wires
            self._gates.discard(gate)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await gate.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


class AnyBus(Protocol):
    """A server, and whatever a test connects to it."""

    scheme: str

    async def connect(
        self, *, url: str | None = None, way: Way | None = None, **settings: object
    ) -> Transport: ...
    async def replies(self, transport: Transport, inbox_prefix: str = "_INBOX") -> Replies: ...
    async def way(self) -> Way: ...
    def nowhere(self) -> str: ...
    def kill(self) -> None: ...
    async def restart(self) -> None: ...


class _Opened:
    """What a test has connected, to be closed after it."""

    def __init__(self) -> None:
        self.opened: list[Transport] = []

    async def open(self, url: str, settings: dict[str, object]) -> Transport:
        given = {"ping_interval": 60.0, "reconnect_max_wait": 0.1, **settings}
        transport = transport_for(Settings.load(nats_url=url, **given))
        self.opened.append(transport)
        await transport.connect()
        return transport

    async def replies(self, transport: Transport, inbox_prefix: str = "_INBOX") -> Replies:
        replies = Replies(transport, Timers(), inbox_prefix=inbox_prefix)
        await replies.start()
        return replies

    async def close(self) -> None:
        for transport in self.opened:
            await transport.close()


class ServerBus(_Opened):
    """A nats-server, reached by TCP or by WebSocket."""

    def __init__(self, server: NatsServer, scheme: str, ws_port: int) -> None:
        super().__init__()
        self.server = server
        self.scheme = scheme
        self.port = server.port if scheme == "nats" else ws_port
        self.proxies: list[Proxy] = []

    def url(self, port: int | None = None) -> str:
        return f"{self.scheme}://127.0.0.1:{port or self.port}"

    async def connect(
        self, *, url: str | None = None, way: Proxy | None = None, **settings: object
    ) -> Transport:
        return await self.open(url or self.url(way.port if way else None), settings)

    async def way(self) -> Proxy:
        proxy = Proxy(self.port)
        await proxy.start()
        self.proxies.append(proxy)
        return proxy

    def nowhere(self) -> str:
        """Return a URL at which nobody is."""
        return self.url(free_port())

    def kill(self) -> None:
        self.server.kill()

    async def restart(self) -> None:
        await self.server.restart()

    async def close(self) -> None:
        await super().close()
        for proxy in self.proxies:
            await proxy.stop()


class MemoryWay:
    """The connections of one name, to be cut at the broker."""

    def __init__(self, broker: MemoryBroker, name: str) -> None:
        self.name = name
        self._broker = broker
        self._refuses = False

    def cut(self) -> None:
        self._broker.stop(self.name)
        if not self._refuses:
            self._broker.start(self.name)

    def refuse(self, *, refuses: bool = True) -> None:
        self._refuses = refuses
        if not refuses:
            self._broker.start(self.name)


class MemoryBus(_Opened):
    """A broker in this process."""

    scheme = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.broker = MemoryBroker.named("promises")
        self._elsewhere = MemoryBroker.named("elsewhere")
        self._ways = 0

    async def connect(
        self, *, url: str | None = None, way: MemoryWay | None = None, **settings: object
    ) -> Transport:
        if way is not None:
            settings["name"] = way.name
        return await self.open(url or "memory://promises", settings)

    async def way(self) -> MemoryWay:
        self._ways += 1
        return MemoryWay(self.broker, f"way-{self._ways}")

    def nowhere(self) -> str:
        """Return a URL at which nobody is."""
        self._elsewhere.stop()
        return "memory://elsewhere"

    def kill(self) -> None:
        self.broker.stop()

    async def restart(self) -> None:
        self.broker.start()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def echo(transport: Transport) -> Callable[[bytes, bytes, bytes, bytes], None]:
    def on_message(_subject: bytes, reply: bytes, _header: bytes, payload: bytes) -> None:
        transport.publish(reply, payload)

    return on_message


class Collected:
    """The payloads that have arrived."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    def __call__(self, _subject: bytes, _reply: bytes, _header: bytes, payload: bytes) -> None:
        self.payloads.append(payload)


class Ear:
    """Notes when the connection came and went."""

    def __init__(self, transport: Transport) -> None:
        self.gone = asyncio.Event()
        self.back = asyncio.Event()
        transport.listen(self)

    def on_connected(self) -> None:
        self.back.set()

    def on_disconnected(self) -> None:
        self.gone.set()

    def on_publish_denied(self, subject: str) -> None:
        """Say nothing: the test asks elsewhere."""


async def returned(transport: Transport, times: int) -> None:
    """Wait until the connection has come back so often."""
    async with asyncio.timeout(10):
        while transport.reconnects < times:
            await asyncio.sleep(0.005)
