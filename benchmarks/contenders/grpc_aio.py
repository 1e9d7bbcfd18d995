"""grpc.aio, which needs no server between: client and service are connected to one another."""

from __future__ import annotations

import os
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.contenders.base import Ask, Caller, Contender
from benchmarks.messages import (
    BY_HAND,
    DECODE,
    TYPES,
    encode,
    traces,
)

LARGEST_BYTES = 16 * 1024 * 1024
OPTIONS = [
    ("grpc.max_send_message_length", LARGEST_BYTES),
    ("grpc.max_receive_message_length", LARGEST_BYTES),
]


def port_file(url: str) -> Path:
    """Where the server says which port it has; the URL of this run's nats-server makes it ours."""
    port = url.rpartition(":")[2]
    return Path(tempfile.gettempdir(), f"busmicro-bench-{os.getuid()}-{port}")


async def serve(stack: AsyncExitStack, url: str) -> None:
    import grpc

    def method(answer):
        async def hello(payload: bytes, _context) -> bytes:
            return answer(payload)

        return grpc.unary_unary_rpc_method_handler(hello)

    server = grpc.aio.server(options=OPTIONS)
    methods = {codec: method(BY_HAND[codec]) for codec in TYPES}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench", methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.push_async_callback(server.stop, None)
    port_file(url).write_text(str(port), "ascii")
    stack.callback(port_file(url).unlink, missing_ok=True)


async def connect(stack: AsyncExitStack, url: str) -> Caller:
    import grpc

    target = f"127.0.0.1:{port_file(url).read_text('ascii')}"
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(target, options=OPTIONS))

    def caller(codec: str, *, headers: bool) -> Ask:
        method, decode = channel.unary_unary(f"/bench/{codec}"), DECODE[codec]
        trace = traces()

        async def ask(request: object) -> object:
            metadata = [("traceparent", next(trace))] if headers else None
            return decode(await method(encode(codec, request), timeout=5, metadata=metadata))

        return ask

    return caller


GRPC_AIO = Contender("grpc.aio", serve, connect, needs="grpc")
