"""What a caller makes of nodes that answer wrongly: programs that make their own frames."""

from __future__ import annotations

import asyncio
import json

import pytest
from nats.aio.msg import Msg

from busmicro import (
    Client,
    DataLoss,
    Internal,
    NotFound,
    Unimplemented,
)
from tests.nats.streaming.chat import gather
from tests.nats.streaming.peer import STANDING, Peer


@pytest.fixture
async def client(busmicro_client: Client, remains) -> Client:
    """A client whose streams must be gone after the test."""
    return busmicro_client


@pytest.fixture
async def asked(raw, settled, client) -> asyncio.Queue[Msg]:
    """The requests for a stream `foreign.talk`, for the test to answer."""
    requests: asyncio.Queue[Msg] = asyncio.Queue()

    async def on_request(message: Msg) -> None:
        requests.put_nowait(message)

    await raw.subscribe("rpc.foreign.talk", queue="q", cb=on_request)
    await settled(raw)
    return requests


async def test_plain_reply_means_that_it_does_not_stream(client, asked, spawn):
    """A service that answers an opening like a call is `unimplemented`, and says what to do."""

    async def reply() -> None:
        for payload in (b'{"greeting":"hello"}', b""):
            await (await asked.get()).respond(payload)

    spawn(reply())
    for _ in range(2):
        with pytest.raises(Unimplemented, match=r"rpc\.foreign\.talk does not stream: call it"):
            async with client.stream("foreign", "talk", sends=int):
                pass


async def test_foreign_error_refuses_the_stream(client, asked, raw, spawn):
    """A service of another framework may refuse in its own way."""

    async def refuse() -> None:
        request = await asked.get()
        headers = {"Nats-Service-Error-Code": "404", "Nats-Service-Error": "no such room"}
        await raw.publish(request.reply, b"", headers=headers)

    spawn(refuse())
    with pytest.raises(NotFound, match="no such room"):
        async with client.stream("foreign", "talk", sends=int):
            pass


@pytest.mark.parametrize("address", ["", "$SYS.a.b", "rpc.foreign.x", "node.x.y", "a.cancel.b"])
async def test_accept_from_what_is_no_address_is_refused(client, asked, raw, settled, address):
    """A service cannot make its caller publish where only the caller may."""
    heard = await raw.subscribe(f"{address}.>") if address else None

    async def accept() -> None:
        request = await asked.get()
        await raw.publish(f"{request.reply}.a", STANDING, reply=address)

    async with asyncio.TaskGroup() as group:
        group.create_task(accept())
        with pytest.raises(Internal, match="no address"):
            async with client.stream("foreign", "talk", sends=int):
                pass

    await settled(raw)
    assert heard is None or heard.pending_msgs == 0


@pytest.mark.parametrize("standing", [b"", b"1 2 3", b"a b c d", b"256 2097152 4 0"])
async def test_accept_that_says_nothing_is_refused(client, asked, raw, peer, standing, spawn):
    """An ACCEPT without a standing that can be true ends the opening, or the stream at once."""

    async def accept() -> None:
        request = await asked.get()
        await raw.publish(f"{request.reply}.a", standing, reply=peer.address)

    spawn(accept())
    with pytest.raises(Internal):
        async with client.stream("foreign", "talk", sends=int) as stream:
            await anext(stream)


async def test_frames_before_the_accept_are_not_lost(client, asked, peer, spawn):
    """A message that overtakes the ACCEPT is asked for again."""

    async def answer() -> None:
        request = await asked.get()
        peer.other = request.reply
        await peer.send("d1", b"7")
        await peer.answer(request)
        await peer.send("s2", ask=True)
        await peer.next("r")
        await peer.send("d1", b"7")
        await peer.send("s2", ask=True)

    spawn(answer())
    async with client.stream("foreign", "talk", sends=int, returns=int) as stream:
        assert [n async for n in stream] == [7]


@pytest.mark.parametrize(
    "frames",
    [
        [("d999", b"1")],
        [("d0", b"1")],
        [("zebra", b"")],
        [("c", b"1 2 3")],
        [("c", b"256 2097152 9 0")],
        [("r", b"99999999 2097152 0 0")],
    ],
    ids=lambda frames: frames[0][0],
)
async def test_frame_that_no_node_may_send_ends_the_stream(client, asked, peer, spawn, frames):
    """Reading raises `internal`, and the node is told the same."""

    async def answer() -> None:
        await peer.answer(await asked.get())
        for name, payload in frames:
            await peer.send(name, payload)

    spawn(answer())
    async with client.stream("foreign", "talk", sends=int, returns=int) as stream:
        with pytest.raises(Internal, match="broke the protocol"):
            await anext(stream)

    cancel = await peer.next("x")
    assert cancel.headers["Bus-Status"] == "internal"
    assert "broke the protocol" in json.loads(cancel.payload)["message"]


async def test_node_that_floods_its_caller_is_stopped_at_the_window(client, asked, peer, spawn):
    """A node that does not wait for credit ends the stream; no more than a window is kept."""

    async def answer() -> None:
        await peer.answer(await asked.get())
        for n in range(1, 1000):
            await peer.send(f"d{n}", b"1")

    spawn(answer())
    got: list[int] = []
    async with client.stream("foreign", "talk", sends=int, returns=int) as stream:
        await peer.next("x")
        with pytest.raises(Internal, match="beyond what was allowed"):
            await gather(stream, got)
    assert len(got) <= 256


async def test_node_may_break_off(client, asked, peer, spawn):
    """A node that cannot end its stream in order may cancel it, with an error that arrives."""

    async def answer() -> None:
        await peer.answer(await asked.get())
        await peer.send("d1", b"1")
        headers = {"Nats-Service-Error-Code": "404", "Bus-Status": "not_found"}
        headers["Nats-Service-Error"] = "gone"
        await peer.raw.publish(f"{peer.other}.x", b"", headers=headers)

    spawn(answer())
    async with client.stream("foreign", "talk", sends=int, returns=int) as stream:
        with pytest.raises(NotFound, match="gone"):
            await gather(stream, [])


async def test_content_type_that_nobody_reads_is_data_loss(client, asked, peer, spawn):
    """An ACCEPT with such a content type is refused, and the node is told to stop."""

    async def answer() -> None:
        await peer.answer(await asked.get(), Content_Type="image/png")

    spawn(answer())
    with pytest.raises(DataLoss, match="image/png"):
        async with client.stream("foreign", "talk", sends=int, returns=int):
            pass
    assert (await peer.next("x")).payload


async def test_status_comes_before_what_was_sent_is_known(client, asked, peer, spawn):
    """A status ahead of messages that were lost is not believed until they have come."""

    async def answer() -> None:
        await peer.answer(await asked.get())
        await peer.send("d1", b"1")
        await peer.send("s3", ask=True)
        assert (await peer.next("r")).payload == b"256 2097152 1 0"
        await peer.send("d2", b"2")
        await peer.send("s3", ask=True)

    answering = spawn(answer())
    async with client.stream("foreign", "talk", sends=int, returns=int) as stream:
        assert [n async for n in stream] == [1, 2]
    await answering


async def test_two_nodes_that_accept_one_stream(client, asked, peer, raw, spawn):
    """The first to accept has the stream; what the second one says does not mix with it."""
    second = Peer(raw)
    await second.listen()

    async def answer() -> None:
        request = await asked.get()
        await peer.answer(request)
        await second.answer(request)
        await peer.send("d1", b"1")
        await peer.send("s2", ask=True)

    spawn(answer())
    async with client.stream("foreign", "talk", sends=int, returns=int) as stream:
        assert [n async for n in stream] == [1]
    assert (await peer.next("c")).payload == b"256 2097152 2 0"
