"""Lanes that are cut short, handlers that cancel themselves, and the numbers of deliveries."""

from __future__ import annotations

import asyncio

import pytest

from busmicro.delivery import read_delivery, sequence_of
from busmicro.headers import Headers
from busmicro.pubsub.workers import Workers

REST = b"ORDERS.billing.3.17.42.1767225600123456789.5"


@pytest.mark.parametrize("ack", [b"$JS.ACK." + REST, b"$JS.ACK.hub.HASH." + REST])
def test_events_are_told_apart_by_their_number_in_the_stream(ack: bytes):
    """It is the stream's number that counts, not that of the consumer."""
    assert sequence_of(ack) == read_delivery(ack, Headers({})).sequence == 17


def test_attempts_in_its_own_lane_count():
    """A handler sees which attempt this is, wherever the ones before it were made."""
    assert read_delivery(b"$JS.ACK." + REST, Headers({}), tried_here=2).attempt == 5


async def test_handler_that_cancels_itself_does_not_cost_a_worker():
    """A handler that ends as if it were cancelled has failed, and those after it are handled."""
    done: list[int] = []
    failed: list[int] = []

    async def handle(item: int) -> None:
        if item < 3:
            raise asyncio.CancelledError
        done.append(item)

    async def fail(item: int, _failure: BaseException) -> None:
        failed.append(item)

    workers: Workers[int] = Workers(handle, lambda _item: None, fail, concurrency=1, name="w")
    for item in range(5):
        workers.put(item)
    await workers.stop(1.0)

    assert (failed, done) == ([0, 1, 2], [3, 4])


async def test_order_of_a_key_survives_a_worker_that_is_ended():
    """What stood behind the event that was ended is handed on as it came."""
    begun = asyncio.Event()

    async def handle(_item: int) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def fail(_item: int, _failure: BaseException) -> None:
        raise AssertionError("nothing fails")

    workers: Workers[int] = Workers(
        handle, lambda _item: None, fail, concurrency=2, name="w", key_of=lambda _item: 0
    )
    for item in range(5):
        workers.put(item)
    await begun.wait()
    while workers.behind < 4:
        await asyncio.sleep(0)

    ended = list(workers._tasks._tasks)
    for task in ended:
        task.cancel()
    await asyncio.wait(ended)

    assert workers.take_back() == [1, 2, 3, 4]
