"""Streams: what can be wanted, and which subjects cover which."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busmicro import SetupError, Stream
from busmicro.pubsub.stream import covers
from busmicro.transport import matches

plain = st.sampled_from(["a", "b", "c"])
subjects = st.lists(plain, min_size=1, max_size=4).map(".".join)


@st.composite
def patterns(draw: st.DrawFn) -> str:
    words = draw(st.lists(st.sampled_from(["a", "b", "c", "*"]), min_size=1, max_size=3))
    return ".".join(words + ([">"] if draw(st.booleans()) else []))


@given(patterns(), patterns(), subjects)
def test_covers_means_that_nothing_falls_beside(wider, narrower, subject):
    """What the narrower pattern matches, a pattern that covers it matches too."""
    if covers(wider, narrower) and matches(narrower, subject):
        assert matches(wider, subject)


@given(patterns(), subjects)
def test_a_subject_is_covered_by_what_matches_it(pattern, subject):
    """For a concrete subject covering and matching are the same."""
    assert covers(pattern, subject) is matches(pattern, subject)


@given(patterns(), patterns(), patterns())
def test_covers_is_an_order(one, two, three):
    """A pattern covers itself, and covering goes on through a third."""
    assert covers(one, one)
    if covers(one, two) and covers(two, three):
        assert covers(one, three)


@given(patterns(), patterns())
def test_not_covered_means_that_something_falls_beside(wider, narrower):
    """Where it says no, there is a subject that only the narrower one matches."""
    if covers(wider, narrower):
        return
    filled = [["a", "b", "d"] if word == "*" else [word] for word in narrower.split(".")]
    tails = [["a"], ["a", "d", "a", "d"]] if narrower.endswith(">") else [[]]
    heads: list[list[str]] = [[]]
    for choices in filled[:-1] if narrower.endswith(">") else filled:
        heads = [[*head, word] for head in heads for word in choices]
    candidates = [".".join([*head, *tail]) for head in heads for tail in tails]
    assert any(not matches(wider, subject) for subject in candidates)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "A B"}, "stream name"),
        ({"name": ""}, "stream name"),
        ({"name": "A.B"}, "stream name"),
        ({"subjects": "orders.>"}, "subjects is a list"),
        ({"max_age": 0.0}, "max_age"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"max_events": 0}, "max_events"),
        ({"replicas": 2}, "replicas"),
        ({"dedup_window": 0.0}, "dedup_window"),
        ({"discard": "oldest"}, "discard"),
        ({"storage": "disk"}, "storage"),
    ],
)
def test_stream_that_cannot_be_meant_is_refused(settings, says):
    """The error names the option."""
    with pytest.raises(SetupError, match=says):
        Stream(**{"name": "ORDERS", **settings})


def test_ids_are_not_remembered_for_longer_than_events():
    """A short-lived stream has a deduplication window as short."""
    assert Stream("ORDERS", max_age=10.0).dedup_window == 10.0
    assert Stream("ORDERS").dedup_window == 120.0
