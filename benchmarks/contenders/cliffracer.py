"""cliffracer: typed services over NATS; JSON only, its log of every call switched off.

Release 1.0.0 may be installed on Python 3.11, but is written in the syntax of 3.12.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

from benchmarks.contenders.base import Ask, Caller, Contender
from benchmarks.messages import Reply, Request, greet


async def start(service_class: type, name: str, stack: AsyncExitStack, url: str):
    from cliffracer import ServiceConfig
    from loguru import logger

    logger.remove()
    service = service_class(ServiceConfig(name=name, nats_url=url, health_listener=False))
    await service.start()
    stack.push_async_callback(service.stop)
    return service


async def serve(stack: AsyncExitStack, url: str) -> None:
    from cliffracer import CliffracerService, rpc

    class Greeter(CliffracerService):
        @rpc
        async def hello(self, request: Request) -> Reply:
            return Reply(greeting=greet(request.name))

    await start(Greeter, "cliff", stack, url)


async def connect(stack: AsyncExitStack, url: str) -> Caller:
    from cliffracer import CliffracerService

    client = await start(CliffracerService, "cliff-client", stack, url)

    def caller(_codec: str, *, headers: bool) -> Ask:
        del headers  # it sends its own: content type and correlation id

        async def ask(request: Request) -> object:
            reply = await client.call_rpc("cliff", "hello", request=request.model_dump())
            return Reply.model_validate(reply)

        return ask

    return caller


CLIFFRACER = Contender(
    "cliffracer", serve, connect, needs="cliffracer", since=(3, 12), codecs=("json",)
)
