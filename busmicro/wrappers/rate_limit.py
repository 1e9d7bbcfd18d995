"""Let so many pass in a second and no more: refuse the rest, or make it wait its turn."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Literal, TypeAlias

from busmicro.call import Call, Handler
from busmicro.clock import SYSTEM_CLOCK, Clock
from busmicro.errors import ResourceExhausted, SetupError
from busmicro.headers import CALLER
from busmicro.wrappers.gcra import Pace, PaceByKey

KeyOf: TypeAlias = Callable[[Call], Hashable]

_MOST_KEYS: Final = 10_000


class RateLimit:
    """Lets through `rate` exchanges in `per` seconds, evenly, after a burst.

    What is too much is refused with `resource_exhausted` and the time at which to come back, which
    the caller's `Retry` respects; with `wait=True` it waits for its turn, if that comes before its
    deadline. At a handler of durable events say `wait=True`: to refuse one costs it an attempt.

    A process counts for itself: with three nodes a caller gets through three times as often.

    Args:
        rate: How many, more than 0.
        per: In so many seconds, more than 0.
        burst: How many may pass at once after a rest, 1 or more; left out, as many as `rate`.
        wait: Wait for a turn instead of refusing.
        key: What has a rate of its own: `"caller"` (the name in `Bus-Caller`, which nobody
            verifies), `"endpoint"`, or what a function makes of the call; left out, everything
            shares one.
        most_keys: How many keys are told apart, 1 or more; when there are more at once, the late
            ones share one rate.
        clock: Where time comes from.

    Raises:
        SetupError: A number is out of range, or there is no such key.
    """

    def __init__(
        self,
        rate: float,
        *,
        per: float = 1.0,
        burst: int | None = None,
        wait: bool = False,
        key: Literal["caller", "endpoint"] | KeyOf | None = None,
        most_keys: int = _MOST_KEYS,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not (0 < rate < math.inf and 0 < per < math.inf):
            raise SetupError(f"RateLimit({rate}, per={per}): say two numbers, more than 0")
        if burst is None:
            burst = max(1, int(rate))
        if burst < 1 or most_keys < 1:
            raise SetupError(
                f"RateLimit(burst={burst}, most_keys={most_keys}): say 1 or more for each"
            )
        self._said = f"{rate:g} in {per:g} s"
        self._key_of = _key_function(key)
        self._pace = Pace(per / rate, burst)
        self._paces = PaceByKey(per / rate, burst, most_keys)
        self._wait = wait
        self._clock = clock
        self.refused = 0
        """How many were refused."""

    def __call__(self, call: Call, call_next: Handler, /) -> Awaitable[object]:
        """Pass it on now, or later, or refuse it."""
        now = self._clock.now()
        patience = 0.0
        if self._wait:
            patience = math.inf if call.deadline is None else max(call.deadline - now, 0.0)
        if self._key_of is None:
            wait = self._pace.take(now, patience)
        else:
            wait = self._paces.take(self._key_of(call), now, patience)
        if wait <= 0:
            return call_next(call)
        if wait > patience:
            raise self._refusal(call, wait)
        return self._later(call, call_next, wait)

    async def _later(self, call: Call, call_next: Handler, wait: float) -> object:
        # A place that is given up meanwhile stays taken: others have been promised those behind it.
        await self._clock.sleep(wait)
        return await call_next(call)

    def _refusal(self, call: Call, wait: float) -> ResourceExhausted:
        self.refused += 1
        return ResourceExhausted(
            f"{call.spec.service}.{call.spec.endpoint} takes {self._said}",
            retry_after=wait,
            not_run=True,
        )


def _key_function(key: Literal["caller", "endpoint"] | KeyOf | None) -> KeyOf | None:
    if key is None or callable(key):
        return key
    if key == "caller":
        return lambda call: call.headers.get(CALLER, "") if call.has_headers else ""
    if key == "endpoint":
        return lambda call: (call.spec.service, call.spec.endpoint)
    raise SetupError(f"RateLimit(key={key!r}): say 'caller', 'endpoint' or a function of the call")
