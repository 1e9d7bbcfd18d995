"""The shapes of streams on a real server: what goes in arrives, in order, as the type it has."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from dataclasses import dataclass

import pytest
from google.protobuf.struct_pb2 import Struct
from pydantic import BaseModel

from busmicro import Call, Client, DataLoss, Kind, Service, Side, current_call
from tests.nats.streaming.chat import Chat, Number, numbers

MANY = 3000
"""More than ten windows."""


@dataclass
class Point:
    x: int
    y: int


class Twice:
    """An iterator that is no generator."""

    def __init__(self) -> None:
        self.left = 2

    def __aiter__(self) -> Twice:
        return self

    async def __anext__(self) -> int:
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        return self.left


# --- by stub, by class, by function ---------------------------------------------------------------


async def test_server_stream_arrives_whole_and_in_order(busmicro_client, serve):
    """`async for` over a stub's method gives every message that the handler yields, in order."""
    chat = busmicro_client.stub(Chat, service="chat")
    await serve(Chat())

    assert [tick.n async for tick in chat.count(Number(n=MANY))] == [*range(MANY)]


async def test_client_stream_takes_an_iterator_and_gives_one_reply(busmicro_client, serve):
    """A stub's method takes a generator of messages, async or plain, and returns the reply."""
    chat = busmicro_client.stub(Chat, service="chat")
    await serve(Chat())

    assert await chat.total(numbers(MANY)) == Number(n=sum(range(MANY)))
    assert await chat.total([Number(n=1), Number(n=2)]) == Number(n=3)
    assert await chat.total(Number(n=n) for n in range(MANY)) == Number(n=sum(range(MANY)))
    assert await chat.total([]) == Number(n=0)


async def test_two_way_stream_goes_both_ways_at_once(busmicro_client, serve):
    """Messages go and come at the same time, far more than a window holds."""
    chat = busmicro_client.stub(Chat, service="chat")
    await serve(Chat())

    assert [line.n async for line in chat.talk(numbers(MANY))] == [*range(0, 2 * MANY, 2)]


async def test_answer_comes_before_the_next_question(busmicro_client, serve):
    """A two-way stream is a conversation: each answer is there before the next message is sent."""
    await serve(Chat())

    async with busmicro_client.stream("chat", "Chat.talk", sends=Number, returns=Number) as stream:
        for n in range(50):
            await stream.send(Number(n=n))
            assert await anext(stream) == Number(n=2 * n)
        await stream.close_send()
        assert [line async for line in stream] == []


async def test_functions_stream_under_their_own_names(busmicro_client, serve):
    """`@service.rpc` makes a stream of a function by its signature, with names like calls have."""
    service = Service("functions")

    @service.rpc
    async def count(to: int) -> AsyncIterator[int]:
        for n in range(to):
            yield n

    @service.rpc("Sums.total")
    async def total(numbers: AsyncIterable[int]) -> int:
        return sum([n async for n in numbers])

    @service.rpc
    async def double(numbers: AsyncGenerator[int, None]) -> AsyncGenerator[int, None]:
        async for n in numbers:
            yield 2 * n

    await serve(service)
    stream = busmicro_client.stream

    async with stream("functions", "count", 3, returns=int) as counted:
        assert [n async for n in counted] == [0, 1, 2]
    async with stream("functions", "Sums.total", sends=int, returns=int) as summed:
        await summed.send(1)
        await summed.send(2)
        assert await summed.result() == 3
    async with stream("functions", "double", sends=int, returns=int) as doubled:
        await doubled.send(21)
        assert await anext(doubled) == 42


async def test_without_a_type_json_comes_as_builtins(busmicro_client, serve):
    """Without `returns` messages come as dicts, lists and the rest."""
    await serve(Chat())

    async with busmicro_client.stream("chat", "Chat.count", {"n": 2}) as stream:
        assert [tick async for tick in stream] == [{"n": 0}, {"n": 1}]


async def test_handler_may_return_an_iterator(busmicro_client, serve):
    """A handler that is a coroutine may look first and return its iterator, of any kind, then."""
    service = Service("returns")

    @service.rpc
    async def generator(to: Number) -> AsyncIterator[Number]:
        await asyncio.sleep(0)
        return numbers(to.n)

    @service.rpc
    async def twice() -> AsyncIterable[int]:
        return Twice()

    await serve(service)

    async with busmicro_client.stream(
        "returns", "generator", Number(n=3), returns=Number
    ) as stream:
        assert [number.n async for number in stream] == [0, 1, 2]
    async with busmicro_client.stream("returns", "twice", returns=int) as stream:
        assert [n async for n in stream] == [1, 0]


async def test_endpoints_that_take_or_give_nothing(busmicro_client, serve):
    """A stream may be asked for with nothing, and a client stream may be answered with nothing."""
    got: list[int] = []

    class Quiet:
        async def ticks(self) -> AsyncIterator[int]:
            yield 1
            yield 2

        async def drop(self, numbers: AsyncIterator[int]) -> None:
            got.extend([n async for n in numbers])

    await serve(Quiet())
    quiet = busmicro_client.stub(Quiet, service="chat")

    async with busmicro_client.stream("chat", "Quiet.drop", sends=int) as stream:
        await stream.send(8)
        assert await stream.result() is None
    assert [n async for n in quiet.ticks()] == [1, 2]
    assert await quiet.drop([1, 2]) is None
    assert got == [8, 1, 2]


async def test_server_stream_of_no_messages_ends_at_once(busmicro_client, serve):
    """A handler that yields nothing gives an iterator that is over, not one that hangs."""
    await serve(Chat())

    assert [n async for n in busmicro_client.stub(Chat, service="chat").count(Number(n=0))] == []


# --- what travels ---------------------------------------------------------------------------------


class Kinds:
    """Every kind of message, both ways."""

    async def models(self, numbers: AsyncIterator[Number]) -> AsyncIterator[Number]:
        async for number in numbers:
            yield number

    async def points(self, points: AsyncIterator[Point]) -> AsyncIterator[Point]:
        async for point in points:
            yield Point(point.y, point.x)

    async def structs(self, structs: AsyncIterator[Struct]) -> AsyncIterator[Struct]:
        async for struct in structs:
            struct["seen"] = True
            yield struct

    async def chunks(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk[::-1]

    async def builtins(self, items: AsyncIterator[dict[str, int]]) -> AsyncIterator[list[str]]:
        async for item in items:
            yield sorted(item)

    async def types(self, structs: AsyncIterator[Struct], call: Call) -> AsyncIterator[str]:
        async for _struct in structs:
            yield call.headers.get("Content-Type", "none")


def _struct(**fields: object) -> Struct:
    made = Struct()
    made.update(fields)
    return made


@pytest.mark.parametrize(
    ("endpoint", "sent", "comes"),
    [
        ("models", [Number(n=1)], [Number(n=1)]),
        ("points", [Point(1, 2), Point(3, 4)], [Point(2, 1), Point(4, 3)]),
        ("structs", [_struct(a=1)], [_struct(a=1, seen=True)]),
        ("chunks", [b"ab", b"", b"\x00\xff"], [b"ba", b"", b"\xff\x00"]),
        ("builtins", [{"b": 1, "a": 2}, {}], [["a", "b"], []]),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
async def test_every_kind_of_message_streams(busmicro_client, serve, endpoint, sent, comes):
    """Models, dataclasses, protobuf messages, bytes and builtins travel as what they are."""
    await serve(Kinds())
    method = getattr(busmicro_client.stub(Kinds, service="chat"), endpoint)

    assert [message async for message in method(iter(sent))] == comes


@pytest.mark.parametrize(
    ("content_type", "comes"),
    [(None, "application/protobuf"), ("application/json", "none")],
    ids=["default", "json"],
)
async def test_content_type_holds_for_every_message(busmicro_client, serve, content_type, comes):
    """`with_options(content_type=)` says how all messages of a stream travel, both ways."""
    await serve(Kinds())
    client = busmicro_client.with_options(content_type=content_type)

    async with client.stream("chat", "Kinds.types", sends=Struct, returns=str) as stream:
        for _ in range(2):
            await stream.send(_struct(a=1))
            assert await anext(stream) == comes
    async with client.stream("chat", "Kinds.structs", sends=Struct, returns=Struct) as stream:
        await stream.send(_struct(a=1))
        assert (await anext(stream))["seen"] is True
        assert stream.reply_headers.get("Content-Type", "none") == comes


async def test_messagepack_streams(busmicro_client, serve):
    """MessagePack goes there and comes back, announced once for all messages."""
    await serve(Kinds())
    client = busmicro_client.with_options(content_type="application/msgpack")

    async with client.stream("chat", "Kinds.points", sends=Point, returns=Point) as stream:
        await stream.send(Point(1, 2))
        assert await anext(stream) == Point(2, 1)
        assert stream.reply_headers["Content-Type"] == "application/msgpack"


async def test_reply_that_is_not_what_the_caller_expects_is_data_loss(busmicro_client, serve):
    """A message of another type is an error that names the field; the stream goes on after it."""

    class Other(BaseModel):
        name: str

    await serve(Chat())

    async with busmicro_client.stream("chat", "Chat.count", Number(n=2), returns=Other) as stream:
        for _ in range(2):
            with pytest.raises(DataLoss, match="not what was expected") as caught:
                await anext(stream)
            assert caught.value.details[0]["field"] == "name"
        assert [other async for other in stream] == []


# --- where and what a call knows ------------------------------------------------------------------


async def test_one_node_can_be_asked(busmicro_client, serve):
    """With `node=` streams go to that node, by `stream` and by a stub."""

    class Who:
        def __init__(self, name: str) -> None:
            self.name = name

        async def are_you(self) -> AsyncIterator[str]:
            yield self.name

    for name in ("a", "b"):
        await serve(Who(name), id=f"node-{name}")

    for name in ("a", "b", "a", "b"):
        client = busmicro_client.with_options(node=f"node-{name}")
        assert [n async for n in client.stub(Who, service="chat").are_you()] == [name]
        async with client.stream("chat", "Who.are_you", returns=str) as stream:
            assert await anext(stream) == name


async def test_namespace_keeps_streams_apart(busmicro_server, busmicro_client, serve, remains):
    """A stream stays in its namespace, also when it is cancelled."""
    inside, outside = Chat(), Chat()
    await serve(inside, namespace="blue.green")
    await serve(outside)

    async with Client(busmicro_server.url, namespace="blue.green") as client:
        remains.watch(client)
        async for tick in client.stub(Chat, service="chat").count(Number(n=-1)):
            if tick.n == 10:
                break
        chat = client.stub(Chat, service="chat")
        assert await chat.total(numbers(4)) == Number(n=6)

    assert "got 3" in inside.notes
    assert outside.notes == []


async def test_handler_sees_its_call(busmicro_client, serve):
    """`call: Call` knows the headers and that this is a stream; `current_call` is the same one."""
    service = Service("sees")
    seen: list[object] = []

    @service.rpc
    async def one(to: int, call: Call) -> AsyncIterator[int]:
        seen.append((call.message, call.headers["X-Who"], call.spec.kind, call.spec.side))
        seen.append(current_call() is call)
        yield to

    @service.rpc
    async def many(numbers: AsyncIterator[int], call: Call) -> int:
        seen.append((call.message, call.headers["X-Who"], call.spec.endpoint))
        return 1

    await serve(service)
    headers = {"X-Who": "me"}

    async with busmicro_client.stream("sees", "one", 5, returns=int, headers=headers) as stream:
        assert [n async for n in stream] == [5]
    async with busmicro_client.stream(
        "sees", "many", sends=int, returns=int, headers=headers
    ) as stream:
        await stream.result()

    assert seen == [(5, "me", Kind.STREAM, Side.HANDLER), True, (None, "me", "many")]


async def test_nested_stream_passes_on_trace_and_deadline(busmicro_client, serve):
    """A handler that reads another service's stream gives it its trace and what time it has."""
    seen: dict[str, object] = {}
    inner, outer = Service("inner"), Service("outer")
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    class Source:
        async def count(self, to: int, call: Call) -> AsyncIterator[int]:
            seen["trace"] = call.headers.get("traceparent")
            seen["caller"] = call.headers.get("Bus-Caller")
            seen["private"] = call.headers.get("X-Private")
            seen["left"] = (call.deadline or 0) - time.monotonic()
            for n in range(to):
                yield n

    @outer.rpc
    async def relay(to: int) -> AsyncIterator[int]:
        async for n in outer.client.stub(Source, service="inner").count(to):
            yield n

    inner.handle(Source())
    await serve(inner)
    await serve(outer)

    async with busmicro_client.stream(
        "outer",
        "relay",
        700,
        returns=int,
        timeout=30,
        headers={"traceparent": trace, "X-Private": "1"},
    ) as stream:
        assert [n async for n in stream] == [*range(700)]

    assert (seen["trace"], seen["caller"], seen["private"]) == (trace, "outer", None)
    assert 20 < seen["left"] <= 30
