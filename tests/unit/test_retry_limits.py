"""Where retries stop: at handlers that began, and at the end of the call."""

from __future__ import annotations

import pytest

from busmicro.call import Call, Kind, Side, Spec
from busmicro.errors import NotFound, Unavailable
from busmicro.testing import FakeClock
from busmicro.wrappers import Retry


async def test_handler_that_began_is_not_run_again_because_a_call_of_its_own_did_not_run(
    clock: FakeClock,
):
    """An order is not placed twice because the mail about it found nobody."""
    spec = Spec(service="orders", endpoint="place", kind=Kind.UNARY, side=Side.HANDLER)
    placed = []

    async def place(call: Call) -> object:
        call.began = True
        placed.append(call)
        raise Unavailable("no node serves rpc.mail.send", origin="mail", not_run=True)

    with pytest.raises(Unavailable):
        await Retry(clock=clock, jitter=lambda: 0.0)(Call(spec), place)

    assert len(placed) == 1


@pytest.mark.parametrize(
    ("attempt_timeout", "left"), [(5.0, 2.0), (None, 0.001)], ids=["given", "shared out"]
)
async def test_attempt_never_gets_more_time_than_the_call_has(
    clock: FakeClock, attempt_timeout: float | None, left: float
):
    """Whatever one attempt may take, the node is told the end that the caller has set."""
    spec = Spec(
        service="users", endpoint="find", kind=Kind.UNARY, side=Side.CLIENT, idempotent=True
    )
    told = []

    async def answer(call: Call) -> object:
        told.append(call.deadline)
        raise NotFound("no")

    end = clock.now() + left
    with pytest.raises(NotFound):
        await Retry(attempt_timeout=attempt_timeout, clock=clock)(Call(spec, deadline=end), answer)

    assert told == [end]
