"""What travels: messages of every kind, headers, and to which nodes."""

from __future__ import annotations

import asyncio
import json

import nats
import pytest
from google.protobuf.struct_pb2 import Struct
from typing_extensions import TypedDict

from busmicro import (
    Call,
    Client,
    Code,
    DeadlineExceeded,
    Handler,
    Service,
    Unavailable,
    Unimplemented,
    current_call,
    endpoint_options,
)
from tests.nats.calls.greeter import HelloReply, HelloRequest, Point, greeter


class Size(TypedDict):
    width: int
    height: int


async def test_call_returns_the_typed_reply(busmicro_client, busmicro_start):
    """A call with a model comes back as a validated model."""
    await busmicro_start(greeter())

    reply = await busmicro_client.call(
        "greeter", "hello", HelloRequest(name="John"), returns=HelloReply
    )

    assert reply == HelloReply(greeting="Hello John")


async def test_call_returns_builtins_when_no_type_is_given(busmicro_client, busmicro_start):
    """Without `returns` JSON comes back as dicts, lists and the rest."""
    await busmicro_start(greeter())

    assert await busmicro_client.call("greeter", "hello", {"name": "J"}) == {"greeting": "Hello J"}


async def test_every_kind_of_message_travels(busmicro_client, busmicro_start):
    """Dataclasses, TypedDicts, builtins, protobuf messages, bytes and nothing work both ways."""
    service = Service("types")

    @service.rpc
    async def point(point: Point) -> Point:
        return Point(point.y, point.x)

    @service.rpc
    async def size(size: Size) -> Size:
        return Size(width=size["height"], height=size["width"])

    @service.rpc
    async def numbers(numbers: list[int]) -> dict[str, int]:
        return {"sum": sum(numbers)}

    @service.rpc
    async def struct(struct: Struct) -> Struct:
        struct["seen"] = True
        return struct

    @service.rpc
    async def raw(payload: bytes) -> bytes:
        return payload[::-1]

    @service.rpc
    async def nothing() -> None:
        return None

    await busmicro_start(service)
    call = busmicro_client.call

    assert await call("types", "point", Point(1, 2), returns=Point) == Point(2, 1)
    assert await call("types", "size", Size(width=1, height=2), returns=Size) == {
        "width": 2,
        "height": 1,
    }
    assert await call("types", "numbers", [1, 2, 3], returns=dict[str, int]) == {"sum": 6}
    given = Struct()
    given["a"] = 1
    assert (await call("types", "struct", given, returns=Struct))["seen"] is True
    assert await call("types", "raw", b"abc\xff", returns=bytes) == b"\xffcba"
    assert await call("types", "nothing") is None


@pytest.mark.parametrize("content_type", ["application/json", "application/msgpack"])
async def test_content_type_is_the_callers_choice(busmicro_client, busmicro_start, content_type):
    """One endpoint answers in the content type that it was asked in."""
    seen: list[str] = []

    async def watch(call: Call, call_next: Handler) -> object:
        seen.append(call.headers.get("content-type", "application/json"))
        return await call_next(call)

    await busmicro_start(greeter(handler_wrappers=[watch]))
    client = busmicro_client.with_options(content_type=content_type)

    reply = await client.call("greeter", "hello", HelloRequest(name="J"), returns=HelloReply)

    assert reply.greeting == "Hello J"
    assert seen == [content_type]


async def test_protobuf_endpoint_takes_json_too(busmicro_server, busmicro_start):
    """A person can call a protobuf endpoint with text."""
    service = Service("proto")

    @service.rpc
    async def echo(struct: Struct) -> Struct:
        return struct

    await busmicro_start(service)
    raw = await nats.connect(busmicro_server.url)

    reply = await raw.request("rpc.proto.echo", b'{"a": 1}', timeout=2)

    await raw.close()
    assert json.loads(reply.data) == {"a": 1}


async def test_headers_go_both_ways(busmicro_client, busmicro_start):
    """A handler reads the caller's headers without regard to case and answers with its own."""
    service = Service("headers")

    @service.rpc
    async def echo(text: str, call: Call) -> str:
        call.reply_headers["X-Seen"] = call.headers["x-tenant"]
        assert current_call() is call
        return text

    await busmicro_start(service)
    seen: list[str] = []

    async def watch(call: Call, call_next: Handler) -> object:
        reply = await call_next(call)
        seen.append(call.reply_headers["x-seen"])
        return reply

    async with Client(busmicro_client.bus.settings.nats_url, wrappers=[watch]) as client:
        await client.call("headers", "echo", "hi", headers={"X-Tenant": "acme"})

    assert seen == ["acme"]


@pytest.mark.parametrize("wrapped", [False, True])
async def test_headers_of_a_call_come_besides_those_of_the_client(
    busmicro_client, busmicro_start, wrapped: bool
):
    """Each header arrives once; the call's own wins, whether or not a wrapper reads them before."""
    service = Service("headers")
    expected: list[str] = []
    blocks: list[bytes] = []

    @service.rpc
    async def see(call: Call) -> dict[str, str]:
        return dict(call.headers)

    async def read(call: Call, call_next: Handler) -> object:
        assert call.headers["x-tenant"] == expected[0]
        return await call_next(call)

    await busmicro_start(service)
    transport = busmicro_client.bus.transport
    transport.subscribe("rpc.headers.see", lambda _s, _r, block, _p: blocks.append(block))
    await transport.barrier()
    url = busmicro_client.bus.settings.nats_url
    async with Client(url, wrappers=[read] if wrapped else []) as client:
        usual = client.with_options(headers={"X-Tenant": "acme", "X-Region": "eu"})

        async def seen(given: dict[str, str] | None, tenant: str) -> dict[str, str]:
            expected[:] = [tenant]
            answer = await usual.call("headers", "see", returns=dict[str, str], headers=given)
            return {name: value for name, value in answer.items() if name.startswith("X-")}

        assert await seen(None, "acme") == {"X-Tenant": "acme", "X-Region": "eu"}
        assert await seen({"X-A": "1", "X-B": "2"}, "acme") == {
            "X-Tenant": "acme",
            "X-Region": "eu",
            "X-A": "1",
            "X-B": "2",
        }
        assert await seen({"X-Tenant": "other"}, "other") == {
            "X-Tenant": "other",
            "X-Region": "eu",
        }
        assert await seen({}, "acme") == {"X-Tenant": "acme", "X-Region": "eu"}
    await transport.barrier()
    assert [block.count(b"X-Tenant:") for block in blocks] == [1] * 4


async def test_headers_are_those_that_were_given(busmicro_client, busmicro_start):
    """Whoever fills its dict of headers anew while a call waits changes nothing of that call."""
    service = Service("headers")
    goes_on = asyncio.Event()

    @service.rpc
    async def see(call: Call) -> str:
        return call.headers["X-Turn"]

    async def wait(call: Call, call_next: Handler) -> object:
        await goes_on.wait()
        return await call_next(call)

    await busmicro_start(service)
    async with Client(busmicro_client.bus.settings.nats_url, wrappers=[wait]) as client:
        given = {"X-Turn": "first"}
        async with asyncio.TaskGroup() as group:
            call = group.create_task(client.call("headers", "see", headers=given))
            await asyncio.sleep(0)
            given["X-Turn"] = "second"
            goes_on.set()

        assert call.result() == "first"


async def test_stub_calls_like_the_class(busmicro_client, busmicro_start):
    """A stub's methods are calls, with names, types and time-outs of the class."""

    class Calculator:
        async def double(self, number: int) -> int:
            return 2 * number

        @endpoint_options("Calc.sum", idempotent=True, timeout=0.2)
        async def total(self, numbers: list[float]) -> float:
            await asyncio.sleep(numbers[0])
            return sum(numbers)

        async def nothing(self) -> None:
            return None

    service = Service("calculator")
    service.handle(Calculator())
    await busmicro_start(service)
    calculator = busmicro_client.stub(Calculator, service="calculator")

    assert isinstance(calculator, Calculator)
    assert await calculator.double(21) == 42
    assert await calculator.total([0.0, 1.0]) == 1.0
    assert await calculator.nothing() is None
    with pytest.raises(DeadlineExceeded):
        await calculator.total([5.0])


async def test_call_all_asks_every_node(busmicro_client, busmicro_start):
    """`call_all` returns the reply of each node and says which node failed how."""
    for number in range(3):
        await busmicro_start(_sensor(number))

    answers = await busmicro_client.call_all("sensor", "where", returns=int, timeout=2.0)

    assert answers == [0, 1]
    assert answers.nodes == ["sensor-0", "sensor-1"]
    assert {node: error.code for node, error in answers.failures.items()} == {
        "sensor-2": Code.UNAVAILABLE
    }


def _sensor(number: int) -> Service:
    service = Service("sensor", id=f"sensor-{number}")

    @service.rpc
    async def where() -> int:
        if number == 2:
            raise Unavailable("broken")
        return number

    return service


async def test_call_all_without_a_node_is_unavailable(busmicro_client):
    """Asking everybody where nobody is says so."""
    with pytest.raises(Unavailable, match="no node of nobody"):
        await busmicro_client.call_all("nobody", "where", returns=int, timeout=1.0)


async def test_call_to_one_node_reaches_that_node(busmicro_client, busmicro_start):
    """`with_options(node=…)` picks the node; an unknown endpoint there is named with its likes."""
    for number in range(2):
        await busmicro_start(_sensor(number))
    one = busmicro_client.with_options(node="sensor-1")

    assert [await one.call("sensor", "where") for _ in range(10)] == [1] * 10
    with pytest.raises(Unimplemented, match="did you mean where"):
        await one.call("sensor", "wheer")
