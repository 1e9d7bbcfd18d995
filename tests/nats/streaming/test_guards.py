"""Streams under breakers, caches, hedges, checks, faults and selections: what a user expects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from busmicro import (
    Call,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    Retry,
    SetupError,
    Unavailable,
)
from busmicro.call import Handler, Kind, Wrapper
from busmicro.testing import FakeClock
from busmicro.wrappers import (
    Cache,
    CircuitBreaker,
    CircuitOpen,
    Fault,
    Hedge,
    MemoryStore,
    State,
    Validate,
    once,
    only,
)
from tests.nats.streaming.wrapped import Ends, Item, connected, items

Until = Callable[[Callable[[], object]], Awaitable[None]]
each_side = pytest.mark.parametrize("side", ["client", "handler"])


async def drain(ends: Ends, endpoint: str = "count", n: int = 1) -> list[int]:
    async with ends.open(endpoint, n) as stream:
        return [item.n async for item in stream]


async def gone(call: Call, call_next: Handler) -> object:
    await call_next(call)
    raise Unavailable("the node is going down")


async def never(_call: Call) -> object:
    pytest.fail("the fallback is no stream")


def breaker(**options: object) -> CircuitBreaker:
    """A breaker that opens at the first failure, and closes after two probes."""
    given = {"minimum": 1, "probes": 2, "open_for": 5.0, "jitter": lambda: 0.0, **options}
    return CircuitBreaker(**given)


def state(guard: CircuitBreaker, endpoint: str) -> State:
    return guard.circuit("feed", f"Feed.{endpoint}").state


# --- CircuitBreaker -----------------------------------------------------------------------------


@each_side
async def test_openings_that_fail_open_the_circuit(busmicro_memory: str, side: str):
    """From then on a stream is refused at once: no block, no handler, no fallback."""
    guard = breaker(fallback=never, open_for=60.0)
    wrappers: dict[str, list[Wrapper]] = {"client": [], "handler": [Fault(errors=1.0)]}
    wrappers[side].insert(0, guard)

    async with connected(busmicro_memory, **wrappers) as ends:
        with pytest.raises(Unavailable, match="made this up"):
            await drain(ends)
        with pytest.raises(Unavailable, match="is open") as refused:
            await drain(ends)

    assert refused.value.not_run
    assert isinstance(refused.value, CircuitOpen) == (side == "client")
    assert state(guard, "count") is State.OPEN


@pytest.mark.parametrize("seen", [False, True], ids=["raised", "dealt with"])
async def test_streams_that_end_unavailable_open_the_circuit(busmicro_memory: str, *, seen: bool):
    """A service that goes away in the middle of streams is in trouble, whoever caught it."""
    guard = breaker()

    async with connected(busmicro_memory, client=[guard], handler=[gone]) as ends:
        if seen:
            async with ends.open("count", 1) as stream:
                with pytest.raises(Unavailable):
                    [item async for item in stream]
        else:
            with pytest.raises(Unavailable):
                await drain(ends)

    assert state(guard, "count") is State.OPEN


@each_side
async def test_long_streams_do_not_open_the_circuit(busmicro_memory: str, side: str, until: Until):
    """A stream that lasts an hour is not a slow call."""
    clock = FakeClock()
    guard = breaker(slow=1.0, clock=clock)
    wrappers: dict[str, list[Wrapper]] = {side: [guard]}

    async with connected(busmicro_memory, **wrappers) as ends:
        async with ends.talk() as stream:
            await clock.advance(3600)
            await stream.close_send()
            assert [item async for item in stream] == []
        assert await drain(ends) == [0]

    assert state(guard, "echo") is State.CLOSED


@each_side
async def test_end_of_a_streams_time_does_not_open_the_circuit(
    busmicro_memory: str, side: str, until: Until
):
    """To listen for so many seconds is how some streams are meant to end."""
    guard = breaker()
    wrappers: dict[str, list[Wrapper]] = {side: [guard]}

    async with connected(busmicro_memory, **wrappers) as ends:
        with pytest.raises(DeadlineExceeded):
            async with ends.open("hold", 1, timeout=0.05) as stream:
                [item async for item in stream]
        await until(lambda: ends.feed.left)
        assert state(guard, "hold") is State.CLOSED


async def test_stream_that_is_not_accepted_in_time_opens_the_circuit(busmicro_memory: str):
    """A service that does not even open streams is in trouble."""
    guard = breaker()

    async with connected(
        busmicro_memory, client=[guard], handler=[Fault(delays=1.0, delay=60.0)]
    ) as ends:
        ends.client = ends.client.with_options(timeout=0.05)
        with pytest.raises(DeadlineExceeded):
            await drain(ends)

    assert state(guard, "count") is State.OPEN


async def test_failures_of_the_block_do_not_open_the_circuit(busmicro_memory: str):
    """That another service fails while a stream is read says nothing about the stream."""
    guard = breaker()

    async with connected(busmicro_memory, client=[guard]) as ends:
        with pytest.raises(Unavailable, match="the other one"):
            async with ends.open("hold"):
                raise Unavailable("the other one")

    assert state(guard, "hold") is State.CLOSED


@pytest.mark.parametrize("side", ["client", "handler", "client, around Retry"])
async def test_probes_have_succeeded_when_they_are_open(busmicro_memory: str, side: str):
    """Nobody has to wait for the end of streams that have none, until a circuit is closed."""
    clock, fault = FakeClock(), Fault(errors=1.0)
    guard = breaker(clock=clock)
    inner: list[Wrapper] = [Retry()] if "Retry" in side else []
    wrappers: dict[str, list[Wrapper]] = {"client": inner, "handler": [fault]}
    wrappers[side.partition(",")[0]].insert(0, guard)

    async with connected(busmicro_memory, **wrappers) as ends:
        with pytest.raises(Unavailable):
            await drain(ends, "hold")
        fault.errors = 0.0
        await clock.advance(5)

        async with AsyncExitStack() as streams:
            await streams.enter_async_context(ends.open("hold"))
            assert state(guard, "hold") is State.HALF_OPEN
            await streams.enter_async_context(ends.open("hold"))
            await streams.enter_async_context(ends.open("hold"))
            assert state(guard, "hold") is State.CLOSED


async def test_probe_that_is_not_open_yet_lets_no_other_through(busmicro_memory: str, until: Until):
    """As long as nobody knows whether it opens, the others wait."""
    clock, fault = FakeClock(), Fault(errors=1.0, delay=60.0)
    guard = breaker(clock=clock, open_for=60.0)

    async with connected(busmicro_memory, client=[guard], handler=[fault]) as ends:
        with pytest.raises(Unavailable):
            await drain(ends)
        fault.errors, fault.delays = 0.0, 1.0
        await clock.advance(60)

        probe = asyncio.get_running_loop().create_task(drain(ends))
        await until(lambda: state(guard, "count") is State.HALF_OPEN)
        with pytest.raises(CircuitOpen):
            await drain(ends)
        probe.cancel()
        await asyncio.wait([probe])


async def test_one_probe_counts_once(busmicro_memory: str):
    """A stream that is over has not succeeded a second time."""
    clock, fault = FakeClock(), Fault(errors=1.0)
    guard = breaker(clock=clock)

    async with connected(busmicro_memory, client=[guard], handler=[fault]) as ends:
        with pytest.raises(Unavailable):
            await drain(ends, "hold")
        fault.errors = 0.0
        await clock.advance(5)

        async with ends.open("hold", 1) as stream:
            assert await drain(ends) == [0]  # looks at the probe, which is open
            await anext(stream)
        assert state(guard, "hold") is State.HALF_OPEN


@each_side
async def test_probe_that_is_refused_keeps_the_circuit_open(busmicro_memory: str, side: str):
    """A stream that does not open has not succeeded."""
    clock = FakeClock()
    guard = breaker(clock=clock)
    wrappers: dict[str, list[Wrapper]] = {"client": [], "handler": [Fault(errors=1.0)]}
    wrappers[side].insert(0, guard)

    async with connected(busmicro_memory, **wrappers) as ends:
        for _ in range(2):
            with pytest.raises(Unavailable, match="made this up"):
                await drain(ends)
            assert state(guard, "count") is State.OPEN
            await clock.advance(10)


# --- Hedge, Cache -------------------------------------------------------------------------------


async def test_stream_is_never_hedged(busmicro_memory: str):
    """Two streams would be two conversations, however long the first takes to open."""
    hedge = Hedge(least=0.001, most=0.001)

    async with connected(
        busmicro_memory, client=[hedge], handler=[Fault(delays=1.0, delay=0.05)]
    ) as ends:
        ends.client = ends.client.with_options(idempotent=True)
        assert await drain(ends, "count", 2) == [0, 1]

    assert (hedge.hedged, ends.feed.entered) == (0, 1)


@each_side
async def test_stream_is_never_cached(busmicro_memory: str, side: str):
    """Each caller gets a stream of its own, though the request is the same."""
    cache = Cache(60.0, idempotent_only=False)
    wrappers: dict[str, list[Wrapper]] = {side: [cache]}

    async with connected(busmicro_memory, **wrappers) as ends:
        assert await asyncio.gather(*(drain(ends, "count", 2) for _ in range(3))) == [[0, 1]] * 3

    assert (ends.feed.entered, len(cache), cache.hits) == (3, 0, 0)


# --- Validate -----------------------------------------------------------------------------------


def small(message: object) -> None:
    assert isinstance(message, Item)
    if message.n > 2:
        raise ValueError(f"{message.n} is too much")


@each_side
@pytest.mark.parametrize("by_stub", [False, True], ids=["block", "stub"])
async def test_request_of_a_stream_is_checked_before_it_is_opened(
    busmicro_memory: str, side: str, *, by_stub: bool
):
    """A wrong request opens nothing, whichever end looks at it."""
    wrappers: dict[str, list[Wrapper]] = {side: [Validate(small)]}

    async with connected(busmicro_memory, **wrappers) as ends:
        with pytest.raises(InvalidArgument, match="3 is too much") as refused:
            if by_stub:
                await anext(ends.stub.count(Item(n=3)))
            else:
                await drain(ends, "count", 3)

    assert refused.value.not_run
    assert ends.feed.entered == 0


async def test_client_does_not_send_a_wrong_message_of_many(busmicro_memory: str):
    """It is refused where it is sent, and the stream goes on."""
    wrappers = [Validate(small)]
    async with connected(busmicro_memory, client=wrappers) as ends, ends.talk("total") as stream:
        await stream.send(Item(n=1))
        with pytest.raises(InvalidArgument, match="7 is too much"):
            await stream.send(Item(n=7))
        await stream.send(Item(n=2))
        assert (await stream.result()).n == 3


async def test_wrong_message_of_many_fails_the_call_of_a_stub(busmicro_memory: str, until: Until):
    """What an iterator gives is checked as well, and the handler is closed."""
    async with connected(busmicro_memory, client=[Validate(small)]) as ends:
        with pytest.raises(InvalidArgument, match="7 is too much"):
            await ends.stub.total(items(1, 7, 2))
        await until(lambda: ends.feed.left == ends.feed.entered)


async def test_handler_does_not_get_a_wrong_message_of_many(busmicro_memory: str):
    """The stream ends there, after what came before; it may have run."""
    async with connected(busmicro_memory, handler=[Validate(small)]) as ends, ends.talk() as stream:
        await stream.send(Item(n=1))
        await stream.send(Item(n=7))
        assert (await anext(stream)).n == 1
        with pytest.raises(InvalidArgument, match="7 is too much") as refused:
            await anext(stream)

    assert not refused.value.not_run
    assert ends.feed.left == 1


@each_side
async def test_messages_on_their_way_back_are_not_checked(busmicro_memory: str, side: str):
    """The check is for what goes to the handler."""
    wrappers: dict[str, list[Wrapper]] = {side: [Validate(lambda item: item.n == 4)]}

    async with connected(busmicro_memory, **wrappers) as ends:
        assert await drain(ends, "count", 4) == [0, 1, 2, 3]


async def test_async_check_of_a_stream_is_refused_by_name(busmicro_memory: str):
    """It could not be waited for between two messages; the text says so."""

    async def slowly(_message: object) -> None: ...

    async with connected(busmicro_memory, client=[Validate(slowly)]) as ends:
        with pytest.raises(SetupError, match=r"slowly.* cannot be async"):
            await drain(ends)


# --- Fault --------------------------------------------------------------------------------------


@each_side
async def test_fault_aborts_the_opening(busmicro_memory: str, side: str):
    """What it fails never reaches the handler, and says that it may have run."""
    wrappers: dict[str, list[Wrapper]] = {side: [Fault(errors=1.0)]}

    async with connected(busmicro_memory, **wrappers) as ends:
        with pytest.raises(Unavailable, match="made this up") as failed:
            await drain(ends)

    assert not failed.value.not_run
    assert ends.feed.entered == 0


@each_side
async def test_fault_delays_the_opening_and_nothing_else(busmicro_memory: str, side: str):
    """The handler begins late; messages are as quick as ever."""
    clock = FakeClock()
    wrappers: dict[str, list[Wrapper]] = {side: [Fault(delays=1.0, delay=3.0, clock=clock)]}

    async with connected(busmicro_memory, **wrappers) as ends:
        draining = asyncio.get_running_loop().create_task(drain(ends, "count", 50))
        while clock._sleepers == []:
            await asyncio.sleep(0)
        assert ends.feed.entered == 0
        await clock.advance(3.0)
        assert await draining == list(range(50))


# --- once, only ---------------------------------------------------------------------------------


async def test_once_lets_streams_pass(busmicro_memory: str):
    """They are delivered once at most; the same request opens as many streams as are asked for."""
    async with connected(busmicro_memory, handler=[once(MemoryStore())]) as ends:
        assert [await drain(ends) for _ in range(2)] == [[0], [0]]

    assert ends.feed.entered == 2


@each_side
async def test_only_selects_streams(busmicro_memory: str, side: str):
    """Calls pass what goes around streams, and streams what goes around calls."""
    seen: list[tuple[str, str]] = []

    def tell(name: str) -> Wrapper:
        async def told(call: Call, call_next: Handler) -> object:
            seen.append((name, call.spec.endpoint))
            return await call_next(call)

        return told

    wrappers: dict[str, list[Wrapper]] = {
        side: [
            only(tell("streams"), kinds=[Kind.STREAM]),
            only(tell("calls"), kinds=[Kind.UNARY]),
            only(tell("count"), endpoints=["Feed.c*"]),
        ]
    }
    async with connected(busmicro_memory, **wrappers) as ends:
        await drain(ends)
        await ends.stub.total(items(1))
        await ends.client.call("feed", "Feed.add", Item(n=1), returns=Item)

    assert [told for told in seen if "Debug" not in told[1]] == [
        ("streams", "Feed.count"), ("count", "Feed.count"),
        ("streams", "Feed.total"), ("calls", "Feed.add"),
    ]  # fmt: skip


async def test_answers_do_not_open_the_circuit(busmicro_memory: str):
    """That there is no such thing is no failure of the service."""
    guard = breaker()

    async with connected(busmicro_memory, client=[guard]) as ends:
        with pytest.raises(NotFound):
            await drain(ends, "fail")

    assert state(guard, "fail") is State.CLOSED
