"""A class as a service, and a stub of it: editors and type checkers know every method."""

import asyncio

from busmicro import Client, NatsServer, Service, endpoint_options


class Calculator:
    async def double(self, number: int) -> int:
        """Twice as much."""
        return 2 * number

    @endpoint_options(idempotent=True, timeout=1.0)
    async def total(self, numbers: list[float]) -> float:
        """Add them up; safe to try twice."""
        return sum(numbers)


async def main() -> None:
    service = Service("calculator")
    service.handle(Calculator())
    async with NatsServer() as server:
        await service.start(url=server.url)
        async with Client(server.url) as client:
            calculator = client.stub(Calculator, service="calculator")
            print(await calculator.double(21))
            print(await calculator.total([1.5, 2.5]))
        await service.stop()


if __name__ == "__main__":
    asyncio.run(main())
