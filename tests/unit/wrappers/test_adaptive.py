"""As many run as the node can bear; the rest is refused at once."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from busmicro.call import Call, Kind
from busmicro.errors import ResourceExhausted, SetupError
from busmicro.testing import FakeClock
from busmicro.wrappers import AdaptiveLimit


async def outcome(limit: AdaptiveLimit, clock: FakeClock, call: Call, takes: float) -> str:
    async def handler(_call: Call) -> object:
        await clock.sleep(takes)
        return "hello"

    try:
        return str(await limit(call, handler))
    except ResourceExhausted as refused:
        return "refused" if refused.not_run and refused.retry_after else "wrongly refused"


async def burst(limit: AdaptiveLimit, clock: FakeClock, calls: list[Call], takes: float) -> Counter:
    ends = asyncio.gather(*[outcome(limit, clock, call, takes) for call in calls])
    await clock.advance(takes)
    return Counter(await ends)


async def test_more_than_the_limit_is_refused(clock: FakeClock, call_of):
    """With room for 20, 20 of 50 run; each endpoint has its own room."""
    limit = AdaptiveLimit(start=20, clock=clock)

    found = await burst(limit, clock, [call_of() for _ in range(50)], 0.01)
    both = [call_of(endpoint=name) for name in ("a", "b") for _ in range(15)]

    assert found == {"hello": 20, "refused": 30}
    assert limit.refused == 30
    assert await burst(limit, clock, both, 0.01) == {"hello": 30}


async def test_limit_falls_when_things_get_slow_and_rises_again(clock: FakeClock, call_of):
    """A node in trouble takes less, and after it as much as before."""
    limit = AdaptiveLimit(start=40, most=80, clock=clock)
    name = ("users", "find")

    async def load(times: int, takes: float) -> int:
        for _ in range(times):
            await burst(limit, clock, [call_of() for _ in range(100)], takes)
        return limit.limits[name]

    at_ease = await load(20, 0.1)
    in_trouble = await load(10, 2.0)
    after = await load(30, 0.1)

    assert at_ease == 80
    assert in_trouble <= 10
    assert after == 80


async def test_streams_pass(clock: FakeClock, call_of):
    """Streams take no room, for they last as long as they like."""
    limit = AdaptiveLimit(least=1, start=1, clock=clock)

    found = await burst(limit, clock, [call_of(kind=Kind.STREAM) for _ in range(10)], 5.0)

    assert found == {"hello": 10}


def test_senseless_settings_are_refused():
    """A wrong number is told at construction, with the range."""
    with pytest.raises(SetupError, match="from 1 up"):
        AdaptiveLimit(least=0)
