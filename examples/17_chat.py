"""A conversation: both ends talk when they like, headers travel along, and either may leave."""

import asyncio
from collections.abc import AsyncIterator

from busmicro import Call, Client, NatsServer, Service

service = Service("tavern")
left: asyncio.Queue[str] = asyncio.Queue()


@service.rpc
async def talk(lines: AsyncIterator[str], call: Call) -> AsyncIterator[str]:
    name = call.headers.get("Name", "stranger")
    call.reply_headers["Special"] = "turnip soup"
    try:
        yield f"Hello {name}, what may it be?"
        async for line in lines:
            yield f"One {line}, at once."
        yield f"Farewell {name}!"
    finally:
        await left.put(name)


async def main() -> None:
    async with NatsServer() as server, Client(server.url) as client:
        await service.start(url=server.url)

        ada = client.stream("tavern", "talk", sends=str, returns=str, headers={"Name": "Ada"})
        async with ada as stream:
            print(await anext(stream), f"Today: {stream.reply_headers['Special']}.")
            for line in ("ale", "soup"):
                await stream.send(line)
                print(await anext(stream))
            await stream.close_send()  # "that was all"; the other end may still talk
            print([line async for line in stream])
        print(f"{await left.get()} has paid")

        async with client.stream("tavern", "talk", sends=str, returns=str) as stream:
            print(await anext(stream))
        print(f"{await left.get()} has run away")  # leaving the block has ended the handler
        await service.stop()


if __name__ == "__main__":
    asyncio.run(main())
