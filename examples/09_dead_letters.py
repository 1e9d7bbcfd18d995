"""An event that cannot be handled is put aside with the reason, and comes back when told to."""

import asyncio

from busmicro import NatsServer, Reject, Service, Stream, Topic
from busmicro.pubsub import DeadLetters

paid = Topic("orders.paid", str, stream=Stream("ORDERS"))
service = Service("billing")
known = {"ada"}
booked = asyncio.Event()


@service.subscribe(paid, group="books")
async def on_paid(customer: str) -> None:
    if customer not in known:
        raise Reject(f"nobody called {customer}")  # never again; other errors are tried again
    print(f"booked for {customer}")
    booked.set()


async def main() -> None:
    async with NatsServer() as server:
        await service.start(url=server.url)
        dead = DeadLetters(service.bus)
        await service.publish(paid, "bob")
        letters = []
        while not letters:
            await asyncio.sleep(0.05)
            letters = await dead.list()
        for letter in letters:
            print(f"{letter.subject} by {letter.consumer}: {letter.reason}, {letter.payload}")
        known.add("bob")
        await dead.replay(letters[0].number)
        await booked.wait()
        print(f"dead letters left: {len(await dead.list())}")
        await service.stop()


if __name__ == "__main__":
    asyncio.run(main())
