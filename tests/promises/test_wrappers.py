"""What every wrapper promises, for calls, streams and events, at the client and at the handler.

Result, error and cancellation pass; `call_next` is awaited once, in the task of whoever asked if
it is a stream; nothing is left behind, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import pytest

from busmicro.call import Call, Handler, Kind, Side, Spec, Wrapper, compose
from busmicro.errors import CallError, Internal, NotFound
from busmicro.session import Session
from busmicro.wrappers import (
    RECOMMENDED,
    AdaptiveLimit,
    Cache,
    CircuitBreaker,
    ConcurrencyLimit,
    Deadline,
    Fault,
    Hedge,
    Log,
    MemoryStore,
    Metrics,
    RateLimit,
    Recover,
    Retry,
    Trace,
    Validate,
    checked,
    once,
    only,
)
from tests.nats.streaming.wrapped import Ends, Item, connected, items


async def plain(call: Call, call_next: Handler) -> object:
    """What a user writes."""
    return await call_next(call)


async def fits(_message: object) -> None:
    """What a user checks, and takes time for."""


MAKE: dict[str, Callable[[], list[Wrapper]]] = {
    "none": list,
    "AdaptiveLimit": lambda: [AdaptiveLimit(least=1, start=1)],
    "Cache": lambda: [Cache(60.0)],
    "CircuitBreaker": lambda: [CircuitBreaker(slow=30.0)],
    "ConcurrencyLimit": lambda: [ConcurrencyLimit(1)],
    "ConcurrencyLimit queued": lambda: [ConcurrencyLimit(1, queued=1)],
    "Deadline": lambda: [Deadline(60.0)],
    "Deadline most": lambda: [Deadline(30.0, most=30.0)],
    "Fault": lambda: [Fault(delays=1.0)],
    "Hedge": lambda: [Hedge()],
    "Log": lambda: [Log()],
    "Metrics": lambda: [Metrics()],
    "RateLimit": lambda: [RateLimit(1_000, key="caller")],
    "RateLimit wait": lambda: [RateLimit(1_000, burst=1, wait=True, key="endpoint")],
    "Recover": lambda: [Recover()],
    "Retry": lambda: [Retry()],
    "Trace": lambda: [Trace()],
    "Trace twice": lambda: [Trace(), Trace()],
    "Validate": lambda: [Validate(lambda _message: None)],
    "checked": lambda: [checked(plain)],
    "once": lambda: [once(MemoryStore())],
    "only": lambda: [only(plain, endpoints=["m"])],
    "only others": lambda: [only(plain, services=["others"])],
    "recommended client": lambda: [make() for make in RECOMMENDED.client],
    "recommended handler": lambda: [make() for make in RECOMMENDED.handler],
}
WHERE = [(kind, side) for kind in Kind for side in Side]


@pytest.fixture(params=MAKE)
def wrappers(request: pytest.FixtureRequest) -> list[Wrapper]:
    return MAKE[request.param]()


@pytest.fixture(params=WHERE, ids=lambda where: f"{where[0].value}-{where[1].value}")
def where(request: pytest.FixtureRequest) -> tuple[Kind, Side]:
    return request.param


class Exchange:
    """An exchange of some kind at some side: runs `work` innermost, in a chain of wrappers."""

    def __init__(self, wrappers: list[Wrapper], where: tuple[Kind, Side]) -> None:
        kind, side = where
        self.spec = Spec(service="s", endpoint="m", kind=kind, side=side, idempotent=True)
        self.wrappers = wrappers
        self.calls: list[Call] = []
        self.tasks: list[asyncio.Task[object] | None] = []

    async def run(
        self, work: Callable[[Call], Awaitable[object]], call: Call | None = None
    ) -> object:
        call = call or Call(self.spec, "question")

        async def innermost(tried: Call) -> object:
            self.calls.append(tried)
            self.tasks.append(asyncio.current_task())
            return await work(tried)

        if self.spec.kind is Kind.STREAM and self.spec.side is Side.CLIENT:
            return await self._run_stream(innermost, call)
        return await compose(self.wrappers, innermost)(call)

    async def _run_stream(self, work: Handler, call: Call) -> object:
        """The body of an `async with` block is what runs innermost."""

        @contextlib.asynccontextmanager
        async def opener(tried: Call) -> AsyncIterator[Call]:
            yield tried

        async with Session(partial(compose, self.wrappers), call, opener) as stream:
            return await work(stream)


@pytest.fixture
async def exchange(wrappers: list[Wrapper], where: tuple[Kind, Side]) -> AsyncIterator[Exchange]:
    yield Exchange(wrappers, where)
    assert asyncio.all_tasks() == {asyncio.current_task()}, "a task was left behind"


ANSWER = object()


async def answer(_call: Call) -> object:
    return ANSWER


async def test_result_passes(exchange: Exchange):
    """What the handler returns is what the caller gets, the very object."""
    assert await exchange.run(answer) is ANSWER


async def test_message_headers_and_what_is_called_pass(exchange: Exchange):
    """The handler sees the call as it was made."""
    call = Call(exchange.spec, "question", headers=None)
    call.headers["Tenant"] = "t1"

    await exchange.run(answer, call)

    (seen,) = exchange.calls
    assert (seen.message, seen.headers["Tenant"], seen.spec) == ("question", "t1", exchange.spec)
    assert {name for name in seen.headers if name != "traceparent"} == {"Tenant"}


@pytest.mark.parametrize("where", [(Kind.UNARY, side) for side in Side], indirect=True)
async def test_reply_headers_pass(exchange: Exchange):
    """The caller sees the headers that came with the reply."""

    async def work(call: Call) -> object:
        call.reply_headers["Node"] = "n1"
        return ANSWER

    call = Call(exchange.spec, "question")
    await exchange.run(work, call)

    assert call.reply_headers["Node"] == "n1"


async def test_handler_runs_once(exchange: Exchange):
    """What works is done once; of a stream, in the task that opened it."""
    await exchange.run(answer)

    assert len(exchange.calls) == 1
    if exchange.spec.kind is not Kind.UNARY:
        assert exchange.tasks == [asyncio.current_task()]


async def test_answer_that_is_an_error_passes(exchange: Exchange):
    """What the handler raises is what the caller gets, the very object, and it ran once."""
    failure = NotFound("no such thing")

    async def work(_call: Call) -> object:
        raise failure

    with pytest.raises(NotFound) as raised:
        await exchange.run(work)

    assert raised.value is failure
    assert len(exchange.calls) == 1


async def test_fault_passes(exchange: Exchange, caplog: pytest.LogCaptureFixture):
    """An exception that nobody expected passes, but that `Recover` makes an answer of it."""
    failure = ZeroDivisionError()

    async def work(_call: Call) -> object:
        raise failure

    with pytest.raises((ZeroDivisionError, Internal)) as raised:
        await exchange.run(work)

    recovers = any(isinstance(wrapper, Recover) for wrapper in exchange.wrappers)
    assert isinstance(raised.value, Internal) == recovers
    assert (raised.value.__cause__ if recovers else raised.value) is failure
    assert len(exchange.calls) == 1


async def test_cancellation_passes(exchange: Exchange):
    """Whoever gives up ends what runs innermost, at once."""
    running, ended = asyncio.Event(), asyncio.Event()

    async def work(_call: Call) -> object:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return None

    task = asyncio.get_running_loop().create_task(exchange.run(work))
    async with asyncio.timeout(5):
        await running.wait()
    task.cancel()

    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert ended.is_set()


async def test_handler_that_cancels_itself_ends(exchange: Exchange):
    """`CancelledError` from inside comes out as that, and nobody waits for ever."""

    async def work(_call: Call) -> object:
        raise asyncio.CancelledError

    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await exchange.run(work)


async def test_every_end_leaves_room_for_the_next(exchange: Exchange):
    """After results, errors, faults and cancellations it works as on the first day."""

    async def refuse(_call: Call) -> object:
        raise NotFound("no")

    async def hang(_call: Call) -> object:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    for _ in range(3):
        with contextlib.suppress(CallError):
            await exchange.run(refuse)
        with pytest.raises((TimeoutError, Internal)):
            await exchange.run(hang)
        cancelled = asyncio.get_running_loop().create_task(
            exchange.run(lambda _call: asyncio.Event().wait())
        )
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled])

    assert await exchange.run(answer) is ANSWER


async def test_handlers_time_limit_is_the_handlers_own(exchange: Exchange):
    """A `TimeoutError` of the handler is not taken for a wrapper's."""

    async def work(_call: Call) -> object:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    with pytest.raises((TimeoutError, Internal)):
        await exchange.run(work)


# --- streams that are real ----------------------------------------------------------------------

Until = Callable[[Callable[[], object]], Awaitable[None]]


@pytest.fixture(params=["client", "handler"])
async def ends(
    request: pytest.FixtureRequest, wrappers: list[Wrapper], busmicro_memory: str
) -> AsyncIterator[Ends]:
    """A client and a service, one of them with the wrappers."""
    given = {request.param: wrappers}
    async with connected(busmicro_memory, **given) as both:
        both.client = both.client.with_options(idempotent=True)
        yield both


async def test_messages_and_failures_of_a_stream_pass(ends: Ends):
    """All of them, in order, both ways; then how it ended, and nothing was opened twice."""
    sent = range(100)  # more than a window

    assert [item.n async for item in ends.stub.echo(items(*sent))] == [*sent]
    assert (await ends.stub.total(items(*sent))).n == sum(sent)
    for endpoint, failure in (("fail", NotFound), ("crash", Internal)):
        async with ends.open(endpoint, 100) as stream:
            assert [(await anext(stream)).n for _ in sent] == [*sent]
            with pytest.raises(failure):
                await anext(stream)

    assert ends.feed.entered == 4


async def test_every_end_of_a_stream_leaves_room_for_the_next(ends: Ends, until: Until):
    """After breaks, errors, cancellations and the end of its time it works as on the first day."""

    async def listen() -> None:
        async with ends.open("hold", timeout=0.02) as stream:
            await anext(stream)

    for _ in range(2):
        async for _ in ends.stub.hold(Item(n=1)):
            break
        await until(lambda: ends.feed.left == ends.feed.entered)
        with pytest.raises(NotFound, match="of the block"):
            async with ends.open("hold"):
                raise NotFound("an error of the block")
        await until(lambda: ends.feed.left == ends.feed.entered)
        with pytest.raises(CallError):
            await listen()
        await until(lambda: ends.feed.left == ends.feed.entered)
        cancelled = asyncio.get_running_loop().create_task(listen())
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        await until(lambda: ends.feed.left == ends.feed.entered)

    assert [item.n async for item in ends.stub.count(Item(n=3))] == [0, 1, 2]
