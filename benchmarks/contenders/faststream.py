"""FastStream: requests over its NATS broker."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack

from benchmarks.contenders.base import Ask, Caller, Contender
from benchmarks.messages import (
    BY_HAND,
    DECODE,
    Reply,
    Request,
    encode,
    greet,
    traces,
)


async def serve(stack: AsyncExitStack, url: str) -> None:
    from faststream.nats import NatsBroker

    broker = NatsBroker(url, logger=None, log_level=logging.CRITICAL)

    @broker.subscriber("fast.json", queue="q", max_workers=64)
    async def hello(request: Request) -> Reply:
        return Reply(greeting=greet(request.name))

    @broker.subscriber("fast.protobuf", queue="q", max_workers=64)
    async def proto_hello(request: bytes) -> bytes:
        return BY_HAND["protobuf"](request)

    await broker.start()
    stack.push_async_callback(broker.stop)


async def connect(stack: AsyncExitStack, url: str) -> Caller:
    from faststream.nats import NatsBroker

    broker = NatsBroker(url, logger=None)
    await broker.start()
    stack.push_async_callback(broker.stop)

    def caller(codec: str, *, headers: bool) -> Ask:
        trace = traces()

        def given() -> dict[str, str] | None:
            return {"traceparent": next(trace)} if headers else None

        async def ask(request: object) -> object:
            message = await broker.request(request, "fast.json", timeout=5, headers=given())
            return Reply.model_validate(await message.decode())

        async def ask_proto(request: object) -> object:
            payload = encode(codec, request)
            message = await broker.request(payload, "fast.protobuf", timeout=5, headers=given())
            return DECODE["protobuf"](message.body)

        return ask if codec == "json" else ask_proto

    return caller


FASTSTREAM = Contender("FastStream", serve, connect, needs="faststream")
