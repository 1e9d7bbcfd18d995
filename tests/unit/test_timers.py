"""Deadlines that were set come, in order; those that were dropped do not, and cost nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from busmicro.timers import Timers


class Deadline:
    """Something with a deadline, which calls a function when it comes."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.is_set = False
        self.expire = then


def at(timers: Timers, when: float, then: Callable[[], object] = lambda: None) -> Deadline:
    deadline = Deadline(then)
    timers.set(deadline, when)
    return deadline


async def test_ten_thousand_deadlines_fire_exactly_those_not_dropped_in_order():
    """A call that ended in time is never failed by its deadline, one that did not always is."""
    timers, chance = Timers(), random.Random(7)
    start = asyncio.get_running_loop().time()
    fired: list[int] = []
    kept: dict[int, tuple[float, Deadline]] = {}
    for number in range(10_000):
        when = start + chance.random() / 4
        kept[number] = (when, at(timers, when, lambda n=number: fired.append(n)))
        if chance.random() < 0.7:
            dropped = chance.choice(list(kept)) if number % 50 == 0 else number
            timers.drop(kept.pop(dropped)[1])
    assert len(timers) == len(kept)

    async with asyncio.timeout(10):
        while len(timers):
            await asyncio.sleep(0.01)

    assert fired == sorted(kept, key=lambda number: (kept[number][0], number))
    timers.close()


async def test_dropped_deadlines_do_not_fill_the_memory():
    """A service that answers a million calls in time does not remember a million deadlines."""
    timers, chance = Timers(), random.Random(7)
    far = asyncio.get_running_loop().time() + 3600
    most = 0
    waiting = [at(timers, far + 1) for _ in range(100)]

    for _ in range(20_000):
        timers.drop(at(timers, far + chance.random()))
        most = max(most, len(timers._heap) + len(timers._line))

    assert len(timers) == 100
    assert 1000 < most <= 1200
    for one in waiting:
        timers.drop(one)
    assert len(timers) == 0
    timers.close()


async def test_one_deadline_far_away_does_not_slow_down_all_others():
    """Calls of five seconds stay cheap beside one of a day: they leave the memory as they end."""
    timers = Timers()
    now = asyncio.get_running_loop().time()
    day = at(timers, now + 86_400)
    most = 0

    for number in range(2_000):
        call = at(timers, now + 5 + number / 1000)
        timers.drop(call)
        most = max(most, len(timers._heap) + len(timers._line))

    assert most <= 3
    timers.drop(day)
    assert len(timers) == 0
    timers.close()


async def test_deadline_that_comes_earlier_than_all_others_comes_first():
    """A short deadline set after a long one does not wait for the long one."""
    timers, done = Timers(), asyncio.Event()
    loop = asyncio.get_running_loop()
    at(timers, loop.time() + 3600)

    at(timers, loop.time() + 0.01, done.set)

    async with asyncio.timeout(5):
        await done.wait()
    assert len(timers) == 1
    timers.close()


async def test_deadline_in_the_past_comes_at_once():
    """A call that has no time left is failed, not forgotten."""
    timers, done = Timers(), asyncio.Event()

    at(timers, asyncio.get_running_loop().time() - 5, done.set)

    async with asyncio.timeout(5):
        await done.wait()
    timers.close()


async def test_callback_may_set_and_drop_deadlines():
    """What a deadline sets off may set further deadlines and drop others."""
    timers, done = Timers(), asyncio.Event()
    now = asyncio.get_running_loop().time()
    doomed = [at(timers, now + 0.02, lambda: pytest.fail("was dropped")) for _ in range(3000)]

    def first() -> None:
        for timer in doomed:
            timers.drop(timer)
        at(timers, now + 0.03, done.set)

    at(timers, now + 0.01, first)

    async with asyncio.timeout(5):
        await done.wait()
    assert len(timers) == 0
    timers.close()


async def test_dropping_a_deadline_twice_or_after_it_came_is_no_error():
    """Whoever cleans up need not know how the call ended."""
    timers, done = Timers(), asyncio.Event()
    now = asyncio.get_running_loop().time()
    came, dropped = at(timers, now, done.set), at(timers, now + 60)
    async with asyncio.timeout(5):
        await done.wait()

    for timer in (came, dropped, came, dropped):
        timers.drop(timer)

    assert len(timers) == 0
    timers.close()


async def test_closing_forgets_every_deadline():
    """After the end nothing calls back, and dropping what was set is no error."""
    timers = Timers()
    now = asyncio.get_running_loop().time()
    late = [at(timers, now + 0.001, lambda: pytest.fail("was closed")) for _ in range(3)]

    timers.close()
    timers.drop(late[0])

    assert len(timers) == 0
    passed = asyncio.Event()
    at(timers, now + 0.02, passed.set)
    async with asyncio.timeout(5):
        await passed.wait()
    timers.close()
