"""A node that does what it is asked to, and writes down when.

Usage: node.py LOG SERVICE ID [FOLLOWING]

FOLLOWING is the service that `hop` calls; the last of a chain sleeps instead.
"""

from __future__ import annotations

import asyncio
import sys
import time

from busmicro import Internal, Service
from tests.faults.log import Log, now

log = Log(sys.argv[1])
service = Service(sys.argv[2], id=sys.argv[3])
following = sys.argv[4] if len(sys.argv) > 4 else ""
counts = {"began": 0, "ended": 0}


def note(what: str, number: int) -> None:
    counts[what] += 1
    log.write(what, number, now())


@service.rpc
async def hello(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return str(service.id)


@service.rpc
async def ailing(is_well: bool) -> None:
    note("began", int(is_well))
    await asyncio.sleep(0.02)
    if not is_well:
        raise Internal("broken")


@service.rpc
async def hop(number: int) -> None:
    note("began", number)
    try:
        if following:
            await asyncio.sleep(0.02)
            await service.client.call(following, "hop", number, timeout=60.0)
        else:
            await asyncio.sleep(30)
    finally:
        note("ended", number)


@service.rpc
async def work(number: int) -> int:
    note("began", number)
    await asyncio.sleep(0.02)
    return number


@service.rpc
async def block(seconds: float) -> float:
    """Stop the whole event loop, as a computation without an `await` does."""
    log.write("blocked", 0, now())
    time.sleep(seconds)  # noqa: ASYNC251 - that is the fault
    log.write("free", 0, now())
    return seconds


@service.rpc
async def count(what: str) -> int:
    return counts[what]


if __name__ == "__main__":
    service.run()
