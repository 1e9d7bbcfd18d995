"""The service that the tests of calls call."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from pydantic import BaseModel

from busmicro import NotFound, Service


class HelloRequest(BaseModel):
    name: str


class HelloReply(BaseModel):
    greeting: str


@dataclass
class Point:
    x: int
    y: int


def greeter(**options: object) -> Service:
    service = Service("greeter", **options)  # type: ignore[arg-type]

    @service.rpc
    async def hello(request: HelloRequest) -> HelloReply:
        """Greet somebody."""
        return HelloReply(greeting=f"Hello {request.name}")

    @service.rpc
    async def missing(request: HelloRequest) -> HelloReply:
        raise NotFound(f"no {request.name}", details=[{"searched": "here"}])

    @service.rpc
    async def broken(request: HelloRequest) -> HelloReply:
        raise ValueError("the password is hunter2")

    @service.rpc
    async def wrong() -> HelloReply:
        return {"greeting": 1}  # type: ignore[return-value]

    @service.rpc
    async def sleep(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    @service.rpc
    async def large(size: int) -> bytes:
        return b"x" * size

    return service
