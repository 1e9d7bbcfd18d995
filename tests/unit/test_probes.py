"""Machines ask over HTTP whether a node lives and is ready, and whoever misuses that is cut off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from busmicro.errors import SetupError
from busmicro.probes import Probes
from busmicro.rpc import Health


class Node:
    """How a node is."""

    status = "serving"
    connected = True

    def health(self) -> Health:
        return Health(
            status=self.status,
            service="shop",
            node="n1",
            version="1.0.0",
            connected=self.connected,
            uptime=1.0,
        )


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
async def probes(node: Node) -> AsyncIterator[Probes]:
    """Probes on a port of their own."""
    own = Probes(node.health, lambda: 0.002, host="127.0.0.1", port=0)
    await own.start()
    yield own
    await own.stop()


Ask = Callable[[bytes], Awaitable[tuple[int, bytes]]]


@pytest.fixture
def ask(probes: Probes) -> Ask:
    """Send bytes and read whatever comes back, until the other side closes."""

    async def ask(request: bytes) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", probes.port)
        writer.write(request)
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]) if head else 0, body

    return ask


async def test_live_says_that_the_loop_turns(ask: Ask):
    """Whoever can answer lives, whatever else is wrong; it says how late the loop has been."""
    status, body = await ask(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")

    assert status == 200
    assert json.loads(body) == {"status": "live", "loop_lag": 0.002}


@pytest.mark.parametrize(
    ("status", "connected", "ready"),
    [
        ("serving", True, 200),
        ("failing", True, 200),
        ("serving", False, 503),
        ("away", True, 503),
        ("starting", True, 503),
        ("stopping", True, 503),
    ],
)
async def test_ready_follows_the_node(
    ask: Ask, node: Node, status: str, connected: bool, ready: int
):
    """A node is ready when it takes requests."""
    node.status, node.connected = status, connected

    answered, body = await ask(b"GET /health/ready?x=1 HTTP/1.0\r\n\r\n")

    assert answered == ready
    assert json.loads(body)["status"] == status


@pytest.mark.parametrize(
    ("request_line", "answered"),
    [
        (b"HEAD /health/live HTTP/1.1", 200),
        (b"POST /health/live HTTP/1.1", 405),
        (b"GET / HTTP/1.1", 404),
        (b"GET /health/../etc/passwd HTTP/1.1", 404),
        (b"nonsense", 405),
        (b"\xff\xfe", 405),
    ],
)
async def test_other_requests_are_refused(ask: Ask, request_line: bytes, answered: int):
    """There is nothing else to be had here, and asking for it does no harm."""
    status, body = await ask(request_line + b"\r\n\r\n")

    assert status == answered
    if request_line.startswith(b"HEAD"):
        assert body == b""


async def test_whoever_asks_for_too_much_is_cut_off(ask: Ask):
    """A head without an end takes no memory."""
    status, _body = await ask(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000)

    assert status == 0
    assert (await ask(b"GET /health/live HTTP/1.1\r\n\r\n"))[0] == 200


async def test_port_that_is_taken_is_named(probes: Probes, node: Node):
    """A service that cannot have its port says so, with the setting that changes it."""
    other = Probes(node.health, float, host="127.0.0.1", port=probes.port)

    with pytest.raises(SetupError, match="BUSMICRO_METRICS_PORT"):
        await other.start()
    await other.stop()


async def test_stop_lets_go_of_whoever_waits(node: Node):
    """A connection that says nothing does not hold up the end of a service."""
    own = Probes(node.health, float, host="127.0.0.1", port=0)
    await own.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", own.port)
    await asyncio.sleep(0)

    async with asyncio.timeout(2):
        await own.stop()
        assert await reader.read() == b""
    writer.close()
