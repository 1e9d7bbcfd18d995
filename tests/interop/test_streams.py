"""Streams between Python and a program in another language, which opens them and serves them.

`busstream.js` and `busserve.js` are written from docs/protocol.md; where these tests fail, one of
the two is wrong.  `Relay` is the same service in both languages (`streampeer.js`).
"""

from __future__ import annotations

import asyncio
import json
import re
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha256

import pytest
from pydantic import BaseModel

from busmicro import (
    Call,
    Client,
    DeadlineExceeded,
    FailedPrecondition,
    NatsServer,
    NotFound,
    Service,
    Unavailable,
    Unimplemented,
)
from busmicro.call import Handler
from busmicro.settings import Settings
from tests.faults.proxy import Proxy

pytestmark = pytest.mark.node

MANY = 10_000
SMALL = 16
LARGE_BYTES = 3 * 1024 * 1024
NOTHING: dict[str, object] = {}
ALERT = {"stream_ping_interval": 0.1}
"""So that silence is noticed within a test."""
PATIENT = {"stream_grace": 5.0}
"""So that a program may take its time to connect again."""


class Number(BaseModel):
    n: int


class Total(BaseModel):
    sum: int
    messages: int


class Count(BaseModel):
    to: int
    fail: bool = False


class Text(BaseModel):
    text: str


class Relay:
    """All shapes; it tells what happens to its handlers."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.ended = asyncio.Event()
        self.taken = 0

    async def hello(self, request: dict[str, str]) -> dict[str, str]:
        return {"greeting": f"Hello {request['name']}"}

    async def count(self, count: Count) -> AsyncIterator[Number]:
        for n in range(count.to):
            if count.fail and n == 10:
                raise NotFound("no Zoë, 100% sure", details=[{"after": n}])
            yield Number(n=n)

    async def total(self, numbers: AsyncIterator[Number]) -> Total:
        found = [number.n async for number in numbers]
        return Total(sum=sum(found), messages=len(found))

    async def first(self, numbers: AsyncIterator[Number]) -> Number:
        return await anext(numbers)

    async def echo(self, messages: AsyncIterator[dict[str, object]]) -> AsyncIterator[object]:
        try:
            async for message in messages:
                self.taken += 1
                yield message
        finally:
            self.ended.set()

    async def wait(self) -> AsyncIterator[Number]:
        self.began.set()
        try:
            await asyncio.Event().wait()
            yield Number(n=0)
        finally:
            self.ended.set()


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


def window(messages: int, size_bytes: int = 1 << 20) -> dict[str, int]:
    return {"messages": messages, "bytes": size_bytes}


async def soon(event: asyncio.Event) -> None:
    async with asyncio.timeout(5.0):
        await event.wait()


async def slow_to_accept(call: Call, call_next: Handler) -> object:
    """Take time before the handler: the caller hears of the node late."""
    await asyncio.sleep(0.05)
    return await call_next(call)


async def serve(start: Callable[[Service], Awaitable[Service]], **settings: float) -> Relay:
    """Start a service in Python whose callers may send `SMALL` messages ahead."""
    relay = Relay()
    given = Settings.load(stream_window=SMALL, **settings)
    service = Service("relay", settings=given, handler_wrappers=[slow_to_accept])
    service.handle(relay)
    await start(service)
    return relay


@pytest.fixture
async def relay(busmicro_start) -> Relay:
    """What a running service in Python does."""
    return await serve(busmicro_start, **ALERT)


@pytest.fixture
async def far(peer, busmicro_client) -> Relay:
    """A stub of the service in Node."""
    await peer.ask("relay", options={"gives": window(SMALL)})
    return busmicro_client.stub(Relay, service="relay")


@pytest.fixture
async def near(busmicro_server: NatsServer) -> AsyncIterator[Client]:
    """A client that lets services send `SMALL` messages ahead, and notices silence soon."""
    settings = Settings.load(nats_url=busmicro_server.url, stream_window=SMALL, **ALERT)
    async with Client(settings=settings) as client:
        yield client


# --- another language opens streams ---------------------------------------------------------------


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
        {"name": "c", "text": "16 1048576 7 0"},
        {"name": "c", "text": "90000 1048576 0 0"},
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


async def test_node_and_python_stay_together_in_silence(relay, peer):
    """Many times as long as Python waits for a sign of life, and the stream is as open as ever."""
    stream = await opened(peer, "echo")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
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


# --- another language serves streams --------------------------------------------------------------


async def test_python_takes_a_server_stream_of_node(far):
    """All messages of a server stream come, in order; none come from none."""
    for count in (0, 1, 100):
        assert [tick.n async for tick in far.count(Count(to=count))] == [*range(count)]


async def test_python_sends_a_client_stream_to_node(far):
    """A stub's method takes many messages and returns the one reply."""
    assert await far.total(Number(n=n) for n in range(100)) == Total(sum=4950, messages=100)
    assert await far.total([]) == Total(sum=0, messages=0)


async def test_python_calls_node(far):
    """A call of the same service is answered as any other."""
    assert await far.hello({"name": "Ada"}) == {"greeting": "Hello Ada"}


async def test_python_talks_with_node_both_ways(far, near):
    """Each answer is there before the next message is sent; a half-close ends it well."""
    async with near.stream("relay", "Relay.echo", sends=Number, returns=Number) as stream:
        for n in range(5):
            await stream.send(Number(n=n))
            assert await anext(stream) == Number(n=n)
        await stream.close_send()
        assert [message async for message in stream] == []


async def test_python_asks_one_node_in_another_language(far, peer, near):
    """A stream is opened at the node that was chosen."""
    info = (await peer.ask("list", verb="info", name="relay", limit=1))["found"][0]
    chosen = near.with_options(node=info["id"])

    async with chosen.stream("relay", "Relay.count", Count(to=2), returns=Number) as stream:
        assert [tick.n async for tick in stream] == [0, 1]


async def test_python_learns_which_shape_an_endpoint_of_node_has(far, near):
    """A call of a stream, and a stream of a call, are `Unimplemented`."""
    with pytest.raises(Unimplemented):
        await near.call("relay", "Relay.count", Count(to=1))
    with pytest.raises(Unimplemented):
        async with near.stream("relay", "Relay.hello", {"name": "Ada"}):
            pass


async def test_python_and_node_keep_order_in_a_small_window(far, near):
    """Ten thousand messages each way at once, a few ahead at most, arrive in order."""
    async with near.stream("relay", "Relay.echo", sends=Number, returns=Number) as stream:

        async def send() -> None:
            for n in range(MANY):
                await stream.send(Number(n=n))
            await stream.close_send()

        async with asyncio.timeout(30.0), asyncio.TaskGroup() as group:
            group.create_task(send())
            assert [message.n async for message in stream] == [*range(MANY)]


async def test_python_gets_the_error_of_node_after_what_came_before_it(far):
    """Ten messages, then the error of the handler, with all that an error has."""
    got = []

    with pytest.raises(NotFound) as caught:
        async for tick in far.count(Count(to=20, fail=True)):
            got.append(tick.n)  # noqa: PERF401 - a comprehension would lose them

    error = caught.value
    assert got == [*range(10)]
    assert (error.message, error.details) == ("no Zoë, 100% sure", [{"after": 10}])
    assert (error.origin, error.not_run) == ("relay", False)


async def test_python_sends_large_messages_to_node_and_takes_them(far, near):
    """Three MiB go there and come back whole, in pieces."""
    text = "ä" * (LARGE_BYTES // 2)

    async with near.stream("relay", "Relay.echo", sends=Text, returns=Text) as stream:
        async with asyncio.timeout(10.0):
            await stream.send(Text(text=text))
            assert (await anext(stream)).text == text


async def test_claim_on_a_message_in_the_object_store_is_as_documented(far, busmicro_server):
    """A message above `claim_check_bytes` travels as a claim; Node, without a store, says so."""
    settings = Settings.load(nats_url=busmicro_server.url, claim_check_bytes=1000)
    message = Text(text="x" * 2000)

    async with Client(settings=settings) as client:
        with pytest.raises(Unimplemented, match="no object store here") as caught:
            async with client.stream("relay", "Relay.echo", sends=Text, returns=Text) as stream:
                await stream.send(message)
                await anext(stream)

    (claim,) = caught.value.details
    stored = message.model_dump_json().encode()
    digest = urlsafe_b64encode(sha256(stored).digest()).decode()
    assert re.fullmatch("[0-9a-f]{32}", claim.pop("object"))
    assert claim == {"bucket": "bus-objects", "size": len(stored), "digest": f"SHA-256={digest}"}


async def test_python_leaves_and_the_handler_of_node_ends(far, peer, near, until):
    """Leaving the block ends the handler in the other language; before that, nothing has."""

    async def ended() -> bool:
        return (await peer.ask("figures"))["ended"] == 1

    async with near.stream("relay", "Relay.wait", returns=Number):
        assert not await ended()

    await until(ended)


async def test_node_ends_a_handler_at_pythons_deadline(far, peer, near, until):
    """The deadline of the whole stream ends both ends."""

    async def ended() -> bool:
        return (await peer.ask("figures"))["ended"] == 1

    with pytest.raises(DeadlineExceeded):
        async with near.stream("relay", "Relay.wait", returns=Number, timeout=0.1) as stream:
            await anext(stream)

    await until(ended)


async def test_handler_of_node_may_end_before_it_has_taken_all(far, near):
    """The reply comes, then the good end; what is sent after it is refused here."""
    async with near.stream("relay", "Relay.first", sends=Number, returns=Number) as stream:
        await stream.send(Number(n=7))
        assert await anext(stream) == Number(n=7)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        with pytest.raises(FailedPrecondition, match="takes no more"):
            await stream.send(Number(n=8))


@pytest.mark.parametrize(
    "faults",
    [
        {"lose": ["d1", "d5", "d6", "d40", "s101"]},
        {"miss": ["d1", "d5", "d6", "d40", "e101"]},
    ],
    ids=["from-node", "to-node"],
)
async def test_python_and_node_repair_what_was_lost(peer, near, faults):
    """Frames that are lost either way are asked for and sent again: all arrive, in order."""
    await peer.ask("relay", options={"gives": window(SMALL), **faults})

    async with near.stream("relay", "Relay.echo", sends=Number, returns=Number) as stream:

        async def send() -> None:
            for n in range(100):
                await stream.send(Number(n=n))
            await stream.close_send()

        async with asyncio.timeout(10.0), asyncio.TaskGroup() as group:
            group.create_task(send())
            assert [message.n async for message in stream] == [*range(100)]

    (repaired,) = (await peer.ask("figures"))["repaired"]
    assert repaired["answered" if "lose" in faults else "asked"] >= 2


async def test_python_survives_a_cut_connection(peer, busmicro_server):
    """Python's connection is reset in the middle: all arrive all the same, in order, both ways."""
    await peer.ask("relay", options={"gives": window(SMALL), "grace": 5000})
    async with Proxy(busmicro_server.port) as proxy:
        settings = Settings.load(nats_url=proxy.url, stream_window=SMALL, **PATIENT)
        async with Client(settings=settings) as client:
            far = client.stub(Relay, service="relay")
            got = []
            async with asyncio.timeout(30.0):
                async for message in far.echo({"n": n} for n in range(MANY)):
                    got.append(message["n"])
                    if len(got) in {MANY // 4, MANY // 2}:
                        proxy.cut()

    assert got == [*range(MANY)]
    assert proxy.accepted == 3


async def test_python_hears_that_node_has_died(peer, far, near):
    """A node that is killed in silence is noticed by the next ping: `Unavailable`."""
    async with asyncio.timeout(5.0):
        with pytest.raises(Unavailable, match="gone"):
            async with near.stream("relay", "Relay.wait", returns=Number) as stream:
                await peer.kill()
                await anext(stream)


async def test_python_and_node_stay_together_in_silence(far, near):
    """Many times as long as Python waits for a sign of life, and the stream is as open as ever."""
    async with near.stream("relay", "Relay.echo", sends=Number, returns=Number) as stream:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await anext(stream)
        await stream.send(Number(n=7))
        assert await anext(stream) == Number(n=7)


async def test_python_finds_node_with_its_shapes(far, near):
    """Discovery shows the shapes of the other language's endpoints."""
    (found,) = [one for one in await near.bus.discovery.services() if one.name == "relay"]

    kinds = {e.name: e.kind for e in found.endpoints}
    assert kinds == {
        "Relay.hello": "unary",
        "Relay.count": "server_stream",
        "Relay.total": "client_stream",
        "Relay.first": "client_stream",
        "Relay.echo": "both",
        "Relay.wait": "server_stream",
    }
