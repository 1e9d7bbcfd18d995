"""The service whose nodes the fault tests start, stop and kill."""

import asyncio
import sys

from busmicro import Service

service = Service("greeter", id=sys.argv[1] if len(sys.argv) > 1 else None)


@service.rpc("hello", idempotent=True)
async def hello(name: str) -> str:
    await asyncio.sleep(0.005)
    return f"Hello {name} from {service.id}"


@service.rpc
async def sleep(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


if __name__ == "__main__":
    service.run()
