"""Validate, Fault, only and checked: each does its one thing, and says so when it cannot."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from busmicro.call import Call, Handler, Kind, Side, Spec, Wrapper, compose, through
from busmicro.errors import InvalidArgument, PermissionDenied, SetupError, Unavailable
from busmicro.session import Session
from busmicro.testing import FakeClock
from busmicro.wrappers import (
    RECOMMENDED,
    Budget,
    Deadline,
    Fault,
    Only,
    Recover,
    Retry,
    Validate,
    check_wrapper,
    checked,
    only,
)


async def hello(call: Call) -> object:
    return f"hello {call.message}"


# --- Validate -------------------------------------------------------------------------------------


def has_name(message: object) -> None:
    if not message:
        raise ValueError("say a name")


async def known(message: object) -> bool:
    await asyncio.sleep(0)
    return message == "John"


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.EVENT])
async def test_wrong_message_does_not_reach_the_handler(call_of, kind: Kind, side: Side):
    """What the check refuses is `invalid_argument`, with its words, and did not run."""
    validate = Validate(has_name)

    assert await validate(call_of("John", kind=kind, side=side), hello) == "hello John"
    with pytest.raises(InvalidArgument, match="say a name") as refused:
        await validate(call_of("", kind=kind, side=side), hello)
    assert refused.value.not_run


async def test_check_may_take_time_or_say_false(call_of):
    """A check may be async, and may just return False."""
    validate = Validate(known)

    assert await validate(call_of("John"), hello) == "hello John"
    with pytest.raises(InvalidArgument, match="does not pass known"):
        await validate(call_of("Jane"), hello)


async def test_check_may_say_more_than_invalid(call_of):
    """A check that raises another error is taken at its word."""

    def refuse(_message: object) -> None:
        raise PermissionDenied("not yours")

    with pytest.raises(PermissionDenied):
        await Validate(refuse)(call_of("John"), hello)


@pytest.mark.parametrize(
    ("side", "out"), [(Side.CLIENT, True), (Side.HANDLER, False)], ids=["client", "handler"]
)
async def test_each_message_of_a_stream_is_checked(call_of, side: Side, out: bool):
    """What goes towards the handler is checked, what comes back is not."""
    call = call_of(kind=Kind.STREAM, side=side)
    await Validate(has_name)(call, hello)

    assert through(call, "John", out=out) == "John"
    assert through(call, "", out=not out) == ""
    with pytest.raises(InvalidArgument, match="say a name"):
        through(call, "", out=out)


async def test_async_check_of_a_stream_is_refused(call_of):
    """A check that takes time cannot look at the messages of a stream, and is told."""
    with pytest.raises(SetupError, match="known"):
        await Validate(known)(call_of(kind=Kind.STREAM), hello)


def test_check_must_be_a_function():
    """What is no function is refused at construction."""
    with pytest.raises(SetupError, match="takes the message"):
        Validate("name")  # type: ignore[arg-type]


# --- Fault ----------------------------------------------------------------------------------------


async def test_share_of_the_calls_fails(call_of):
    """Three in ten fail, the same ones each time for the same seed."""

    async def failures(seed: int) -> list[int]:
        fault, failed = Fault(errors=0.3, chance=random.Random(seed).random), []
        for number in range(1_000):
            try:
                await fault(call_of(number), hello)
            except Unavailable:
                failed.append(number)
        return failed

    found = await failures(7)

    assert 250 < len(found) < 350
    assert found == await failures(7)


async def test_share_of_the_calls_is_late(clock: FakeClock, call_of):
    """What is delayed takes so long, and is done then."""
    fault = Fault(delays=1.0, delay=3.0, clock=clock)
    task = asyncio.gather(fault(call_of("John"), hello))
    await clock.advance(2.9)
    assert not task.done()

    await clock.advance(0.1)

    assert await task == ["hello John"]


async def test_error_is_what_was_asked_for(call_of):
    """A test may choose how it fails."""
    with pytest.raises(PermissionDenied):
        await Fault(errors=1.0, error=PermissionDenied)(call_of(), hello)


@pytest.mark.parametrize("wrong", [{"errors": 1.5}, {"delays": -0.1}, {"delay": -1.0}])
def test_senseless_faults_are_refused(wrong: dict[str, Any]):
    """A wrong number is told at construction, with the range."""
    with pytest.raises(SetupError, match=r"0 to 1|0 or more"):
        Fault(**wrong)


# --- only -----------------------------------------------------------------------------------------


async def loud(call: Call, call_next: Handler) -> object:
    return f"{await call_next(call)}!"


@pytest.mark.parametrize(
    ("given", "applies"),
    [
        ({"endpoints": ["find"]}, True),
        ({"endpoints": ["drop", "fi*"]}, True),
        ({"endpoints": ["FIND"]}, False),
        ({"endpoints": ["users.*"]}, True),
        ({"endpoints": ["orders.*"]}, False),
        ({"kinds": [Kind.UNARY]}, True),
        ({"kinds": [Kind.EVENT, Kind.STREAM]}, False),
        ({"services": ["users"]}, True),
        ({"services": ["user?"]}, True),
        ({"services": ["orders"]}, False),
        ({"services": ["users"], "kinds": [Kind.EVENT]}, False),
        ({"services": ["users"], "kinds": [Kind.UNARY], "endpoints": ["f*"]}, True),
    ],
)
async def test_wrapper_applies_where_everything_fits(call_of, given: dict[str, Any], applies: bool):
    """Everything that is said has to fit, and of each list one."""
    reply = await only(loud, **given)(call_of("John"), hello)

    assert reply == ("hello John!" if applies else "hello John")


async def test_specs_without_end_take_no_memory(call_of):
    """It decides once for each endpoint, and remembers so many."""
    tested = only(loud, services=["users"])

    for number in range(10_050):
        await tested(call_of(endpoint=f"e{number}"), hello)

    assert len(tested._decided) <= 10_000


@pytest.mark.parametrize("given", [{}, {"endpoints": "users.*"}, {"services": "users"}])
def test_only_wants_lists(given: dict[str, Any]):
    """Nothing at all, or a text where a list belongs, is refused with the fix."""
    with pytest.raises(SetupError, match=r"\[.*\]"):
        only(loud, **given)


# --- checked --------------------------------------------------------------------------------------


async def forgets_return(call: Call, call_next: Handler) -> object:
    await call_next(call)


async def forgets_await(call: Call, call_next: Handler) -> object:
    return call_next(call)


def is_not_async(call: Call, call_next: Handler) -> object:
    return "hello"


@pytest.mark.parametrize("wrong", [forgets_return, forgets_await, is_not_async])
async def test_wrapper_that_loses_the_reply_is_named(call_of, wrong: Any):
    """The three slips that everybody makes once are told by name, with the fix."""
    with pytest.raises(SetupError, match=f"wrapper {wrong.__name__} .*(return await|async def)"):
        await checked(wrong)(call_of("John"), hello)


def session(wrapper: Wrapper) -> Session[str]:
    @contextlib.asynccontextmanager
    async def opener(call: Call) -> AsyncIterator[str]:
        call.began = True
        yield "stream"

    call = Call(Spec(service="s", endpoint="m", kind=Kind.STREAM, side=Side.CLIENT))
    return Session(partial(compose, [wrapper]), call, opener)


async def test_wrapper_that_ends_a_stream_by_itself_is_named():
    """A wrapper that answers a stream without opening it is told to raise instead."""

    async def answers(_call: Call, _call_next: Handler) -> object:
        return "cached"

    with pytest.raises(SetupError, match="answers ended a stream without call_next"):
        async with session(checked(answers)):
            pytest.fail("was opened")


async def test_wrapper_that_opens_a_stream_again_is_named():
    """A wrapper that would run the block a second time is told that it cannot."""

    async def again(call: Call, call_next: Handler) -> object:
        with contextlib.suppress(ConnectionError):
            return await call_next(call)
        return await call_next(call)

    with pytest.raises(SetupError, match="again called call_next again after the stream was open"):
        async with session(checked(again)):
            raise ConnectionError


async def test_wrapper_may_open_again_what_did_not_open(call_of):
    """Trying to open a stream once more is what a retry does."""
    tries = []

    async def again(call: Call, call_next: Handler) -> object:
        with contextlib.suppress(ConnectionError):
            return await call_next(call)
        return await call_next(call)

    async def second_time(call: Call) -> object:
        tries.append(call)
        if len(tries) == 1:
            raise ConnectionError
        return "open"

    assert await checked(again)(call_of(kind=Kind.STREAM), second_time) == "open"


async def test_wrapper_may_answer_a_call_by_itself(call_of):
    """A cache does not ask, and that is no mistake; nor is a handler that returns nothing."""

    async def cached(_call: Call, _call_next: Handler) -> object:
        return "cached"

    async def nothing(_call: Call) -> object:
        return None

    assert await checked(cached)(call_of(), hello) == "cached"
    assert await checked(loud_to_nobody)(call_of(), nothing) is None


async def loud_to_nobody(call: Call, call_next: Handler) -> object:
    return await call_next(call)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (Recover, r"Recover is a class: make one, Recover\(…\)"),
        ("recover", "no wrapper"),
        (hello, r"hello.* must take \(call, call_next\)"),
    ],
)
def test_what_cannot_be_a_wrapper_is_refused(wrong: object, says: str):
    """A class, or a function of one argument, is refused at registration, with the fix."""
    with pytest.raises(SetupError, match=says):
        check_wrapper(wrong)


@pytest.mark.parametrize("own", [Recover(), Retry(), Deadline(1.0), only(loud, kinds=[Kind.EVENT])])
def test_own_wrappers_are_trusted(own: Wrapper):
    """What is tested here costs nothing to watch over."""
    assert checked(own) is own


# --- Retry of other kinds -------------------------------------------------------------------------


async def test_open_stream_is_never_opened_again(clock: FakeClock):
    """A failure in the block of a stream is the caller's, however safe it looks."""
    failure = Unavailable("another service", not_run=True)

    with pytest.raises(Unavailable) as raised:
        async with session(Retry(clock=clock)):
            raise failure

    assert raised.value is failure


async def test_handler_that_ran_is_not_run_again(clock: FakeClock, call_of):
    """What certainly did not run may be a call that the handler made, after it began."""
    runs = []

    async def handler(call: Call) -> object:
        call.began = True
        runs.append(call)
        raise Unavailable("a service further down", not_run=True)

    with pytest.raises(Unavailable):
        await Retry(clock=clock)(call_of(side=Side.HANDLER), handler)

    assert len(runs) == 1


async def test_stream_keeps_all_of_its_time(clock: FakeClock, call_of):
    """An open stream is not cut off for the sake of a second attempt."""
    seen = []

    async def handler(call: Call) -> object:
        seen.append(call.deadline)
        return "open"

    deadline = clock.now() + 60.0
    call = call_of(kind=Kind.STREAM, idempotent=True, deadline=deadline)
    await Retry(clock=clock)(call, handler)

    assert seen == [deadline]


def test_budgets_without_end_take_no_memory():
    """Whoever calls ever new services does not make it grow for ever."""
    retry = Retry()

    for number in range(10_050):
        retry.budget(f"s{number}")

    assert len(retry._budgets) == 10_000


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"tokens": 5, "earned": -0.1}])
def test_senseless_budgets_are_refused(wrong: dict[str, Any]):
    """A wrong number is told at construction, with the range."""
    with pytest.raises(SetupError, match="1 or more"):
        Budget(wrong.pop("tokens"), **wrong)


# --- the recommended set --------------------------------------------------------------------------


def test_recommended_wrappers_are_made_anew_in_their_order():
    """No two services share a budget or a circuit; retries go around the breaker."""
    first, second = ([make() for make in RECOMMENDED.client] for _ in range(2))

    kinds = [type(wrapper) for wrapper in first]
    assert kinds.index(Retry) < kinds.index(Only)
    assert not {id(wrapper) for wrapper in first} & {id(wrapper) for wrapper in second}
    assert isinstance(RECOMMENDED.handler[-1](), Recover)
