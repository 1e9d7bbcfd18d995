"""A late call gets a second attempt; the first answer wins, and the other attempt is ended."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from busmicro.call import Call, Kind, Side
from busmicro.errors import CallError, NotFound, SetupError, Unavailable
from busmicro.headers import ATTEMPT
from busmicro.testing import FakeClock
from busmicro.wrappers import Hedge


class Nodes:
    """Nodes that take so long, one after another, and fail or answer with their number."""

    def __init__(self, clock: FakeClock, *plans: float | tuple[float, Exception]) -> None:
        self.clock = clock
        self.plans = list(plans)
        self.tried: list[Call] = []
        self.cancelled: list[int] = []

    async def __call__(self, call: Call) -> object:
        number = len(self.tried)
        self.tried.append(call)
        plan = self.plans[number % len(self.plans)]
        takes, failure = plan if isinstance(plan, tuple) else (plan, None)
        try:
            await self.clock.sleep(takes)
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        if failure is not None:
            raise failure
        call.reply_headers["Node"] = str(number)
        return number


async def run(hedge: Hedge, call: Call, nodes: Nodes, seconds: float = 100.0) -> object:
    task = asyncio.gather(hedge(call, nodes), return_exceptions=True)
    await nodes.clock.advance(seconds)
    async with asyncio.timeout(5):
        return (await task)[0]


@pytest.fixture
def call(call_of) -> Call:
    return call_of(idempotent=True)


async def test_quick_answer_needs_no_second_attempt(clock: FakeClock, call: Call):
    """As long as the service is as quick as ever, there is no extra load."""
    nodes = Nodes(clock, 0.5)

    assert await run(Hedge(clock=clock), call, nodes) == 0
    assert len(nodes.tried) == 1


async def test_late_answer_is_overtaken(clock: FakeClock, call: Call):
    """The second attempt answers first; the first is ended, and its headers are not the reply's."""
    nodes, hedge = Nodes(clock, 60.0, 0.1), Hedge(clock=clock)
    began = clock.now()

    reply = await run(hedge, call, nodes, seconds=1.2)

    assert reply == 1
    assert clock.now() - began < 2.0
    assert nodes.cancelled == [0]
    assert call.reply_headers["Node"] == "1"
    assert nodes.tried[1].headers[ATTEMPT] == "2"
    assert (hedge.hedged, hedge.won) == (1, 1)


async def test_first_may_still_win(clock: FakeClock, call: Call):
    """The second attempt is ended if the first one answers after all."""
    nodes, hedge = Nodes(clock, 1.5, 60.0), Hedge(clock=clock)

    assert await run(hedge, call, nodes, seconds=2.0) == 0
    assert nodes.cancelled == [1]
    assert (hedge.hedged, hedge.won) == (1, 0)


async def test_second_attempt_comes_after_what_most_take(clock: FakeClock, call: Call):
    """The delay follows the 95th percentile of what was seen."""
    hedge = Hedge(clock=clock)
    assert hedge.delay("users", "find") == 1.0

    for number in range(100):
        await run(hedge, call, Nodes(clock, 0.2 if number % 20 == 0 else 0.05), seconds=1.0)

    assert hedge.delay("users", "find") == pytest.approx(0.2)
    nodes = Nodes(clock, 60.0, 0.0)
    assert await run(hedge, call, nodes, seconds=0.25) == 1


async def test_delay_is_bounded(clock: FakeClock, call: Call):
    """However quick or slow a service is, the first attempt gets what was said."""
    hedge = Hedge(least=0.01, most=0.5, clock=clock)

    for _ in range(60):
        await run(hedge, call, Nodes(clock, 0.0), seconds=0.0)
    assert hedge.delay("users", "find") == 0.01
    for _ in range(200):
        await run(hedge, call, Nodes(clock, 5.0), seconds=10.0)
    assert hedge.delay("users", "find") == 0.5


async def test_slow_service_sees_little_extra_load(clock: FakeClock, call: Call):
    """When everything gets slow, one call in ten is attempted twice, not every one."""
    hedge = Hedge(most=0.05, clock=clock)

    for _ in range(300):
        await run(hedge, call, Nodes(clock, 5.0), seconds=10.0)

    assert hedge.hedged <= 1 + 0.1 * 300


async def test_answer_is_an_answer(clock: FakeClock, call: Call):
    """`NotFound` ends the race as a reply does."""
    missing = NotFound("no")

    assert await run(Hedge(clock=clock), call, Nodes(clock, 60.0, (0.1, missing)), 1.5) is missing


async def test_failure_waits_for_the_other_attempt(clock: FakeClock, call: Call):
    """A node that dies does not spoil the attempt at another one."""
    nodes = Nodes(clock, (1.5, Unavailable("died")), 3.0)

    assert await run(Hedge(clock=clock), call, nodes) == 1


async def test_both_failed_is_failed(clock: FakeClock, call: Call):
    """When both attempts have failed, the caller hears of it."""
    nodes = Nodes(clock, (1.5, Unavailable("first")), (1.0, Unavailable("second")))

    failure = await run(Hedge(clock=clock), call, nodes)

    assert isinstance(failure, CallError)
    assert failure.message == "second"


async def test_failure_before_the_second_attempt_is_the_retrys_business(
    clock: FakeClock, call: Call
):
    """A call that fails quickly fails at once."""
    nodes = Nodes(clock, (0.1, Unavailable("died")))

    assert isinstance(await run(Hedge(clock=clock), call, nodes, 0.2), Unavailable)
    assert len(nodes.tried) == 1


async def test_cancelled_caller_ends_both(clock: FakeClock, call: Call):
    """Whoever gives up ends both attempts."""
    nodes, hedge = Nodes(clock, 60.0), Hedge(clock=clock)
    task = asyncio.get_running_loop().create_task(hedge._race(call, nodes))
    await clock.advance(1.5)
    assert len(nodes.tried) == 2

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(nodes.cancelled) == [0, 1]


@pytest.mark.parametrize(
    "other",
    [
        {"idempotent": False},
        {"idempotent": True, "kind": Kind.STREAM},
        {"idempotent": True, "kind": Kind.EVENT},
        {"idempotent": True, "side": Side.HANDLER},
    ],
)
async def test_other_exchanges_are_made_once(clock: FakeClock, call_of, other: dict[str, Any]):
    """What may not run twice, or cannot, is left alone however long it takes."""
    nodes = Nodes(clock, 60.0)

    assert await run(Hedge(clock=clock), call_of(**other), nodes) == 0
    assert len(nodes.tried) == 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"quantile": 1.0}, "0.5 to 0.999"),
        ({"least": 0.0}, "more than 0"),
        ({"least": 2.0, "most": 1.0}, "not less than the first"),
        ({"extra": 1.5}, "at most 1"),
    ],
)
def test_senseless_settings_are_refused(wrong: dict[str, Any], says: str):
    """A wrong number is told at construction, with the range."""
    with pytest.raises(SetupError, match=says):
        Hedge(**wrong)
