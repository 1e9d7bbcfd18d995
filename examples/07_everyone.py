"""Ask every node of a service at once."""

import asyncio

from busmicro import Client, NatsServer, Service


def node(name: str) -> Service:
    service = Service("sensor", id=name)

    @service.rpc
    async def where() -> str:
        return name

    return service


async def main() -> None:
    async with NatsServer() as server:
        nodes = [node(name) for name in ("attic", "cellar", "kitchen")]
        for service in nodes:
            await service.start(url=server.url)
        async with Client(server.url) as client:
            print(await client.call_all("sensor", "where", returns=str, timeout=1.0))
        for service in nodes:
            await service.stop()


if __name__ == "__main__":
    asyncio.run(main())
