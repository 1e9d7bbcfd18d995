"""Handles orders, each with one effect in a database; dies, hangs or dawdles where it is told to.

Usage: consumer.py LOG NAME

Environment: FAULTS_EFFECTS (the database; without it there are no effects), FAULTS_ACK_WAIT,
FAULTS_MAX_DELIVER, FAULTS_DIE_AFTER and FAULTS_DIE_BEFORE (numbers of orders: after which commit,
before which commit to die, once each), FAULTS_POISON (the id of an order that always kills),
FAULTS_SLOW (seconds that a handler takes), FAULTS_LINGER (seconds that an order stays here before
its effect, and again after it, without the right to write), FAULTS_GATE (a file: while it is there
no order goes on to its effect).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from busmicro import Call, Service
from busmicro.call import Handler
from busmicro.wrappers import SqliteStore, once
from tests.faults.events.orders import GROUP, ORDERS, Order
from tests.faults.log import Log, now

log = Log(sys.argv[1])
logs = Path(sys.argv[1]).parent
slow = float(os.environ.get("FAULTS_SLOW", "0"))
linger = float(os.environ.get("FAULTS_LINGER", "0"))
gate = os.environ.get("FAULTS_GATE")
poison = os.environ.get("FAULTS_POISON")
effects = os.environ.get("FAULTS_EFFECTS")
store = SqliteStore(effects) if effects else None


def numbers(variable: str) -> set[int]:
    return {int(number) for number in os.environ.get(variable, "").split(",") if number}


die_after, die_before = numbers("FAULTS_DIE_AFTER"), numbers("FAULTS_DIE_BEFORE")


def die_once(order: Order, at: set[int], what: str) -> None:
    """End as by a crash, the first time that this order comes here."""
    if order.n in at:
        mark = logs / f"died-{what}-{order.n}"
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


async def record(call: Call, call_next: Handler) -> object:
    """Log every delivery of a whole order."""
    if call.delivery is not None and isinstance(call.message, Order):
        log.write("delivered", call.message.id, call.delivery.attempt, now())
    return await call_next(call)


async def die_after_commit(call: Call, call_next: Handler) -> object:
    """Die between effect and acknowledgement."""
    reply = await call_next(call)
    if isinstance(call.message, Order):
        die_once(call.message, die_after, "after")
    return reply


async def stay(call: Call, call_next: Handler) -> object:
    """Keep an order in hand before and after its effect."""
    await asyncio.sleep(linger)
    reply = await call_next(call)
    await asyncio.sleep(linger)
    return reply


def is_shut() -> bool:
    return gate is not None and Path(gate).exists()


async def wait_at_gate(call: Call, call_next: Handler) -> object:
    """Keep an order in hand while the gate is shut."""
    while is_shut():
        await asyncio.sleep(0.02)
    return await call_next(call)


lingering = [*([stay] if linger else []), *([wait_at_gate] if gate else [])]
wrappers = [record, die_after_commit, *lingering, *([once(store)] if store else [])]
service = Service("billing", id=sys.argv[2], handler_wrappers=wrappers)


@service.subscribe(
    ORDERS,
    group=GROUP,
    ack_wait=float(os.environ.get("FAULTS_ACK_WAIT", "5")),
    max_deliver=int(os.environ.get("FAULTS_MAX_DELIVER", "50")),
    backoff=[0.2],
)
async def on_order(order: Order) -> None:
    if order.id == poison:
        os._exit(1)
    if slow:
        await asyncio.sleep(slow)
    if store is not None:
        await store.execute("INSERT INTO effects VALUES (?)", (order.id,))
    die_once(order, die_before, "before")
    log.write("handled", order.id)


if __name__ == "__main__":
    service.run()
