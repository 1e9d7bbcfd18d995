"""The service that `busmicro demo` runs three of: says which of them answered."""

from __future__ import annotations

from pydantic import BaseModel

from busmicro.service import Service


class HelloRequest(BaseModel):
    """Whom to greet."""

    name: str


class HelloReply(BaseModel):
    """The greeting, and who gave it."""

    greeting: str
    node: str


service = Service("greeter", version="1.0.0", metadata={"demo": "yes"})


@service.rpc("hello", idempotent=True)
async def hello(request: HelloRequest) -> HelloReply:
    """Greet somebody by name."""
    return HelloReply(greeting=f"Hello {request.name}", node=service.id)


if __name__ == "__main__":
    service.run()
