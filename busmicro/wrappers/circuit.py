"""The states of a circuit breaker, without calls and without waiting.

::

    CLOSED ──── too many failures ────→ OPEN ──── its time is over ────→ HALF_OPEN
       ↑                                  ↑                                  │
       │                                  └────────── a probe failed ────────┤
       └──────────────────── enough probes succeeded, one after another ─────┘

`FORCED_OPEN` and `DISABLED` are entered and left by hand.

Source: Nygard, Release It!; the rolling window is Hystrix's, the growing open time Envoy's.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from busmicro.errors import SetupError
from busmicro.wrappers.rolling import RollingCount

REFUSED: Final = -1
"""What `Circuit.enter` returns to a call that must not be made."""
_NEVER: Final = float("-inf")


class State(enum.Enum):
    """What a circuit does with calls."""

    CLOSED = "closed"
    """It lets them through, and counts."""
    OPEN = "open"
    """It refuses them, for a time."""
    HALF_OPEN = "half_open"
    """It lets one through at a time, to see."""
    FORCED_OPEN = "forced_open"
    """It refuses them until `reset`."""
    DISABLED = "disabled"
    """It lets them through and does not count, until `reset`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitOptions:
    """When a circuit opens and closes."""

    error_ratio: float = 0.5
    """The share of failures that opens it: more than 0, at most 1."""
    minimum: int = 20
    """How many calls the window must have seen before a share means something; 1 or more."""
    window: float = 10.0
    """How many seconds count; more than 0."""
    open_for: float = 5.0
    """Seconds it stays open at first, less up to a fifth; twice as long each time in a row."""
    most_open: float = 60.0
    """Seconds it stays open at most."""
    probes: int = 3
    """How many probes must succeed one after another to close it; 1 or more."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 0 < self.error_ratio <= 1:
            raise SetupError(f"error_ratio={self.error_ratio}: say a share, more than 0, at most 1")
        if self.minimum < 1 or self.probes < 1:
            raise SetupError(
                f"minimum={self.minimum}, probes={self.probes}: say 1 or more for each"
            )
        if not 0 < self.window <= 86_400:
            raise SetupError(f"window={self.window}: say seconds, more than 0, at most 86,400")
        if not 0 < self.open_for <= self.most_open <= 86_400:
            raise SetupError(
                f"open_for={self.open_for}, most_open={self.most_open}: say seconds, more than 0, "
                "the second one not less than the first, at most 86,400"
            )


class Circuit:
    """One circuit: ask with `enter` before a call, tell with `leave` how it ended.

    Args:
        options: When it opens and closes.
        jitter: A number from 0 to 1 each time it is asked.
    """

    __slots__ = (
        "_era",
        "_jitter",
        "_options",
        "_probe_until",
        "_reopened",
        "_succeeded",
        "_until",
        "_window",
        "state",
    )

    def __init__(self, options: CircuitOptions, jitter: Callable[[], float]) -> None:
        self._options = options
        self._jitter = jitter
        self._window = RollingCount(options.window)
        self._era = 0
        self._until = _NEVER
        self._probe_until = _NEVER
        self._reopened = 0
        self._succeeded = 0
        self.state = State.CLOSED
        """What it does with calls; an open one learns that its time is over by the next call."""

    def enter(self, now: float) -> int:
        """Ask for a call at `now`.

        Returns:
            What to hand to `leave` when it has ended; `REFUSED` if it must not be made.
        """
        if self.state is State.CLOSED or self.state is State.DISABLED:
            return self._era
        if self.state is State.OPEN and now >= self._until:
            self._change(State.HALF_OPEN)
        if self.state is not State.HALF_OPEN or now < self._probe_until:
            return REFUSED
        # A probe that never ends must not keep the circuit half open: in time there is another,
        # and what becomes of the first one is of no interest any more.
        self._probe_until = now + self._options.most_open
        self._era += 1
        return self._era

    def leave(self, era: int, now: float, failed: bool | None) -> None:  # noqa: FBT001 - three answers
        """Tell how a call ended; None if that says nothing about the service.

        Of calls that began before the last change of state nothing is learnt.
        """
        if era != self._era:
            return
        if self.state is State.CLOSED:
            if failed is not None:
                self._count(now, failed=failed)
        elif self.state is State.HALF_OPEN:
            self._probe_until = _NEVER
            if failed:
                self._reopened += 1
                self._open(now)
            elif failed is not None:
                self._succeeded += 1
                if self._succeeded >= self._options.probes:
                    self.reset()

    def _count(self, now: float, *, failed: bool) -> None:
        window, options = self._window, self._options
        window.count(now, failed=failed)
        if window.calls >= options.minimum and (
            window.failures / window.calls >= options.error_ratio
        ):
            self._open(now)

    def _open(self, now: float) -> None:
        options = self._options
        # 2 ** 40 is for ever; more would not fit into a float some day
        seconds = min(options.most_open, options.open_for * 2.0 ** min(self._reopened, 40))
        self._until = now + seconds * (1 - self._jitter() / 5)
        self._change(State.OPEN)

    def _change(self, state: State) -> None:
        self.state = state
        self._era += 1
        self._succeeded = 0
        self._probe_until = _NEVER
        self._window.clear()

    def retry_after(self, now: float) -> float | None:
        """Return the seconds until it may be worth asking again; None if nobody knows."""
        return max(self._until - now, 0.0) if self.state is State.OPEN else None

    def force_open(self) -> None:
        """Refuse everything until `reset`."""
        self._change(State.FORCED_OPEN)

    def disable(self) -> None:
        """Let everything through until `reset`."""
        self._change(State.DISABLED)

    def reset(self) -> None:
        """Close it, and forget what it has seen."""
        self._reopened = 0
        self._change(State.CLOSED)
