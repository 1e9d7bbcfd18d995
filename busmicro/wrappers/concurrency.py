"""Let so many run at once: a few more may wait in line, the rest is refused at once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

from busmicro.call import Call, Handler
from busmicro.errors import DeadlineExceeded, ResourceExhausted, SetupError

BUSY_FOR: Final = 0.05
"""Seconds that whoever is refused shall stay away."""


class ConcurrencyLimit:
    """Lets `running` exchanges run at once, all that this object wraps taken together.

    Those that find no room wait, first come, first served, within their deadline; those that find
    no room to wait are refused with `resource_exhausted`, in microseconds. Nothing ran of either.
    A stream keeps its place until it has ended.

    For a limit of its own wrap an endpoint with `only(ConcurrencyLimit(…), endpoints=[…])`.

    Args:
        running: How many at once, 1 or more.
        queued: How many may wait, 0 or more.

    Raises:
        SetupError: A number is out of range.
    """

    def __init__(self, running: int, queued: int = 0) -> None:
        if running < 1 or queued < 0:
            raise SetupError(
                f"ConcurrencyLimit({running}, queued={queued}): say 1 or more, and 0 or more"
            )
        self._most_running = running
        self._most_queued = queued
        self._queue: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self.running = 0
        """How many run now."""
        self.refused = 0
        """How many were refused."""

    @property
    def queued(self) -> int:
        """How many wait now."""
        return len(self._queue)

    async def __call__(self, call: Call, call_next: Handler, /) -> object:
        """Run it now or in its turn, or refuse it."""
        if self.running < self._most_running:  # then nobody waits: places are handed on
            self.running += 1
        elif len(self._queue) < self._most_queued:
            await self._turn(call)
        else:
            raise self._refusal()
        try:
            return await call_next(call)
        finally:
            self._leave()

    async def _turn(self, call: Call) -> None:
        """Wait until somebody hands over a place."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue[place] = None
        try:
            async with asyncio.timeout_at(call.deadline):
                await place
        except BaseException as gone:
            if place in self._queue:
                del self._queue[place]
            elif not place.cancelled():
                self._leave()  # it was handed over in the very turn in which this one left
            if isinstance(gone, TimeoutError):
                raise DeadlineExceeded(
                    "no time was left when its turn came", not_run=True
                ) from gone
            raise

    def _leave(self) -> None:
        """Hand the place to who waits longest, or leave it empty."""
        while self._queue:
            place, _ = self._queue.popitem(last=False)
            if not place.done():  # else it has just been cancelled
                place.set_result(None)
                return
        self.running -= 1

    def _refusal(self) -> ResourceExhausted:
        self.refused += 1
        return ResourceExhausted(
            f"{self._most_running} run already, and {len(self._queue)} wait",
            retry_after=BUSY_FOR,
            not_run=True,
        )
