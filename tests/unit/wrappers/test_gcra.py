"""A pace is never exceeded, whatever the schedule, and what it refuses is told when to come."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busmicro.wrappers.gcra import Pace, PaceByKey

ROUNDING = 1e-4
GAPS = st.lists(st.floats(0.0, 3.0), max_size=200)


def worst_excess(passed: list[float], interval: float, burst: int) -> float:
    """Return by how many the busiest stretch exceeds what it may hold; 0 or less is fine."""
    return max(
        (
            (last - first + 1) - ((passed[last] - passed[first]) / interval + burst)
            for first in range(len(passed))
            for last in range(first, len(passed))
        ),
        default=0.0,
    )


@settings(deadline=None)
@given(gaps=GAPS, interval=st.floats(0.01, 2.0), burst=st.integers(1, 20))
def test_no_stretch_of_time_holds_more_than_rate_and_burst(
    gaps: list[float], interval: float, burst: int
):
    """Whoever comes when he likes: in no t seconds do more than rate * t + burst pass."""
    pace, now, passed = Pace(interval, burst), 1_000.0, []

    for gap in gaps:
        now += gap
        if pace.take(now) <= 0:
            passed.append(now)

    assert worst_excess(passed, interval, burst) < ROUNDING


@settings(deadline=None)
@given(
    gaps=GAPS,
    interval=st.floats(0.01, 2.0),
    burst=st.integers(1, 20),
    patience=st.floats(0.0, 10.0),
)
def test_those_who_wait_keep_to_the_pace_too(
    gaps: list[float], interval: float, burst: int, patience: float
):
    """With waiting the pace is the same, in order of arrival, and nobody waits longer than told."""
    pace, now, passed = Pace(interval, burst), 1_000.0, []

    for gap in gaps:
        now += gap
        wait = pace.take(now, patience)
        if wait <= patience:
            passed.append(now + max(wait, 0.0))

    assert passed == sorted(passed)
    assert worst_excess(passed, interval, burst) < ROUNDING


@settings(deadline=None)
@given(gaps=GAPS, interval=st.floats(0.01, 2.0), burst=st.integers(1, 20))
def test_who_comes_back_when_told_passes(gaps: list[float], interval: float, burst: int):
    """The time to stay away is the time to stay away: not a moment longer is needed."""
    pace, now = Pace(interval, burst), 1_000.0

    for gap in gaps:
        now += gap
        wait = pace.take(now)
        if wait > 0:
            assert wait <= interval + 1e-6
            assert pace.take(now + wait + 1e-9) <= 0
            now += wait


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 1.0), st.integers(0, 6)), max_size=200),
    st.integers(1, 4),
)
def test_no_key_exceeds_its_pace_however_little_room_there_is(
    arrivals: list[tuple[float, int]], most_keys: int
):
    """Forgetting keys never gives anybody more than the rate, and there is never too much kept."""
    interval, burst, now = 0.5, 3, 1_000.0
    paces = PaceByKey(interval, burst, most_keys)
    passed: dict[int, list[float]] = {}

    for gap, key in arrivals:
        now += gap
        if paces.take(key, now) <= 0:
            passed.setdefault(key, []).append(now)
        assert len(paces) <= most_keys + 1  # and one that the rest share

    # a key that moves to the shared pace starts anew there, once
    assert all(worst_excess(times, interval, 2 * burst) < ROUNDING for times in passed.values())


def test_keys_with_room_are_told_apart_exactly():
    """With room for all, each key has exactly the pace that it would have alone."""
    paces, alone = PaceByKey(0.5, 3, 100), {key: Pace(0.5, 3) for key in range(10)}
    now = 1_000.0

    for step in range(500):
        now += 0.03
        key = step * 7 % 10
        assert (paces.take(key, now) <= 0) == (alone[key].take(now) <= 0)


def test_keys_that_rest_are_forgotten():
    """A million callers who each came once leave next to nothing behind."""
    paces = PaceByKey(1.0, 1, 10_000)

    for number in range(20_000):
        paces.take(number, 1_000.0 + number)

    assert len(paces) <= 2


def test_many_keys_gain_nobody_more():
    """Whoever invents a key for each request shares one pace with all the others who do."""
    paces = PaceByKey(1.0, 1, 10)

    passed = sum(paces.take(number, 1_000.0) <= 0 for number in range(1_000))

    assert passed == 11


@pytest.mark.parametrize("burst", [1, 5])
def test_a_rest_earns_the_whole_burst_and_no_more(burst: int):
    """After a long silence exactly the burst passes at once."""
    pace = Pace(1.0, burst)
    pace.take(0.0)

    passed = sum(pace.take(1e6) <= 0 for _ in range(20))

    assert passed == burst
