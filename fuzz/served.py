"""A service of every kind of endpoint, that strangers may talk to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from google.protobuf.struct_pb2 import Struct
from pydantic import BaseModel

from busmicro import Call, NotFound, ResourceExhausted, Service, Settings

NAME: Final = "fuzz"
NODE: Final = "n1"
UNARY: Final = ("hello", "raw", "nothing", "proto", "fails", "Debug.Health", "Debug.Stats")


class Hello(BaseModel):
    """A request."""

    name: str
    tags: list[int | str] = []


class Tick(BaseModel):
    """A message of a stream."""

    n: int = 0


async def hello(request: Hello, call: Call) -> Hello:
    """Say it back, and a header of the request with it."""
    if "X-Back" in call.headers:
        call.reply_headers["X-Back"] = call.headers["X-Back"]
    return request


async def raw(request: bytes) -> bytes:
    """Say bytes back."""
    return request


async def nothing() -> None:
    """Say nothing."""


async def proto(request: Struct) -> Struct:
    """Say it back."""
    return request


async def fails(request: str, call: Call) -> str:
    """Fail with what was sent."""
    if call.headers.get("X-Full"):
        raise ResourceExhausted(request, retry_after=1.0)
    raise NotFound(request, details=[request, call.headers.get("X-Detail")])


async def count(request: Tick) -> AsyncIterator[Tick]:
    """Count to what was asked."""
    for n in range(min(request.n, 50)):
        yield Tick(n=n)


async def total(ticks: AsyncIterator[Tick]) -> Tick:
    """Add up."""
    return Tick(n=sum([tick.n async for tick in ticks]))


async def talk(lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Say each back."""
    async for line in lines:
        yield line


def served(settings: Settings) -> Service:
    """Make the service."""
    service = Service(NAME, id=NODE, settings=settings)
    for function in (hello, raw, nothing, proto, fails, count, total, talk):
        service.rpc(function)
    return service
