"""What becomes of an event whose handling failed."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busmicro import (
    Call,
    CodecError,
    Internal,
    InvalidArgument,
    Reject,
    ResourceExhausted,
    Unavailable,
)
from busmicro.call import Kind, Side, Spec
from busmicro.errors import CallError
from busmicro.pubsub import SubscribeOptions
from busmicro.pubsub.delivery import Fate, Verdict, as_call_error, judge, nak, silent_end

SPEC = Spec(service="shop", endpoint="orders.paid", kind=Kind.EVENT, side=Side.HANDLER)


def a_call(*, began: bool = True) -> Call:
    call = Call(SPEC, payload=b"{", ack=b"$JS.ACK.ORDERS.billing.1.7.7.0.0")
    call.began = began
    return call


def unreadable() -> CallError:
    failure = InvalidArgument("n: missing")
    failure.__cause__ = CodecError("n: missing")
    return failure


@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.lists(st.floats(0, 1000), min_size=1, max_size=5),
)
def test_table_says_when_and_the_limit_says_whether(attempt, max_deliver, backoff):
    """Below the limit the pause is the table's, its last entry for the rest; then it is over."""
    options = SubscribeOptions(max_deliver=max_deliver, backoff=backoff)

    verdict = judge(a_call(), Internal("failed"), attempt, options)

    if attempt >= max_deliver:
        assert verdict == Verdict(Fate.DEAD)
    else:
        assert verdict == Verdict(Fate.AGAIN, [*backoff, *[backoff[-1]] * 20][attempt - 1])


@pytest.mark.parametrize(
    ("failure", "began", "verdict"),
    [
        (Reject("no"), True, Verdict(Fate.DEAD)),
        (Reject("no"), False, Verdict(Fate.DEAD)),
        (unreadable(), False, Verdict(Fate.DEAD)),
        (unreadable(), True, Verdict(Fate.AGAIN, 1.0)),
        (InvalidArgument("the handler says so"), True, Verdict(Fate.AGAIN, 1.0)),
        (InvalidArgument("a wrapper says so"), False, Verdict(Fate.AGAIN, 1.0)),
        (ResourceExhausted("busy", retry_after=7.5), True, Verdict(Fate.AGAIN, 7.5)),
        (Unavailable("down", retry_after=0.0), True, Verdict(Fate.AGAIN, 0.0)),
    ],
)
def test_only_what_can_never_work_dies_at_once(failure, began, verdict):
    """`Reject` and what does not decode; a handler's own InvalidArgument is tried again."""
    assert judge(a_call(began=began), failure, 1, SubscribeOptions()) == verdict


def test_limit_holds_for_those_who_ask_for_more_time():
    """`retry_after` moves an attempt, it does not add one."""
    busy = ResourceExhausted("busy", retry_after=1.0)
    assert judge(a_call(), busy, 5, SubscribeOptions()) == Verdict(Fate.DEAD)


@pytest.mark.parametrize(
    ("pause", "word"),
    [(0.0, b"-NAK"), (1.5, b'-NAK {"delay": 1500000000}'), (0.0001, b'-NAK {"delay": 100000}')],
)
def test_pause_is_told_in_nanoseconds(pause, word):
    """JetStream reads delays as whole nanoseconds; none at all means at once."""
    assert nak(pause) == word


def test_failures_are_told_as_call_errors():
    """What has no name becomes `internal` with its cause; the rest stays what it is."""
    own = ResourceExhausted("busy")
    assert as_call_error(a_call(), own) is own
    cause = ValueError("secret")
    told = as_call_error(a_call(), cause)
    assert isinstance(told, Internal)
    assert told.__cause__ is cause
    assert "secret" not in str(told)
    decoded = as_call_error(a_call(), CodecError("bad", [{"field": "n"}]))
    assert isinstance(decoded, InvalidArgument)
    assert decoded.details == [{"field": "n"}]
    assert as_call_error(a_call(), asyncio.CancelledError()).code.value == "cancelled"


def test_silence_is_told_with_the_number_of_attempts():
    """Nodes that died left no reason; the letter says that much."""
    assert "3 attempts ended without a word" in silent_end(3).message
