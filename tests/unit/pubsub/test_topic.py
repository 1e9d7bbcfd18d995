"""Topics: which subjects can be meant, and what their words say."""

from __future__ import annotations

import enum
import string
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busmicro import InvalidArgument, SetupError, Stream, Topic

words = st.text(string.ascii_letters + string.digits + "_-äé", min_size=1, max_size=8).filter(
    lambda word: word not in {"rpc", "node", "cancel", "dlq", "schedules", "_INBOX"}
)
names = st.text(string.ascii_lowercase + "_", min_size=1, max_size=8)


@given(st.lists(words, min_size=1), st.dictionaries(names, words, max_size=4), st.randoms())
def test_what_is_filled_in_is_read_back(fixed, values, random):
    """`format` and `values` are inverse, wherever the names stand."""
    parts = [*fixed, *(f"{{{name}}}" for name in values)]
    random.shuffle(parts)
    topic = Topic(".".join(parts), int)

    concrete = topic.format(**values)

    assert concrete.is_concrete
    assert concrete.subject.count(".") == len(parts) - 1
    assert topic.values(concrete.subject) == values
    assert topic.matches(concrete.subject)
    assert concrete.family is topic
    assert set(topic.names) == set(values)


@given(st.lists(words, min_size=1, max_size=5), st.lists(words, min_size=1, max_size=5))
def test_concrete_topic_matches_its_own_subject_only(mine, other):
    """A concrete subject matches itself, and nothing else."""
    topic = Topic(".".join(mine), int)

    assert topic.matches(".".join(mine))
    assert topic.matches(".".join(other)) is (mine == other)


@pytest.mark.parametrize(
    "subject",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a b",
        "a.>.b",
        "a.b>",
        "a*",
        "{a",
        "a.{}",
        "a.{1}",
        "a.{b}c",
        "$JS.a",
        "a.$b",
        "a\n",
        "a.{b}.{b}",
        "rpc.a",
        "dlq.a",
        "schedules.a",
        "_INBOX.a",
        "node.a",
        "cancel.a",
        "x" * 256,
    ],
)
def test_subject_that_cannot_be_meant_is_refused(subject):
    """The error names the topic, before anything is sent."""
    with pytest.raises(SetupError, match="topic"):
        Topic(subject, int)


class Size(enum.Enum):
    LARGE = "large"


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("eu", "eu"),
        (7, "7"),
        (-7, "-7"),
        (True, "true"),
        (Size.LARGE, "large"),
        (uuid.UUID(int=1), str(uuid.UUID(int=1))),
        ("bücher", "bücher"),
    ],
)
def test_values_become_words(value, word):
    """Texts, numbers, truth values, UUIDs and enum members can be words."""
    assert Topic("a.{b}.c", int).format(b=value).subject == f"a.{word}.c"


@pytest.mark.parametrize("value", ["", "a.b", "a b", "*", ">", "a*", "$a", "{a}", "a\n", 1.5, None])
def test_what_cannot_be_a_word_is_refused(value):
    """A value cannot reach beyond its own word of the subject."""
    with pytest.raises(InvalidArgument, match="b=") as caught:
        Topic("a.{b}.c", int).format(b=value)
    assert caught.value.not_run


@pytest.mark.parametrize("given_", [{}, {"b": 1, "c": 2}, {"c": 1}])
def test_all_names_and_no_others_are_wanted(given_):
    """Missing and unknown names are errors that list what the topic takes."""
    with pytest.raises(InvalidArgument, match="takes b"):
        Topic("a.{b}", int).format(**given_)


def test_only_one_subject_can_be_published_to():
    """Patterns and unfilled names say what to do."""
    for subject, says in (("a.*", "one subject"), ("a.>", "one subject"), ("a.{b}", r"format\(b=")):
        topic = Topic(subject, int)
        assert not topic.is_concrete
        with pytest.raises(InvalidArgument, match=says):
            topic.require_concrete()
    Topic("a.b", int).require_concrete()


def test_stream_has_to_cover_its_topics():
    """A topic whose events its stream would not keep is an error that names both."""
    stream = Stream("ORDERS", subjects=["orders.*.paid", "stock.>"])

    Topic("orders.{region}.paid", int, stream=stream)
    Topic("stock.>", int, stream=stream)
    for subject in ("orders.eu.shipped", "orders.>", "stock", "orders.paid"):
        with pytest.raises(SetupError, match=r"ORDERS keeps .* does not cover"):
            Topic(subject, int, stream=stream)


def test_content_type_that_does_not_fit_is_refused():
    """A type that no codec takes, or not that one, is an error at once."""
    with pytest.raises(Exception, match="protobuf"):
        Topic("a", int, content_type="application/protobuf")
