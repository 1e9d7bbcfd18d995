"""busmicro, plain, and with the recommended wrappers at both ends."""

from __future__ import annotations

from contextlib import AsyncExitStack

from benchmarks.contenders.base import Ask, Caller, Contender
from benchmarks.messages import TYPES, ProtoReply, ProtoRequest, Reply, Request, greet, traces


async def serve(stack: AsyncExitStack, url: str) -> None:
    await serve_hello("bench", stack, url, defaults=False)


async def serve_wrapped(stack: AsyncExitStack, url: str) -> None:
    await serve_hello("bench-wrapped", stack, url, defaults=True)


async def serve_hello(name: str, stack: AsyncExitStack, url: str, *, defaults: bool) -> None:
    from busmicro import Service

    service = Service(name, defaults=defaults)

    @service.rpc("json")
    async def hello(request: Request) -> Reply:
        return Reply(greeting=greet(request.name))

    @service.rpc("protobuf")
    async def proto_hello(request: ProtoRequest) -> ProtoReply:
        return ProtoReply(greeting=greet(request.name))

    await service.start(url=url)
    stack.push_async_callback(service.stop)


async def connect(stack: AsyncExitStack, url: str) -> Caller:
    from busmicro import Client

    return caller_of("bench", await stack.enter_async_context(Client(url)))


async def connect_wrapped(stack: AsyncExitStack, url: str) -> Caller:
    from busmicro import Client
    from busmicro.wrappers import RECOMMENDED

    wrappers = [make() for make in RECOMMENDED.client]
    client = await stack.enter_async_context(Client(url, wrappers=wrappers))
    return caller_of("bench-wrapped", client)


def caller_of(service: str, client) -> Caller:
    def caller(codec: str, *, headers: bool) -> Ask:  # Bus-Timeout is always sent
        returns = Reply if codec == "json" else ProtoReply
        typed = client.with_options(headers={"Content-Type": TYPES[codec]})
        trace = traces()

        async def ask(request: object) -> object:
            return await client.call(service, codec, request, returns=returns)

        async def ask_traced(request: object) -> object:
            given = {"traceparent": next(trace)}
            return await typed.call(service, codec, request, returns=returns, headers=given)

        return ask_traced if headers else ask

    return caller


BUSMICRO = Contender("busmicro", serve, connect)
WRAPPED = Contender("busmicro, recommended wrappers", serve_wrapped, connect_wrapped)
