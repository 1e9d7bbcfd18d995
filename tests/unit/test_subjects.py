"""Names become subjects, bad names are refused before any I/O, replies stay out of what is ours."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busmicro.errors import SetupError
from busmicro.transport import (
    ReplyPolicy,
    Subjects,
    check_endpoint,
    check_node,
    check_service,
    check_version,
    matches,
)
from busmicro.transport.subjects import check_namespace

LETTERS = string.ascii_letters + string.digits + "_-"
ADR_32_NAME = re.compile(r"^[a-zA-Z0-9_-]+$")
SEMVER = re.compile(  # semver.org, the regular expression that ADR-32 points at
    r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)"
    r"(?:-((?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)"
    r"(?:\.(?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
    r"(?:\+([0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*))?\Z"
)
TOKENS = st.text(LETTERS, min_size=1, max_size=64)
NEARLY_TOKENS = st.one_of(TOKENS, st.text(LETTERS + ". *>$/é\n\x00٣", max_size=12))
NEARLY_VERSIONS = st.from_regex(
    r"\A[0-9٣]{1,3}(\.[0-9٣]{1,3}){1,3}([-+][0-9a-zA-Z.-]{0,8})?([+][0-9a-z.]{0,4})?\n?\Z"
)


def accepts(check, name: str) -> bool:
    try:
        return check(name) == name
    except SetupError:
        return False


@given(NEARLY_TOKENS)
def test_service_and_node_names_follow_adr_32(name: str):
    """A name that busmicro takes, every NATS tool takes, and the other way round."""
    allowed = bool(ADR_32_NAME.match(name)) and not name.endswith("\n") and len(name) <= 64

    assert accepts(check_service, name) == allowed
    assert accepts(check_node, name) == allowed


@given(st.lists(NEARLY_TOKENS, min_size=1, max_size=3).map(".".join))
def test_endpoint_names_are_one_or_two_words(name: str):
    """An endpoint is called `hello` or `Greeter.hello`, nothing else."""
    words = name.split(".")
    allowed = (
        len(words) <= 2
        and all(ADR_32_NAME.match(word) and "\n" not in word for word in words)
        and len(name) <= 128
    )

    assert accepts(check_endpoint, name) == allowed


@given(NEARLY_VERSIONS)
def test_versions_follow_semver(version: str):
    """A version that busmicro takes, every reader of semver takes."""
    assert accepts(check_version, version) == bool(SEMVER.match(version))


@pytest.mark.parametrize(
    ("check", "name", "rule"),
    [
        (check_service, "shop.cart", "no dots"),
        (check_service, "s" * 65, "1 to 64"),
        (check_node, "a b", "letters, digits"),
        (check_endpoint, "a.b.c", "Greeter.hello"),
        (check_version, "1.0", "1.0.0"),
        (check_version, "1.0.0-01", "semver"),
        (check_namespace, "rpc", "do not begin with"),
        (check_namespace, "_INBOX", "do not begin with"),
        (check_namespace, "a..b", "dots between words"),
    ],
)
def test_bad_name_is_refused_with_its_rule(check, name: str, rule: str):
    """Who chooses a bad name is told the name and the rule, before anything is sent."""
    with pytest.raises(SetupError, match=re.escape(repr(name))) as refused:
        check(name)

    assert rule in str(refused.value)


@pytest.mark.parametrize(
    "namespace", ["", "shop", "shop.test", "rpcs", "nodejs", "cancelled", "x.rpc"]
)
def test_namespace_that_only_resembles_a_reserved_word_is_taken(namespace: str):
    """Only the words themselves are reserved, not whatever begins with their letters."""
    assert check_namespace(namespace) == namespace


def test_subjects_of_a_namespace_carry_its_prefix():
    """Two namespaces on one server never meet."""
    plain, shop = Subjects(), Subjects("shop.test")

    assert plain.rpc("greeter", "hello") == "rpc.greeter.hello"
    assert shop.rpc("greeter", "Greeter.hello") == "shop.test.rpc.greeter.Greeter.hello"
    assert shop.node("greeter", "n1", "hello") == "shop.test.node.greeter.n1.hello"
    assert shop.cancel("greeter") == "shop.test.cancel.greeter"


def pattern_as_regex(pattern: str) -> re.Pattern[str]:
    one, rest = r"[^.]+", r"[^.]+(\.[^.]+)*"
    words = [one if w == "*" else rest if w == ">" else re.escape(w) for w in pattern.split(".")]
    return re.compile(r"\.".join(words))


SHORT_TOKENS = st.sampled_from(["a", "b", "*"])
PATTERNS = st.builds(
    lambda words, tail: ".".join([*words, *tail]),
    st.lists(SHORT_TOKENS, min_size=1, max_size=4),
    st.sampled_from([[], [">"]]),
)


@given(PATTERNS, st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=5).map(".".join))
def test_subject_matches_a_pattern_as_the_server_sees_it(pattern: str, subject: str):
    """`*` is one word, `>` is one word or more at the end, everything else is itself."""
    assert matches(pattern, subject) == bool(pattern_as_regex(pattern).fullmatch(subject))


@given(
    namespace=st.sampled_from(["", "shop", "shop.test"]),
    inbox_prefix=st.sampled_from(["_INBOX", "_INBOX.alice", "rpc", "shop.rpc", "$JS", "private"]),
    strict=st.booleans(),
    word=st.sampled_from(["$SYS", "$JS", "$KV", "rpc", "node", "cancel", "dlq"]),
    rest=st.lists(TOKENS, min_size=1, max_size=3).map(".".join),
)
def test_reply_never_goes_to_reserved_space(
    namespace: str, inbox_prefix: str, strict: bool, word: str, rest: str
):
    """A caller cannot make a service write where only services and the server may write."""
    prefix = f"{namespace}." if namespace else ""
    policy = ReplyPolicy(prefix, inbox_prefix, strict=strict)

    for first in {word, word if word.startswith("$") else f"{prefix}{word}"}:
        assert not policy.allows(f"{first}.{rest}".encode())


@given(st.binary(max_size=40))
def test_reply_policy_never_fails(reply: bytes):
    """Whatever a caller names as its reply subject, the service lives on."""
    policy = ReplyPolicy("", "_INBOX", strict=False)
    policy.protect(["events.>"])

    assert policy.allows(reply) in {True, False}


def test_reply_goes_to_inboxes_and_to_what_nobody_protects():
    """A caller that uses NATS by hand may name its own subject for the answer."""
    policy = ReplyPolicy("", "_INBOX", strict=False)

    assert policy.allows(b"_INBOX.abc.1")
    assert policy.allows(b"my.own.answers")


def test_strict_policy_allows_inboxes_only():
    """`strict_replies` keeps a service from writing anywhere but to inboxes."""
    policy = ReplyPolicy("", "private.alice", strict=True)

    assert policy.allows(b"_INBOX.abc.1")
    assert policy.allows(b"private.alice.1")
    assert not policy.allows(b"private.bob.1")
    assert not policy.allows(b"my.own.answers")


def test_reply_does_not_go_into_a_stream():
    """A caller cannot make a service forge an event that a stream would keep."""
    policy = ReplyPolicy("", "_INBOX", strict=False)
    policy.protect(["orders.*.placed", "audit.>"])

    assert not policy.allows(b"orders.7.placed")
    assert not policy.allows(b"audit.a.b")
    assert policy.allows(b"orders.placed")

    policy.protect([])
    assert policy.allows(b"audit.a.b")


def test_stream_over_everything_does_not_keep_callers_without_answers():
    """Inboxes stay open even where a stream captures every subject."""
    policy = ReplyPolicy("", "_INBOX", strict=False)
    policy.protect([">"])

    assert policy.allows(b"_INBOX.abc.1")


@pytest.mark.parametrize("reply", [b"shop.rpc.users.find", b"a.b.node.x.y.z", b"shop.cancel.users"])
def test_replies_into_other_namespaces_are_refused(reply: bytes):
    """A service of one namespace is not made to call the services of another."""
    assert not ReplyPolicy("", "_INBOX", strict=False).allows(reply)
