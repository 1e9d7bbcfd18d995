"""Two attempts that are answered in the same moment."""

from __future__ import annotations

import asyncio

from busmicro.call import Call
from busmicro.testing import FakeClock
from busmicro.wrappers import Hedge


async def test_headers_are_those_of_the_reply_though_both_answers_come_at_once(
    clock: FakeClock, call_of
):
    """Nobody gets the reply of one node with the headers of another."""
    answered = asyncio.Event()
    tried: list[Call] = []

    async def node(call: Call) -> object:
        number = len(tried)
        tried.append(call)
        await answered.wait()
        call.reply_headers["Node"] = str(number)
        return number

    call, hedge = call_of(idempotent=True), Hedge(clock=clock)
    task = asyncio.gather(hedge(call, node))
    await clock.advance(1.5)
    assert len(tried) == 2

    answered.set()
    [reply] = await task

    assert call.reply_headers["Node"] == str(reply)
