"""Subjects that are built from any names are subjects, and those of two things are two."""

from __future__ import annotations

import re

from hypothesis import assume, example, given
from hypothesis import strategies as st

from busmicro.errors import SetupError
from busmicro.transport import bucket_name, may_be_named
from busmicro.transport.subjects import Subjects, check_endpoint, check_namespace

RESERVED = ("rpc", "node", "cancel", "dlq", "schedules", "_INBOX")
WORDS = st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True)
ENDPOINTS = st.lists(WORDS, min_size=1, max_size=2).map(".".join)
NAMESPACES = st.lists(WORDS, max_size=3).map(".".join)
ADDRESSES = st.tuples(WORDS, WORDS, ENDPOINTS)
NEARLY = st.lists(
    st.sampled_from([*RESERVED, "rpcs", "", "a b", "é", "*", ">", "$JS", "a\n"]) | WORDS,
    min_size=1,
    max_size=3,
).map(".".join)


def is_reserved(namespace: str) -> bool:
    return namespace.partition(".")[0] in RESERVED


@given(NAMESPACES, ADDRESSES)
def test_every_subject_is_one_that_a_message_may_have(
    namespace: str, address: tuple[str, str, str]
):
    """No name makes a wildcard, an empty word or a subject outside its namespace."""
    assume(not is_reserved(namespace))
    service, node, endpoint = address
    subjects = Subjects(namespace)

    for built in (
        subjects.rpc(service, check_endpoint(endpoint)),
        subjects.node(service, node, endpoint),
        subjects.cancel(service),
        subjects.dead_letters(service, node),
        subjects.schedule(service, node),
    ):
        assert may_be_named(built)
        assert built.startswith(f"{namespace}." if namespace else "")


@given(ADDRESSES, ADDRESSES)
def test_two_endpoints_never_share_a_subject(one: tuple[str, str, str], two: tuple[str, str, str]):
    """What is for one node or one service reaches no other."""
    subjects = Subjects("shop")

    same_rpc = subjects.rpc(one[0], one[2]) == subjects.rpc(two[0], two[2])

    assert same_rpc == ((one[0], one[2]) == (two[0], two[2]))
    assert (subjects.node(*one) == subjects.node(*two)) == (one == two)
    assert subjects.rpc(one[0], one[2]) != subjects.node(*two)


@given(NEARLY)
def test_namespace_is_words_that_are_not_reserved(namespace: str):
    """Whatever is taken can stand before subjects; the rest is refused by name."""
    words = namespace.split(".")
    good = all(re.fullmatch(r"[A-Za-z0-9_-]+", word) for word in words)
    try:
        taken = check_namespace(namespace) == namespace
    except SetupError as wrong:
        assert repr(namespace) in str(wrong)  # noqa: PT017 - the other way is below
        taken = False

    assert taken == (namespace == "" or (good and words[0] not in RESERVED))


@given(NAMESPACES, NAMESPACES)
@example("a.b", "a_b")
@example("", "bus")
def test_two_namespaces_never_share_a_bucket(one: str, two: str):
    """A bucket's name is one word, and another namespace has another one."""
    names = [bucket_name(namespace, "registry") for namespace in (one, two)]

    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in names)
    assert (names[0] == names[1]) == (one == two)
