"""What has no deadline gets one and is held to it; what has one keeps it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from typing import Any

import pytest

from busmicro.call import Call, Kind, Side, compose
from busmicro.errors import DeadlineExceeded, SetupError
from busmicro.session import Session
from busmicro.testing import FakeClock
from busmicro.wrappers import Deadline


async def deadline_of(call: Call) -> object:
    return call.deadline


async def hang(_call: Call) -> object:
    return await asyncio.Event().wait()


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("kind", Kind)
async def test_what_takes_too_long_is_ended(call_of, kind: Kind, side: Side):
    """Calls, streams and events end when their time is up, at either side."""
    began = time.monotonic()

    with pytest.raises(DeadlineExceeded, match=r"users\.find was not done in time"):
        await Deadline(0.02)(call_of(kind=kind, side=side), hang)

    assert 0.02 <= time.monotonic() - began < 1.0


async def test_body_of_a_stream_is_ended():
    """A block that waits for a message for ever ends when its time is up."""
    from busmicro.call import Spec

    call = Call(Spec(service="s", endpoint="m", kind=Kind.STREAM, side=Side.CLIENT))
    opened = Session(
        partial(compose, [Deadline(0.02)]), call, lambda _call: contextlib.nullcontext("stream")
    )

    with pytest.raises(DeadlineExceeded):
        async with opened:
            await asyncio.Event().wait()

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_deadline_is_seen_further_in(call_of):
    """What comes after it knows how much time is left."""
    began = time.monotonic()

    seen = await Deadline(3.0)(call_of(), deadline_of)

    assert isinstance(seen, float)
    assert 3.0 <= seen - began < 4.0


async def test_own_deadline_stays(clock: FakeClock, call_of):
    """A caller who gives itself a minute has a minute, unless there is a limit for all."""
    minute = clock.now() + 60.0

    assert await Deadline(3.0, clock=clock)(call_of(deadline=minute), deadline_of) == minute
    limited = Deadline(3.0, most=90.0, clock=clock)
    assert await limited(call_of(deadline=minute), deadline_of) == minute


async def test_limit_for_all_shortens(call_of):
    """`most` ends what gives itself more, whatever it says."""
    long = call_of(deadline=time.monotonic() + 86_400)

    with pytest.raises(DeadlineExceeded):
        await Deadline(0.01, most=0.02)(long, hang)


async def test_says_whether_the_handler_ran(call_of):
    """At a handler that was not reached yet, nothing ran; elsewhere nobody knows."""

    async def began(call: Call) -> object:
        call.began = True
        return await hang(call)

    outcomes = []
    for side, handler in [(Side.HANDLER, hang), (Side.HANDLER, began), (Side.CLIENT, hang)]:
        with pytest.raises(DeadlineExceeded) as late:
            await Deadline(0.01)(call_of(side=side), handler)
        outcomes.append(late.value.not_run)

    assert outcomes == [True, False, False]


@pytest.mark.parametrize(
    "wrong",
    [{"timeout": 0}, {"timeout": -1}, {"timeout": 1e9}, {"timeout": 5, "most": 1}],
)
def test_senseless_settings_are_refused(wrong: dict[str, Any]):
    """A wrong number is told at construction, with the range."""
    with pytest.raises(SetupError, match="at most 86,400"):
        Deadline(wrong.pop("timeout"), **wrong)
