"""The circuit agrees with a breaker that others have written, `interlock-cb`."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busmicro.wrappers.circuit import REFUSED, Circuit, CircuitOptions

interlock = pytest.importorskip("interlock")


class Hand:
    """A clock for both."""

    def __init__(self) -> None:
        self.at = 1_000.0

    def monotonic(self) -> float:
        return self.at


@settings(deadline=None)
@given(
    calls=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0, 6.0, 15.0, 61.0]),
            st.sampled_from([0.0, 0.0, 0.2, 1.5]),
            st.booleans(),
        ),
        max_size=200,
    ),
    ratio=st.sampled_from([0.1, 0.3, 0.5, 0.8, 1.0]),
    minimum=st.integers(1, 20),
)
def test_circuit_does_what_interlock_does(
    calls: list[tuple[float, float, bool]], ratio: float, minimum: int
):
    """The same calls are made, and the same are refused, whatever happens."""
    clock = Hand()
    theirs = interlock.CircuitBreaker(
        name="oracle",
        clock=clock,
        config=interlock.Config(
            failure_rate_threshold=ratio,
            minimum_number_of_calls=minimum,
            permitted_calls_in_half_open=1,
            wait_duration_in_open=5.0,
            wait_duration_backoff_multiplier=2.0,
            wait_duration_in_open_max=60.0,
            window_type=interlock.WindowType.TIME_BASED,
            window_size=10,
        ),
    )
    options = CircuitOptions(error_ratio=ratio, minimum=minimum, open_for=5.0, probes=1)
    ours = Circuit(options, lambda: 0.0)

    def their_call(takes: float, *, fails: bool) -> bool:
        def work() -> None:
            clock.at += takes
            if fails:
                raise ConnectionError

        try:
            theirs.call_sync(work)
        except interlock.CircuitOpenError:
            return False
        except ConnectionError:
            pass
        return True

    for gap, takes, fails in calls:
        clock.at += gap
        era = ours.enter(clock.at)
        made = their_call(takes, fails=fails)
        assert made == (era != REFUSED)
        ours.leave(era, clock.at, fails)
        assert ours.state.value == theirs.state.value
