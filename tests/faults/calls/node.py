"""A node of the service that the fault tests call; it writes down what its handlers begin and end.

Usage: node.py LOG NAME

Logs `began VALUE WHEN` and `ended VALUE WHEN` of each call that has a value.

Environment: FAULTS_RUNNING (how many calls may run; left out, as many as come), FAULTS_QUEUED (how
many may wait then), FAULTS_WORK (seconds of work in a call).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys

from busmicro import Service, Unavailable
from busmicro.wrappers import ConcurrencyLimit, only
from tests.faults.log import Log, now

log = Log(sys.argv[1])
work_for = float(os.environ.get("FAULTS_WORK", "0.005"))
running = int(os.environ.get("FAULTS_RUNNING", "0"))
queued = int(os.environ.get("FAULTS_QUEUED", "0"))
limit = [only(ConcurrencyLimit(running, queued), endpoints=["hello"])] if running else []
service = Service("greeter", id=sys.argv[2], handler_wrappers=limit)


@service.rpc("hello", idempotent=True)
async def hello(value: str) -> str:
    log.write("began", value, now())
    await asyncio.sleep(work_for)
    log.write("ended", value, now())
    return f"{value} {service.id}"


@service.rpc
async def sleep(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@service.rpc
async def digest(payload: bytes) -> bytes:
    """Return the payload with its hash before it."""
    return hashlib.sha256(payload).digest() + payload


@service.rpc("fail", idempotent=True)
async def fail(value: str) -> str:
    log.write("began", value, now())
    raise Unavailable(f"{value} failed")


if __name__ == "__main__":
    service.run()
