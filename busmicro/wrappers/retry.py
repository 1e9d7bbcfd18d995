"""Try again, but only what is safe to try again, and never so often that it makes things worse.

What is safe: a call that certainly did not run; with `idempotent=True` on the endpoint also one
that may have.  How often: a few attempts, with growing, jittered pauses, within the deadline, and
only while the budget lasts: it is spent by failures and earned back, slowly, by successes, so that
a service in trouble sees a tenth more load and not three times as much.  A stream may be opened
again, but never once it was open, and without a deadline not after more than 5 seconds.

Source: gRFC A6 (throttling, push-back); go-micro's default retry of time-outs is what not to do.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from busmicro.call import Call, Handler, Kind
from busmicro.clock import SYSTEM_CLOCK, Clock
from busmicro.errors import (
    TABLE,
    CallError,
    Code,
    NoResponders,
    PayloadTooLarge,
    SetupError,
)
from busmicro.headers import ATTEMPT
from busmicro.wrappers.breaker import CircuitOpen

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_LONGEST_WAIT = 5.0
"""A stream may have no deadline, but its caller wants to know soon whether it opens."""
_SHORTEST_ATTEMPT = 0.01
_MOST_BUDGETS = 10_000
_NO_BETTER = (NoResponders, PayloadTooLarge, CircuitOpen)
"""What will be no better in a moment. Waiting for a node is `wait_for_ready`'s business."""
_MAY_PASS = (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED)
"""What may be better in a moment; a wrong request or an unknown endpoint will not."""


class Budget:
    """Tokens that retries cost: one for a failure, a tenth back for a success.

    Args:
        tokens: How many there are at most, 1 or more; retries stop when half of them is spent.
        earned: What a success gives back, 0 to 1.

    Raises:
        SetupError: A number is out of range.
    """

    def __init__(self, tokens: float = 10.0, *, earned: float = 0.1) -> None:
        if not (1 <= tokens < math.inf and 0 <= earned <= 1):
            raise SetupError(
                f"Budget({tokens}, earned={earned}): say 1 or more tokens, and 0 to 1 earned"
            )
        self.most = tokens
        self.left = tokens
        self._earned = earned

    def succeeded(self) -> None:
        """Earn a little."""
        if self.left < self.most:
            self.left = min(self.most, self.left + self._earned)

    def failed(self) -> bool:
        """Spend one; tell whether more than half is left, so that trying again is allowed."""
        self.left = max(0.0, self.left - 1.0)
        return self.left > self.most / 2


class Retry:
    """Tries a call again where that is safe.

    Args:
        attempts: How often in all, 1 to 10; 1 switches it off.
        attempt_timeout: Seconds for one attempt of an idempotent call; left out, an attempt gets
            half of the time that is left, and the last one all of it.
        clock: Where time comes from.
        jitter: A number from 0 to 1 each time it is asked.
    """

    def __init__(
        self,
        attempts: int = 3,
        *,
        attempt_timeout: float | None = None,
        clock: Clock = SYSTEM_CLOCK,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if not 1 <= attempts <= 10:
            raise SetupError(f"Retry(attempts={attempts}): say 1 to 10")
        if attempt_timeout is not None and attempt_timeout <= 0:
            raise SetupError(f"Retry(attempt_timeout={attempt_timeout}): say seconds, more than 0")
        self._attempts = attempts
        self._attempt_timeout = attempt_timeout
        self._clock = clock
        self._jitter = jitter
        self._budgets: dict[str, Budget] = {}

    def budget(self, service: str) -> Budget:
        """Return the budget that all calls to a service share."""
        budget = self._budgets.get(service)
        if budget is None:
            if len(self._budgets) >= _MOST_BUDGETS:
                del self._budgets[next(iter(self._budgets))]
            budget = self._budgets[service] = Budget()
        return budget

    async def __call__(self, call: Call, call_next: Handler, /) -> object:
        """Make the call, and make it again while that is safe and worth it."""
        budget = self.budget(call.spec.service)
        attempt = 1
        # The step at the bottom of a chain leaves the call alone, so there is nothing to undo.
        bare = getattr(call_next, "leaves_call_alone", False) and not call.spec.idempotent
        while True:
            tried = call if bare and attempt == 1 else self._prepare(call, attempt)
            try:
                reply = await call_next(tried)
            except CallError as failure:
                call.began = call.began or tried.began
                pause = self._pause(call, failure, attempt, budget)
                if pause is None:
                    raise
            else:
                budget.succeeded()
                if tried.has_reply_headers:
                    call.reply_headers = tried.reply_headers
                return reply
            await self._clock.sleep(pause)
            attempt += 1

    def _prepare(self, call: Call, attempt: int) -> Call:
        """Give each attempt its own copy, so that headers and taps do not pile up."""
        tried = call.copy()
        if attempt > 1:
            tried.headers[ATTEMPT] = str(attempt)
        spec = call.spec
        # a stream is not one attempt: once it is open, all of the time is its own
        if spec.idempotent and call.deadline is not None and spec.kind is not Kind.STREAM:
            now = self._clock.now()
            share = call.deadline - now
            if attempt < self._attempts:
                share = max(share / 2, _SHORTEST_ATTEMPT)
            tried.deadline = min(call.deadline, now + (self._attempt_timeout or share))
        return tried

    def _pause(self, call: Call, failure: CallError, attempt: int, budget: Budget) -> float | None:
        """Decide: the seconds to wait before the next attempt, or None to give up."""
        if not self._is_safe(call, failure) or not budget.failed() or attempt >= self._attempts:
            return None
        ceiling = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (attempt - 1))
        pause = failure.retry_after if failure.retry_after is not None else ceiling * self._jitter()
        if call.deadline is not None and self._clock.now() + pause >= call.deadline:
            return None
        if pause > _LONGEST_WAIT and call.deadline is None and call.spec.kind is Kind.STREAM:
            return None
        return pause

    def _is_safe(self, call: Call, failure: CallError) -> bool:
        if isinstance(failure, _NO_BETTER) or (call.began and call.spec.kind is Kind.STREAM):
            return False
        if failure.not_run and not call.began:  # else what did not run is a call that it made
            return failure.code in _MAY_PASS
        return call.spec.idempotent and TABLE[failure.code].retry_if_idempotent
