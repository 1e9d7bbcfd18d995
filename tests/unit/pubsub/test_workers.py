"""Workers: so many at once and no more, and one key after the other."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busmicro.pubsub.workers import Workers

Item = tuple[int, int]
"""A number, and its key."""


class Bench:
    """Workers whose handler takes as many turns of the loop as it is told, and what they did."""

    def __init__(self, concurrency: int, turns: list[int], *, keyed: bool, bad: int = -1) -> None:
        self.turns = turns
        self.bad = bad
        self.running: set[Item] = set()
        self.most = 0
        self.done: list[Item] = []
        self.failed: list[Item] = []
        self.workers: Workers[Item] = Workers(
            self.handle,
            self.done.append,
            self.fail,
            concurrency=concurrency,
            name="bench",
            key_of=(lambda item: item[1]) if keyed else None,
        )
        self.keyed = keyed

    async def handle(self, item: Item) -> None:
        assert not self.keyed or item[1] not in {key for _, key in self.running}
        self.running.add(item)
        self.most = max(self.most, len(self.running))
        try:
            for _ in range(self.turns[item[0] % len(self.turns)]):
                await asyncio.sleep(0)
            if item[0] == self.bad:
                raise ValueError("bad")
        finally:
            self.running.discard(item)

    async def fail(self, item: Item, _failure: BaseException) -> None:
        await asyncio.sleep(0)
        self.failed.append(item)


@settings(max_examples=60)
@given(
    st.integers(1, 6),
    st.lists(st.integers(0, 4), min_size=1, max_size=7),
    st.lists(st.integers(0, 3), max_size=60),
    st.integers(-1, 20),
)
def test_bounds_and_order_are_kept(concurrency, turns, keys, bad):
    """All are handled once, never more than `concurrency` at a time, each key in order."""

    async def run(*, keyed: bool) -> Bench:
        bench = Bench(concurrency, turns, keyed=keyed, bad=bad)
        for number, key in enumerate(keys):
            bench.workers.put((number, key))
            if number % 5 == 0:
                await asyncio.sleep(0)
        assert await bench.workers.stop(5.0) == 0
        return bench

    for keyed in (False, True):
        bench = asyncio.run(run(keyed=keyed))
        items = list(enumerate(keys))
        assert sorted(bench.done + bench.failed) == items
        assert bench.failed == [item for item in items if item[0] == bad]
        assert bench.most <= concurrency
        if keyed:
            lanes: defaultdict[int, list[int]] = defaultdict(list)
            for number, key in bench.done:
                lanes[key].append(number)
            assert all(lane == sorted(lane) for lane in lanes.values())


async def test_concurrency_is_used_to_the_full():
    """Handlers that wait run side by side, as many as may."""
    bench = Bench(4, [5], keyed=False)
    for number in range(20):
        bench.workers.put((number, 0))
    await bench.workers.stop(5.0)

    assert bench.most == 4


@pytest.mark.parametrize("keyed", [False, True])
async def test_taken_back_is_what_nobody_began_with(keyed):
    """What runs is finished, the rest is handed back in order, and nothing is in both."""
    bench = Bench(2, [3], keyed=keyed)
    items = [(number, 0) for number in range(10)]
    for item in items:
        bench.workers.put(item)
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    back = bench.workers.take_back()
    await bench.workers.stop(5.0)

    assert bench.done + back == items


async def test_grace_ends_what_does_not_finish():
    """Handlers that outlast the grace period are cancelled, and counted."""
    bench = Bench(3, [1_000_000], keyed=False)
    for number in range(3):
        bench.workers.put((number, 0))

    assert await bench.workers.stop(0.05) == 3
    assert bench.done == []
    assert bench.running == set()


async def test_busy_worker_lets_others_have_the_loop():
    """A flood of handlers that never wait does not shut out the rest of the process."""
    bench = Bench(1, [0], keyed=False)
    for number in range(1000):
        bench.workers.put((number, 0))
    seen = []
    while len(bench.done) < 1000:
        await asyncio.sleep(0)
        seen.append(len(bench.done))

    assert len(seen) >= 10
    await bench.workers.stop(1.0)
