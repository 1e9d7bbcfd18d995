"""The types of the public API, read by mypy and never run.

Lines that end in `# error: CODE` must be rejected with that code; every other line must pass.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import assert_type

from pydantic import BaseModel

from busmicro import (
    Answers,
    Call,
    CallStream,
    Client,
    Delivery,
    Events,
    Handler,
    Service,
    Stored,
    StoredMany,
    Stream,
    Topic,
    endpoint_options,
)


class HelloRequest(BaseModel):
    name: str


class HelloReply(BaseModel):
    greeting: str


class Chat:
    async def hello(self, request: HelloRequest) -> HelloReply:
        return HelloReply(greeting=request.name)

    @endpoint_options(idempotent=True)
    async def count(self, upto: int, call: Call) -> list[int]:
        return list(range(upto))

    async def ping(self) -> None: ...


service = Service("greeter", version="1.0.0")


@service.rpc
async def hello(request: HelloRequest) -> HelloReply:
    return HelloReply(greeting=request.name)


@service.rpc("Greeter.hi", timeout=2.0, idempotent=True, metadata={"a": "b"})
async def hi(request: HelloRequest, call: Call) -> HelloReply:
    return HelloReply(greeting=request.name)


@service.rpc  # error: type-var
def sync(request: HelloRequest) -> HelloReply:
    return HelloReply(greeting=request.name)


async def decorated_functions_keep_their_types() -> None:
    assert_type(await hello(HelloRequest(name="J")), HelloReply)
    await hello(1)  # error: arg-type
    await hi(HelloRequest(name="J"))  # error: call-arg


async def call_returns_what_it_is_told(client: Client) -> None:
    assert_type(await client.call("greeter", "hello", returns=HelloReply), HelloReply)
    assert_type(await client.call("greeter", "numbers", 3, returns=list[int]), list[int])
    assert_type(await client.call("greeter", "hello", {"name": "J"}), object)
    reply = await client.call("greeter", "hello", returns=HelloReply)
    reply.greting  # error: attr-defined
    everyone = await client.call_all("greeter", "hello", returns=HelloReply, timeout=0.5)
    assert_type(everyone, Answers[HelloReply])
    assert_type(everyone[0].greeting, str)
    await client.call("greeter", "hello", timeout="2")  # error: call-overload
    await client.call("greeter")  # error: call-overload
    client.with_options(retries=3)  # error: call-arg


async def stub_is_the_class(client: Client) -> None:
    chat = client.stub(Chat, service="chat")
    assert_type(chat, Chat)
    assert_type(await chat.hello(HelloRequest(name="J")), HelloReply)
    assert_type(await chat.ping(), None)
    await chat.hello("J")  # error: arg-type
    await chat.bye()  # error: attr-defined


class Numbers:
    async def count(self, to: int) -> AsyncIterator[HelloReply]:
        yield HelloReply(greeting=str(to))

    async def total(self, numbers: AsyncIterator[int]) -> HelloReply:
        return HelloReply(greeting=str([n async for n in numbers]))

    async def talk(self, numbers: AsyncIterator[int], call: Call) -> AsyncIterator[HelloReply]:
        async for number in numbers:
            yield HelloReply(greeting=str(number))


@service.rpc
async def count(to: int) -> AsyncIterator[int]:
    yield to


@service.rpc("Greeter.total", timeout=60.0)
async def total(numbers: AsyncIterator[int], call: Call) -> int:
    return sum([number async for number in numbers])


async def one(number: int) -> AsyncIterator[int]:
    yield number


async def decorated_streams_keep_their_types(call: Call) -> None:
    assert_type(count(3), AsyncIterator[int])
    assert_type(await total(one(1), call), int)
    await total(3, call)  # error: arg-type


async def stub_streams_as_the_class_does(client: Client, call: Call) -> None:
    numbers = client.stub(Numbers, service="numbers")
    async for reply in numbers.count(3):
        assert_type(reply, HelloReply)
    assert_type(await numbers.total(one(1)), HelloReply)
    async for reply in numbers.talk(one(1), call):
        assert_type(reply.greeting, str)
    await numbers.count(3)  # error: misc
    await numbers.total(["J"])  # error: arg-type
    numbers.count("3")  # error: arg-type


async def stream_has_the_types_that_it_is_told(client: Client) -> None:
    async with client.stream("chat", "talk", sends=HelloRequest, returns=HelloReply) as stream:
        assert_type(stream, CallStream[HelloRequest, HelloReply])
        assert_type(await anext(stream), HelloReply)
        await stream.send(HelloRequest(name="J"))
        await stream.send("J")  # error: arg-type
        async for reply in stream:
            assert_type(reply, HelloReply)
            reply.greting  # error: attr-defined
        assert_type(await stream.result(), HelloReply)
        assert_type(await stream.close_send(), None)
        assert_type(stream.headers.get("a"), str | None)
        assert_type(stream.reply_headers.get("a"), str | None)
    async with client.stream("chat", "count", 3, returns=int, timeout=2, idle_timeout=1) as counted:
        assert_type([number async for number in counted], list[int])
        await counted.send(4)  # error: arg-type
    async with client.stream("chat", "talk", sends=str) as untyped:
        assert_type(await anext(untyped), object)
    client.stream("chat", "count", 3, returns=int, timeout="2")  # error: arg-type
    client.stream("chat", "count", 3, int)  # error: call-arg
    client.stream("chat")  # error: call-arg


async def audit(call: Call, call_next: Handler) -> object:
    assert_type(call.headers.get("Bus-Caller"), str | None)
    assert_type(call.spec.service, str)
    return await call_next(call)


async def backwards(call_next: Handler, call: Call) -> object:
    return await call_next(call)


service.wrap_handler(audit)
service.wrap_client(audit, audit)
service.wrap_handler(backwards)  # error: arg-type


stream = Stream("GREETINGS", subjects=["greetings.>"], max_age=60.0)
Stream("GREETINGS", max_age="1d")  # error: arg-type
Stream("GREETINGS", discard="oldest")  # error: arg-type
said = Topic("greetings.said", HelloReply, stream=stream)
local = Topic("greetings.{region}", HelloReply)
assert_type(said, Topic[HelloReply])
assert_type(local.format(region="eu"), Topic[HelloReply])
service.publishes(said, local)
service.publishes("greetings.said")  # error: arg-type


@service.subscribe(said, group="readers", max_deliver=3, backoff=[1, 5], key=lambda r: r.greeting)
async def on_said(reply: HelloReply, call: Call) -> None:
    assert_type(call.delivery, Delivery | None)


@service.subscribe(said, group="counters", batch=10, start="first")
async def on_many(replies: list[HelloReply]) -> None: ...


@service.subscribe(said, group="late", start=datetime(2030, 1, 1, tzinfo=UTC))
async def on_late(reply: HelloReply) -> None: ...


service.subscribe(said, retries=3)  # error: call-arg
service.subscribe(said, start="latest")  # error: arg-type
service.subscribe("greetings.said")  # error: arg-type


@service.subscribe(said)  # error: type-var
def not_async(reply: HelloReply) -> None: ...


async def subscribed_functions_keep_their_types(call: Call) -> None:
    await on_said(HelloReply(greeting="hi"), call)
    await on_said("hi", call)  # error: arg-type


async def publishing_is_typed(client: Client) -> None:
    reply = HelloReply(greeting="hi")
    assert_type(await client.publish(said, reply, id="1", after=2.0), Stored | None)
    assert_type(await service.publish(said, reply, headers={"a": "b"}), Stored | None)
    task = asyncio.create_task(client.publish(said, reply))  # noqa: TID251 - users may
    assert_type(await task, Stored | None)
    await asyncio.gather(client.publish(said, reply), client.publish(said, reply))
    await client.publish(said, HelloRequest(name="J"))  # error: misc
    await service.publish(said, "hi")  # error: misc
    await client.publish(said, reply, at="tomorrow")  # error: arg-type
    await client.publish("greetings.said", reply)  # error: arg-type
    client.publish(said, reply)  # error: unused-coroutine


async def publishing_many_is_typed(client: Client, replies: AsyncIterator[HelloReply]) -> None:
    assert_type(await client.publish_many(said, replies, id=lambda r: r.greeting), StoredMany)
    assert_type(await service.publish_many(said, [HelloReply(greeting="hi")]), StoredMany)
    await client.publish_many(said, ["hi"])  # error: misc
    await client.publish_many(said, replies, id=lambda r: r.greting)  # error: attr-defined


async def iterating_yields_the_type_of_the_topic(client: Client) -> None:
    async with client.subscribe(said, group="readers", start=17) as events:
        assert_type(events, Events[HelloReply])
        async for event in events:
            assert_type(event, HelloReply)
            assert_type(events.call.headers.get("a"), str | None)
        assert_type(await events.collect(most=10, timeout=1.0), list[HelloReply])
    client.subscribe(said, start="latest")  # error: arg-type


service.cron("0 */5 * * * *", said, HelloReply(greeting="tick"))
service.cron("@hourly", said, HelloRequest(name="J"))  # error: misc
