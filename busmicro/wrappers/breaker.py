"""Leave a service alone that fails: refuse calls at once, then ask again, carefully."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from busmicro.call import Call, Handler, Kind, Side
from busmicro.clock import SYSTEM_CLOCK, Clock
from busmicro.errors import CallError, Code, Disconnected, SetupError, Unavailable
from busmicro.wrappers.circuit import REFUSED, Circuit, CircuitOptions, State

Counts: TypeAlias = Callable[[Call, Exception], bool | None]

_MOST_CIRCUITS: Final = 10_000
_FAULTS: Final = frozenset(
    {Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS}
)


class CircuitOpen(Unavailable):
    """A circuit breaker refused the call; nothing ran, and trying again at once is no use."""

    def __init__(self, service: str, endpoint: str, retry_after: float | None) -> None:
        super().__init__(
            f"the circuit to {service}.{endpoint} is open, because it failed too often",
            retry_after=retry_after,
            not_run=True,
        )


def is_fault(call: Call, failure: Exception) -> bool | None:
    """Tell whether a failure speaks against the service.

    Returns:
        True for its faults and time-outs; False for answers, such as `NotFound`; None for what did
        not reach it: nobody listens, the connection is down, a wrapper of this process refused.
        Of a stream that was open, None also for the end of its time, which says how long it was
        wanted, and at the caller for failures of the block, which are not the stream's own.
    """
    if not isinstance(failure, CallError):
        return True if call.spec.side is Side.HANDLER else None
    if isinstance(failure, Disconnected) or (failure.not_run and not failure.origin):
        return None
    if call.spec.kind is Kind.STREAM and call.began and not _is_its_own(call, failure):
        return None
    return failure.code in _FAULTS


def _is_its_own(call: Call, failure: CallError) -> bool:
    """Tell whether a failure is how the service has ended an open stream."""
    if failure.code is Code.DEADLINE_EXCEEDED:
        return False
    return failure is getattr(call.stream, "raised", failure)


class CircuitBreaker:
    """Refuses calls of an endpoint while most of them fail.

    Each endpoint of each service has its own circuit. It opens when, of at least `minimum` calls
    in the last `window` seconds, a share of `error_ratio` failed. Then calls are refused with
    `unavailable`. After `open_for` seconds one call at a time goes through, as a probe; `probes`
    that succeed one after another close the circuit, one that fails opens it for twice as long.

    A stream counts when it ends, however long it lasted; as a probe it has succeeded once it is
    open.

    Args:
        error_ratio: More than 0, at most 1.
        minimum: 1 or more.
        window: Seconds, more than 0, looked at in tenths.
        open_for: Seconds, more than 0; shortened at random by up to a fifth, so that callers do not
            come back together.
        most_open: Seconds it stays open at most, however often the probes fail; `open_for` or more.
        probes: 1 or more.
        slow: Seconds from which a call counts as failed although it succeeded; not for streams.
            Left out, it may take its time.
        counts: Decides what speaks against a service; see `is_fault`.
        fallback: Answers in place of a call that is refused; not for streams.
        clock: Where time comes from.
        jitter: A number from 0 to 1 each time it is asked.

    Raises:
        SetupError: A number is out of range.
    """

    def __init__(
        self,
        *,
        error_ratio: float = 0.5,
        minimum: int = 20,
        window: float = 10.0,
        open_for: float = 5.0,
        most_open: float = 60.0,
        probes: int = 3,
        slow: float | None = None,
        counts: Counts = is_fault,
        fallback: Handler | None = None,
        clock: Clock = SYSTEM_CLOCK,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if slow is not None and not slow > 0:
            raise SetupError(f"CircuitBreaker(slow={slow}): say seconds, more than 0")
        self._options = CircuitOptions(
            error_ratio=error_ratio,
            minimum=minimum,
            window=window,
            open_for=open_for,
            most_open=most_open,
            probes=probes,
        )
        self._slow = math.inf if slow is None else slow
        self._counts = counts
        self._fallback = fallback
        self._clock = clock
        self._jitter = jitter
        self._mode = State.CLOSED
        self._circuits: dict[tuple[str, str], Circuit] = {}
        self._probes: dict[tuple[Circuit, int], Call] = {}
        self.refused = 0
        """How many calls were refused."""

    # --- by hand --------------------------------------------------------------------------------

    @property
    def circuits(self) -> dict[tuple[str, str], Circuit]:
        """The circuits there are, by service and endpoint; for looking at."""
        return dict(self._circuits)

    def circuit(self, service: str, endpoint: str) -> Circuit:
        """Return the circuit of an endpoint, which may be forced open, disabled or reset alone."""
        circuit = self._circuits.get((service, endpoint))
        if circuit is None:
            if len(self._circuits) >= _MOST_CIRCUITS:
                del self._circuits[next(iter(self._circuits))]
            circuit = Circuit(self._options, self._jitter)
            self._circuits[service, endpoint] = circuit
        return circuit

    def force_open(self) -> None:
        """Refuse everything until `reset`."""
        self._mode = State.FORCED_OPEN

    def disable(self) -> None:
        """Let everything through, and learn nothing, until `reset`."""
        self._mode = State.DISABLED

    def reset(self) -> None:
        """Close all circuits, and forget what they have seen."""
        self._mode = State.CLOSED
        self._circuits.clear()

    # --- calls ----------------------------------------------------------------------------------

    def __call__(self, call: Call, call_next: Handler, /) -> Awaitable[object]:
        """Make the call, or refuse it, and learn from how it ends."""
        if self._mode is State.DISABLED:
            return call_next(call)
        spec = call.spec
        circuit = self._circuits.get((spec.service, spec.endpoint))
        if circuit is None:
            circuit = self.circuit(spec.service, spec.endpoint)
        began = self._clock.now()
        if self._probes:
            self._look_at_probes(began)
        era = REFUSED if self._mode is State.FORCED_OPEN else circuit.enter(began)
        if era == REFUSED:
            return self._refuse(call, circuit, began)
        return self._watch(call, call_next, circuit, era, began)

    async def _watch(
        self, call: Call, call_next: Handler, circuit: Circuit, era: int, began: float
    ) -> object:
        failed: bool | None = None
        is_stream = call.spec.kind is Kind.STREAM
        probes = is_stream and circuit.state is State.HALF_OPEN
        if probes:
            self._probes[circuit, era] = call
        try:
            reply = await call_next(call)
            failed = False
        except asyncio.CancelledError:
            # Given up says nothing, but a handler whose time is up is cancelled as well.
            late = call.deadline is not None and self._clock.now() >= call.deadline
            failed = (late and not (is_stream and call.began)) or None
            raise
        except Exception as failure:
            failed = self._counts(call, failure)
            raise
        finally:
            now = self._clock.now()
            if failed is False and now - began >= self._slow:
                failed = not is_stream
            told = probes and self._probes.pop((circuit, era), None) is None
            if not told:
                circuit.leave(era, now, failed)
        return reply

    def _look_at_probes(self, now: float) -> None:
        """Learn from streams that are open: they may last longer than anybody can wait."""
        for (circuit, era), call in tuple(self._probes.items()):
            if call.began:
                del self._probes[circuit, era]
                circuit.leave(era, now, failed=False)

    def _refuse(self, call: Call, circuit: Circuit, now: float) -> Awaitable[object]:
        self.refused += 1
        if self._fallback is not None and call.spec.kind is not Kind.STREAM:
            return self._fallback(call)
        raise CircuitOpen(call.spec.service, call.spec.endpoint, circuit.retry_after(now))
