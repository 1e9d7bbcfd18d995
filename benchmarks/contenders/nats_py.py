"""Written by hand on nats-py, and on its `nats.micro`; both serve an endpoint in turn."""

from __future__ import annotations

from contextlib import AsyncExitStack

from benchmarks.contenders.base import Ask, Caller, Contender
from benchmarks.messages import BY_HAND, DECODE, TYPES, encode, traces, usual_headers


async def serve(stack: AsyncExitStack, url: str) -> None:
    import nats

    client = await nats.connect(url)
    stack.push_async_callback(client.close)
    for codec in TYPES:

        async def hello(message, answer=BY_HAND[codec]) -> None:
            await message.respond(answer(message.data))

        await client.subscribe(f"hand.{codec}", queue="q", cb=hello)
    await client.flush()


async def serve_micro(stack: AsyncExitStack, url: str) -> None:
    import nats
    from nats.micro import add_service

    client = await nats.connect(url)
    stack.push_async_callback(client.close)
    service = await add_service(client, name="micro", version="1.0.0")
    stack.push_async_callback(service.stop)
    for codec in TYPES:

        async def hello(request, answer=BY_HAND[codec]) -> None:
            await request.respond(answer(request.data))

        await service.add_endpoint(name=codec, subject=f"micro.{codec}", handler=hello)
    await client.flush()


async def connect(stack: AsyncExitStack, url: str) -> Caller:
    return await caller_of("hand", stack, url)


async def connect_micro(stack: AsyncExitStack, url: str) -> Caller:
    return await caller_of("micro", stack, url)


async def caller_of(prefix: str, stack: AsyncExitStack, url: str) -> Caller:
    import nats

    client = await nats.connect(url)
    stack.push_async_callback(client.close)

    def caller(codec: str, *, headers: bool) -> Ask:
        subject, decode = f"{prefix}.{codec}", DECODE[codec]
        usual, trace = usual_headers(codec), traces()

        async def ask(request: object) -> object:
            payload = encode(codec, request)
            given = {**usual, "traceparent": next(trace)} if headers else None
            message = await client.request(subject, payload, timeout=5, headers=given)
            return decode(message.data)

        return ask

    return caller


NATS_PY = Contender("nats-py", serve, connect, needs="nats")
NATS_MICRO = Contender("nats.micro", serve_micro, connect_micro, needs="nats")
