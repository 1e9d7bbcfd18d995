"""Many messages in one call: from the service, to the service, or both ways at once."""

import asyncio
from collections.abc import AsyncIterator

from busmicro import Client, NatsServer, Service


class Numbers:
    async def count(self, to: int) -> AsyncIterator[int]:
        """One request, many replies."""
        try:
            for number in range(1, to + 1):
                yield number
        finally:
            print(f"no more on the way to {to}")

    async def total(self, numbers: AsyncIterator[int]) -> int:
        """Many requests, one reply."""
        return sum([number async for number in numbers])

    async def squares(self, numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        """Many both ways: each reply leaves as soon as it is there."""
        async for number in numbers:
            yield number * number


async def main() -> None:
    service = Service("numbers")
    service.handle(Numbers())
    async with NatsServer() as server:
        await service.start(url=server.url)
        async with Client(server.url) as client:
            numbers = client.stub(Numbers, service="numbers")
            print([number async for number in numbers.count(3)])
            print(await numbers.total(numbers.squares(numbers.count(4))))
            async for number in numbers.count(1_000_000_000):
                if number == 1000:
                    break  # ends the handler, and until here it was never far ahead
        await service.stop()


if __name__ == "__main__":
    asyncio.run(main())
