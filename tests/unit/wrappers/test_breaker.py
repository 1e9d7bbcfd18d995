"""A breaker learns from faults and not from answers, and refuses at once while it is open."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from busmicro.call import Call, Kind, Side
from busmicro.errors import (
    CallError,
    Code,
    Disconnected,
    NoResponders,
    NotFound,
    PayloadTooLarge,
    SetupError,
    Unavailable,
)
from busmicro.testing import FakeClock
from busmicro.wrappers import CircuitBreaker, CircuitOpen, Retry, State

FAULTS = {
    Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS
}  # fmt: skip


class Target:
    """A service that fails as told, and counts."""

    def __init__(self, failure: BaseException | None = None) -> None:
        self.failure = failure
        self.calls = 0

    async def __call__(self, _call: Call) -> object:
        self.calls += 1
        if self.failure is not None:
            raise self.failure
        return "hello"


def breaker(clock: FakeClock, **options: Any) -> CircuitBreaker:
    given = {"minimum": 5, "probes": 1, "clock": clock, "jitter": lambda: 0.0, **options}
    return CircuitBreaker(**given)


async def attempt(tested: CircuitBreaker, call: Call, target: Target) -> object:
    try:
        return await tested(call, target)
    except Exception as failure:
        return failure


@pytest.fixture
def opened(clock: FakeClock, call_of):
    async def make(**options: Any) -> CircuitBreaker:
        tested = breaker(clock, **options)
        for _ in range(5):
            await attempt(tested, call_of(), Target(Unavailable("down")))
        return tested

    return make


async def test_open_circuit_refuses_without_asking(clock: FakeClock, call_of, opened):
    """While it is open the service is left alone, and callers hear for how long."""
    tested, target = await opened(), Target()
    await clock.advance(1.0)

    refusal = await attempt(tested, call_of(), target)

    assert isinstance(refusal, CircuitOpen)
    assert refusal.code is Code.UNAVAILABLE
    assert refusal.not_run
    assert refusal.retry_after == pytest.approx(4.0)
    assert "users.find" in refusal.message
    assert (target.calls, tested.refused) == (0, 1)


async def test_one_of_a_hundred_probes_a_service_that_may_be_back(
    clock: FakeClock, call_of, opened
):
    """When its time is over, one call asks; the others are refused until it is answered."""
    tested, asked = await opened(), []
    await clock.advance(5.0)

    async def slowly(call: Call) -> object:
        asked.append(call)
        await clock.sleep(1.0)
        return "hello"

    async def one() -> object:
        return await attempt(tested, call_of(), slowly)  # type: ignore[arg-type]

    ends = asyncio.gather(*[one() for _ in range(100)])
    await clock.advance(1.0)

    assert len(asked) == 1
    assert [str(end) for end in await ends].count("hello") == 1
    assert await tested(call_of(), Target()) == "hello"


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
async def test_only_faults_of_the_service_count(clock: FakeClock, call_of, code: Code):
    """Answers such as `not_found` keep it closed, however many; faults and time-outs open it."""
    tested = breaker(clock)
    failure = CallError.of(code, "?", origin="users")

    for _ in range(20):
        await attempt(tested, call_of(), Target(failure))

    assert (tested.circuit("users", "find").state is State.OPEN) == (code in FAULTS)


@pytest.mark.parametrize(
    "failure",
    [
        NoResponders("rpc.users.find"),
        Disconnected("down", not_run=True),
        Disconnected("dropped", not_run=False),
        PayloadTooLarge(2, 1),
        CallError.of(Code.DEADLINE_EXCEEDED, "no time was left"),
        ZeroDivisionError(),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_what_did_not_reach_the_service_does_not_count(
    clock: FakeClock, call_of, failure: Exception
):
    """A connection that is down, or a bug in this process, says nothing about the service."""
    if isinstance(failure, CallError) and not isinstance(failure, Disconnected):
        failure.not_run = True
    tested = breaker(clock)

    for _ in range(20):
        await attempt(tested, call_of(), Target(failure))

    assert tested.circuit("users", "find").state is State.CLOSED


async def test_at_a_handler_every_exception_counts(clock: FakeClock, call_of):
    """A handler whose database is gone may be wrapped too."""
    tested = breaker(clock)

    for _ in range(5):
        await attempt(tested, call_of(side=Side.HANDLER), Target(ConnectionError()))

    assert tested.circuit("users", "find").state is State.OPEN


async def test_slow_answers_count_when_asked_to(clock: FakeClock, call_of):
    """With `slow=` a service that crawls is left alone like one that fails."""
    tested = breaker(clock, slow=1.0)

    async def crawl(_call: Call) -> object:
        await clock.sleep(1.0)
        return "hello"

    for _ in range(5):
        task = asyncio.get_running_loop().create_task(_await(tested, call_of(), crawl))
        await clock.advance(1.0)
        assert await task == "hello"

    assert tested.circuit("users", "find").state is State.OPEN


async def _await(tested: CircuitBreaker, call: Call, handler: Any) -> object:
    return await tested(call, handler)


async def test_handler_whose_time_is_up_counts(clock: FakeClock, call_of):
    """At a handler time-outs come as cancellations; those of callers who give up do not count."""

    async def cancel_after(tested: CircuitBreaker, seconds: float) -> None:
        for _ in range(20):
            call = call_of(side=Side.HANDLER, deadline=clock.now() + 1.0)
            work = _await(tested, call, lambda _call: asyncio.Event().wait())
            task = asyncio.get_running_loop().create_task(work)
            await clock.advance(seconds)
            task.cancel()
            await asyncio.wait([task])

    given_up, timed_out = breaker(clock, minimum=2), breaker(clock, minimum=2)
    await cancel_after(given_up, 0.5)
    await cancel_after(timed_out, 1.0)

    assert given_up.circuit("users", "find").state is State.CLOSED
    assert timed_out.circuit("users", "find").state is State.OPEN


async def test_long_streams_are_not_slow_calls(clock: FakeClock, call_of):
    """How long a stream lasts says nothing about its service."""
    tested = breaker(clock, slow=1.0)

    async def lasts(_call: Call) -> object:
        await clock.sleep(100.0)
        return None

    for _ in range(20):
        call = call_of(kind=Kind.STREAM)
        task = asyncio.get_running_loop().create_task(_await(tested, call, lasts))
        await clock.advance(100.0)
        await task

    assert tested.circuit("users", "find").state is State.CLOSED


async def test_endpoints_and_services_fail_alone(clock: FakeClock, call_of, opened):
    """One endpoint in trouble does not shut off its neighbours."""
    tested = await opened()

    assert await tested(call_of(endpoint="list"), Target()) == "hello"
    assert await tested(call_of(service="orders"), Target()) == "hello"
    assert tested.circuits["users", "find"].state is State.OPEN


async def test_cancelled_probe_leaves_room_for_another(clock: FakeClock, call_of, opened):
    """A caller who gives up his probe does not keep the service shut off."""
    tested = await opened()
    await clock.advance(5.0)
    hanging = asyncio.get_running_loop().create_task(
        _await(tested, call_of(), lambda _call: asyncio.Event().wait())
    )
    await asyncio.sleep(0)
    hanging.cancel()
    await asyncio.wait([hanging])

    assert await tested(call_of(), Target()) == "hello"
    assert tested.circuit("users", "find").state is State.CLOSED


async def test_fallback_answers_what_is_refused(clock: FakeClock, call_of, opened):
    """A fallback stands in while the circuit is open, but cannot be a stream."""

    async def old_news(call: Call) -> object:
        return f"{call.spec.endpoint}: as of yesterday"

    tested = await opened(fallback=old_news)

    assert await tested(call_of(), Target()) == "find: as of yesterday"
    assert isinstance(await attempt(tested, call_of(kind=Kind.STREAM), Target()), CircuitOpen)


async def test_by_hand_it_opens_closes_and_keeps_out(clock: FakeClock, call_of, opened):
    """An operator may open it, switch it off, and set it back, for all or for one endpoint."""
    tested = await opened()
    tested.disable()
    assert await tested(call_of(), Target()) == "hello"
    tested.reset()
    assert await tested(call_of(), Target()) == "hello"
    tested.force_open()
    assert isinstance(await attempt(tested, call_of(), Target()), CircuitOpen)
    tested.reset()

    tested.circuit("users", "find").force_open()

    assert isinstance(await attempt(tested, call_of(), Target()), CircuitOpen)
    assert await tested(call_of(endpoint="list"), Target()) == "hello"


async def test_refusal_is_not_tried_again(clock: FakeClock, call_of, opened):
    """A retry around it does not make its caller wait for a service that is known to fail."""
    tested = await opened(open_for=0.01)
    tested.force_open()

    with pytest.raises(CircuitOpen):
        await Retry(clock=clock)(call_of(), lambda call: tested(call, Target()))

    assert tested.refused == 1


async def test_what_counts_can_be_told(clock: FakeClock, call_of):
    """Whoever knows better says what speaks against a service."""
    tested = breaker(clock, counts=lambda _call, failure: isinstance(failure, NotFound))

    for _ in range(5):
        await attempt(tested, call_of(), Target(NotFound("?")))

    assert tested.circuit("users", "find").state is State.OPEN


async def test_endpoints_without_end_take_no_memory(clock: FakeClock, call_of):
    """Whoever calls ever new names does not make it grow for ever."""
    tested = breaker(clock)

    for number in range(10_050):
        tested.circuit("users", f"e{number}")

    assert len(tested.circuits) == 10_000


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"slow": 0.0}, "more than 0"), ({"error_ratio": 1.5}, "at most 1"), ({"minimum": 0}, "1 or")],
)
def test_senseless_settings_are_refused(wrong: dict[str, Any], says: str):
    """A wrong number is told at construction, with the range."""
    with pytest.raises(SetupError, match=says):
        CircuitBreaker(**wrong)
