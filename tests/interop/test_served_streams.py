"""A program in another language serves streams that Python opens.

`busserve.js` is written from docs/protocol.md; where these tests fail, one of the two is wrong.
"""

from __future__ import annotations

import asyncio
import re
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from hashlib import sha256

import pytest

from busmicro import (
    Client,
    DeadlineExceeded,
    FailedPrecondition,
    NatsServer,
    NotFound,
    Unavailable,
    Unimplemented,
)
from busmicro.settings import Settings
from tests.faults.proxy import Proxy
from tests.interop.relay import (
    ALERT,
    LARGE_BYTES,
    MANY,
    PATIENT,
    SILENCE,
    SMALL,
    UNEASY,
    Count,
    Number,
    Relay,
    Text,
    Total,
    window,
)

pytestmark = pytest.mark.node


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


async def test_python_and_node_stay_together_in_silence(far, busmicro_server):
    """Longer than Python waits for a sign of life, and the stream is as open as ever."""
    settings = Settings.load(nats_url=busmicro_server.url, **UNEASY)

    async with (
        Client(settings=settings) as client,
        client.stream("relay", "Relay.echo", sends=Number, returns=Number) as stream,
    ):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SILENCE):
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
