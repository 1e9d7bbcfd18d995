"""Streams under wrappers that limit, guard, try again, check and select: what a user expects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress

import pytest

from busmicro import (
    Call,
    CallError,
    DeadlineExceeded,
    Internal,
    NatsServer,
    NotFound,
    ResourceExhausted,
    Retry,
    Unavailable,
)
from busmicro.call import Handler, Wrapper
from busmicro.wrappers import (
    AdaptiveLimit,
    ConcurrencyLimit,
    Deadline,
    RateLimit,
)
from tests.nats.streaming.wrapped import Ends, Item, connected, items

Until = Callable[[Callable[[], object]], Awaitable[None]]


@pytest.fixture
def url(busmicro_memory: str) -> str:
    """A bus that is quick; what happens here happens above it."""
    return busmicro_memory


async def drain(ends: Ends, endpoint: str = "count", n: int = 1) -> list[int]:
    async with ends.open(endpoint, n) as stream:
        return [item.n async for item in stream]


def now() -> float:
    return asyncio.get_running_loop().time()


# --- Recover ------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [0, 3])
async def test_exception_in_a_generator_becomes_internal(
    url: str, given: int, caplog: pytest.LogCaptureFixture
):
    """The caller gets what came before, and an id; the text stays in the service's log."""
    async with connected(url) as ends, ends.open("crash", given) as stream:
        got = [(await anext(stream)).n for _ in range(given)]
        with pytest.raises(Internal) as failed:
            await anext(stream)

    assert got == list(range(given))
    assert "hunter2" not in str(failed.value)
    assert failed.value.message.rpartition(" ")[2] in caplog.text
    assert "hunter2" in caplog.text


async def test_answer_that_is_an_error_passes_recover(url: str):
    """A handler that raises what callers shall know is understood."""
    async with connected(url) as ends:
        with pytest.raises(NotFound, match="no more"):
            await drain(ends, "fail")


# --- Retry --------------------------------------------------------------------------------------


class Failing:
    """Fails exchanges, as often as it is told to, before they begin or after they have ended."""

    def __init__(self, times: int, failure: Callable[[], Exception], *, late: bool = False) -> None:
        self.left = times
        self.failure = failure
        self.late = late
        self.seen: list[str] = []
        """What `Bus-Attempt` has said, of each exchange."""

    async def __call__(self, call: Call, call_next: Handler, /) -> object:
        self.seen.append(call.headers.get("Bus-Attempt", "1"))
        fails = self.left > 0
        self.left -= 1
        if fails and not self.late:
            raise self.failure()
        await call_next(call)
        if fails:
            raise self.failure()
        return None


def busy() -> Exception:
    return ResourceExhausted("full", retry_after=0.001, not_run=True)


def maybe_ran() -> Exception:
    return Unavailable("who knows")


@pytest.mark.parametrize("by_stub", [False, True], ids=["block", "stub"])
async def test_refused_opening_is_tried_again(busmicro_server: NatsServer, *, by_stub: bool):
    """What certainly did not run is opened again by itself, and the block is entered once."""
    refusing = Failing(2, busy)

    async with connected(busmicro_server.url, handler=[refusing]) as ends:
        if by_stub:
            assert [item.n async for item in ends.stub.count(Item(n=2))] == [0, 1]
        else:
            assert await drain(ends, "count", 2) == [0, 1]

    assert refusing.seen == ["1", "2", "3"]
    assert ends.feed.entered == 1


@pytest.mark.parametrize(("idempotent", "attempts"), [(False, 1), (True, 2)])
async def test_opening_that_may_have_run_is_tried_again_if_that_is_safe(
    url: str, *, idempotent: bool, attempts: int
):
    """Only whoever says that it may run twice gets it opened twice."""
    refusing = Failing(1, maybe_ran)

    async with connected(url, handler=[refusing]) as ends:
        ends.client = ends.client.with_options(idempotent=idempotent)
        with suppress(Unavailable):
            await drain(ends)

    assert len(refusing.seen) == attempts


@pytest.mark.parametrize("failure", [busy, maybe_ran])
async def test_stream_that_was_open_is_never_tried_again(
    url: str, failure: Callable[[], Exception]
):
    """Messages have gone both ways; nobody but the caller knows where to go on."""
    failing = Failing(1, failure, late=True)

    async with connected(url, handler=[failing]) as ends:
        ends.client = ends.client.with_options(idempotent=True)
        with pytest.raises(CallError) as ended:
            await drain(ends)

    assert not ended.value.not_run
    assert failing.seen == ["1"]


async def test_ends_of_streams_do_not_spend_the_budget(url: str):
    """Tokens are for what could be tried again."""
    retry = Retry()

    async with connected(url, client=[retry], handler=[Failing(5, maybe_ran, late=True)]) as ends:
        for _ in range(5):
            with pytest.raises(Unavailable):
                await drain(ends)

    assert retry.budget("feed").left == retry.budget("feed").most


# --- Deadline -----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["client", "handler"])
async def test_deadline_ends_a_stream_that_has_none(url: str, side: str, until: Until):
    """Whichever end sets it, the caller gets `deadline_exceeded` and the handler is closed."""
    wrappers: dict[str, list[Wrapper]] = {side: [Deadline(0.1)]}

    async with connected(url, **wrappers) as ends:
        began = now()
        with pytest.raises(DeadlineExceeded) as late:
            await drain(ends, "hold", 2)
        assert 0.09 <= now() - began < 5
        await until(lambda: ends.feed.left)

    assert not late.value.not_run


async def test_deadline_of_the_client_ends_an_iterator(url: str, until: Until):
    """A stub's iterator ends by it as well, after the messages that came."""
    got: list[int] = []

    async with connected(url, client=[Deadline(0.1)]) as ends:
        with pytest.raises(DeadlineExceeded):
            async for item in ends.stub.hold(Item(n=2)):
                got.append(item.n)  # noqa: PERF401 - what came before the error counts
        await until(lambda: ends.feed.left)

    assert got == [0, 1]


async def test_deadline_interrupts_a_block_that_waits_for_something_else(url: str):
    """The time of a stream is up even while its caller does not look at it."""
    async with connected(url, client=[Deadline(0.1)]) as ends:
        with pytest.raises(DeadlineExceeded):
            async with ends.open("hold"):
                await asyncio.Event().wait()


async def test_deadline_leaves_shorter_times_alone(url: str):
    """Of two limits the earlier one ends the stream, whoever set it."""
    async with connected(url, client=[Deadline(30.0, most=30.0)]) as ends:
        began = now()
        with pytest.raises(DeadlineExceeded):
            async with ends.open("hold", timeout=0.05) as stream:
                await anext(stream)
        assert now() - began < 5


async def test_deadline_cuts_what_asks_for_more_than_most(url: str):
    """A caller's hour becomes what the service allows."""
    async with connected(url, handler=[Deadline(0.05, most=0.1)]) as ends:
        with pytest.raises(DeadlineExceeded):
            async with ends.open("hold", timeout=3600) as stream:
                await anext(stream)


# --- RateLimit ----------------------------------------------------------------------------------


async def test_rate_limit_refuses_to_open_and_says_when_to_come_back(url: str):
    """Nothing runs, and the time travels to the caller."""
    limit = RateLimit(1, per=60)

    async with connected(url, handler=[limit]) as ends:
        assert await drain(ends) == [0]
        began = now()
        with pytest.raises(ResourceExhausted) as refused:
            await drain(ends)
        assert now() - began < 5  # nobody waits for a minute unasked

    assert refused.value.not_run
    assert refused.value.retry_after == pytest.approx(60, abs=5)
    assert (ends.feed.entered, limit.refused) == (1, 1)


async def test_rate_limit_counts_streams_and_not_their_messages(url: str):
    """A stream of many messages is one exchange."""
    limit = RateLimit(1, per=60)

    async with connected(url, client=[RateLimit(1, per=60)], handler=[limit]) as ends:
        assert len([item async for item in ends.stub.echo(items(*range(100)))]) == 100

    assert limit.refused == 0


async def test_rate_limit_that_waits_opens_in_turn(url: str):
    """Whoever is over the rate is opened later, not refused."""
    async with connected(url, handler=[RateLimit(20, burst=1, wait=True)]) as ends:
        began = now()
        await asyncio.gather(*(drain(ends) for _ in range(3)))
        assert now() - began >= 0.09


# --- ConcurrencyLimit ---------------------------------------------------------------------------


async def end_well(ends: Ends) -> None:
    await drain(ends)


async def end_in_error(ends: Ends) -> None:
    with pytest.raises(NotFound):
        await drain(ends, "fail")


async def end_in_fault(ends: Ends) -> None:
    with pytest.raises(Internal):
        await drain(ends, "crash")


async def end_by_leaving(ends: Ends) -> None:
    async with ends.open("hold", 1) as stream:
        await anext(stream)


async def end_by_break(ends: Ends) -> None:
    async for _ in ends.stub.hold(Item(n=1)):
        break


async def end_by_own_error(ends: Ends) -> None:
    with pytest.raises(ZeroDivisionError):
        async with ends.open("hold"):
            1 / 0


async def end_by_deadline(ends: Ends) -> None:
    with pytest.raises(DeadlineExceeded):
        async with ends.open("hold", timeout=0.05) as stream:
            await anext(stream)


async def end_by_cancellation(ends: Ends) -> None:
    task = asyncio.get_running_loop().create_task(drain(ends, "hold"))
    while not ends.feed.entered:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


async def end_in_another_task(ends: Ends) -> None:
    """What a generator does that is dropped with a stream inside: the loop closes it."""
    stream = ends.open("hold", 1)
    await stream.__aenter__()
    with pytest.raises(RuntimeError, match="the task that entered it"):
        await asyncio.get_running_loop().create_task(stream.__aexit__(None, None, None))


ENDS = [
    end_well,
    end_in_error,
    end_in_fault,
    end_by_leaving,
    end_by_break,
    end_by_own_error,
    end_by_deadline,
    end_by_cancellation,
    end_in_another_task,
]
each_end = pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)


@pytest.mark.parametrize("side", ["client", "handler"])
async def test_place_is_held_for_the_life_of_a_stream(url: str, side: str, until: Until):
    """Whoever comes meanwhile is refused, although nothing moves; afterwards there is room."""
    limit = ConcurrencyLimit(1)
    wrappers: dict[str, list[Wrapper]] = {"client": [Retry(1)], side: [limit]}

    async with connected(url, **wrappers) as ends:
        async with ends.open("hold", 1) as stream:
            await anext(stream)
            with pytest.raises(ResourceExhausted) as refused:
                await drain(ends)
            assert refused.value.not_run
        await until(lambda: limit.running == 0)
        assert await drain(ends) == [0]


@each_end
async def test_place_is_given_back_however_a_stream_ends(
    url: str, end: Callable[[Ends], Awaitable[None]], until: Until
):
    """At both ends; and nobody has to do anything for it."""
    mine, theirs = ConcurrencyLimit(1), ConcurrencyLimit(1)

    async with connected(url, client=[mine], handler=[theirs]) as ends:
        await end(ends)
        await until(lambda: mine.running == theirs.running == 0)


async def test_stream_that_waits_for_a_place_is_opened_when_there_is_one(url: str, until: Until):
    """Those that wait in line are streams like any other."""
    limit = ConcurrencyLimit(1, queued=1)

    async with connected(url, handler=[limit]) as ends, AsyncExitStack() as first:
        await first.enter_async_context(ends.open("hold"))
        second = asyncio.get_running_loop().create_task(drain(ends))
        await until(lambda: limit.queued == 1)
        await first.aclose()
        assert await second == [0]


async def test_caller_that_gives_up_leaves_the_line(url: str, until: Until):
    """A stream that was not accepted does not take the place that it waited for."""
    limit = ConcurrencyLimit(1, queued=1)

    async with connected(url, handler=[limit]) as ends:
        async with ends.open("hold"):
            waiting = asyncio.get_running_loop().create_task(drain(ends))
            await until(lambda: limit.queued == 1)
            waiting.cancel()
            await until(lambda: limit.queued == 0)
        await until(lambda: limit.running == 0)

    assert ends.feed.entered == 1


# --- AdaptiveLimit ------------------------------------------------------------------------------


async def test_duration_of_a_stream_is_not_taken_for_latency(url: str):
    """Long streams take no room from calls, and do not make the limit smaller."""
    limit = AdaptiveLimit(least=1, start=1, most=1)

    async with connected(url, handler=[limit]) as ends, AsyncExitStack() as streams:
        for _ in range(3):
            await streams.enter_async_context(ends.open("hold"))
        assert (await ends.client.call("feed", "Feed.add", Item(n=1), returns=Item)).n == 2

    assert ("feed", "Feed.hold") not in limit.limits
    assert limit.refused == 0
