"""A breaker opens on a service that has become slow, and closes when it is quick again."""

import asyncio
from contextlib import suppress

from busmicro import Client, NatsServer, Retry, Service
from busmicro.wrappers import CircuitBreaker, CircuitOpen

service = Service("stock")
takes, asked = 0.1, 0


@service.rpc
async def count(item: str) -> int:
    """Count what is left of an item."""
    global asked  # noqa: PLW0603
    asked += 1
    await asyncio.sleep(takes)
    return len(item)


async def main() -> None:
    global takes  # noqa: PLW0603
    breaker = CircuitBreaker(minimum=5, slow=0.05, open_for=0.5, probes=1)
    circuit = breaker.circuit("stock", "count")
    async with NatsServer() as server:
        await service.start(url=server.url)
        async with Client(server.url, wrappers=[Retry(1), breaker]) as client:
            while circuit.state.value == "closed":
                await client.call("stock", "count", "bolts")
            print(f"{circuit.state.value} after {asked} slow calls")
            for _ in range(100):
                with suppress(CircuitOpen):
                    await client.call("stock", "count", "bolts")
            print(f"{breaker.refused} refused, the service was still asked {asked} times")
            takes = 0.0
            await asyncio.sleep(0.5)
            print(f"{await client.call('stock', 'count', 'bolts')} bolts, {circuit.state.value}")
        await service.stop()


if __name__ == "__main__":
    asyncio.run(main())
