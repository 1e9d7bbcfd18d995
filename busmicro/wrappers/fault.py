"""Make things slow, and make them fail: to see in a test what the rest does then."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable

from busmicro.call import Call, Handler
from busmicro.clock import SYSTEM_CLOCK, Clock
from busmicro.errors import SetupError, Unavailable


def _lost() -> Exception:
    return Unavailable("Fault made this up")


class Fault:
    """Fails a share of the exchanges, and delays a share of them; for tests.

    What it fails never reaches the handler. What it delays does, and may be failed as well. Of a
    stream, that is its opening.

    Args:
        errors: The share that fails, 0 to 1.
        error: Makes what is raised; left out, an `Unavailable` that may have run.
        delays: The share that is delayed, 0 to 1.
        delay: Seconds of a delay, 0 or more.
        clock: Where time comes from.
        chance: A number from 0 to 1 each time it is asked; `random.Random(7).random` repeats
            itself.

    Raises:
        SetupError: A number is out of range.
    """

    def __init__(
        self,
        *,
        errors: float = 0.0,
        error: Callable[[], Exception] = _lost,
        delays: float = 0.0,
        delay: float = 0.0,
        clock: Clock = SYSTEM_CLOCK,
        chance: Callable[[], float] = random.random,
    ) -> None:
        if not (0 <= errors <= 1 and 0 <= delays <= 1):
            raise SetupError(f"Fault(errors={errors}, delays={delays}): say shares, 0 to 1")
        if not 0 <= delay < math.inf:
            raise SetupError(f"Fault(delay={delay}): say seconds, 0 or more")
        self.errors = errors
        """The share that fails; a test may change it."""
        self.delays = delays
        """The share that is delayed; a test may change it."""
        self._error = error
        self._delay = delay
        self._clock = clock
        self._chance = chance

    def __call__(self, call: Call, call_next: Handler, /) -> Awaitable[object]:
        """Delay it, fail it, or pass it on."""
        if self.delays and self._chance() < self.delays:
            return self._late(call, call_next)
        return self._pass(call, call_next)

    async def _late(self, call: Call, call_next: Handler) -> object:
        await self._clock.sleep(self._delay)
        return await self._pass(call, call_next)

    def _pass(self, call: Call, call_next: Handler) -> Awaitable[object]:
        if self.errors and self._chance() < self.errors:
            raise self._error()
        return call_next(call)
