"""Whoever listens to a subject is found, by every mixture of wildcards, words and queue groups."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busmicro.transport import matches
from busmicro.transport.interest import Interest

words = st.sampled_from(["a", "b", "ab", "*x"])
subjects = st.lists(words, min_size=1, max_size=4).map(".".join)
patterns = st.builds(
    lambda parts, rest: ".".join([*parts, *rest]),
    st.lists(words | st.just("*"), min_size=1, max_size=3),
    st.sampled_from([(), (">",)]),
) | st.just(">")
listeners = st.lists(st.tuples(patterns, st.sampled_from(["", "q", "r"])), max_size=12)


def told(listening: list[tuple[str, str]]) -> Interest[int]:
    interest: Interest[int] = Interest()
    for number, (pattern, queue) in enumerate(listening):
        interest.add(pattern.encode(), queue, number)
    return interest


def found(interest: Interest[int], subject: str) -> dict[str, list[int]]:
    return {queue: sorted(who) for queue, who in interest.match(subject.encode()).items()}


def expected(listening: dict[int, tuple[str, str]], subject: str) -> dict[str, list[int]]:
    by_queue: dict[str, list[int]] = {}
    for number, (pattern, queue) in listening.items():
        if matches(pattern, subject):
            by_queue.setdefault(queue, []).append(number)
    return by_queue


@given(listeners, subjects)
def test_everybody_whose_pattern_matches_is_found_once(
    listening: list[tuple[str, str]], subject: str
):
    """The tree finds exactly those that `matches` names, each group as one."""
    assert found(told(listening), subject) == expected(dict(enumerate(listening)), subject)


@given(listeners, subjects, st.data())
def test_who_left_is_not_found_and_leaves_nothing_behind(
    listening: list[tuple[str, str]], subject: str, data: st.DataObject
):
    """After some have left the others are found as before; after all have left nothing is kept."""
    interest = told(listening)
    there = dict(enumerate(listening))
    for number in data.draw(st.permutations(range(len(listening)))):
        pattern, queue = there.pop(number)
        interest.remove(pattern.encode(), queue, number)
        assert found(interest, subject) == expected(there, subject)

    assert not interest


def test_wildcards_in_a_published_subject_are_plain_words():
    """Publishing to `a.*` reaches who listens to `a.*` or `a.>`, and nobody twice."""
    interest = told([("a.*", ""), ("a.>", ""), ("a.b", "")])

    assert found(interest, "a.*") == {"": [0, 1]}
    assert found(interest, "a.>") == {"": [0, 1]}


@pytest.mark.parametrize("subject", ["a", "a.b", "a.*"])
def test_leaving_without_having_listened_is_told(subject: str):
    """A subscription that is ended twice is a fault that shows."""
    with pytest.raises(ValueError, match=r".+"):
        told([("a.b.c", ""), ("a.b", "q")]).remove(subject.encode(), "", 7)
