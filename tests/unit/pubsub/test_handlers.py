"""Handlers of events: what may be registered, checked before any I/O."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from busmicro import Call, Service, SetupError, Stream, Topic
from busmicro.pubsub import SubscribeOptions


class Event(BaseModel):
    n: int


class Paid(Event):
    cents: int


STREAM = Stream("ORDERS", subjects=["orders.>"])
CREATED = Topic("orders.{region}.created", Paid)
KEPT = Topic("orders.paid", Paid, stream=STREAM)


async def event_alone(event: Paid) -> None: ...


async def event_and_call(event: Paid, call: Call) -> None: ...


async def call_alone(call: Call) -> None: ...


async def nothing() -> None: ...


async def word(region: str, event: Paid, call: Call) -> None: ...


async def word_alone(region: int) -> None: ...


async def base_class(event: Event) -> None: ...


async def anything(event: object) -> None: ...


async def many(events: list[Paid]) -> None: ...


@pytest.mark.parametrize(
    "handler",
    [
        event_alone,
        event_and_call,
        call_alone,
        nothing,
        word,
        word_alone,
        base_class,
        anything,
        many,
    ],
)
def test_signature_that_says_what_it_wants_is_taken(handler):
    """The event or a list, the call, the words of the subject: each is optional, in any order."""
    assert Service("shop").subscribe(CREATED)(handler) is handler


def sync(event: Paid) -> None: ...


async def no_hint(event) -> None: ...


async def other_type(event: int) -> None: ...


async def list_of_others(events: list[int]) -> None: ...


async def two_events(event: Paid, other: Paid) -> None: ...


async def unknown_word(event: Paid, country: str) -> None: ...


async def list_and_call(events: list[Paid], call: Call) -> None: ...


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (sync, "write 'async def'"),
        (no_hint, "'event' has no type hint"),
        (other_type, "takes int, but topic .* Paid"),
        (list_of_others, "takes list"),
        (two_events, "'other' is neither"),
        (unknown_word, "'country' is neither"),
        (list_and_call, "the list and nothing else"),
    ],
)
def test_signature_that_cannot_be_meant_is_refused(handler, says):
    """The error names the function and what is wrong with it."""
    with pytest.raises(SetupError, match=f"(?s){handler.__name__}.*{says}"):
        Service("shop").subscribe(CREATED)(handler)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("group", "a.b"),
        ("group", "a b"),
        ("group", "x" * 65),
        ("concurrency", 0),
        ("waiting", 0),
        ("max_deliver", 0),
        ("ack_wait", 0.1),
        ("batch", 0),
        ("batch_wait", -1.0),
        ("timeout", 0.0),
        ("backoff", []),
        ("backoff", [-1.0]),
        ("start", "latest"),
    ],
)
def test_option_that_makes_no_sense_is_refused_by_name(option, value):
    """A typing error never becomes another behaviour."""
    with pytest.raises(SetupError, match=option):
        SubscribeOptions(**{option: value})


@pytest.mark.parametrize("option", ["max_deliver", "ack_wait", "backoff", "start"])
def test_options_of_streams_need_one(option):
    """What nobody keeps cannot be tried again; lists are possible all the same."""
    value = {"max_deliver": 3, "ack_wait": 3.0, "backoff": [1], "start": "first"}[option]
    with pytest.raises(SetupError, match=f"has no stream: {option}="):
        Service("shop").subscribe(CREATED, **{option: value})
    Service("shop").subscribe(KEPT, **{option: value})(event_alone)
    Service("shop").subscribe(CREATED, batch=3, batch_wait=0.1)(many)


def test_every_handler_has_a_subscription_of_its_own():
    """The same topic may have any number of handlers without a group, and one of each group."""
    service = Service("shop")
    for _ in range(2):
        service.subscribe(KEPT)(event_alone)
    service.subscribe(KEPT, group="billing")(event_alone)
    service.subscribe(KEPT, group="stock")(event_alone)
    with pytest.raises(SetupError, match=r"event_and_call.*'billing'.*event_alone"):
        service.subscribe(KEPT, group="billing")(event_and_call)
    assert len(service.subscribers) == 4
