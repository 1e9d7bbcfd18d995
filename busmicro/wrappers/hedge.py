"""Ask twice when the first answer is late: cut off the slowest calls, at little extra load."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final

from busmicro.call import Call, Handler, Kind, Side
from busmicro.clock import SYSTEM_CLOCK, Clock
from busmicro.errors import TABLE, CallError, SetupError
from busmicro.headers import ATTEMPT
from busmicro.wrappers.recent import Recent

_MOST_ENDPOINTS: Final = 1_000
_SAMPLES: Final = 128
_FEWEST: Final = 20
_LOOK_EVERY: Final = 16
_MOST_SAVED: Final = 10.0


class Hedge:
    """Makes a second attempt when the first one takes longer than most do; the first answer wins.

    Only for calls that say `idempotent=True`, and at the client: elsewhere it passes everything on.
    The attempt that loses is cancelled, and its node is told. At most one call in ten is attempted
    twice, however slow the service gets.

    Args:
        quantile: A second attempt is made when this share of the calls would have been answered;
            0.5 to 0.999.
        least: Seconds that the first attempt gets at any rate; more than 0. Calls before the
            twentieth of an endpoint get `most`.
        most: Seconds after which a second attempt is made at any rate; `least` or more.
        extra: How many second attempts may be made for each call, on the average; more than 0, at
            most 1.
        clock: Where time comes from.

    Raises:
        SetupError: A number is out of range.

    Source: Dean and Barroso, The Tail at Scale; gRFC A6 (hedging).
    """

    def __init__(
        self,
        *,
        quantile: float = 0.95,
        least: float = 0.005,
        most: float = 1.0,
        extra: float = 0.1,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not 0.5 <= quantile <= 0.999:
            raise SetupError(f"Hedge(quantile={quantile}): say 0.5 to 0.999")
        if not 0 < least <= most <= 86_400:
            raise SetupError(
                f"Hedge(least={least}, most={most}): say seconds, more than 0, the second one not "
                "less than the first, at most 86,400"
            )
        if not 0 < extra <= 1:
            raise SetupError(f"Hedge(extra={extra}): say a share, more than 0, at most 1")
        self._quantile = quantile
        self._least = least
        self._most = most
        self._extra = extra
        self._clock = clock
        self._pasts: dict[tuple[str, str], _Past] = {}
        self.hedged = 0
        """How many second attempts were made."""
        self.won = 0
        """How many of them were answered first."""

    def __call__(self, call: Call, call_next: Handler, /) -> Awaitable[object]:
        """Make the call, with a second attempt if it is late."""
        spec = call.spec
        if not spec.idempotent or spec.kind is not Kind.UNARY or spec.side is not Side.CLIENT:
            return call_next(call)
        return self._race(call, call_next)

    def delay(self, service: str, endpoint: str) -> float:
        """Return the seconds that a first attempt of an endpoint gets now."""
        past = self._pasts.get((service, endpoint))
        return self._most if past is None else past.delay

    async def _race(self, call: Call, call_next: Handler) -> object:
        past = self._past(call)
        past.saved = min(_MOST_SAVED, past.saved + self._extra)
        race = _Race(call, call_next)
        began = self._clock.now()
        async with asyncio.TaskGroup() as group:  # it waits for both, whatever happens
            tasks = [
                group.create_task(race.run(1)),
                group.create_task(self._second(race, past)),
            ]
            try:
                await race.decided.wait()
            finally:
                for task in tasks:
                    task.cancel()
        reply = race.result()
        self.won += race.winner > 1
        self._learn(past, self._clock.now() - began)  # the first would have taken longer, if late
        return reply

    async def _second(self, race: _Race, past: _Past) -> None:
        await self._clock.sleep(past.delay)
        if past.saved < 1:
            return
        past.saved -= 1
        self.hedged += 1
        await race.run(2)

    def _past(self, call: Call) -> _Past:
        name = (call.spec.service, call.spec.endpoint)
        past = self._pasts.get(name)
        if past is None:
            if len(self._pasts) >= _MOST_ENDPOINTS:
                del self._pasts[next(iter(self._pasts))]
            past = self._pasts[name] = _Past(self._most)
        return past

    def _learn(self, past: _Past, took: float) -> None:
        past.took.add(took)
        past.calls += 1
        if past.calls >= _FEWEST and past.calls % _LOOK_EVERY == _FEWEST % _LOOK_EVERY:
            past.delay = min(self._most, max(self._least, past.took.quantile(self._quantile)))


class _Past:
    """What is known of an endpoint."""

    __slots__ = ("calls", "delay", "saved", "took")

    def __init__(self, delay: float) -> None:
        self.took = Recent(_SAMPLES)
        self.calls = 0
        self.delay = delay
        self.saved = 1.0
        """What second attempts cost: one each, a tenth earned by every call."""


class _Race:
    """The attempts at one call; decided by the first answer, or by the last failure."""

    def __init__(self, call: Call, call_next: Handler) -> None:
        self._call = call
        self._call_next = call_next
        self._running = 0
        self._reply: object = None
        self._failure: BaseException | None = None
        self.winner = 0
        self.decided = asyncio.Event()

    async def run(self, number: int) -> None:
        """Make one attempt, with a copy of the call that is its own."""
        tried = self._call.copy()
        if number > 1:
            tried.headers[ATTEMPT] = str(number)
        self._running += 1
        try:
            reply = await self._call_next(tried)
        except BaseException as failure:
            self._running -= 1
            if not self._running or not _may_be_better(failure):
                self._decide(number, failure=failure)
            if isinstance(failure, Exception):
                return
            raise
        if not self.winner and tried.has_reply_headers:
            self._call.reply_headers = tried.reply_headers
        self._decide(number, reply=reply)

    def _decide(
        self, number: int, *, reply: object = None, failure: BaseException | None = None
    ) -> None:
        if not self.winner:
            self.winner, self._reply, self._failure = number, reply, failure
            self.decided.set()

    def result(self) -> object:
        """Return the reply of the winner, or raise its failure."""
        if self._failure is not None:
            raise self._failure
        return self._reply


def _may_be_better(failure: BaseException) -> bool:
    """Tell whether it is worth waiting for the other attempt; an answer is an answer."""
    return isinstance(failure, CallError) and (
        failure.not_run or TABLE[failure.code].retry_if_idempotent
    )
