"""One wrapper, one shape: it sees every call, at the handler here, and could at the client too."""

import asyncio
import time

from busmicro import Call, Client, Handler, NatsServer, Service

service = Service("clock")


async def timing(call: Call, call_next: Handler) -> object:
    began = time.perf_counter()
    try:
        return await call_next(call)
    finally:
        elapsed = time.perf_counter() - began
        print(f"{call.spec.service}.{call.spec.endpoint} took {elapsed * 1000:.0f} ms")


service.wrap_handler(timing)


@service.rpc
async def wait(seconds: float) -> None:
    """Take some time."""
    await asyncio.sleep(seconds)


async def main() -> None:
    async with NatsServer() as server:
        await service.start(url=server.url)
        async with Client(server.url) as client:
            await client.call("clock", "wait", 0.1)
        await service.stop()


if __name__ == "__main__":
    asyncio.run(main())
