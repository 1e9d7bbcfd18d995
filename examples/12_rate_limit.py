"""A rate limit of one a second, and three clients: two in a hurry, and one that waits its turn."""

import asyncio
import time
from collections import Counter

from busmicro import Client, NatsServer, ResourceExhausted, Retry, Service
from busmicro.wrappers import RateLimit

service = Service("oracle", handler_wrappers=[RateLimit(1, per=1.0)])


@service.rpc
async def ask(question: str) -> str:
    """Answer a question."""
    return f"{question}? Perhaps."


async def besiege(url: str, until: float) -> Counter[str]:
    ends: Counter[str] = Counter()
    async with Client(url, wrappers=[Retry(1)]) as client:
        while time.monotonic() < until:
            try:
                await client.call("oracle", "ask", "Rain")
                ends["answered"] += 1
            except ResourceExhausted as refused:
                ends["refused"] += 1
                ends["told when to come back"] += refused.retry_after is not None
            await asyncio.sleep(0.01)
    return ends


async def main() -> None:
    async with NatsServer() as server:
        await service.start(url=server.url)
        until = time.monotonic() + 2.5
        first, second = await asyncio.gather(*[besiege(server.url, until) for _ in range(2)])
        ends = first + second
        print(f"{ends['answered']} calls of two clients were answered in 2.5 s, at 1/s")
        print(
            f"the rest was told when to come: {ends['refused'] == ends['told when to come back']}"
        )
        async with Client(server.url) as patient:  # its Retry waits as long as it was told
            print(await patient.call("oracle", "ask", "Snow"))
        await service.stop()


if __name__ == "__main__":
    asyncio.run(main())
