"""A typed call: needs 01_greeter.py running."""

import asyncio

from pydantic import BaseModel

from busmicro import Client


class HelloRequest(BaseModel):
    name: str


class HelloReply(BaseModel):
    greeting: str


async def main() -> None:
    async with Client() as client:
        request = HelloRequest(name="John")
        reply = await client.call("greeter", "hello", request, returns=HelloReply, timeout=2.0)
        print(reply.greeting)


if __name__ == "__main__":
    asyncio.run(main())
