"""A service in ten lines.

Run it, then: busmicro call greeter hello '{"name": "John"}'
"""

from pydantic import BaseModel

from busmicro import Service


class HelloRequest(BaseModel):
    name: str


class HelloReply(BaseModel):
    greeting: str


service = Service("greeter", version="1.0.0", metadata={"type": "helloworld"})


@service.rpc
async def hello(request: HelloRequest) -> HelloReply:
    """Greet somebody by name."""
    return HelloReply(greeting=f"Hello {request.name}")


if __name__ == "__main__":
    service.run()
