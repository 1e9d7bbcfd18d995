"""What parts of a node know is shown as it stands, under the names of the conventions."""

from __future__ import annotations

import asyncio

import pytest

from busmicro.call import Call, Kind, Side, Spec
from busmicro.errors import CallError, ResourceExhausted, Unavailable
from busmicro.gauges import Figure, LoopLag, _of_wrappers, current_gauges
from busmicro.testing import FakeClock
from busmicro.wrappers import CircuitBreaker, ConcurrencyLimit, RateLimit, only

CALL = Call(Spec(service="shop", endpoint="buy", kind=Kind.UNARY, side=Side.CLIENT))


async def fail(_call: Call) -> object:
    raise Unavailable("no")


async def answer(_call: Call) -> object:
    return None


async def test_lag_is_the_worst_of_the_last_ten_seconds():
    """A loop that was stuck is seen for ten seconds, then forgotten."""

    class Stuck(FakeClock):
        """A clock on which sleepers come late."""

        late = 0.0

        async def sleep(self, seconds: float) -> None:
            await super().sleep(seconds + self.late)

    stuck = Stuck()
    lag = LoopLag(stuck)
    measuring = asyncio.create_task(lag.keep_measuring())  # noqa: TID251
    await stuck.advance(1.0)
    assert lag.worst == 0.0
    stuck.late = 2.0
    await stuck.advance(0.5)
    stuck.late = 0.0
    await stuck.advance(3.0)

    assert lag.worst == pytest.approx(2.0)
    await stuck.advance(11.0)
    assert lag.worst == 0.0
    measuring.cancel()


async def test_breakers_and_limits_show_their_state(clock: FakeClock):
    """An open circuit and what limits have refused are seen, however they are wrapped."""
    breaker = CircuitBreaker(minimum=2, clock=clock)
    limit = RateLimit(1.0, burst=1, clock=clock)
    for _ in range(3):
        with pytest.raises(CallError):
            await breaker(CALL, fail)
    await limit(CALL, answer)
    with pytest.raises(ResourceExhausted):
        await limit(CALL, answer)
    wrappers = [only(breaker, services=["shop"]), limit, ConcurrencyLimit(1)]

    figures = list(_of_wrappers(Side.CLIENT, wrappers))

    state = {"server.address": "shop", "busmicro.endpoint": "buy"}
    assert Figure("busmicro.breaker.state", 2, state) in figures
    refused = {
        str(figure.attributes["busmicro.wrapper"]): figure.value
        for figure in figures
        if figure.name == "busmicro.limiter.rejections"
    }
    assert refused == {"CircuitBreaker": 1, "RateLimit": 1, "ConcurrencyLimit": 0}


def test_nothing_is_shown_while_nobody_has_set_up_metrics():
    """Without a provider a node has nobody to show its figures to, and makes nothing for it."""
    assert current_gauges() is None
