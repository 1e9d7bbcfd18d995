"""Batches: full ones at once, part ones after a while."""

from __future__ import annotations

import asyncio

from busmicro import Call
from busmicro.call import Kind, Side, Spec
from busmicro.pubsub.batches import Batches

SPEC = Spec(service="shop", endpoint="orders.paid", kind=Kind.EVENT, side=Side.HANDLER)


def calls(count: int) -> list[Call]:
    return [Call(SPEC, n) for n in range(count)]


async def test_full_lists_go_at_once_and_the_rest_waits(until):
    """`most` makes a list; what is left goes when the first of it has waited for `wait`."""
    lists: list[list[Call]] = []
    batches = Batches(3, 0.05, lists.append)
    given = calls(8)
    for call in given:
        batches.add(call)
    assert lists == [given[:3], given[3:6]]
    assert len(batches) == 2

    began = asyncio.get_running_loop().time()
    await until(lambda: len(lists) == 3)

    assert asyncio.get_running_loop().time() - began >= 0.045
    assert lists[2] == given[6:]
    assert len(batches) == 0


async def test_what_is_taken_back_does_not_come():
    """After `take_back` no timer hands anything on."""
    lists: list[list[Call]] = []
    batches = Batches(3, 0.01, lists.append)
    given = calls(2)
    for call in given:
        batches.add(call)

    assert batches.take_back() == given
    await asyncio.sleep(0.03)
    assert lists == []


async def test_lists_of_one_do_not_wait():
    """`most=1` is each event for itself."""
    lists: list[list[Call]] = []
    batches = Batches(1, 60.0, lists.append)
    for call in calls(3):
        batches.add(call)
    assert [len(one) for one in lists] == [1, 1, 1]
