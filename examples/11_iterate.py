"""Read events in a loop, from the first one that is kept, or take what there is."""

import asyncio

from busmicro import Client, NatsServer, Stream, Topic

readings = Topic("readings.{room}", float, stream=Stream("READINGS", subjects=["readings.>"]))


async def main() -> None:
    async with NatsServer() as server, Client(server.url) as client:
        for room, degrees in (("attic", 14.5), ("cellar", 11.0), ("kitchen", 21.0)):
            await client.publish(readings.format(room=room), degrees)

        async with client.subscribe(readings, start="first") as events:
            async for degrees in events:
                print(f"{events.call.subject}: {degrees}")
                if events.call.subject == "readings.kitchen":
                    break

        async with client.subscribe(readings, start="first") as events:
            coldest = min(await events.collect(most=10, timeout=1.0, stall=0.2))
        print(f"coldest: {coldest}")


if __name__ == "__main__":
    asyncio.run(main())
