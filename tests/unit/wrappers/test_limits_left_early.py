"""Who leaves a limit or runs into a time-out of somebody else's."""

from __future__ import annotations

import asyncio

import pytest

from busmicro.call import Call
from busmicro.testing import settle
from busmicro.wrappers import ConcurrencyLimit, Deadline


async def test_place_is_not_lost_when_its_next_holder_leaves_in_the_turn_he_gets_it(call_of):
    """After any number of impatient callers as many exchanges may run as before."""
    limit, ends = ConcurrencyLimit(1, queued=1), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def handle(_call: Call) -> object:
        await ends.wait()
        return "done"

    async def first() -> object:
        reply = await limit(call_of(), handle)
        waiting.cancel()  # in the very turn in which the place was handed over
        return reply

    running = loop.create_task(first())
    await settle()
    waiting = loop.create_task(limit(call_of(), handle))  # type: ignore[arg-type]
    await settle()
    assert (limit.running, limit.queued) == (1, 1)

    ends.set()
    assert await running == "done"
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert (limit.running, limit.queued) == (0, 0)
    assert await limit(call_of(), handle) == "done"


async def test_time_out_of_the_handlers_own_stays_what_it_is(call_of):
    """A handler that waited in vain for something else has not run out of its own time."""

    async def impatient(_call: Call) -> object:
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await Deadline(30.0)(call_of(), impatient)
