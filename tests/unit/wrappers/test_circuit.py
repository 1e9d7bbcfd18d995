"""A circuit opens when it must and only then, and asks one at a time before it closes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busmicro.errors import SetupError
from busmicro.wrappers.circuit import REFUSED, Circuit, CircuitOptions, State
from busmicro.wrappers.rolling import RollingCount

OPTIONS = CircuitOptions(minimum=5, window=10.0, open_for=5.0, most_open=60.0, probes=2)


def circuit(**changes: Any) -> Circuit:
    return Circuit(dataclasses.replace(OPTIONS, **changes), lambda: 0.0)


class Slow:
    """The same in the most obvious way: it keeps every outcome, and looks at all of them."""

    def __init__(self, options: CircuitOptions) -> None:
        self.options = options
        self.seen: list[tuple[int, bool]] = []
        self.state = State.CLOSED
        self.era = 0
        self.until = 0.0
        self.probing: float | None = None
        self.good_probes = 0
        self.failed_rounds = 0

    def tenth(self, now: float) -> int:
        return int(now / (self.options.window / 10))

    def enter(self, now: float) -> int:
        if self.state is State.CLOSED:
            return self.era
        if self.state is State.OPEN:
            if now < self.until:
                return REFUSED
            self.become(State.HALF_OPEN)
        if self.probing is not None and now < self.probing + self.options.most_open:
            return REFUSED
        self.probing = now
        self.era += 1
        return self.era

    def leave(self, era: int, now: float, failed: bool | None) -> None:
        if era != self.era or self.state is State.OPEN:
            return
        if self.state is State.HALF_OPEN:
            self.probing = None
            self.probed(now, failed)
        elif failed is not None:
            self.seen.append((self.tenth(now), failed))
            last = [bad for at, bad in self.seen if at > self.tenth(now) - 10]
            if len(last) >= self.options.minimum:
                ratio = sum(last) / len(last)
                if ratio >= self.options.error_ratio:
                    self.open(now)

    def probed(self, now: float, failed: bool | None) -> None:
        if failed:
            self.failed_rounds += 1
            self.open(now)
        elif failed is False:
            self.good_probes += 1
            if self.good_probes == self.options.probes:
                self.failed_rounds = 0
                self.become(State.CLOSED)

    def open(self, now: float) -> None:
        grown = self.options.open_for * 2**self.failed_rounds
        self.until = now + min(grown, self.options.most_open)
        self.become(State.OPEN)

    def become(self, state: State) -> None:
        self.state = state
        self.era += 1
        self.seen = []
        self.good_probes = 0
        self.probing = None


STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.1, 0.3, 1.0, 1.0, 3.0, 7.0, 30.0, 70.0]),
        st.sampled_from(["enter", "enter", "enter", "leave", "leave"]),
        st.sampled_from([True, True, False, None]),
        st.integers(0, 5),
    ),
    max_size=150,
)


@settings(deadline=None)
@given(
    steps=STEPS,
    ratio=st.sampled_from([0.1, 0.3, 0.5, 0.8, 1.0]),
    minimum=st.integers(1, 8),
    probes=st.integers(1, 3),
    window=st.sampled_from([1.0, 10.0, 20.0]),
)
def test_circuit_does_what_the_obvious_one_does(
    steps: list[tuple[float, str, bool | None, int]],
    ratio: float,
    minimum: int,
    probes: int,
    window: float,
):
    """Whatever is called when, and however it ends, it agrees with one that keeps everything."""
    options = dataclasses.replace(
        OPTIONS, error_ratio=ratio, minimum=minimum, probes=probes, window=window
    )
    fast, slow, now = Circuit(options, lambda: 0.0), Slow(options), 1_000.0
    under_way: list[tuple[int, int]] = []

    for gap, what, failed, which in steps:
        now += gap
        if what == "enter":
            pair = (fast.enter(now), slow.enter(now))
            assert (pair[0] == REFUSED) == (pair[1] == REFUSED)
            if pair[0] != REFUSED:
                under_way.append(pair)
        elif under_way:
            mine, theirs = under_way.pop(which % len(under_way))
            fast.leave(mine, now, failed)
            slow.leave(theirs, now, failed)
        assert fast.state is slow.state


@settings(deadline=None)
@given(
    ends=st.lists(st.tuples(st.floats(0.0, 4.0), st.booleans()), min_size=1, max_size=100),
    seconds=st.sampled_from([1.0, 10.0, 20.0]),
)
def test_window_counts_the_last_ten_tenths(ends: list[tuple[float, bool]], seconds: float):
    """What is counted is exactly what ended in this tenth of the window and the nine before."""
    rolling, now, seen = RollingCount(seconds), 1_000.0, []

    for gap, failed in ends:
        now += gap
        rolling.count(now, failed=failed)
        tenth = int(now / (seconds / 10))
        seen.append((tenth, failed))
        last = [bad for at, bad in seen if at > tenth - 10]
        assert (rolling.calls, rolling.failures) == (len(last), sum(last))


@settings(deadline=None)
@given(
    outcomes=st.lists(st.tuples(st.sampled_from([0.0, 0.2, 1.0, 4.0]), st.booleans()), max_size=200)
)
def test_one_probe_at_a_time_whatever_happens(outcomes: list[tuple[float, bool]]):
    """While it is half open, nobody gets through beside the probe."""
    tested, now = circuit(), 1_000.0

    for gap, failed in outcomes:
        now += gap
        era = tested.enter(now)
        if era != REFUSED and tested.state is State.HALF_OPEN:
            assert [tested.enter(now) for _ in range(99)] == [REFUSED] * 99
        tested.leave(era, now, failed)


def test_eighty_percent_interleaved_errors_open_at_the_minimum():
    """Successes in between do not keep it closed: it opens with the twentieth call."""
    tested, calls = circuit(minimum=20), 0

    while tested.state is State.CLOSED:
        tested.leave(tested.enter(1_000.0), 1_000.0, calls % 5 != 4)
        calls += 1

    assert calls == 20


def test_few_calls_never_open_it():
    """A service that is seldom called is not shut off for two failures."""
    tested = circuit(minimum=5)

    for second in range(100):
        tested.leave(tested.enter(second * 3.0), second * 3.0, failed=True)

    assert tested.state is State.CLOSED


def test_open_time_doubles_up_to_its_limit():
    """Each probe that fails makes it wait twice as long, and never longer than the limit."""
    tested, now, waits = circuit(minimum=1, error_ratio=1.0), 1_000.0, []
    tested.leave(tested.enter(now), now, failed=True)

    for _ in range(6):
        wait = tested.retry_after(now)
        assert wait is not None
        waits.append(wait)
        assert tested.enter(now + wait - 0.001) == REFUSED
        now += wait
        tested.leave(tested.enter(now), now, failed=True)

    assert waits == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]


@settings(deadline=None)
@given(st.floats(0.0, 1.0))
def test_jitter_shortens_by_a_fifth_at_most(jitter: float):
    """Callers come back at different times, none later than said."""
    tested = Circuit(OPTIONS, lambda: jitter)
    for _ in range(5):
        tested.leave(tested.enter(0.0), 0.0, failed=True)

    wait = tested.retry_after(0.0)

    assert wait is not None
    assert 4.0 <= wait <= 5.0


def test_open_time_is_short_again_after_recovery():
    """Trouble of yesterday does not make today's waiting longer."""
    tested, now = circuit(minimum=1, error_ratio=1.0, probes=1), 0.0
    for _ in range(4):
        tested.leave(tested.enter(now), now, failed=True)
        now += 100.0
    tested.leave(tested.enter(now), now, failed=False)
    tested.leave(tested.enter(now), now, failed=True)

    assert tested.retry_after(now) == 5.0


def test_probe_that_is_given_up_makes_room_for_the_next():
    """A caller who cancels his call does not keep the circuit half open."""
    tested = circuit(minimum=1, error_ratio=1.0)
    tested.leave(tested.enter(0.0), 0.0, failed=True)
    probe = tested.enter(10.0)
    assert tested.enter(10.0) == REFUSED

    tested.leave(probe, 11.0, None)

    assert tested.enter(11.0) != REFUSED


def test_probe_that_never_ends_makes_room_in_time():
    """A call that hangs for ever does not shut a service off for ever, nor count when it ends."""
    tested = circuit(minimum=1, error_ratio=1.0, probes=1)
    tested.leave(tested.enter(0.0), 0.0, failed=True)
    hanging = tested.enter(10.0)
    second = tested.enter(10.0 + 60.0)
    assert second != REFUSED

    tested.leave(hanging, 71.0, failed=True)
    tested.leave(second, 71.0, failed=False)

    assert tested.state is State.CLOSED


def test_late_answers_do_not_count():
    """Calls that began before it opened neither close it nor keep it open."""
    tested = circuit(minimum=1, error_ratio=1.0)
    early = tested.enter(0.0)
    tested.leave(tested.enter(0.0), 0.0, failed=True)

    tested.leave(early, 1.0, failed=False)

    assert tested.state is State.OPEN


def test_forced_open_and_disabled_last_until_reset():
    """What is done by hand is undone by hand, and by nothing else."""
    tested = circuit(minimum=1)

    tested.force_open()
    assert tested.enter(1e9) == REFUSED
    assert tested.retry_after(1e9) is None
    tested.disable()
    for _ in range(50):
        tested.leave(tested.enter(1e9), 1e9, failed=True)
    assert tested.state is State.DISABLED
    tested.reset()

    assert tested.state is State.CLOSED


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"error_ratio": 1.5}, "at most 1"),
        ({"error_ratio": 0.0}, "more than 0"),
        ({"error_ratio": float("nan")}, "more than 0"),
        ({"minimum": 0}, "1 or more"),
        ({"probes": 0}, "1 or more"),
        ({"window": -1.0}, "more than 0"),
        ({"open_for": 0.0}, "more than 0"),
        ({"open_for": 10.0, "most_open": 5.0}, "not less than the first"),
    ],
)
def test_senseless_settings_are_refused(wrong: dict[str, Any], says: str):
    """A wrong number is told at construction, with the range."""
    with pytest.raises(SetupError, match=says):
        dataclasses.replace(OPTIONS, **wrong)
