"""Two nodes share the calls: nobody chooses, NATS gives each call to one of them."""

import asyncio
from collections import Counter

from busmicro import Client, NatsServer, Service


def node(id: str) -> Service:
    service = Service("greeter", id=id)

    @service.rpc
    async def hello(name: str) -> str:
        """Greet by name, and say who does."""
        return f"{id} greets {name}"

    return service


async def main() -> None:
    async with NatsServer() as server:
        nodes = [node("attic"), node("cellar")]
        for service in nodes:
            await service.start(url=server.url)
        async with Client(server.url) as client:
            calls = [client.call("greeter", "hello", f"guest {n}") for n in range(1000)]
            answers = await asyncio.gather(*calls)
            by_node = Counter(answer.split()[0] for answer in answers)
            print(f"{len(set(answers))} calls, each answered once, by {sorted(by_node)}")
            print(f"no node has more than two thirds: {max(by_node.values()) < 667}")
            await nodes[0].stop()
            print(await client.call("greeter", "hello", "the last guest"))
        await nodes[1].stop()


if __name__ == "__main__":
    asyncio.run(main())
