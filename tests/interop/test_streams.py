"""A program in another language opens streams that Python serves.

`busstream.js` is written from docs/protocol.md; where these tests fail, one of the two is wrong.
"""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.faults.proxy import Proxy
from tests.interop.relay import (
    ALERT,
    LARGE_BYTES,
    MANY,
    NOTHING,
    PATIENT,
    SILENCE,
    SMALL,
    UNEASY,
    Relay,
    serve,
    window,
)

pytestmark = pytest.mark.node


class Opened:
    """A stream that the Node program has opened."""

    def __init__(self, peer, number: int) -> None:
        self._peer = peer
        self.number = number

    async def ask(self, do: str, **what: object) -> dict:
        return await self._peer.ask(do, stream=self.number, **what)

    def tell(self, do: str, **what: object) -> asyncio.Future[dict]:
        return self._peer.tell(do, stream=self.number, **what)[1]


async def opened(peer, endpoint: str, message: object = None, **options: object) -> Opened:
    """Let the Node program open a stream, with a message for one that takes just that."""
    given = {} if message is None else {"text": json.dumps(message) if message else ""}
    number, answer = peer.tell(
        "open", service="relay", endpoint=f"Relay.{endpoint}", options=options, **given
    )
    async with asyncio.timeout(10.0):
        await answer
    return Opened(peer, number)


def numbers(count: int) -> list[dict[str, int]]:
    return [{"n": n} for n in range(count)]


async def soon(event: asyncio.Event) -> None:
    async with asyncio.timeout(5.0):
        await event.wait()


@pytest.fixture
async def relay(busmicro_start) -> Relay:
    """What a running service in Python does."""
    return await serve(busmicro_start, **ALERT)


async def test_node_takes_a_server_stream(relay, peer):
    """All messages of a server stream come, in order, then its good end; none come from none."""
    for count in (0, 1, 100):
        stream = await opened(peer, "count", {"to": count})
        assert await stream.ask("take") == {"messages": numbers(count), "over": True}
        assert (await stream.ask("status"))["failed"] is None


async def test_node_sends_a_client_stream(relay, peer):
    """What a client stream sends is taken to its half-close, and its one reply comes back."""
    stream = await opened(peer, "total")

    await stream.ask("number", to=100)

    reply = {"sum": sum(range(100)), "messages": 100}
    assert await stream.ask("take") == {"messages": [reply], "over": True}


async def test_node_talks_both_ways(relay, peer):
    """Each answer is there before the next message is sent; a half-close ends it well."""
    stream = await opened(peer, "echo")

    for message in numbers(5):
        await stream.ask("send", texts=[json.dumps(message)])
        assert (await stream.ask("take", limit=1))["messages"] == [message]

    await stream.ask("end")
    assert await stream.ask("take") == {"messages": [], "over": True}


async def test_node_learns_which_shape_an_endpoint_has(relay, peer):
    """A call of a stream, and a stream of a call, are `unimplemented` before anything runs."""
    called = (await peer.call("relay", "Relay.count", {"to": 1}))["error"]
    streamed = await (await opened(peer, "hello", {"name": "Ada"})).ask("status")

    for error in (called, streamed["failed"]):
        assert (error["code"], error["notRun"]) == ("unimplemented", True)


@pytest.mark.parametrize(
    ("meta", "code"),
    [
        ({"Bus-Stream": "0 1"}, "invalid_argument"),
        ({"Bus-Stream": "1"}, "invalid_argument"),
        ({"Bus-Stream": "65537 1"}, "invalid_argument"),
        ({"Bus-Timeout": "0"}, "deadline_exceeded"),
        ({"Content-Type": "text/plain"}, "invalid_argument"),
    ],
    ids=["no-messages", "one-number", "too-many", "late", "content-type"],
)
async def test_node_is_refused(relay, peer, meta, code):
    """What cannot be opened is refused as a call is, on the address, without having run."""
    failed = (await (await opened(peer, "count", {"to": 1}, meta=meta)).ask("status"))["failed"]

    assert (failed["code"], failed["notRun"], failed["origin"]) == (code, True, "relay")


async def test_node_hears_that_nobody_serves(peer):
    """The NATS server's 503 on the address is `unavailable`, at once."""
    failed = (await (await opened(peer, "count", {"to": 1})).ask("status"))["failed"]

    assert (failed["code"], failed["notRun"]) == ("unavailable", True)


async def test_node_and_python_keep_order_in_a_small_window(relay, peer):
    """Ten thousand messages each way at once, a few ahead at most, arrive in order."""
    stream = await opened(peer, "echo", gives=window(SMALL))

    sent, checked = stream.tell("number", to=MANY), stream.tell("check")
    async with asyncio.timeout(30.0):
        assert await checked == {"messages": MANY, "right": True}
        assert await sent == {}

    assert await stream.ask("status") == {"failed": None, "repaired": {"asked": 0, "answered": 0}}


async def test_node_makes_python_wait(relay, peer, until):
    """Python sends no more than the window that Node gave, until Node takes some of it."""
    stream = await opened(peer, "echo", gives=window(8))
    sending = stream.tell("number", to=100)

    await until(lambda: relay.taken > 8)
    await peer.call("relay", "Relay.hello", {"name": "Ada"})  # what else it did would be done
    assert relay.taken == 9  # it holds the ninth answer
    assert await stream.ask("check") == {"messages": 100, "right": True}
    await sending


async def test_node_gets_the_error_after_what_came_before_it(relay, peer):
    """Ten messages, then the error of the handler, with all that an error has."""
    taken = await (await opened(peer, "count", {"to": 20, "fail": True})).ask("take")

    assert taken["messages"] == numbers(10)
    failed = taken["failed"]
    assert (failed["code"], failed["status"], failed["origin"]) == ("not_found", 404, "relay")
    assert failed["message"] == failed["header"] == "no Zoë, 100% sure"
    assert failed["details"] == [{"after": 10}]


async def test_node_sends_and_takes_large_messages(relay, peer):
    """Three MiB go there and come back whole, in pieces, though a window is one MiB or less."""
    stream = await opened(peer, "echo", gives=window(4, 1 << 18))
    sent = stream.tell("large", bytes=LARGE_BYTES)

    async with asyncio.timeout(10.0):
        await sent
    await stream.ask("end")

    assert await stream.ask("check") == {"messages": 1, "right": True}


async def test_node_leaves_and_the_handler_ends(relay, peer):
    """`x` ends the handler; before that, nothing has."""
    stream = await opened(peer, "wait", NOTHING)
    await soon(relay.began)
    assert not relay.ended.is_set()

    await stream.ask("leave")

    await soon(relay.ended)


async def test_node_is_ended_at_the_deadline(relay, peer):
    """A deadline for the whole stream ends both ends."""
    stream = await opened(peer, "wait", NOTHING, timeout=100)

    assert (await stream.ask("status"))["failed"]["code"] == "deadline_exceeded"
    await soon(relay.ended)


async def test_node_repairs_what_it_lost_on_the_way_out(relay, peer):
    """Frames of Node that never left are asked for by Python and sent again, the end included."""
    lose = ["d3", "d4", "d40", "e101"]
    stream = await opened(peer, "echo", lose=lose, gives=window(SMALL))
    sent = stream.tell("number", to=100)

    assert await stream.ask("check") == {"messages": 100, "right": True}
    await sent
    repaired = (await stream.ask("status"))["repaired"]
    assert repaired["asked"] == 0
    assert 2 <= repaired["answered"] <= len(lose)


async def test_python_repairs_what_node_did_not_get(relay, peer):
    """Frames of Python that do not arrive are sent again when Node asks, the status included."""
    miss = ["d2", "d3", "d50", "s101"]
    stream = await opened(peer, "echo", miss=miss, gives=window(SMALL))
    sent = stream.tell("number", to=100)

    assert await stream.ask("check") == {"messages": 100, "right": True}
    await sent
    status = await stream.ask("status")
    assert status["failed"] is None
    assert status["repaired"]["asked"] >= 2


@pytest.mark.parametrize(
    "frame",
    [
        {"name": "z1"},
        {"name": "s2"},
        {"name": "d2"},
        {"name": "d99"},
        {"name": "e2"},
        {"name": "d"},
        {"name": "c", "text": "1 2 3"},
        {"name": "c", "text": "16 2097152 7 0"},
        {"name": "c", "text": "90000 2097152 0 0"},
    ],
    ids=[
        "letter",
        "status",
        "after-end",
        "number",
        "end",
        "no-number",
        "standing",
        "acknowledged",
        "credit",
    ],
)
async def test_python_ends_a_stream_that_breaks_the_protocol(relay, peer, frame):
    """A frame that a caller had no right to send is `internal`; the handler ends."""
    stream = await opened(peer, "wait", NOTHING)
    await soon(relay.began)

    await stream.ask("frame", **frame)

    assert (await stream.ask("status"))["failed"]["code"] == "internal"
    await soon(relay.ended)


async def test_node_that_dies_ends_the_handler(relay, start_peer):
    """A caller that is killed in silence is noticed by the next ping."""
    mortal = await start_peer()
    stream = await opened(mortal, "echo")
    await stream.ask("send", texts=['{"n": 0}'])

    await mortal.kill()

    await soon(relay.ended)


async def test_node_and_python_stay_together_in_silence(busmicro_start, peer):
    """Longer than Python waits for a sign of life, and the stream is as open as ever."""
    relay = await serve(busmicro_start, **UNEASY)
    stream = await opened(peer, "echo")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(SILENCE):
            await relay.ended.wait()

    await stream.ask("send", texts=['{"n": 7}'])
    assert (await stream.ask("take", limit=1))["messages"] == [{"n": 7}]


async def test_node_survives_a_cut_connection(busmicro_start, start_peer, busmicro_server, until):
    """Node's connection is reset in the middle: all arrive all the same, in order, both ways."""
    relay = await serve(busmicro_start, **PATIENT)
    async with Proxy(busmicro_server.port) as proxy:
        peer = await start_peer(proxy.url)
        stream = await opened(peer, "echo", gives=window(SMALL))
        sent, checked = stream.tell("number", to=MANY), stream.tell("check")
        for cut in (1, 2):
            await until(lambda cut=cut: relay.taken > cut * MANY // 4)
            proxy.cut()
        async with asyncio.timeout(30.0):
            assert await checked == {"messages": MANY, "right": True}
            await sent
        assert (await stream.ask("status"))["failed"] is None
        assert proxy.accepted == 3
