"""A process that hung does not begin what its callers have given up meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from busmicro import Client, DeadlineExceeded, Service, Unavailable
from busmicro.rpc.wire import decode_error
from busmicro.wrappers import Retry

HANG = 1.2
begun: list[str] = []


@pytest.fixture
async def client(busmicro_memory: str) -> AsyncIterator[Client]:
    """A client of a service in the same process, so that both hang together."""
    begun.clear()
    service = Service("hanging", url=busmicro_memory)

    @service.rpc
    async def work(name: str) -> str:
        begun.append(name)
        return name

    async with service, Client(busmicro_memory, wrappers=[Retry(1)]) as client:
        assert await client.call("hanging", "work", "first") == "first"
        yield client


async def hang_after(sent: asyncio.Task[object]) -> None:
    """Block the loop as soon as a request is on its way, and before it is read."""
    await asyncio.sleep(0)
    assert not sent.done()
    time.sleep(HANG)  # noqa: ASYNC251 - this is the fault


async def test_request_that_ran_out_while_the_process_hung_is_not_begun(client: Client):
    """The handler does not begin for a caller whose time has passed meanwhile."""
    call = asyncio.get_running_loop().create_task(
        client.call("hanging", "work", "late", timeout=0.3)
    )
    await hang_after(call)
    with pytest.raises((DeadlineExceeded, Unavailable)):
        await call
    assert await client.call("hanging", "work", "next") == "next"
    assert begun == ["first", "next"]


async def test_request_that_has_time_left_is_run(client: Client):
    """A caller with more time than the process hung gets its reply."""
    call = asyncio.get_running_loop().create_task(
        client.call("hanging", "work", "patient", timeout=5.0)
    )
    await hang_after(call)
    assert await call == "patient"


async def test_caller_that_waits_still_may_ask_elsewhere(client: Client):
    """What may have run out is answered as unavailable and not run, which is safe to try again."""
    header = b"NATS/1.0\r\nBus-Timeout: 300\r\n\r\n"
    asking = asyncio.get_running_loop().create_task(
        client.bus.replies.ask(b"rpc.hanging.work", b'"late"', header, timeout=5.0)
    )
    await hang_after(asking)
    failure = decode_error(*await asking, "hanging")
    assert isinstance(failure, Unavailable)
    assert failure.not_run
    assert "hung" in failure.message


async def test_process_that_is_awake_again_counts_from_arrival(client: Client):
    """Once it has read what came while it hung, short deadlines are kept as ever."""
    call = asyncio.get_running_loop().create_task(client.call("hanging", "work", "patient"))
    await hang_after(call)
    await call
    async with asyncio.timeout(5):
        while True:
            try:
                await client.call("hanging", "work", "short", timeout=0.5)
            except Unavailable:
                await asyncio.sleep(0.01)
            else:
                break
    assert begun[-1] == "short"
