"""The types of the public API, read by mypy and never run.

Lines that end in `# error: CODE` must be rejected with that code; every other line must pass.
"""

from typing import assert_type

from pydantic import BaseModel

from busmicro import Answers, Call, Client, Handler, Service, endpoint_options


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


async def audit(call: Call, call_next: Handler) -> object:
    assert_type(call.headers.get("Bus-Caller"), str | None)
    assert_type(call.spec.service, str)
    return await call_next(call)


async def backwards(call_next: Handler, call: Call) -> object:
    return await call_next(call)


service.wrap_handler(audit)
service.wrap_client(audit, audit)
service.wrap_handler(backwards)  # error: arg-type
