"""Retries happen where they are safe, within the deadline, and only while the budget lasts."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busmicro.call import Call, Kind, Side, Spec
from busmicro.errors import (
    CallError,
    Code,
    DeadlineExceeded,
    Disconnected,
    Internal,
    NoResponders,
    NotFound,
    ResourceExhausted,
    SetupError,
    Unavailable,
    Unknown,
)
from busmicro.headers import ATTEMPT
from busmicro.testing import FakeClock
from busmicro.wrappers import Budget, Retry

NOT_RUN = Unavailable("draining", not_run=True)


def call_of(*, idempotent: bool = False, deadline: float | None = None) -> Call:
    spec = Spec(
        service="greeter",
        endpoint="hello",
        kind=Kind.UNARY,
        side=Side.CLIENT,
        idempotent=idempotent,
    )
    return Call(spec, "John", deadline=deadline)


class Target:
    """A service that fails as told, then answers."""

    def __init__(self, *failures: BaseException, clock: FakeClock, takes: float = 0.0) -> None:
        self.failures = list(failures)
        self.clock = clock
        self.takes = takes
        self.tried: list[Call] = []
        self.at: list[float] = []

    async def __call__(self, call: Call) -> object:
        self.tried.append(call)
        self.at.append(self.clock.now())
        if self.takes:
            await self.clock.sleep(self.takes)
        if self.failures:
            raise self.failures.pop(0)
        return "hello"


async def run(retry: Retry, call: Call, target: Target, *, seconds: float = 60.0) -> object:
    """Make the call while the clock runs, and return the reply or what was raised."""
    work = asyncio.gather(retry(call, target), return_exceptions=True)
    await target.clock.advance(seconds)
    async with asyncio.timeout(5):
        return (await work)[0]


async def test_what_certainly_did_not_run_is_tried_again(clock: FakeClock):
    """A caller does not notice a node that refused the call before its handler ran."""
    target = Target(NOT_RUN, NOT_RUN, clock=clock)

    assert await run(Retry(clock=clock), call_of(), target) == "hello"
    assert len(target.tried) == 3


@pytest.mark.parametrize(
    "failure",
    [
        DeadlineExceeded("late"),
        Unknown("?"),
        Unavailable("dropped"),
        Disconnected("dropped", not_run=False),
        NotFound("no"),
        Internal("no"),
    ],
    ids=lambda failure: failure.code.value,
)
async def test_what_may_have_run_is_not_tried_again_unasked(clock: FakeClock, failure: CallError):
    """An order is not placed twice because its answer was lost."""
    target = Target(failure, clock=clock)

    assert await run(Retry(clock=clock), call_of(), target) is failure
    assert len(target.tried) == 1


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
async def test_idempotent_calls_are_tried_again_after_these_codes(clock: FakeClock, code: Code):
    """`idempotent=True` makes time-outs and unknown outcomes worth another try, answers not."""
    target = Target(CallError.of(code, "?"), clock=clock)

    await run(Retry(clock=clock), call_of(idempotent=True), target)

    tried_again = len(target.tried) == 2
    assert tried_again == (code in {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.UNKNOWN})


@pytest.mark.parametrize("idempotent", [False, True])
async def test_nobody_there_is_known_at_once(clock: FakeClock, idempotent: bool):
    """A service that is not there is reported in milliseconds, not after three tries."""
    target = Target(NoResponders("rpc.greeter.hello"), clock=clock)

    assert isinstance(
        await run(Retry(clock=clock), call_of(idempotent=idempotent), target), NoResponders
    )
    assert len(target.tried) == 1


async def test_call_without_time_left_is_not_tried_again(clock: FakeClock):
    """A deadline that passed before the handler ran passed for good."""
    target = Target(DeadlineExceeded("expired", not_run=True), clock=clock)

    assert isinstance(await run(Retry(clock=clock), call_of(), target), DeadlineExceeded)
    assert len(target.tried) == 1


async def test_other_exceptions_pass_untouched(clock: FakeClock):
    """A bug in a wrapper further in is not hidden by trying again."""
    bug = ZeroDivisionError()

    assert await run(Retry(clock=clock), call_of(idempotent=True), Target(bug, clock=clock)) is bug


async def test_one_attempt_means_no_retry(clock: FakeClock):
    """`Retry(1)` switches retries off."""
    target = Target(NOT_RUN, clock=clock)

    assert await run(Retry(1, clock=clock), call_of(), target) is NOT_RUN
    assert len(target.tried) == 1


async def test_pauses_grow_and_are_jittered(clock: FakeClock):
    """Attempts spread out: 50 ms, 100 ms, 200 ms, each times the jitter, a second at most."""
    target = Target(*[NOT_RUN] * 9, clock=clock)
    retry = Retry(10, clock=clock, jitter=lambda: 0.5)
    retry._budgets["greeter"] = Budget(100)

    await run(retry, call_of(), target)

    pauses = [round(b - a, 6) for a, b in zip(target.at, target.at[1:], strict=False)]
    assert pauses == [0.025, 0.05, 0.1, 0.2, 0.4, 0.5, 0.5, 0.5, 0.5]


async def test_service_says_when_to_come_back(clock: FakeClock):
    """`retry_after` of the service wins over the client's own pause."""
    target = Target(ResourceExhausted("full", retry_after=3.0, not_run=True), clock=clock)

    await run(Retry(clock=clock), call_of(), target)

    assert target.at[1] - target.at[0] == pytest.approx(3.0)


async def test_attempts_do_not_share_headers(clock: FakeClock):
    """What a wrapper adds to one attempt is not there twice in the next."""
    target = Target(NOT_RUN, NOT_RUN, clock=clock)
    call = call_of()
    call.headers["A"] = "1"

    await run(Retry(clock=clock), call, target)

    assert [dict(tried.headers) for tried in target.tried] == [
        {"A": "1"},
        {"A": "1", ATTEMPT: "2"},
        {"A": "1", ATTEMPT: "3"},
    ]
    assert dict(call.headers) == {"A": "1"}


async def test_reply_headers_of_the_attempt_that_worked_are_the_calls(clock: FakeClock):
    """The caller sees the headers of the reply that it got."""
    call = call_of()

    async def answer(tried: Call) -> object:
        tried.reply_headers["Node"] = "n1"
        return "hello"

    await Retry(clock=clock)(call, answer)

    assert call.reply_headers["Node"] == "n1"


async def test_attempts_of_an_idempotent_call_share_the_time(clock: FakeClock):
    """A node that hangs does not take all of the time; there is some left for another node."""
    target = Target(DeadlineExceeded("a"), DeadlineExceeded("b"), clock=clock)
    retry = Retry(3, clock=clock, jitter=lambda: 0.0)
    now = clock.now()

    await run(retry, call_of(idempotent=True, deadline=now + 3.0), target)

    assert target.tried[0].deadline == pytest.approx(now + 1.5)
    assert target.tried[2].deadline == pytest.approx(now + 3.0)


async def test_other_calls_have_all_of_the_time(clock: FakeClock):
    """A call that may not run twice is not cut short for the sake of a second attempt."""
    target = Target(clock=clock)
    now = clock.now()

    await run(Retry(clock=clock), call_of(deadline=now + 3.0), target)

    assert target.tried[0].deadline == now + 3.0


@given(
    budget=st.floats(0.0, 5.0),
    takes=st.floats(0.0, 2.0),
    pauses=st.lists(st.one_of(st.none(), st.floats(0.0, 3.0)), max_size=9),
    attempts=st.integers(1, 10),
    jitter=st.floats(0.0, 1.0),
)
def test_no_attempt_begins_past_the_deadline(
    budget: float, takes: float, pauses: list[float | None], attempts: int, jitter: float
):
    """However a service fails, retries stay within the caller's deadline and their number."""
    clock = FakeClock()
    failures = [Unavailable("no", not_run=True, retry_after=pause) for pause in pauses]

    async def scenario() -> tuple[Target, float]:
        target = Target(*failures, clock=clock, takes=takes)
        deadline = clock.now() + budget
        retry = Retry(attempts, clock=clock, jitter=lambda: jitter)
        await run(retry, call_of(deadline=deadline), target, seconds=100.0)
        return target, deadline

    target, deadline = asyncio.run(scenario())

    assert len(target.tried) <= attempts
    assert all(moment < deadline for moment in target.at[1:])
    assert all(tried.deadline is not None and tried.deadline <= deadline for tried in target.tried)


@given(st.lists(st.booleans(), max_size=300))
def test_budget_bounds_retries_whatever_happens(outcomes: list[bool]):
    """A service in trouble sees a tenth more load from retries, not three times as much."""
    budget = Budget(10.0, earned=0.1)
    allowed = 0

    for succeeded in outcomes:
        if succeeded:
            budget.succeeded()
        else:
            allowed += budget.failed()
        assert 0.0 <= budget.left <= budget.most

    assert allowed <= 5 + 0.1 * sum(outcomes)


async def test_spent_budget_stops_retries_and_success_earns_it_back(clock: FakeClock):
    """While a service fails, its callers stop retrying; when it recovers, they begin again."""
    retry = Retry(clock=clock)

    async def attempts(*failures: CallError) -> int:
        target = Target(*failures, clock=clock)
        await run(retry, call_of(), target)
        return len(target.tried)

    spent = [await attempts(NOT_RUN, NOT_RUN, NOT_RUN) for _ in range(5)]
    for _ in range(100):
        await attempts()

    assert spent == [3, 2, 1, 1, 1]
    assert await attempts(NOT_RUN) == 2


async def test_services_do_not_share_a_budget(clock: FakeClock):
    """One service in trouble does not cost another its retries."""
    retry = Retry(clock=clock)

    retry.budget("a").left = 0.0

    assert retry.budget("b").left == retry.budget("b").most
    assert retry.budget("a") is retry.budget("a")


@pytest.mark.parametrize("attempts", [0, -1, 11])
def test_senseless_numbers_of_attempts_are_refused(attempts: int):
    """A wrong number is told at construction, with the range."""
    with pytest.raises(SetupError, match="1 to 10"):
        Retry(attempts)


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_senseless_attempt_timeout_is_refused(seconds: float):
    """An attempt without time is told at construction."""
    with pytest.raises(SetupError, match="more than 0"):
        Retry(attempt_timeout=seconds)
