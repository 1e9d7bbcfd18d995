"""Calls over a real server: what goes in, what comes out, and that every request is answered."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import dataclass

import nats
import pytest
from google.protobuf.struct_pb2 import Struct
from pydantic import BaseModel
from typing_extensions import TypedDict

from busmicro import (
    Call,
    CallError,
    Client,
    Code,
    DeadlineExceeded,
    Handler,
    Internal,
    InvalidArgument,
    NatsServer,
    NotFound,
    PayloadTooLarge,
    ResourceExhausted,
    Retry,
    Service,
    Settings,
    SetupError,
    Unavailable,
    Unimplemented,
    current_call,
    endpoint_options,
)


class HelloRequest(BaseModel):
    name: str


class HelloReply(BaseModel):
    greeting: str


@dataclass
class Point:
    x: int
    y: int


class Size(TypedDict):
    width: int
    height: int


def greeter(**options: object) -> Service:
    service = Service("greeter", **options)  # type: ignore[arg-type]

    @service.rpc
    async def hello(request: HelloRequest) -> HelloReply:
        """Greet somebody."""
        return HelloReply(greeting=f"Hello {request.name}")

    @service.rpc
    async def missing(request: HelloRequest) -> HelloReply:
        raise NotFound(f"no {request.name}", details=[{"searched": "here"}])

    @service.rpc
    async def broken(request: HelloRequest) -> HelloReply:
        raise ValueError("the password is hunter2")

    @service.rpc
    async def wrong() -> HelloReply:
        return {"greeting": 1}  # type: ignore[return-value]

    @service.rpc
    async def sleep(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    @service.rpc
    async def large(size: int) -> bytes:
        return b"x" * size

    return service


# --- what travels ---------------------------------------------------------------------------------


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


# --- failures reach the caller --------------------------------------------------------------------


async def test_handlers_error_arrives_as_the_same_class(busmicro_client, busmicro_start):
    """What a handler raises is what the caller catches: class, message, details and origin."""
    await busmicro_start(greeter())

    with pytest.raises(NotFound) as caught:
        await busmicro_client.call("greeter", "missing", {"name": "bob"})

    error = caught.value
    assert (error.message, error.details, error.origin) == (
        "no bob",
        [{"searched": "here"}],
        "greeter",
    )


async def test_unexpected_exception_is_internal_and_keeps_its_secrets(
    busmicro_client, busmicro_start, caplog
):
    """The caller gets an id; the log has that id beside the traceback."""
    await busmicro_start(greeter())

    with pytest.raises(Internal) as caught:
        await busmicro_client.call("greeter", "broken", {"name": "x"})

    assert "hunter2" not in str(caught.value)
    fault = caught.value.message.rpartition(" ")[2]
    assert any(fault in record.getMessage() and record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    ("payload", "headers", "says"),
    [
        (b'{"name": ', None, "Invalid JSON"),
        (b'{"name": 42}', None, "name"),
        (b"{}", None, "name: Field required"),
        (b"\xff\xfe\x00", None, "Invalid JSON"),
        (b"", None, "Invalid JSON"),
        (b"a=b", {"Content-Type": "text/plain"}, "send application/json"),
        (b'{"name":"x"}', {"Content-Type": "application/protobuf"}, "send application/json"),
        (b"\xc1", {"Content-Type": "application/msgpack"}, "MessagePack"),
        (b'{"name":"x"}', {"Bus-Timeout": "soon"}, "is no number"),
    ],
)
async def test_bad_request_is_told_what_is_wrong(
    busmicro_server, busmicro_client, busmicro_start, payload, headers, says
):
    """Rubbish gets a coded answer at once, and the service lives."""
    await busmicro_start(greeter())
    raw = await nats.connect(busmicro_server.url)

    reply = await raw.request("rpc.greeter.hello", payload, timeout=1, headers=headers)

    await raw.close()
    assert reply.headers["Nats-Service-Error-Code"] == "400"
    assert reply.headers["Bus-Status"] == "invalid_argument"
    body = json.loads(reply.data)
    assert body["code"] == "invalid_argument"
    assert says in body["message"]
    assert body["origin"] == "greeter"
    assert await busmicro_client.call("greeter", "hello", {"name": "J"})


async def test_ten_mebibytes_are_refused_before_the_wire(busmicro_client, busmicro_start):
    """A message that the server would not take raises at once and the connection lives on."""
    await busmicro_start(greeter())

    with pytest.raises(PayloadTooLarge):
        await busmicro_client.call("greeter", "hello", {"name": "x" * 10 * 1024 * 1024})

    assert await busmicro_client.call("greeter", "hello", {"name": "J"})


async def test_reply_that_is_too_large_is_an_error_and_not_a_time_out(
    busmicro_client, busmicro_start
):
    """The caller of a handler that returns too much hears why."""
    await busmicro_start(greeter())

    with pytest.raises(ResourceExhausted, match="could not be sent"):
        await busmicro_client.call("greeter", "large", 2_000_000)


async def test_reply_of_the_wrong_type_is_internal(busmicro_client, busmicro_start):
    """What a handler returns is checked too; half-right replies are not sent."""
    await busmicro_start(greeter())

    with pytest.raises(Internal, match="not declared"):
        await busmicro_client.call("greeter", "wrong")


async def test_reply_that_the_caller_does_not_expect_is_data_loss(busmicro_client, busmicro_start):
    """A reply that does not fit `returns` is an error with the reasons, never half a reply."""
    await busmicro_start(greeter())

    with pytest.raises(CallError) as caught:
        await busmicro_client.call("greeter", "hello", {"name": "J"}, returns=Point)

    assert caught.value.code is Code.DATA_LOSS
    assert caught.value.details


async def test_unknown_endpoint_of_a_live_service_is_unimplemented(busmicro_client, busmicro_start):
    """A misspelt endpoint is told apart from a service that is down, with the likely name."""
    await busmicro_start(greeter())

    with pytest.raises(Unimplemented, match="did you mean hello"):
        await busmicro_client.call("greeter", "helo", {"name": "J"})


async def test_no_node_is_unavailable_within_ten_milliseconds(busmicro_client):
    """Where nobody serves, the caller knows at once, median of twenty."""
    took = []
    for _ in range(20):
        began = time.perf_counter()
        with pytest.raises(Unavailable) as caught:
            await busmicro_client.call("nobody", "hello")
        took.append(time.perf_counter() - began)

    assert caught.value.not_run
    assert sorted(took)[10] < 0.010


@pytest.mark.parametrize("name", ["", "a b", "a.b", "ü", "a*", ">", "x" * 65])
async def test_bad_service_name_is_refused_before_the_wire(busmicro_client, name):
    """A name that cannot be a service's is told the rule, at the caller."""
    with pytest.raises(InvalidArgument, match="service name"):
        await busmicro_client.call(name, "hello")


@pytest.mark.parametrize(
    "headers", [{"X": "a\r\nNats-Service-Error-Code: 200"}, {"X Y": "a"}, {"X": "ü"}, {"": "a"}]
)
async def test_bad_header_is_refused_before_the_wire(busmicro_client, busmicro_start, headers):
    """A header that would not arrive as it was given is refused at the caller."""
    await busmicro_start(greeter())

    with pytest.raises(InvalidArgument, match="header"):
        await busmicro_client.call("greeter", "hello", {"name": "J"}, headers=headers)


async def test_failure_of_a_nested_call_is_not_taken_for_a_call_that_did_not_run(
    busmicro_client, busmicro_start
):
    """A handler that ran is never run again because something it called could not be reached."""
    runs = 0
    service = Service("outer")

    @service.rpc
    async def charge() -> None:
        nonlocal runs
        runs += 1
        await service.client.call("nobody", "there")

    await busmicro_start(service)

    with pytest.raises(Unavailable) as caught:
        await busmicro_client.call("outer", "charge")

    assert runs == 1
    assert not caught.value.not_run


async def test_hopeless_failures_cost_no_retry(busmicro_server, busmicro_start):
    """What will be no better next time is not tried again and spends nothing of the budget."""
    retry = Retry()
    await busmicro_start(greeter())
    async with Client(busmicro_server.url, wrappers=[retry]) as client:
        for endpoint, message, headers in [
            ("nope", {}, {}),
            ("hello", {"name": "x" * 2_000_000}, {}),
            ("hello", {"name": "J"}, {"X": "ü"}),
            ("hello", object(), {}),
        ]:
            with pytest.raises(CallError):
                await client.call("greeter", endpoint, message, headers=headers)

    assert retry.budget("greeter").left == 10.0


async def test_reply_header_that_looks_like_an_error_is_none(busmicro_client, busmicro_start):
    """Whatever a handler puts into its own headers, its success stays a success."""
    service = Service("notes")

    @service.rpc
    async def note(call: Call) -> str:
        call.reply_headers["X-Note"] = "see Nats-Service-Error"
        return "fine"

    await busmicro_start(service)

    assert await busmicro_client.call("notes", "note") == "fine"


# --- time -----------------------------------------------------------------------------------------


async def test_deadline_ends_the_call_at_both_ends(busmicro_client, busmicro_start):
    """A call over its time ends as DeadlineExceeded, close to it, and its handler is cancelled."""
    ended = asyncio.Event()
    service = Service("slow")

    @service.rpc
    async def wait() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    await busmicro_start(service)
    began = time.perf_counter()

    with pytest.raises(DeadlineExceeded):
        await busmicro_client.call("slow", "wait", timeout=0.2)

    assert 0.19 < time.perf_counter() - began < 0.3
    async with asyncio.timeout(1):
        await ended.wait()


async def test_endpoints_own_timeout_counts_when_the_caller_says_none(
    busmicro_server, busmicro_start
):
    """A foreign caller without Bus-Timeout gets the time that the endpoint advertises."""
    service = Service("slow")

    @service.rpc("wait", timeout=0.1)
    async def wait() -> None:
        await asyncio.sleep(30)

    await busmicro_start(service)
    raw = await nats.connect(busmicro_server.url)
    began = time.perf_counter()

    reply = await raw.request("rpc.slow.wait", b"", timeout=5)

    await raw.close()
    assert reply.headers["Bus-Status"] == "deadline_exceeded"
    assert time.perf_counter() - began < 0.5


async def test_expired_request_is_refused_before_its_handler(busmicro_server, busmicro_start):
    """A request that arrives with no time left is answered without running anything."""
    ran = []
    service = Service("late")

    @service.rpc
    async def run() -> None:
        ran.append(1)

    await busmicro_start(service)
    raw = await nats.connect(busmicro_server.url)

    reply = await raw.request("rpc.late.run", b"", timeout=5, headers={"Bus-Timeout": "0"})

    await raw.close()
    assert reply.headers["Bus-Status"] == "deadline_exceeded"
    assert not ran


async def test_nested_calls_get_what_is_left(busmicro_client, busmicro_start):
    """A -> B -> C: each has no more time than the one that called it, whatever it asks for."""
    left: list[float] = []
    service = Service("chain")

    @service.rpc
    async def outer(call: Call) -> None:
        left.append((call.deadline or 0) - time.monotonic())
        await asyncio.sleep(0.1)
        await service.client.call("chain", "middle", timeout=60)

    @service.rpc
    async def middle(call: Call) -> None:
        left.append((call.deadline or 0) - time.monotonic())
        await service.client.call("chain", "inner", timeout=60)

    @service.rpc
    async def inner(call: Call) -> None:
        left.append((call.deadline or 0) - time.monotonic())

    await busmicro_start(service)

    await busmicro_client.call("chain", "outer", timeout=1.0)

    assert 1.0 >= left[0] > 0.9 >= left[1] >= left[2] > 0.5


async def test_only_trace_and_deadline_go_on_to_the_next_hop(busmicro_client, busmicro_start):
    """Credentials and other headers of a caller do not leak through a service."""
    seen: list[dict[str, str]] = []
    service = Service("hop")

    @service.rpc
    async def first() -> None:
        await service.client.call("hop", "second")

    @service.rpc
    async def second(call: Call) -> None:
        seen.append(dict(call.headers))

    await busmicro_start(service)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    await busmicro_client.call(
        "hop", "first", headers={"Authorization": "secret", "traceparent": trace}
    )

    assert set(seen[0]) == {"Bus-Timeout", "Bus-Caller", "traceparent"}
    assert seen[0]["Bus-Caller"] == "hop"
    assert seen[0]["traceparent"] == trace


async def test_cancelling_a_call_cancels_its_handler(busmicro_client, busmicro_start):
    """1,000 callers give up: at least 999 handlers are cancelled within 100 ms, none replies."""
    running, cancelled = 0, 0
    service = Service("slow")

    @service.rpc
    async def wait() -> None:
        nonlocal running, cancelled
        running += 1
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled += 1
            raise

    await busmicro_start(service)
    loop = asyncio.get_running_loop()
    calls = [
        loop.create_task(busmicro_client.call("slow", "wait", timeout=20)) for _ in range(1000)
    ]
    async with asyncio.timeout(5):
        while running < 1000:
            await asyncio.sleep(0.001)

    began = time.perf_counter()
    for call in calls:
        call.cancel()
    while cancelled < 999 and time.perf_counter() - began < 2:
        await asyncio.sleep(0.001)

    assert cancelled >= 999
    assert time.perf_counter() - began < 0.5  # 0.1 s is the figure of the benchmark machine
    await asyncio.gather(*calls, return_exceptions=True)


# --- limits ---------------------------------------------------------------------------------------


async def test_full_node_answers_resource_exhausted_at_once(busmicro_server):
    """Beyond `max_running` a request is refused with a time to stay away, it does not wait."""
    service = greeter(settings=Settings(nats_url=busmicro_server.url, max_running=10))
    async with service, Client(busmicro_server.url) as client:
        loop = asyncio.get_running_loop()
        held = [loop.create_task(client.call("greeter", "sleep", 1.0)) for _ in range(10)]
        async with asyncio.timeout(2):
            while service._life.server.running < 10:
                await asyncio.sleep(0.001)
        began = time.perf_counter()

        refused = await asyncio.gather(
            *(client.call("greeter", "hello", {"name": "J"}, timeout=0.3) for _ in range(100)),
            return_exceptions=True,
        )

        assert {type(error) for error in refused} == {ResourceExhausted}
        assert all(error.retry_after for error in refused)
        assert time.perf_counter() - began < 0.5
        assert await asyncio.gather(*held) == [1.0] * 10


async def test_slow_handlers_do_not_block_one_another(busmicro_client, busmicro_start):
    """Eight calls of 100 ms each take 100 ms and not 800: handlers run side by side."""
    await busmicro_start(greeter())
    began = time.perf_counter()

    await asyncio.gather(*(busmicro_client.call("greeter", "sleep", 0.1) for _ in range(8)))

    assert time.perf_counter() - began < 0.4


async def test_service_that_calls_itself_does_not_deadlock(busmicro_client, busmicro_start):
    """A calls B calls A on one connection each, and the answer comes."""
    a, b = Service("a"), Service("b")

    @a.rpc
    async def start() -> str:
        return f"a{await a.client.call('b', 'go')}"

    @a.rpc
    async def end() -> str:
        return "a"

    @b.rpc
    async def go() -> str:
        return f"b{await b.client.call('a', 'end')}"

    await busmicro_start(a)
    await busmicro_start(b)

    assert await busmicro_client.call("a", "start") == "aba"


async def test_running_handler_can_still_call_others_while_its_service_stops(
    busmicro_server, busmicro_client
):
    """A request taken before the stop finishes, calls to other services included."""
    other, service = Service("other"), Service("stopping")
    began = asyncio.Event()

    @other.rpc
    async def name() -> str:
        return "other"

    @service.rpc
    async def work() -> object:
        began.set()
        await asyncio.sleep(0.2)
        return await service.client.call("other", "name")

    await other.start(url=busmicro_server.url)
    await service.start(url=busmicro_server.url)
    call = asyncio.get_running_loop().create_task(busmicro_client.call("stopping", "work"))
    await began.wait()

    await service.stop()

    assert await call == "other"
    await other.stop()


async def test_message_without_a_reply_subject_is_dropped(
    busmicro_server,
    busmicro_client,
    busmicro_start,
    settled,
):
    """A message that nobody could be answered for runs nothing and harms nothing."""
    ran = []
    service = Service("quiet")

    @service.rpc
    async def run() -> None:
        ran.append(1)

    await busmicro_start(service)
    raw = await nats.connect(busmicro_server.url)

    await raw.publish("rpc.quiet.run", b"")
    await settled(raw)

    await busmicro_client.call("quiet", "Debug.Health")
    assert not ran
    await raw.close()


# --- reply subjects -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        "$SYS.x",
        "$JS.API.STREAM.DELETE.ORDERS",
        "rpc.greeter.hello",
        "node.greeter.x.hello",
        "cancel.greeter",
        "dlq.x",
    ],
)
async def test_reply_into_reserved_space_is_not_published(
    busmicro_server,
    busmicro_client,
    busmicro_start,
    reply,
    caplog,
    settled,
):
    """Nobody can make a service write where it may and they may not; it is counted and logged."""
    caplog.set_level(logging.WARNING)
    ran = []
    service = Service("victim")

    @service.rpc
    async def run() -> str:
        ran.append(1)
        return "written"

    await busmicro_start(service)
    raw = await nats.connect(busmicro_server.url)
    written = await raw.subscribe(reply)
    await settled(raw)

    await raw.publish("rpc.victim.run", b"", reply=reply)
    await settled(raw)

    stats = await busmicro_client.call("victim", "Debug.Stats")
    assert stats["refused_replies"] == 1
    assert not ran
    assert written.pending_msgs == 0
    assert any("must not publish" in record.getMessage() for record in caplog.records)
    await raw.close()


async def test_reply_into_a_stream_is_not_published(server, settled):
    """A stream's subjects are reserved too: no caller can store events through a service."""
    raw = await nats.connect(server.url)
    await raw.jetstream().add_stream(name="ORDERS", subjects=["orders.>"])
    async with greeter(url=server.url), Client(server.url) as client:
        await raw.publish("rpc.greeter.hello", b'{"name":"J"}', reply="orders.created")
        await settled(raw)
        await client.call("greeter", "hello", {"name": "J"})

        info = await raw.jetstream().stream_info("ORDERS")
        stats = await client.call("greeter", "Debug.Stats")

    await raw.close()
    assert info.state.messages == 0
    assert stats["refused_replies"] == 1


async def test_strict_replies_allow_inboxes_only(server, settled):
    """With `strict_replies` an answer goes below `_INBOX.` or nowhere."""
    settings = Settings(nats_url=server.url, strict_replies=True)
    raw = await nats.connect(server.url)
    replies = await raw.subscribe("my.own.subject")
    async with greeter(settings=settings), Client(server.url) as client:
        await raw.publish("rpc.greeter.hello", b'{"name":"J"}', reply="my.own.subject")
        await settled(raw)

        assert await client.call("greeter", "hello", {"name": "J"})
        assert (await client.call("greeter", "Debug.Stats"))["refused_replies"] == 1

    assert replies.pending_msgs == 0
    await raw.close()


async def test_any_other_reply_subject_is_answered(busmicro_server, busmicro_start):
    """Without `strict_replies` a foreign caller may choose its own reply subject."""
    await busmicro_start(greeter())
    raw = await nats.connect(busmicro_server.url)
    replies = await raw.subscribe("my.own.subject")

    await raw.publish("rpc.greeter.hello", b'{"name":"J"}', reply="my.own.subject")

    assert json.loads((await replies.next_msg(timeout=2)).data) == {"greeting": "Hello J"}
    await raw.close()


# --- options --------------------------------------------------------------------------------------


async def test_wait_for_ready_waits_for_a_node(busmicro_server):
    """With `wait_for_ready` a call made before its service is up gets through once it is."""
    async with Client(busmicro_server.url, wait_for_ready=True) as client:
        call = asyncio.get_running_loop().create_task(
            client.call("greeter", "hello", {"name": "J"}, timeout=10)
        )
        await asyncio.sleep(0.1)
        assert not call.done()
        async with greeter(url=busmicro_server.url):
            assert await call == {"greeting": "Hello J"}


async def test_wrappers_run_in_order_at_both_ends(busmicro_server, busmicro_start):
    """The first wrapper given is the outermost, and a bad payload passes through them all."""
    order: list[str] = []

    def note(name: str):
        async def wrapper(call: Call, call_next: Handler) -> object:
            order.append(f"{name}>")
            try:
                return await call_next(call)
            finally:
                order.append(f"<{name}")

        return wrapper

    await busmicro_start(greeter(handler_wrappers=[note("h1"), note("h2")]))
    async with Client(busmicro_server.url, wrappers=[note("c1"), note("c2")]) as client:
        with pytest.raises(InvalidArgument):
            await client.call("greeter", "hello", {"nam": 1})

    assert order == ["c1>", "c2>", "h1>", "h2>", "<h2", "<h1", "<c2", "<c1"]


async def test_namespaces_keep_services_apart(busmicro_server):
    """Two services of one name in two namespaces never get each other's calls."""
    async with (
        _named("blue", busmicro_server),
        _named("red", busmicro_server),
        Client(busmicro_server.url, namespace="blue") as blue,
        Client(busmicro_server.url, namespace="red") as red,
        Client(busmicro_server.url) as none,
    ):
        assert {await blue.call("who", "name") for _ in range(10)} == {"blue"}
        assert {await red.call("who", "name") for _ in range(10)} == {"red"}
        with pytest.raises(Unavailable):
            await none.call("who", "name")


def _named(namespace: str, server: NatsServer) -> Service:
    service = Service("who", namespace=namespace, url=server.url)

    @service.rpc
    async def name() -> str:
        return namespace

    return service


# --- set-up errors, before any I/O ----------------------------------------------------------------


def test_bad_handlers_are_refused_with_the_fix():
    """A handler that cannot work is refused at registration; the text names it and the fix."""
    service = Service("bad")

    def sync(request: HelloRequest) -> HelloReply: ...

    async def unhinted(request) -> HelloReply: ...

    async def silent(request: HelloRequest): ...

    async def many(a: int, b: int) -> int: ...

    for function, fix in [
        (sync, "async def"),
        (unhinted, "has no type hint"),
        (silent, "does not say what it returns"),
        (many, "takes 2 messages"),
    ]:
        with pytest.raises(SetupError, match=fix) as caught:
            service.rpc(function)
        assert function.__name__ in str(caught.value)


def test_duplicate_endpoint_names_both_functions():
    """Two handlers of one name are refused, and the text names both."""
    service = greeter()

    async def hello(request: HelloRequest) -> HelloReply: ...

    with pytest.raises(SetupError, match=r"hello.*taken by.*hello"):
        service.rpc(hello)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Service("a b"), "service name"),
        (lambda: Service("a.b"), "service name"),
        (lambda: Service("a", version="one"), "semver"),
        (lambda: Service("a", id="x y"), "node id"),
        (lambda: Service("a", namespace="rpc"), "namespace"),
        (lambda: Service("a").rpc("x.y.z")(greeter), "endpoint|async"),
        (lambda: Service("a").rpc("Debug.x")(_nothing), "service's own"),
        (lambda: Service("a").rpc("a b")(_nothing), "endpoint name"),
        (lambda: Service("a").handle(object()), "no public async method"),
        (lambda: Service("a").rpc("x", timeout=-1)(_nothing), "timeout=-1"),
        (lambda: Client(timeout=0), "timeout=0"),
        (lambda: Client("http://x"), "NATS_URL"),
        (lambda: Service("a").client, "does not run"),
    ],
)
def test_nonsense_is_refused_before_any_io(make, says):
    """Names, versions and numbers that cannot be meant raise SetupError with the rule."""
    with pytest.raises(SetupError, match=says):
        make()


async def _nothing() -> None: ...
