"""The window: how many events a node holds follows its pace, within its bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from busmicro.pubsub.window import Window


def leave(window: Window, now: float, seconds: float) -> float:
    """Let a whole window of events leave, evenly, within so many seconds."""
    now += seconds
    window.turned(now)
    return now


@given(
    st.integers(1, 1000),
    st.integers(1, 70_000),
    st.lists(st.floats(0.0, 2.0), max_size=50),
)
def test_window_stays_in_its_bounds(least, most, paces):
    """Whatever the pace, it never holds fewer than keep workers busy, nor more than allowed."""
    window = Window(least, most)
    now = 0.0
    for seconds in paces:
        assert min(least, most) <= window.size <= most
        assert window.left == window.size
        now = leave(window, now, seconds)
    assert min(least, most) <= window.size <= most


def test_quick_events_widen_it_and_slow_ones_narrow_it():
    """It doubles while a window lasts less than 0.1 s, and halves beyond 0.5 s."""
    window = Window(16, 1024)
    now = leave(window, 100.0, 0.2)
    sizes = []
    for seconds in (0.05, 0.05, 0.3, 0.6, 0.6, 0.6):
        now = leave(window, now, seconds)
        sizes.append(window.size)

    assert sizes == [32, 64, 64, 32, 16, 16]
