"""Publishes orders until it is told to stop; logs each before it is sent and after its ack.

Usage: publisher.py LOG NAME one|many PER_SECOND COUNT (0 for no limit)

What fails is published again with the same id, as a publisher should, until it is acknowledged;
the log has the error and how long it took to come.

Environment: FAULTS_TIMEOUT (seconds that each event is tried; 15 if it is not there).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import Iterator

from busmicro import CallError, Client, Service
from busmicro.pubsub.publisher import DEFAULT_TIMEOUT
from tests.faults.events.orders import ORDERS, Order
from tests.faults.log import Log, now

AT_ONCE = 20
CHUNK = 100
GIVE_UP_AFTER = 90.0
TIMEOUT = float(os.environ.get("FAULTS_TIMEOUT", DEFAULT_TIMEOUT))


class Publisher:
    """Publishes at a steady pace; every event counts once it is acknowledged."""

    def __init__(self, log: Log, name: str, per_second: float, count: int) -> None:
        self._log = log
        self._name = name
        self._pause = 1 / per_second
        self._numbers = iter(range(count) if count else itertools.count())
        self._due = now()
        self._stop = asyncio.Event()
        self.left_behind = 0

    def stop(self) -> None:
        self._stop.set()

    async def one_by_one(self, service: Service) -> None:
        """Publish with `publish`, some at once."""
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(self._work(service))

    async def _work(self, service: Service) -> None:
        for order in self._orders():
            await self._in_time(1)
            self._log.write("sent", order.id)
            await self._until_stored(service, order)

    async def _until_stored(self, service: Service, order: Order) -> None:
        give_up = now() + GIVE_UP_AFTER
        while (began := now()) < give_up:
            try:
                stored = await service.publish(ORDERS, order, id=order.id, timeout=TIMEOUT)
            except CallError as failure:
                self._failed(order, failure, began)
                await asyncio.sleep(0.2)
            else:
                assert stored is not None
                self._log.write("acked", order.id, stored.sequence, now())
                return
        self.left_behind += 1

    async def many(self, client: Client) -> None:
        """Publish with `publish_many`, chunk after chunk."""
        orders = self._orders()
        while chunk := list(itertools.islice(orders, CHUNK)):
            await self._in_time(len(chunk))
            self._log.write_all([f"sent {order.id}" for order in chunk])
            give_up = now() + GIVE_UP_AFTER
            while not await self._are_stored(client, chunk):
                if now() > give_up:
                    self.left_behind += len(chunk)
                    break

    async def _are_stored(self, client: Client, chunk: list[Order]) -> bool:
        """Publish a chunk, or publish it again with the same ids."""
        began = now()
        try:
            await client.publish_many(ORDERS, chunk, id=lambda order: order.id, timeout=TIMEOUT)
        except CallError as failure:
            self._failed(chunk[0], failure, began)
            await asyncio.sleep(0.2)
            return False
        at = now()
        self._log.write_all([f"acked {order.id} 0 {at}" for order in chunk])
        return True

    def _failed(self, order: Order, failure: CallError, began: float) -> None:
        took = f"{now() - began:.3f}"
        words = (type(failure).__name__, failure.code.value, took, f"# {failure}")
        self._log.write("failed", order.id, *words)

    def _orders(self) -> Iterator[Order]:
        for number in self._numbers:
            if self._stop.is_set():
                return
            yield Order(f"{self._name}-{number}", number)

    async def _in_time(self, count: int) -> None:
        self._due = max(self._due + count * self._pause, now() - 1.0)
        await asyncio.sleep(max(0.0, self._due - now()))


async def main(log: str, name: str, way: str, per_second: str, count: str) -> int:
    publisher = Publisher(Log(log), name, float(per_second), int(count))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, publisher.stop)
    if way == "many":
        async with Client(wait_for_ready=True) as client:
            await publisher.many(client)
    else:
        service = Service("shop", id=name)
        service.publishes(ORDERS)
        async with service:
            await publisher.one_by_one(service)
    return 1 if publisher.left_behind else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
