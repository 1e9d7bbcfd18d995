"""Replies are kept for their time and not a moment longer, and equal calls become one."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busmicro.call import Call, Kind, Side, Spec
from busmicro.errors import DeadlineExceeded, Internal, NotFound, SetupError
from busmicro.testing import FakeClock, settle
from busmicro.wrappers import Cache


class Counter:
    """A handler whose replies say when and for what they were made."""

    def __init__(self, clock: FakeClock, takes: float = 0.0) -> None:
        self.clock = clock
        self.takes = takes
        self.calls = 0
        self.failure: BaseException | None = None

    async def __call__(self, call: Call) -> object:
        self.calls += 1
        began = self.clock.now()
        if self.takes:
            await self.clock.sleep(self.takes)
        if self.failure is not None:
            raise self.failure
        return call.message, began


@pytest.fixture
def ask(call_of):
    """Make an idempotent call."""
    return lambda message=None, **more: call_of(message, idempotent=True, **more)


async def test_equal_calls_are_answered_once(clock: FakeClock, ask):
    """Within the time to live the handler runs once for each message."""
    cache, handler = Cache(10.0, clock=clock), Counter(clock)

    first = [await cache(ask(name), handler) for name in "abab"]

    assert handler.calls == 2
    assert first[0] is first[2]
    assert (cache.hits, cache.misses, len(cache)) == (2, 2, 2)


@settings(deadline=None)
@given(
    gaps=st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(0, 3)), max_size=60),
    takes=st.sampled_from([0.0, 0.3, 1.4]),
    size=st.integers(1, 4),
)
def test_nobody_is_told_what_is_older_than_the_time_to_live(
    gaps: list[tuple[float, int]], takes: float, size: int
):
    """Whoever asks when, what was true before `now - ttl` is told to nobody."""
    ttl = 1.0
    clock = FakeClock()
    spec = Spec(service="s", endpoint="m", kind=Kind.UNARY, side=Side.CLIENT, idempotent=True)

    async def one(cache: Cache, handler: Counter, key: int) -> None:
        asked = clock.now()
        told = await cache(Call(spec, key), handler)
        assert isinstance(told, tuple)
        assert told[0] == key
        assert told[1] > asked - ttl - 1e-9

    async def scenario() -> None:
        cache, handler = Cache(ttl, size=size, clock=clock), Counter(clock, takes)
        async with asyncio.TaskGroup() as group:
            for gap, key in gaps:
                await clock.advance(gap)
                group.create_task(one(cache, handler, key))
            await clock.advance(100.0)
        assert len(cache) <= size
        assert not cache._under_way

    asyncio.run(scenario())


async def test_at_its_time_a_reply_is_gone(clock: FakeClock, ask):
    """Exactly when the time to live is over, it is asked again."""
    cache, handler = Cache(1.0, clock=clock), Counter(clock)
    await cache(ask(), handler)
    await clock.advance(0.999)
    await cache(ask(), handler)
    assert handler.calls == 1

    await clock.advance(0.001)
    await cache(ask(), handler)

    assert handler.calls == 2


async def test_calls_at_the_same_time_become_one(clock: FakeClock, ask):
    """A hundred who ask the same at once cost the service one call."""
    cache, handler = Cache(10.0, clock=clock), Counter(clock, takes=1.0)

    replies = asyncio.gather(*[cache(ask("a"), handler) for _ in range(100)])
    await clock.advance(1.0)

    assert len(set(map(id, await replies))) == 1
    assert handler.calls == 1


async def test_who_asked_first_may_give_up(clock: FakeClock, ask):
    """Those who wait with a caller who is cancelled are answered all the same."""
    cache, handler = Cache(10.0, clock=clock), Counter(clock, takes=1.0)
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(cache._answer("k", ask("a"), handler)) for _ in range(3)]
    await settle()

    tasks[0].cancel()
    await clock.advance(5.0)

    assert tasks[0].cancelled()
    assert [task.result()[0] for task in tasks[1:]] == ["a", "a"]  # type: ignore[index]
    assert handler.calls == 2


async def test_who_waits_may_give_up(clock: FakeClock, ask):
    """One who is cancelled while he waits disturbs nobody."""
    cache, handler = Cache(10.0, clock=clock), Counter(clock, takes=1.0)
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(cache._answer("k", ask("a"), handler)) for _ in range(3)]
    await settle()

    tasks[1].cancel()
    await clock.advance(5.0)

    assert [task.cancelled() for task in tasks] == [False, True, False]
    assert handler.calls == 1


async def test_who_waits_keeps_to_his_own_deadline(ask):
    """Waiting for somebody else's call takes no longer than one's own time."""
    cache = Cache(10.0)

    async def hang(_call: Call) -> object:
        return await asyncio.Event().wait()

    first = asyncio.get_running_loop().create_task(cache._answer("k", ask("a"), hang))
    await settle()

    with pytest.raises(DeadlineExceeded):
        await cache._answer("k", ask("a", deadline=time.monotonic() + 0.02), hang)
    first.cancel()
    await asyncio.wait([first])


async def test_failures_are_shared_and_not_kept(clock: FakeClock, ask):
    """A service in trouble is not asked a hundred times at once, but asked again after it."""
    cache, handler = Cache(10.0, clock=clock), Counter(clock, takes=1.0)
    handler.failure = Internal("broken")

    ends = asyncio.gather(*[cache(ask("a"), handler) for _ in range(10)], return_exceptions=True)
    await clock.advance(1.0)

    assert [str(end) for end in await ends] == ["internal: broken"] * 10
    assert handler.calls == 1
    handler.failure, handler.takes = None, 0.0
    assert await cache(ask("a"), handler) == ("a", clock.now())


async def test_late_end_of_one_is_not_the_end_of_all(clock: FakeClock, ask):
    """A caller with little time does not take it from those who wait with him."""
    cache, handler = Cache(10.0, clock=clock), Counter(clock, takes=1.0)
    handler.failure = DeadlineExceeded("mine was short")

    ends = asyncio.gather(*[cache(ask("a"), handler) for _ in range(2)], return_exceptions=True)
    await clock.advance(0.5)
    await clock.advance(0.5)
    handler.failure = None
    await clock.advance(1.0)

    first, second = await ends
    assert isinstance(first, DeadlineExceeded)
    assert second == ("a", 1_001.0)


async def test_least_used_goes_first(clock: FakeClock, ask):
    """There is room for so many; the one not used for longest makes room."""
    cache, handler = Cache(10.0, size=2, clock=clock), Counter(clock)
    for name in "abac":
        await cache(ask(name), handler)
    assert handler.calls == 3

    await cache(ask("a"), handler)
    assert handler.calls == 3
    await cache(ask("b"), handler)
    assert handler.calls == 4
    assert len(cache) == 2


@dataclass
class Question:
    about: str
    hidden: int = 0


async def test_messages_that_differ_are_told_apart(clock: FakeClock, ask):
    """1, 1.0, True and '1' are four questions, and every field of an object counts."""
    cache, handler = Cache(10.0, clock=clock), Counter(clock)
    questions = [
        1,
        1.0,
        True,
        "1",
        b"1",
        Question("a"),
        Question("a", 1),
        ["a"],
        {"a": 1},
        "x" * 99,
    ]

    for question in questions:
        assert (await cache(ask(question), handler))[0] is question

    assert handler.calls == len(questions)


async def test_headers_that_matter_are_part_of_the_question(clock: FakeClock, ask):
    """A tenant's reply is not another one's; a trace id makes no difference."""
    cache, handler = Cache(10.0, clock=clock), Counter(clock)

    for headers in [{"Tenant": "a"}, {"Tenant": "b"}, {"Tenant": "a", "traceparent": "00-1"}]:
        call = ask("q")
        for name, value in headers.items():
            call.headers[name] = value
        await cache(call, handler)

    assert handler.calls == 2


async def test_chains_do_not_share(clock: FakeClock, ask):
    """Who wants a typed reply is not given the untyped one of another caller."""
    cache, typed, untyped = Cache(10.0, clock=clock), Counter(clock), Counter(clock)

    await cache(ask("q"), typed)
    await cache(ask("q"), untyped)

    assert (typed.calls, untyped.calls) == (1, 1)


async def test_reply_headers_are_kept_too(clock: FakeClock, ask):
    """A kept reply has the headers that it came with; changing them changes nobody else's."""
    cache, first, second = Cache(10.0, clock=clock), ask("q"), ask("q")

    async def handler(call: Call) -> object:
        call.reply_headers["Node"] = "n1"
        return "reply"

    await cache(first, handler)
    first.reply_headers["Node"] = "changed"
    await cache(second, handler)

    assert second.reply_headers["Node"] == "n1"


@pytest.mark.parametrize(
    "other",
    [
        {"idempotent": False},
        {"idempotent": True, "kind": Kind.STREAM},
        {"idempotent": True, "kind": Kind.EVENT},
    ],
)
async def test_other_exchanges_are_not_kept(clock: FakeClock, call_of, other: dict[str, Any]):
    """What changes something, or has no reply, is done each time."""
    cache, handler = Cache(10.0, clock=clock), Counter(clock)

    await cache(call_of("q", **other), handler)
    await cache(call_of("q", **other), handler)

    assert handler.calls == 2


async def test_own_key_decides(clock: FakeClock, call_of):
    """A key function says what is equal, and what is to pass."""
    cache = Cache(
        10.0,
        key=lambda call: None if call.message == "fresh" else str(call.message).lower(),
        idempotent_only=False,
        clock=clock,
    )
    handler = Counter(clock)

    for name in ("A", "a", "fresh", "fresh"):
        await cache(call_of(name), handler)

    assert handler.calls == 3


async def test_at_a_handler_the_payload_decides(clock: FakeClock):
    """At a handler nothing is decoded to find out whether it is known."""
    spec = Spec(service="s", endpoint="m", kind=Kind.UNARY, side=Side.HANDLER, idempotent=True)
    cache, calls = Cache(10.0, clock=clock), []

    async def handler(call: Call) -> object:
        calls.append(call.message)
        return call.message

    for payload in (b'"a"', b'"a"', b'"b"'):
        await cache(Call(spec, payload=payload, decode=lambda data: data.decode()), handler)

    assert calls == ['"a"', '"b"']


async def test_clear_forgets_what_is_under_way_too(clock: FakeClock, ask):
    """After `clear` nobody is told what was asked before it."""
    cache, handler = Cache(10.0, clock=clock), Counter(clock, takes=1.0)
    under_way = asyncio.get_running_loop().create_task(cache._answer("k", ask("a"), handler))
    await settle()

    cache.clear()
    await clock.advance(1.0)
    await under_way

    assert len(cache) == 0


async def test_message_without_a_key_is_told_so(ask):
    """A message that cannot be compared is refused with the fix."""
    with pytest.raises(SetupError, match="key="):
        Cache(10.0)(ask(lambda: None), lambda _call: None)  # type: ignore[arg-type,return-value]


async def test_not_found_is_not_kept(clock: FakeClock, ask):
    """What was missing may be there the next time."""
    cache, handler = Cache(10.0, clock=clock), Counter(clock)
    handler.failure = NotFound("no")
    with pytest.raises(NotFound):
        await cache(ask("a"), handler)
    handler.failure = None

    assert await cache(ask("a"), handler) == ("a", clock.now())


@pytest.mark.parametrize(("ttl", "size"), [(0, 1), (-1, 1), (float("inf"), 1), (1, 0)])
def test_senseless_settings_are_refused(ttl: float, size: int):
    """A wrong number is told at construction, with the range."""
    with pytest.raises(SetupError, match=r"more than 0|1 or more"):
        Cache(ttl, size=size)
