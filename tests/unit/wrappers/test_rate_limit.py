"""A rate limit lets through what it says, and tells the rest when to come back."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from busmicro.call import Call, Side
from busmicro.errors import ResourceExhausted, SetupError
from busmicro.headers import CALLER
from busmicro.testing import FakeClock
from busmicro.wrappers import RateLimit


async def hello(_call: Call) -> object:
    return "hello"


async def outcomes(limit: RateLimit, calls: list[Call]) -> Counter[str]:
    ends = await asyncio.gather(
        *[asyncio.get_running_loop().create_task(go(limit, call)) for call in calls],
        return_exceptions=True,
    )
    return Counter("hello" if end == "hello" else type(end).__name__ for end in ends)


async def go(limit: RateLimit, call: Call) -> object:
    return await limit(call, hello)


async def test_burst_passes_and_the_rest_is_told_when_to_come(clock: FakeClock, call_of):
    """The eleventh of ten in a second is refused, did not run, and hears when to come."""
    limit = RateLimit(10, clock=clock)
    for _ in range(10):
        await limit(call_of(), hello)

    with pytest.raises(ResourceExhausted) as refused:
        await limit(call_of(), hello)

    assert refused.value.not_run
    assert refused.value.retry_after == pytest.approx(0.1, abs=1e-5)
    assert "10 in 1 s" in refused.value.message
    assert limit.refused == 1
    await clock.advance(0.1001)
    assert await limit(call_of(), hello) == "hello"


async def test_with_wait_calls_are_spread_evenly(clock: FakeClock, call_of):
    """Nobody is refused as long as there is time; calls leave in order, at the pace."""
    limit, at = RateLimit(2, burst=1, wait=True, clock=clock), []

    async def note(call: Call) -> object:
        at.append((call.message, clock.now() - 1_000.0))
        return "hello"

    async def one(number: int) -> None:
        await limit(call_of(number), note)

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(one(number))
        await clock.advance(10.0)

    assert [number for number, _ in at] == [0, 1, 2, 3]
    assert [moment for _, moment in at] == pytest.approx([0.0, 0.5, 1.0, 1.5], abs=1e-5)


async def test_with_wait_a_turn_past_the_deadline_is_refused_at_once(clock: FakeClock, call_of):
    """Waiting for a turn that comes too late is spared, and costs nobody else a turn."""
    limit = RateLimit(1, wait=True, clock=clock)
    deadline = clock.now() + 1.5

    ends = asyncio.gather(
        *[go(limit, call_of(deadline=deadline)) for _ in range(4)], return_exceptions=True
    )
    await clock.advance(1.0)

    found = await ends
    assert found[:2] == ["hello", "hello"]
    assert [type(end) for end in found[2:]] == [ResourceExhausted] * 2
    assert [end.retry_after for end in found[2:]] == pytest.approx([2.0, 2.0], abs=1e-5)


async def test_callers_have_rates_of_their_own(clock: FakeClock, call_of):
    """A caller who asks too much costs others nothing."""
    limit = RateLimit(1, key="caller", clock=clock)

    def call_from(name: str) -> Call:
        call = call_of(side=Side.HANDLER)
        if name:
            call.headers[CALLER] = name
        return call

    greedy = await outcomes(limit, [call_from("greedy") for _ in range(50)])
    others = await outcomes(limit, [call_from("other"), call_from("")])

    assert greedy == {"hello": 1, "ResourceExhausted": 49}
    assert others == {"hello": 2}


async def test_endpoints_have_rates_of_their_own(clock: FakeClock, call_of):
    """With `key="endpoint"` a busy endpoint does not use up the rate of another."""
    limit = RateLimit(1, key="endpoint", clock=clock)

    calls = [call_of(endpoint=name) for name in ("find", "find", "drop")]

    assert await outcomes(limit, calls) == {"hello": 2, "ResourceExhausted": 1}


async def test_a_function_says_what_has_a_rate(clock: FakeClock, call_of):
    """Any part of a call may be what is limited."""
    limit = RateLimit(1, key=lambda call: call.message, clock=clock)

    assert await outcomes(limit, [call_of(tenant) for tenant in "aabbc"]) == {
        "hello": 3,
        "ResourceExhausted": 2,
    }


async def test_key_has_only_so_many_rates(clock: FakeClock, call_of):
    """Keys without end take neither memory nor the limit away."""
    limit = RateLimit(1, key=lambda call: call.message, most_keys=10, clock=clock)

    found = await outcomes(limit, [call_of(number) for number in range(1_000)])

    assert found == {"hello": 11, "ResourceExhausted": 989}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"rate": 0}, "more than 0"),
        ({"rate": -1.0}, "more than 0"),
        ({"rate": float("nan")}, "more than 0"),
        ({"rate": 1, "per": 0.0}, "more than 0"),
        ({"rate": 1, "burst": 0}, "1 or more"),
        ({"rate": 1, "most_keys": 0}, "1 or more"),
        ({"rate": 1, "key": "callers"}, "'caller', 'endpoint'"),
    ],
)
def test_senseless_settings_are_refused(wrong: dict[str, Any], says: str):
    """A wrong setting is told at construction, with the range."""
    with pytest.raises(SetupError, match=says):
        RateLimit(wrong.pop("rate"), **wrong)
