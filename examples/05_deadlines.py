"""A deadline travels: the inner call gets what the outer one has left, and giving up cancels it."""

import asyncio
import time

from busmicro import Call, Client, DeadlineExceeded, NatsServer, Service

service = Service("kitchen")


@service.rpc
async def order(dish: str, call: Call) -> str:
    """Have a dish cooked."""
    print(f"{(call.deadline or 0) - time.monotonic():.1f} s left for the {dish}")
    return str(await service.client.call("kitchen", "cook", dish, timeout=60.0))


@service.rpc
async def cook(dish: str) -> str:
    """Cook, which takes long."""
    try:
        await asyncio.sleep(10)
    except asyncio.CancelledError:
        print(f"stopped cooking the {dish}")
        raise
    return dish


async def main() -> None:
    async with NatsServer() as server:
        await service.start(url=server.url)
        async with Client(server.url) as client:
            try:
                await client.call("kitchen", "order", "roast", timeout=0.5)
            except DeadlineExceeded as error:
                print(f"gave up: {error.code.value}")
        await service.stop()


if __name__ == "__main__":
    asyncio.run(main())
