"""Code of users that raises wherever it is called: the connection and everybody else live on."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from pydantic import BaseModel, field_validator

from busmicro import Call, CallError, Client, NatsServer, Service, Topic
from busmicro.wrappers import Retry, only
from tests.faults.limits.nodes import Until
from tests.faults.report import Report

RAISING = "S23 handlers, codecs, wrappers and callbacks that raise"
_EVENT_WORKERS = 20
TOLD = Topic("told.things", int)


class Touchy(BaseModel):
    """A message that cannot be read or written if it is odd."""

    n: int

    @field_validator("n")
    @classmethod
    def is_even(cls, n: int) -> int:
        if n % 2:
            raise RuntimeError("odd")
        return n


async def raising(call: Call, call_next) -> object:
    """Raise before or after the handler."""
    if call.headers.get("X-Before"):
        raise ZeroDivisionError
    await call_next(call)
    raise KeyError("after")


async def raises(what: str) -> str:
    if what == "cancelled":
        raise asyncio.CancelledError
    raise {"value": ValueError, "lookup": LookupError, "memory": MemoryError}[what](what)


async def wrong() -> int:
    return "no number"  # type: ignore[return-value]


async def touchy(message: Touchy) -> Touchy:
    return message.model_copy(update={"n": message.n + 1})


async def wrapped() -> None:
    """Do nothing."""


async def many(messages: AsyncIterator[Touchy]) -> AsyncIterator[int]:
    async for message in messages:
        yield message.n
        raise OSError("in the middle")


async def well(n: int) -> int:
    return n


async def on_told(n: int) -> None:
    raise RuntimeError(n)


def faulty(url: str) -> Service:
    """Make a service of whatever raises, and one endpoint that does not."""
    service = Service("faulty", url=url, handler_wrappers=[only(raising, endpoints=["wrapped"])])
    for function in (raises, wrong, touchy, wrapped, many, well):
        service.rpc(function)
    service.subscribe(TOLD)(on_told)
    return service


class Faults:
    """Provokes one fault after another."""

    def __init__(self, client: Client, seed: int) -> None:
        self._client = client
        self._chance = random.Random(seed)
        self.ends: Counter[str] = Counter()

    async def one(self) -> None:
        """Provoke one, and note what the caller was told."""
        kind = self._chance.choice([self._raise, self._say, self._tell, self._stream, self._shout])
        try:
            await kind()
            self.ends["nothing"] += 1
        except CallError as failure:
            self.ends[failure.code.value] += 1
        except RuntimeError:  # the caller's own type raised when the reply was read
            self.ends["its own"] += 1

    async def _raise(self) -> None:
        what = self._chance.choice(["value", "lookup", "memory", "cancelled"])
        await self._client.call("faulty", "raises", what)

    async def _say(self) -> None:
        endpoint, message = self._chance.choice(
            [
                *(("wrong", None), ("wrapped", None), ("well", "no number"), ("well", 4)),
                *(("touchy", {"n": 1}), ("touchy", {"n": 2})),
            ]
        )
        headers = self._chance.choice([None, {"X-Before": "1"}])
        await self._client.call("faulty", endpoint, message, headers=headers, returns=Touchy)

    async def _tell(self) -> None:
        await self._client.publish(TOLD, 1)

    async def _stream(self) -> None:
        async with self._client.stream("faulty", "many", sends=Touchy, returns=int) as stream:
            await stream.send(Touchy(n=2))
            async for _ in stream:
                pass

    async def _shout(self) -> None:
        self._client.bus.transport.publish(b"shouted", b"")


def fail(*_: bytes) -> None:
    """Raise in the middle of what the socket has brought."""
    raise RuntimeError("in the read loop")


@pytest.mark.timeout(180)
async def test_no_exception_of_users_ends_a_connection(
    server: NatsServer,
    until: Until,
    report: Report,
    full: bool,
    seed: int,
    caplog: pytest.LogCaptureFixture,
):
    """Thousands of faults: each caller is told, the connections live, and nothing is left over."""
    caplog.set_level(logging.CRITICAL)
    count, service = 10_000 if full else 1_000, faulty(server.url)
    async with service, Client(server.url, wrappers=[Retry(1)]) as client:
        transports = [service.bus.transport, client.bus.transport]
        for transport in transports:
            transport.subscribe("shouted", fail)
            await transport.barrier()
        assert await client.call("faulty", "well", 1) == 1
        tasks = len(asyncio.all_tasks())
        faults = Faults(client, seed)
        for _ in range(count // 20):
            await asyncio.gather(*(faults.one() for _ in range(20)))
        dead = sum(transport.reconnects for transport in transports)
        dead += sum(not transport.connected for transport in transports)
        assert await client.call("faulty", "well", 2) == 2
        await until(lambda: len(asyncio.all_tasks()) <= tasks + _EVENT_WORKERS)
        await until(lambda: service._running.server.running == 0)
        await until(lambda: (len(client.bus.replies), len(client.bus.frames)) == (0, 0))

    report.add(f"{RAISING}, {count:,} times", "dead connections", dead, "0")
    told = ", ".join(f"{code} {times}" for code, times in sorted(faults.ends.items()))
    report.add(f"{RAISING}, {count:,} times", "what callers were told", told)
    assert dead == 0
    assert faults.ends.total() == count
    assert set(faults.ends) == {
        *("nothing", "its own", "internal", "invalid_argument", "data_loss", "cancelled")
    }
