"""Events: some reach whoever listens, others are kept until somebody has handled them."""

import asyncio

from pydantic import BaseModel

from busmicro import NatsServer, Service, Stream, Topic


class Order(BaseModel):
    number: int


created = Topic("orders.created", Order)  # at most once
paid = Topic("orders.paid", Order, stream=Stream("ORDERS"))  # at least once
handled: asyncio.Queue[str] = asyncio.Queue()


def node(name: str) -> Service:
    service = Service("billing", id=name)

    @service.subscribe(created)  # every node gets it
    async def on_created(event: Order) -> None:
        await handled.put(f"{name}: order {event.number} is there")

    @service.subscribe(paid, group="books")  # one node of the group gets it
    async def on_paid(event: Order) -> None:
        await handled.put(f"order {event.number} is paid")

    return service


async def main() -> None:
    async with NatsServer() as server:
        nodes = [node("attic"), node("cellar")]
        for service in nodes:
            await service.start(url=server.url)
        await nodes[0].publish(created, Order(number=17))
        print(sorted([await handled.get(), await handled.get()]))
        for _ in range(2):  # the second one is recognised by its id
            stored = await nodes[0].publish(paid, Order(number=17), id="order-17")
            print(f"{stored.sequence} in {stored.stream}, there already: {stored.duplicate}")
        print(await handled.get())
        for service in nodes:
            await service.stop()
        print(f"{handled.qsize()} more")


if __name__ == "__main__":
    asyncio.run(main())
