"""What the transport promises, over TCP and over WebSocket, on a real server and a bad network.

The promises are those at the top of `busmicro/transport/base.py`, and each test is named after one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from busmicro import (
    DeadlineExceeded,
    Disconnected,
    NatsServer,
    NoResponders,
    PayloadTooLarge,
    PermissionDenied,
    ResourceExhausted,
    Settings,
)
from busmicro.timers import Timers
from busmicro.transport import NatsTransport, Replies, Subscription, require_allowed

# nats-py opens a WebSocket with a number of seconds where newer versions of aiohttp want an object.
pytestmark = pytest.mark.filterwarnings(
    "ignore:parameter 'timeout' of type 'float':DeprecationWarning"
)

CONFIG = """
max_payload: {max_payload}
write_deadline: "5s"
websocket {{ listen: "127.0.0.1:{ws_port}", no_tls: true }}
authorization {{
  users: [
    {{ user: any, password: pw }}
    {{ user: some, password: pw, permissions: {{
        publish: {{ deny: ["forbidden.>"] }}, subscribe: {{ deny: ["secret.>"] }} }} }}
    {{ user: mine, password: pw, permissions: {{ subscribe: {{ allow: ["_INBOX.mine.>"] }} }} }}
  ]
}}
no_auth_user: any
"""


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


class Bus:
    """A server, and whatever a test connects to it in one of two ways."""

    def __init__(self, server: NatsServer, scheme: str, ws_port: int) -> None:
        self.server = server
        self.scheme = scheme
        self.port = server.port if scheme == "nats" else ws_port
        self.opened: list[NatsTransport] = []
        self.proxies: list[Proxy] = []

    def url(self, port: int | None = None) -> str:
        return f"{self.scheme}://127.0.0.1:{port or self.port}"

    async def connect(self, *, port: int | None = None, **settings: object) -> NatsTransport:
        given = {"ping_interval": 60.0, "reconnect_max_wait": 0.1, **settings}
        transport = NatsTransport(Settings.load(nats_url=self.url(port), **given))
        self.opened.append(transport)
        await transport.connect()
        return transport

    async def replies(self, transport: NatsTransport, inbox_prefix: str = "_INBOX") -> Replies:
        replies = Replies(transport, Timers(), inbox_prefix=inbox_prefix)
        await replies.start()
        return replies

    async def proxy(self) -> Proxy:
        proxy = Proxy(self.port)
        await proxy.start()
        self.proxies.append(proxy)
        return proxy

    async def close(self) -> None:
        for transport in self.opened:
            await transport.close()
        for proxy in self.proxies:
            await proxy.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


async def open_bus(scheme: str, config: Path, max_payload: int = 1024 * 1024) -> AsyncIterator[Bus]:
    ws_port = free_port()
    config.write_text(CONFIG.format(ws_port=ws_port, max_payload=max_payload))
    async with NatsServer(config=config) as server:
        bus = Bus(server, scheme, ws_port)
        try:
            yield bus
        finally:
            await bus.close()


@pytest.fixture(params=["nats", "ws"])
async def bus(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bus]:
    """A server, reached by each kind of URL in turn."""
    async for bus in open_bus(request.param, tmp_path / "nats.conf"):
        yield bus


@pytest.fixture
async def tcp_bus(tmp_path: Path) -> AsyncIterator[Bus]:
    """A server reached by TCP."""
    async for bus in open_bus("nats", tmp_path / "nats.conf"):
        yield bus


def echo(transport: NatsTransport) -> Callable[[bytes, bytes, bytes, bytes], None]:
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

    def __init__(self, transport: NatsTransport) -> None:
        self.gone = asyncio.Event()
        self.back = asyncio.Event()
        transport.listen(self)

    def on_connected(self) -> None:
        self.back.set()

    def on_disconnected(self) -> None:
        self.gone.set()

    def on_publish_denied(self, subject: str) -> None:
        """Say nothing: the test asks elsewhere."""


async def returned(transport: NatsTransport, times: int) -> None:
    """Wait until the connection has come back so often."""
    async with asyncio.timeout(10):
        while transport.reconnects < times:
            await asyncio.sleep(0.005)


# --- subscriptions --------------------------------------------------------------------------------


async def test_after_subscribe_and_barrier_the_subscription_is_known(bus: Bus):
    """A node that has said it is ready is found by the very next caller, every time."""
    node, caller = await bus.connect(), await bus.connect()
    replies = await bus.replies(caller)

    for number in range(1000 if bus.scheme == "nats" else 200):
        subscription = node.subscribe(f"ready.{number}", echo(node), queue="q")
        await node.barrier()
        header, _payload = await replies.ask(b"ready.%d" % number, b"", timeout=5)
        assert not header
        node.unsubscribe(subscription)


async def test_after_unsubscribe_and_barrier_nothing_that_was_routed_here_is_lost(bus: Bus):
    """A hundred nodes leave a service one after another under load and not one call fails."""
    steady, leaving, caller = [await bus.connect() for _ in range(3)]
    replies = await bus.replies(caller)
    steady.subscribe("work", echo(steady), queue="q")
    await steady.barrier()
    done, answered = asyncio.Event(), 0

    async def call() -> None:
        nonlocal answered
        while not done.is_set():
            await replies.ask(b"work", b"x", timeout=5)
            answered += 1

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for _ in range(16):
            group.create_task(call())
        for _ in range(100):
            subscription = leaving.subscribe("work", echo(leaving), queue="q")
            await leaving.barrier()
            leaving.unsubscribe(subscription)
            await leaving.barrier()
        done.set()

    assert answered > 100
    assert not leaving._subscriptions


async def test_messages_of_one_publisher_arrive_in_order(bus: Bus):
    """What is sent first arrives first, over any number of messages, and none is missing."""
    count = 100_000 if bus.scheme == "nats" else 20_000
    sender, receiver = await bus.connect(), await bus.connect()
    arrived = Collected()
    receiver.subscribe("in.order", arrived)
    await receiver.barrier()

    for number in range(count):
        if not sender.writable:
            await sender.drained()
        sender.publish(b"in.order", b"%d" % number)

    async with asyncio.timeout(20):
        await sender.barrier(timeout=20)
        while len(arrived.payloads) < count:
            await asyncio.sleep(0.005)
    assert arrived.payloads == [b"%d" % number for number in range(count)]


async def test_callback_that_raises_hurts_nobody_else(bus: Bus, caplog: pytest.LogCaptureFixture):
    """Ten thousand faults in a handler leave the connection, and other handlers, as they were."""
    transport = await bus.connect()
    heard = Collected()

    def fail(_subject: bytes, _reply: bytes, _header: bytes, payload: bytes) -> None:
        raise asyncio.CancelledError if payload.endswith(b"7") else ZeroDivisionError

    transport.subscribe("faulty", fail)
    transport.subscribe("faulty", heard)
    await transport.barrier()

    with caplog.at_level(logging.CRITICAL, "busmicro.transport"):
        for number in range(10_000):
            if not transport.writable:
                await transport.drained()
            transport.publish(b"faulty", b"%d" % number)
        async with asyncio.timeout(20):
            while len(heard.payloads) < 10_000:
                await asyncio.sleep(0.005)

    assert transport.connected
    assert transport.reconnects == 0


async def test_fault_of_a_callback_is_logged(tcp_bus: Bus, caplog: pytest.LogCaptureFixture):
    """Who writes a handler that fails finds the subject and the traceback in the log."""
    transport = await tcp_bus.connect()
    transport.subscribe("faulty", lambda *_: 1 / 0)

    transport.publish(b"faulty", b"")
    await transport.barrier()

    assert "<Subscription faulty> failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_header", [False, True])
async def test_what_is_too_large_with_headers_counted_is_refused_before_the_wire(
    bus: Bus, with_header: bool
):
    """A message of just the limit passes, one byte more is refused and the connection lives."""
    transport = await bus.connect()
    heard = Collected()
    transport.subscribe("large", heard)
    header = b"NATS/1.0\r\nA: 1\r\n\r\n" if with_header else b""
    most = transport.max_payload_bytes - len(header)
    await transport.barrier()

    transport.publish(b"large", b"x" * most, b"", header)
    with pytest.raises(PayloadTooLarge) as refused:
        transport.publish(b"large", b"x" * (most + 1), b"", header)
    async with asyncio.timeout(10):
        while not heard.payloads:
            await transport.barrier()

    assert refused.value.not_run
    assert [len(payload) for payload in heard.payloads] == [most]
    assert transport.reconnects == 0


# --- losses ---------------------------------------------------------------------------------------


async def test_lives_for_ever_when_the_server_is_killed(bus: Bus):
    """After a crash of the server everything is subscribed again, without anybody's help."""
    transport = await bus.connect()
    heard = Collected()
    transport.subscribe("after", heard)
    await transport.barrier()

    bus.server.kill()
    await bus.server.restart()
    await returned(transport, 1)
    transport.publish(b"after", b"still here")
    async with asyncio.timeout(5):
        while not heard.payloads:
            await transport.barrier()

    assert heard.payloads == [b"still here"]


async def test_lives_for_ever_over_twenty_cuts_and_leaks_nothing(bus: Bus):
    """Each cut is mended, calls work in between, and no task or future is left behind."""
    proxy = await bus.proxy()
    transport = await bus.connect(port=proxy.port)
    replies = await bus.replies(transport)
    transport.subscribe("echo", echo(transport), queue="q")
    await transport.barrier()
    proxy.cut()
    await returned(transport, 1)
    await transport.barrier()
    count = len(asyncio.all_tasks())

    for number in range(2, 21):
        proxy.cut()
        await returned(transport, number)
        _header, payload = await replies.ask(b"echo", b"%d" % number, timeout=5)
        assert payload == b"%d" % number

    async with asyncio.timeout(5):
        while len(asyncio.all_tasks()) > count:
            await asyncio.sleep(0.01)
    assert len(replies) == 0
    assert len(transport._subscriptions) == 2


async def test_request_in_flight_ends_at_once_when_the_connection_drops(bus: Bus):
    """A caller whose connection breaks hears of it in milliseconds, not after its time-out."""
    proxy = await bus.proxy()
    node, caller = await bus.connect(), await bus.connect(port=proxy.port)
    replies = await bus.replies(caller)
    arrived = asyncio.Event()
    node.subscribe("silent", lambda *_: arrived.set())
    await node.barrier()

    async def call() -> float:
        with pytest.raises(Disconnected) as failed:
            await replies.ask(b"silent", b"", timeout=30)
        assert not failed.value.not_run
        return time.perf_counter()

    calls = [asyncio.get_running_loop().create_task(call()) for _ in range(50)]
    async with asyncio.timeout(5):
        await arrived.wait()
    began = time.perf_counter()
    proxy.cut()
    ended = await asyncio.gather(*calls)

    assert max(ended) - began < 1.0
    assert len(replies) == 0


async def test_request_ends_at_once_when_the_connection_is_down(bus: Bus):
    """A call made while there is no connection fails at once and says that nothing ran."""
    proxy = await bus.proxy()
    transport = await bus.connect(port=proxy.port)
    replies = await bus.replies(transport)
    ear = Ear(transport)
    proxy.refuse()
    proxy.cut()
    async with asyncio.timeout(5):
        await ear.gone.wait()

    began = time.perf_counter()
    with pytest.raises(Disconnected) as failed:
        await replies.ask(b"anything", b"", timeout=30)
    with pytest.raises(Disconnected):
        await transport.barrier()

    assert failed.value.not_run
    assert time.perf_counter() - began < 0.5
    assert not transport.connected


async def test_request_ends_at_once_when_nobody_listens(bus: Bus):
    """Nobody there is known within milliseconds."""
    replies = await bus.replies(await bus.connect())

    began = time.perf_counter()
    with pytest.raises(NoResponders) as failed:
        await replies.ask(b"nobody.home", b"", timeout=30)

    assert failed.value.not_run
    assert time.perf_counter() - began < 0.5


async def test_request_without_an_answer_ends_with_its_time(bus: Bus):
    """A service that never answers costs a caller its time-out and no more, and leaves no trace."""
    transport = await bus.connect()
    replies = await bus.replies(transport)
    abandoned = Collected()
    transport.subscribe("silent", lambda *_: None)
    transport.subscribe("abandoned", abandoned)
    await transport.barrier()

    with pytest.raises(DeadlineExceeded, match="silent"):
        await replies.request(
            b"silent",
            b"",
            deadline=asyncio.get_running_loop().time() + 0.05,
            abandon=b"abandoned",
        )
    async with asyncio.timeout(5):
        while not abandoned.payloads:
            await transport.barrier()

    assert len(replies) == 0
    assert abandoned.payloads[0].startswith(replies.inbox.encode())


async def test_messages_published_while_down_arrive_in_order_when_it_is_back(bus: Bus):
    """A short loss of the connection delays messages, it does not lose those that waited."""
    proxy = await bus.proxy()
    sender, receiver = await bus.connect(port=proxy.port), await bus.connect()
    arrived = Collected()
    receiver.subscribe("held", arrived)
    await receiver.barrier()
    ear = Ear(sender)
    proxy.refuse()
    proxy.cut()
    async with asyncio.timeout(5):
        await ear.gone.wait()

    for number in range(100):
        sender.publish(b"held", b"%d" % number)
    proxy.refuse(refuses=False)
    async with asyncio.timeout(10):
        while len(arrived.payloads) < 100:
            await asyncio.sleep(0.005)

    assert arrived.payloads == [b"%d" % number for number in range(100)]


@pytest.mark.parametrize("size_bytes", [0, 1000])
async def test_what_waits_while_down_is_bounded(tcp_bus: Bus, size_bytes: int):
    """A server that is gone for a day does not fill the memory, even with empty messages."""
    transport = await tcp_bus.connect(max_buffered_bytes=100_000)
    ear = Ear(transport)
    tcp_bus.server.kill()
    async with asyncio.timeout(5):
        await ear.gone.wait()

    accepted = 0
    with pytest.raises(ResourceExhausted, match="BUSMICRO_MAX_BUFFERED_BYTES"):
        for _ in range(100_000):
            transport.publish(b"held", bytes(size_bytes))
            accepted += 1

    assert accepted >= 50


async def test_silent_connection_is_noticed_within_three_pings(bus: Bus):
    """A network that swallows everything is noticed, and left for a new connection."""
    proxy = await bus.proxy()
    transport = await bus.connect(port=proxy.port, ping_interval=0.5)
    ear = Ear(transport)

    proxy.freeze()
    async with asyncio.timeout(3 * 0.5 + 1.0):
        await ear.gone.wait()
        await ear.back.wait()

    await transport.barrier()


async def test_silent_connection_is_noticed_while_messages_wait_to_be_sent(tcp_bus: Bus):
    """What cannot be sent any more does not keep a process from connecting anew."""
    proxy = await tcp_bus.proxy()
    transport = await tcp_bus.connect(port=proxy.port, ping_interval=0.5)
    ear = Ear(transport)
    proxy.freeze()
    for _ in range(80):
        transport.publish(b"swallowed", bytes(100_000))

    async with asyncio.timeout(3 * 0.5 + 1.5):
        await ear.gone.wait()
        await ear.back.wait()

    await transport.barrier()


async def test_frozen_server_is_noticed_and_used_again_when_it_thaws(tcp_bus: Bus):
    """A server that hangs is given up, and is used again when it goes on."""
    transport = await tcp_bus.connect(ping_interval=0.3, connect_timeout=0.5)
    ear = Ear(transport)
    tcp_bus.server.pause()
    async with asyncio.timeout(5):
        await ear.gone.wait()

    tcp_bus.server.resume()
    await returned(transport, 1)

    await transport.barrier()


async def test_error_that_ends_the_client_library_for_good_is_survived(tcp_bus: Bus):
    """Even what makes the client library close itself for ever costs only a new connection."""
    transport = await tcp_bus.connect()
    heard = Collected()
    transport.subscribe("after", heard)
    await transport.barrier()

    transport._path.write(b"PUB a 2000000\r\n")  # Maximum Payload Violation
    await returned(transport, 1)
    transport.publish(b"after", b"x")
    await transport.barrier()

    assert heard.payloads == [b"x"]


async def test_user_who_is_locked_out_comes_back_when_let_in_again(tcp_bus: Bus, tmp_path: Path):
    """Credentials that stop working for a while do not end a process for good."""
    transport = await tcp_bus.connect(user="some", password="pw")
    ear = Ear(transport)
    config = tmp_path / "nats.conf"
    text = config.read_text()
    assert tcp_bus.server.pid is not None

    config.write_text(text.replace("user: some", "user: nobody"))
    os.kill(tcp_bus.server.pid, signal.SIGHUP)
    async with asyncio.timeout(5):
        await ear.gone.wait()
    config.write_text(text)
    os.kill(tcp_bus.server.pid, signal.SIGHUP)
    await returned(transport, 1)

    await transport.barrier()


async def test_garbage_from_the_server_ends_in_a_new_connection(tcp_bus: Bus):
    """Bytes that are not NATS cost one connection and harm nothing else."""
    transport = await tcp_bus.connect()
    await transport.barrier()
    garbage = [
        b"MSG a b1 -5\r\n",
        b"MSG a\r\n",
        b"MSG a b1 x\r\n",
        b"HMSG a b1 9 3\r\nNATS/1.0\r\n",
        b"NONSENSE\r\n",
        b"\x00" * 2_000_000,
    ]

    for number, rubbish in enumerate(garbage, 1):
        transport._path.data_received(rubbish)
        await returned(transport, number)
        await transport.barrier()


async def test_close_sends_what_waits_and_ends_every_task(bus: Bus):
    """Nothing that was published before the end is lost, and nothing runs after it."""
    receiver = await bus.connect()
    arrived = Collected()
    receiver.subscribe("last", arrived)
    await receiver.barrier()
    before = asyncio.all_tasks()
    sender = await bus.connect()

    for number in range(1000):
        sender.publish(b"last", b"%d" % number)
    await sender.close()
    await sender.close()

    async with asyncio.timeout(5):
        while len(arrived.payloads) < 1000 or asyncio.all_tasks() - before:
            await asyncio.sleep(0.005)
    with pytest.raises(Disconnected, match="closed"):
        sender.publish(b"last", b"")


async def test_server_that_is_not_there_is_told_at_once_and_leaves_nothing(bus: Bus):
    """Connecting to nobody fails with the address, and no task stays behind."""
    before = asyncio.all_tasks()
    port = free_port()

    with pytest.raises(Disconnected, match=f"127.0.0.1:{port}") as failed:
        await bus.connect(port=port)

    async with asyncio.timeout(5):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.005)
    assert failed.value.not_run


# --- permissions ----------------------------------------------------------------------------------


async def test_subject_that_may_not_be_published_to_is_told_at_once(bus: Bus):
    """A caller without permission hears so within 50 ms, not after its time-out."""
    transport = await bus.connect(user="some", password="pw")
    replies = await bus.replies(transport)
    waits = asyncio.get_running_loop().create_task(replies.ask(b"nobody", b"", timeout=30))

    began = time.perf_counter()
    with pytest.raises(PermissionDenied, match=r"forbidden\.Fruit") as denied:
        await replies.ask(b"forbidden.Fruit", b"", timeout=30)
    took = time.perf_counter() - began

    assert denied.value.not_run
    assert took < 0.05
    with pytest.raises(NoResponders):
        await waits
    assert transport.connected


async def test_subject_that_may_not_be_subscribed_to_is_known_after_the_barrier(bus: Bus):
    """A service without permission to listen learns it when it starts."""
    transport = await bus.connect(user="some", password="pw")

    allowed = transport.subscribe("open.Door", lambda *_: None)
    denied = transport.subscribe("secret.Door", lambda *_: None, queue="q")
    await transport.barrier()

    assert (allowed.denied, denied.denied) == (False, True)
    require_allowed(allowed)
    with pytest.raises(PermissionDenied, match=r"secret\.Door"):
        require_allowed(allowed, denied)
    assert transport.connected


async def test_inbox_that_may_not_be_used_is_told_at_connect(bus: Bus):
    """A client that could never get a reply is told at once which setting to change."""
    transport = await bus.connect(user="mine", password="pw")

    with pytest.raises(PermissionDenied, match="BUSMICRO_INBOX_PREFIX"):
        await bus.replies(transport)

    replies = await bus.replies(transport, "_INBOX.mine")
    with pytest.raises(NoResponders):
        await replies.ask(b"nobody", b"", timeout=5)


# --- back pressure --------------------------------------------------------------------------------


async def test_what_waits_to_be_sent_is_bounded_and_drained_tells_when_to_go_on(bus: Bus):
    """A server that does not keep up makes publishing refuse, and it works again when it does."""
    proxy = await bus.proxy()
    transport = await bus.connect(port=proxy.port, max_buffered_bytes=4_000_000)
    proxy.freeze()
    accepted_bytes = 0

    with pytest.raises(ResourceExhausted, match="BUSMICRO_MAX_BUFFERED_BYTES"):
        for _ in range(10_000):
            transport.publish(b"fast", bytes(10_000))
            accepted_bytes += 10_000
            await asyncio.sleep(0)
    assert accepted_bytes < 40_000_000  # some of it lies in the kernel's and the proxy's buffers

    proxy.thaw()
    async with asyncio.timeout(10):
        await transport.drained()
        await transport.barrier(timeout=10)
    transport.publish(b"fast", b"again")
    await transport.barrier()
    assert transport.reconnects == 0


async def test_waiting_for_room_ends_when_the_connection_does(tcp_bus: Bus):
    """Nobody waits for ever for a connection that is gone."""
    proxy = await tcp_bus.proxy()
    transport = await tcp_bus.connect(port=proxy.port)
    proxy.freeze()
    while transport.writable:
        transport.publish(b"fast", bytes(100_000))
        await asyncio.sleep(0)

    waits = asyncio.get_running_loop().create_task(transport.drained())
    await asyncio.sleep(0)
    proxy.cut()

    async with asyncio.timeout(5):
        await waits


def test_subscription_shows_what_it_is():
    """A subscription in a log says what it listens to, with whom and whether it may."""
    subscription = Subscription(b"b1", "a.b", "q", lambda *_: None)
    subscription.denied = True

    assert repr(subscription) == "<Subscription a.b queue=q DENIED>"
