"""Give every exchange an end: a deadline where nobody has set one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from busmicro.call import Call, Handler, Side
from busmicro.clock import SYSTEM_CLOCK, Clock
from busmicro.errors import DeadlineExceeded, SetupError

_A_DAY = 86_400.0


class Deadline:
    """Ends what takes longer than `timeout`, unless it brings a deadline of its own.

    Calls always bring one; streams and events do if somebody has given them a `timeout`, so say
    `only(Deadline(…), kinds=[…])` where some may last for ever. Whoever set a deadline holds it,
    so this wrapper watches over those that it sets itself, and the others cost nothing.

    Args:
        timeout: Seconds, more than 0, at most 86,400.
        most: Seconds that nothing may exceed, whatever it says itself; left out, no limit.
        clock: Where time comes from; it must agree with the event loop's.

    Raises:
        SetupError: A number is out of range.
    """

    def __init__(
        self, timeout: float, *, most: float | None = None, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        if not 0 < timeout <= _A_DAY:
            raise SetupError(f"Deadline({timeout}): say seconds, more than 0, at most 86,400")
        if most is not None and not timeout <= most <= _A_DAY:
            raise SetupError(
                f"Deadline({timeout}, most={most}): say seconds, at least the timeout, "
                "at most 86,400"
            )
        self._timeout = timeout
        self._most = most
        self._clock = clock

    def __call__(self, call: Call, call_next: Handler, /) -> Awaitable[object]:
        """Pass on what has a deadline, and hold the rest to one."""
        if call.deadline is not None and self._most is None:
            return call_next(call)
        now = self._clock.now()
        if call.deadline is None:
            call.deadline = now + self._timeout
        elif self._most is not None and call.deadline > now + self._most:
            call.deadline = now + self._most
        else:
            return call_next(call)
        return _hold(call, call_next, call.deadline)


async def _hold(call: Call, call_next: Handler, deadline: float) -> object:
    limit = asyncio.timeout_at(deadline)  # in this task: the body of a stream runs inside it too
    try:
        async with limit:
            return await call_next(call)
    except TimeoutError as late:
        if not limit.expired():
            raise  # it is somebody else's
        not_run = call.spec.side is Side.HANDLER and not call.began
        raise DeadlineExceeded(
            f"{call.spec.service}.{call.spec.endpoint} was not done in time", not_run=not_run
        ) from late
