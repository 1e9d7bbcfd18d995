"""What a node makes of openings and frames that are wrong, sent by a client that makes its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from busmicro import (
    Call,
    InvalidArgument,
    Service,
    Settings,
    Unimplemented,
)
from tests.nats.streaming.chat import Chat, Number
from tests.nats.streaming.peer import STANDING


class Quiet:
    """A stream that takes nothing, and a call that is no stream."""

    async def ticks(self) -> AsyncIterator[int]:
        yield 1

    async def hello(self, number: Number) -> Number:
        return number


@pytest.fixture
async def chat(serve) -> Chat:
    """The handlers, served, with a window of two messages."""
    chat = Chat()
    service = Service("chat", settings=Settings(stream_window=2))
    service.handle(chat)
    service.handle(Quiet())
    await serve(service)
    return chat


# --- openings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "payload", "headers", "code", "says"),
    [
        ("Chat.total", b"", {"window": None}, "unimplemented", "open a stream to it"),
        ("Quiet.hello", b'{"n":1}', {}, "unimplemented", "call it"),
        ("Chat.total", b"", {"window": "many"}, "invalid_argument", "Bus-Stream"),
        ("Chat.total", b"", {"window": ""}, "invalid_argument", "Bus-Stream"),
        ("Chat.total", b"", {"window": "256"}, "invalid_argument", "Bus-Stream"),
        ("Chat.total", b"", {"window": "1 2 3"}, "invalid_argument", "Bus-Stream"),
        ("Chat.total", b"", {"window": "0 1024"}, "invalid_argument", "Bus-Stream"),
        ("Chat.total", b"", {"window": "-1 1024"}, "invalid_argument", "Bus-Stream"),
        ("Chat.total", b"", {"window": "65537 1024"}, "invalid_argument", "Bus-Stream"),
        ("Chat.total", b"", {"window": "1 " + 30 * "9"}, "invalid_argument", "Bus-Stream"),
        ("Chat.total", b'{"n":1}', {}, "invalid_argument", "frames of the stream"),
        ("Quiet.ticks", b'{"n":1}', {}, "invalid_argument", ""),
        ("Chat.count", b'{"n":"x"}', {}, "invalid_argument", "n"),
        ("Chat.count", b"\xff{", {}, "invalid_argument", ""),
        ("Chat.count", b"", {}, "invalid_argument", ""),
        ("Chat.count", b"x", {"Content_Type": "image/png"}, "invalid_argument", "image/png"),
        ("Chat.total", b"", {"Bus_Timeout": "soon"}, "invalid_argument", "Bus-Timeout"),
        ("Chat.total", b"", {"Bus_Timeout": "0"}, "deadline_exceeded", ""),
    ],
)
async def test_wrong_opening_is_refused_before_anything_runs(
    chat, peer, endpoint, payload, headers, code, says
):
    """It is answered at once, as any request is, on the address itself; nothing is left open."""
    answer = await peer.ask(f"rpc.chat.{endpoint}", payload, **headers)

    assert answer.name == ""
    assert answer.headers["Bus-Status"] == code
    assert says in json.loads(answer.payload)["message"]
    assert chat.notes == []


async def test_client_is_told_what_to_do_instead(busmicro_client, chat):
    """A call to a streaming endpoint, and a stream to one that is called, say so."""
    with pytest.raises(Unimplemented, match=r"Chat\.total streams: open a stream"):
        await busmicro_client.call("chat", "Chat.total", Number(n=1))
    with pytest.raises(Unimplemented, match=r"Quiet\.hello does not stream: call it"):
        async with busmicro_client.stream("chat", "Quiet.hello", Number(n=1)):
            pass
    with pytest.raises(Unimplemented, match=r"did you mean Chat\.total"):
        async with busmicro_client.stream("chat", "Chat.totals", sends=Number):
            pass


@pytest.mark.parametrize("reply", ["$SYS.x.y", "rpc.chat.Chat.total", "cancel.chat", "a.dlq.b"])
async def test_opening_whose_address_is_forbidden_is_dropped(
    busmicro_client, chat, raw, settled, reply
):
    """A caller cannot make a node publish frames where only the node may; it is counted."""
    heard = await raw.subscribe(f"{reply}.>")
    await raw.publish("rpc.chat.Chat.total", b"", reply=reply, headers={"Bus-Stream": "1 1"})
    await settled(raw)

    stats = await busmicro_client.call("chat", "Debug.Stats")
    assert (stats["refused_replies"], stats["running"]) == (1, 1)
    assert heard.pending_msgs == 0


async def test_opening_twice_opens_once(busmicro_client, chat, peer, settled, raw):
    """A second request for a stream that runs is ignored: one handler, one order."""
    await peer.ask("rpc.chat.Chat.total")
    await raw.publish(
        "rpc.chat.Chat.total", b"", reply=peer.address, headers={"Bus-Stream": "256 1000"}
    )
    await settled(raw)
    stats = await busmicro_client.call("chat", "Debug.Stats")
    assert stats["running"] == 2  # the stream, and this request

    await peer.send("d1", b'{"n":3}')
    await peer.send("e2")

    assert (await peer.next("d1")).payload == b'{"n":3}'
    await peer.next("s2")
    await peer.send("c", b"256 2097152 2 2")


# --- frames that no end may send ------------------------------------------------------------------


@pytest.mark.parametrize(
    "frames",
    [
        [("d1", b'{"n":1}'), ("d2", b'{"n":2}'), ("d3", b'{"n":3}')],
        [("d9", b'{"n":1}')],
        [("d0", b'{"n":1}')],
        [("d", b'{"n":1}')],
        [("d-1", b'{"n":1}')],
        [("d1x", b'{"n":1}')],
        [("d" + 60 * "1", b'{"n":1}')],
        [("z1", b"")],
        [("zebra", b"")],
        [("s1", b"")],
        [("e1", b""), ("e2", b"")],
        [("e1", b""), ("d2", b'{"n":1}')],
        [("c", b"")],
        [("c", b"1 2 3")],
        [("c", b"1 2 3 x")],
        [("c", b"-1 2 0 0")],
        [("c1", STANDING)],
        [("c", b"256 2097152 7 0")],
        [("c", b"70000 2097152 0 0")],
        [("c", b"256 99999999999 0 0")],
    ],
    ids=lambda frames: " ".join(name[:4] for name, _ in frames),
)
async def test_frame_that_no_caller_may_send_ends_the_stream(serve, peer, until, frames):
    """Both ends hear `internal`: the caller by a status, the handler by being cancelled."""
    ended = asyncio.Event()
    service = Service("strict", settings=Settings(stream_window=2))

    @service.rpc
    async def never(numbers: AsyncIterator[Number]) -> Number:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return Number(n=0)

    await serve(service)
    await peer.ask("rpc.strict.never")

    for name, payload in frames:
        await peer.send(name, payload)

    status = await peer.next("s1")
    assert status.headers["Bus-Status"] == "internal"
    assert "broke the protocol" in json.loads(status.payload)["message"]
    async with asyncio.timeout(5):
        await ended.wait()
    await peer.send("c", b"256 2097152 1 0")


# --- frames out of order, twice, too late ---------------------------------------------------------


async def test_frames_ahead_of_a_gap_are_asked_for_again(chat, peer):
    """What comes too early is dropped and asked for once; what comes twice is taken once."""
    await peer.ask("rpc.chat.Chat.total")

    await peer.send("d2", b'{"n":2}')
    repair = await peer.next("r")
    assert repair.payload == b"2 2097152 0 0"
    for name in ("d1", "d1", "d2", "d1", "e3", "e3"):
        await peer.send(name, b'{"n":%d}' % int(name[1:]) if name[0] == "d" else b"")

    assert (await peer.next("d1")).payload == b'{"n":3}'
    assert chat.notes == ["got 1", "got 2"]
    await peer.send("c", b"256 2097152 2 3")


async def test_lost_frame_is_sent_again_on_request(chat, peer):
    """What was not acknowledged comes again when it is asked for, with the same names."""
    await peer.ask("rpc.chat.Chat.count", b'{"n":3}')
    await peer.next("s4")

    await peer.send("r", b"256 2097152 1 0")
    again = [(await peer.next()).name for _ in range(3)]

    assert again == ["d2", "d3", "s4"]
    await peer.send("c", b"256 2097152 4 0")


async def test_frame_for_a_stream_that_is_gone_is_answered(chat, peer, settled, raw):
    """Who asks hears that there is no such stream; who does not ask hears nothing."""
    await peer.ask("rpc.chat.Chat.count", b'{"n":0}')
    await peer.next("s1")
    await peer.send("c", b"256 2097152 1 0")

    await peer.send("q", STANDING)
    await peer.send("d1", b"")
    await settled(raw)
    assert peer.waiting == []
    await peer.send("q", b"256 2097152 1 0", ask=True)
    assert (await peer.next()).name == "n"


async def test_dead_stream_answers_nowhere_forbidden(busmicro_client, chat, raw, peer, settled):
    """A frame for a stream that is gone does not make a node publish where it must not."""
    await peer.ask("rpc.chat.Chat.count", b'{"n":0}')
    await peer.next("s1")
    await peer.send("c", b"256 2097152 1 0")
    heard = await raw.subscribe("cancel.chat.n")

    await raw.publish(f"{peer.other}.q", STANDING, reply="cancel.chat")
    await settled(raw)
    await busmicro_client.call("chat", "Debug.Stats")
    await settled(raw)

    assert heard.pending_msgs == 0


# --- messages -------------------------------------------------------------------------------------


async def test_message_that_does_not_validate_is_the_callers_error(busmicro_client, chat):
    """One in the middle of a stream ends it with `invalid_argument`, which says what is wrong."""
    async with busmicro_client.stream("chat", "Chat.total", sends=dict[str, object]) as stream:
        await stream.send({"n": 1})
        await stream.send({"n": "one"})
        with pytest.raises(InvalidArgument) as caught:
            await stream.result()

    assert caught.value.details[0]["field"] == "n"
    assert chat.notes == ["got 1"]


async def test_handler_may_go_on_after_a_message_that_does_not_validate(busmicro_client, serve):
    """It can catch the error of that one message and read the next."""
    service = Service("lenient")

    @service.rpc
    async def total(numbers: AsyncIterator[Number], call: Call) -> list[int]:
        got = []
        while True:
            try:
                got.append((await anext(numbers)).n)
            except InvalidArgument:
                got.append(-1)
            except StopAsyncIteration:
                return got

    await serve(service)

    async with busmicro_client.stream(
        "lenient", "total", sends=dict[str, object], returns=list[int]
    ) as stream:
        for n in (1, "two", 3, None):
            await stream.send({"n": n})
        assert await stream.result() == [1, -1, 3, -1]
