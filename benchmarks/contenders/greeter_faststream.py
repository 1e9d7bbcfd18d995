"""A greeter on FastStream, as a script: how long does it take to start, what does it hold?"""

import asyncio
import os

from faststream import FastStream
from faststream.nats import NatsBroker
from pydantic import BaseModel


class Request(BaseModel):
    name: str


class Reply(BaseModel):
    greeting: str


broker = NatsBroker(os.environ["BUSMICRO_NATS_URL"])
app = FastStream(broker)


@broker.subscriber("greeter.faststream", queue="q")
async def hello(request: Request) -> Reply:
    return Reply(greeting=f"Hello {request.name}")


asyncio.run(app.run())
