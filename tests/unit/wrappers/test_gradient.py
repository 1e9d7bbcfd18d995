"""A limit that follows how long things take stays in its bounds, and comes back."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busmicro.errors import SetupError
from busmicro.wrappers.gradient import Gradient, GradientOptions

OPTIONS = GradientOptions(least=2, most=200, start=20)


class Node:
    """A node that can work on so many at once; with more, each takes longer in proportion."""

    def __init__(self, options: GradientOptions, room: int) -> None:
        self.now = 1_000.0
        self.gradient = Gradient(options, self.now)
        self.room = room
        self.wanted = 500

    def run(self, seconds: float, *, takes: float = 0.01) -> None:
        """Let callers want `wanted` at once for some time."""
        end = self.now + seconds
        while self.now < end:
            running = min(self.wanted, int(self.gradient.limit))
            took = takes * max(1.0, running / self.room)
            self.now += took / running
            self.gradient.ended(self.now, took, running, succeeded=True)


SAMPLES = st.lists(
    st.tuples(st.floats(0.0, 2.0), st.floats(0.0, 100.0), st.integers(1, 1_000), st.booleans()),
    max_size=300,
)


@settings(deadline=None)
@given(samples=SAMPLES, least=st.integers(1, 10), span=st.integers(0, 500))
def test_limit_stays_within_its_bounds(
    samples: list[tuple[float, float, int, bool]], least: int, span: int
):
    """Whatever happens, it is never less than `least` and never more than `most`."""
    options = GradientOptions(
        least=least, most=least + span, start=least + span // 2, every=0.01, remeasure=1.0
    )
    tested, now = Gradient(options, 0.0), 0.0

    for gap, took, running, succeeded in samples:
        now += gap
        tested.ended(now, took, running, succeeded=succeeded)
        assert least <= tested.limit <= least + span


@settings(max_examples=25, deadline=None)  # each is some seconds of a busy node
@given(slow=st.floats(2.5, 100.0), seconds=st.floats(1.0, 30.0), room=st.integers(10, 100))
def test_limit_recovers_after_any_trouble(slow: float, seconds: float, room: int):
    """When what was slow is quick again, as much runs as before, within five seconds."""
    node = Node(OPTIONS, room)
    node.run(5.0)
    before = node.gradient.limit

    node.run(seconds, takes=0.01 * slow)
    node.run(5.0)

    assert node.gradient.limit >= 0.5 * before


def test_limit_finds_what_the_node_can_bear():
    """With far more work than it can do, it settles near what does not slow it down too much."""
    node = Node(OPTIONS, room=50)

    node.run(30.0)

    assert 50 <= node.gradient.limit <= 150


def test_trouble_lowers_it_within_a_second():
    """When everything takes ten times as long, most of the load is refused soon."""
    node = Node(OPTIONS, room=50)
    node.run(30.0)
    before = node.gradient.limit

    node.run(1.5, takes=0.1)

    assert node.gradient.limit < before / 2


def test_idle_node_does_not_raise_it():
    """What nobody has tried is not taken for granted."""
    node = Node(OPTIONS, room=50)
    node.wanted = 2

    node.run(30.0)

    assert node.gradient.limit == OPTIONS.start


def test_ease_that_was_measured_under_load_is_measured_again():
    """A node that started in the middle of a storm finds out how quick it can be."""
    options = dataclasses.replace(OPTIONS, start=200, remeasure=5.0)
    node = Node(options, room=20)

    node.run(60.0)

    assert node.gradient.limit <= 80


def test_quick_failures_say_nothing():
    """A database that refuses at once does not make the node look quick."""
    tested, now = Gradient(OPTIONS, 0.0), 0.0
    for _ in range(100):
        now += 0.01
        tested.ended(now, 0.05, 20, succeeded=True)
    before = tested.limit
    for _ in range(1_000):
        now += 0.01
        tested.ended(now, 0.0001, 20, succeeded=False)
    for _ in range(100):
        now += 0.01
        tested.ended(now, 0.05, 20, succeeded=True)

    assert tested.limit >= before


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"least": 0}, "from 1 up"),
        ({"least": 30}, "in this order"),
        ({"most": 10}, "in this order"),
        ({"tolerance": 0.5}, "1 or more"),
        ({"every": 0.0}, "more than 0"),
        ({"remeasure": -1.0}, "more than 0"),
    ],
)
def test_senseless_settings_are_refused(wrong: dict[str, Any], says: str):
    """A wrong number is told at construction, with the range."""
    with pytest.raises(SetupError, match=says):
        dataclasses.replace(OPTIONS, **wrong)
