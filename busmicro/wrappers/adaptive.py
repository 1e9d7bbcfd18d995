"""Let as many run at once as the node can bear, and find out how many that is."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

from busmicro.call import Call, Handler, Kind
from busmicro.clock import SYSTEM_CLOCK, Clock
from busmicro.errors import ResourceExhausted
from busmicro.wrappers.concurrency import BUSY_FOR
from busmicro.wrappers.gradient import Gradient, GradientOptions

_MOST_ENDPOINTS: Final = 10_000


class _Room:
    """One endpoint: how many run, and how many may."""

    __slots__ = ("gradient", "running")

    def __init__(self, options: GradientOptions, now: float) -> None:
        self.running = 0
        self.gradient = Gradient(options, now)


class AdaptiveLimit:
    """Lets as many exchanges of an endpoint run at once as do not slow each other down.

    The rest is refused with `resource_exhausted`; nothing ran of it. Each endpoint has a limit of
    its own. Streams pass: how long one lasts says nothing. Once in a while it cuts the limit
    for a tenth of a second, to see how long an exchange takes at ease.

    Fits endpoints whose exchanges take about equally long. Where some take a hundred times as long
    as others, use `ConcurrencyLimit`.

    Args:
        least: The limit never falls below; 1 or more.
        most: It never grows beyond; `least` or more.
        start: Where it begins.
        tolerance: How many times as long as at ease an exchange may take; 1 or more.
        remeasure: Seconds between two looks at how long it takes at ease; more than 0.
        clock: Where time comes from.

    Raises:
        SetupError: A number is out of range.
    """

    def __init__(
        self,
        *,
        least: int = 3,
        most: int = 1_000,
        start: int = 20,
        tolerance: float = 2.0,
        remeasure: float = 60.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._options = GradientOptions(
            least=least, most=most, start=start, tolerance=tolerance, remeasure=remeasure
        )
        self._clock = clock
        self._rooms: dict[tuple[str, str], _Room] = {}
        self.refused = 0
        """How many were refused."""

    @property
    def limits(self) -> dict[tuple[str, str], int]:
        """How many may run at once now, by service and endpoint."""
        return {name: int(room.gradient.limit) for name, room in self._rooms.items()}

    def __call__(self, call: Call, call_next: Handler, /) -> Awaitable[object]:
        """Run it, or refuse it."""
        if call.spec.kind is Kind.STREAM:
            return call_next(call)
        return self._run(call, call_next)

    async def _run(self, call: Call, call_next: Handler) -> object:
        spec = call.spec
        began = self._clock.now()
        room = self._rooms.get((spec.service, spec.endpoint)) or self._add(call, began)
        if room.running >= int(room.gradient.limit):
            self.refused += 1
            raise ResourceExhausted(
                f"{room.running} run already, and more would slow them down",
                retry_after=BUSY_FOR,
                not_run=True,
            )
        room.running += 1
        succeeded = False
        try:
            reply = await call_next(call)
            succeeded = True
        finally:
            now = self._clock.now()
            room.gradient.ended(now, now - began, room.running, succeeded=succeeded)
            room.running -= 1
        return reply

    def _add(self, call: Call, now: float) -> _Room:
        if len(self._rooms) >= _MOST_ENDPOINTS:
            del self._rooms[next(iter(self._rooms))]
        room = _Room(self._options, now)
        self._rooms[call.spec.service, call.spec.endpoint] = room
        return room
