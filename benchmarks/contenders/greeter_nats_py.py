"""A greeter by hand on nats-py, as a script: how long does it take to start, what does it hold?"""

import asyncio
import os

import nats
from pydantic import BaseModel


class Request(BaseModel):
    name: str


class Reply(BaseModel):
    greeting: str


async def main() -> None:
    client = await nats.connect(os.environ["BUSMICRO_NATS_URL"])

    async def hello(message) -> None:
        request = Request.model_validate_json(message.data)
        await message.respond(Reply(greeting=f"Hello {request.name}").model_dump_json().encode())

    await client.subscribe("greeter.nats-py", queue="q", cb=hello)
    await asyncio.Event().wait()


asyncio.run(main())
