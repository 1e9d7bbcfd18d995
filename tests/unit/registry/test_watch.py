"""The shared view and its watchers, without a network and without waiting."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from busmicro.registry import Change, ChangeKind, Node
from busmicro.registry.watch import LiveView, Sighting, Watcher
from busmicro.testing import FakeClock

TTL = 30.0


def node(id: str, version: str = "1.0.0", running: int = 0) -> Node:
    return Node(service="greeter", id=id, version=version, running=running)


async def heard(watcher: Watcher, most: int = 1000) -> list[Change]:
    """Take what a watcher has to tell, without waiting for more."""
    found: list[Change] = []
    try:
        while len(found) < most:
            async with asyncio.timeout(0):
                found.append(await anext(watcher))
    except TimeoutError:
        pass
    return found


async def told(watcher: Watcher) -> list[tuple[str, str]]:
    return [(change.kind.value, change.node.id) for change in await heard(watcher)]


def ids(view: LiveView) -> list[str]:
    return [n.id for n in view.nodes()]


def sighting(clock: FakeClock, id: str, *, age: float = 0.0) -> Sighting:
    seen = clock.now() - age
    return Sighting(node(id), TTL, seen, seen + TTL)


async def test_a_silent_node_leaves_when_its_time_is_over_and_not_before() -> None:
    """The time to live counts from the last sign of life."""
    clock = FakeClock()
    view = LiveView(clock)
    view.put(node("a"), TTL)
    await clock.advance(20)
    view.put(node("a"), TTL)

    await clock.advance(TTL - 1)
    view.expire()
    before = ids(view)
    await clock.advance(1)
    view.expire()

    assert before == ["a"]
    assert ids(view) == []


async def test_a_sign_of_life_older_than_its_time_is_none() -> None:
    """A node whose heartbeat is too old joins nobody, and leaves if it was there."""
    clock = FakeClock()
    view = LiveView(clock)
    watcher = view.watcher()

    view.put(node("a"), TTL, age=TTL)
    view.put(node("b"), TTL)
    view.put(node("b"), TTL, age=TTL)

    assert ids(view) == []
    assert await told(watcher) == [("joined", "b"), ("left", "b")]


async def test_the_number_of_running_requests_is_no_news() -> None:
    """A heartbeat that differs in its load alone updates the view and wakes nobody."""
    view = LiveView(FakeClock())
    watcher = view.watcher()

    view.put(node("a"), TTL)
    view.put(node("a", running=7), TTL)
    view.put(node("a", version="2.0.0"), TTL)

    assert await told(watcher) == [("joined", "a"), ("updated", "a")]
    assert view.nodes()[0].version == "2.0.0"


async def test_a_snapshot_removes_whoever_is_missing() -> None:
    """Who is not in the bucket and has not been heard of since is gone."""
    clock = FakeClock()
    view = LiveView(clock)
    view.put(node("a"), TTL)
    view.put(node("b"), TTL)
    await clock.advance(5)

    view.compare([sighting(clock, "b", age=5.0)], since=clock.now() - 2)

    assert ids(view) == ["b"]


async def test_what_was_heard_lately_beats_a_snapshot() -> None:
    """A snapshot that is read before it is written neither removes nor revives anybody."""
    clock = FakeClock()
    view = LiveView(clock)
    view.put(node("b"), TTL)
    await clock.advance(5)
    view.put(node("a"), TTL)
    view.remove("greeter", "b")

    view.compare([sighting(clock, "b", age=5.0)], since=clock.now() - 2)

    assert ids(view) == ["a"]


async def test_a_snapshot_older_than_what_is_known_changes_nothing_of_it() -> None:
    """The last heartbeat counts, by whichever way it came."""
    clock = FakeClock()
    view = LiveView(clock)
    view.put(node("a", version="2.0.0"), TTL)
    await clock.advance(9)

    view.compare([sighting(clock, "a", age=10.0)], since=clock.now() - 2)

    assert view.nodes()[0].version == "2.0.0"
    assert view.next_expiry == clock.now() + TTL - 9


async def test_after_the_bucket_was_lost_everyone_gets_a_while_to_come_back() -> None:
    """With a grace, those who are missing leave only if they stay silent."""
    clock = FakeClock()
    view = LiveView(clock)
    watcher = view.watcher()
    view.put(node("a"), TTL)
    view.put(node("b"), TTL)
    await clock.advance(100)

    view.compare([], since=clock.now(), grace=4.0)
    view.expire()
    view.put(node("a"), TTL)
    await clock.advance(4)
    view.expire()

    assert await told(watcher) == [("joined", "a"), ("joined", "b"), ("left", "b")]


async def test_a_watcher_first_hears_of_everyone_who_was_there_when_it_began() -> None:
    """Who joins later is told later, even if nobody has listened meanwhile."""
    view = LiveView(FakeClock())
    view.put(node("a"), TTL)
    watcher = view.watcher()
    view.put(node("b"), TTL)
    view.remove("greeter", "a")

    assert await told(watcher) == [("joined", "a"), ("joined", "b"), ("left", "a")]


async def test_a_watcher_that_falls_behind_starts_over_with_everyone_who_is_there() -> None:
    """Beyond its limit it drops what waits, and then tells first who is gone, then who is there."""
    view = LiveView(FakeClock(), limit=3)
    view.put(node("a"), TTL)
    watcher = view.watcher()
    assert await told(watcher) == [("joined", "a")]

    for name in "bcdef":
        view.put(node(name), TTL)
    view.remove("greeter", "a")

    assert await told(watcher) == [("left", "a"), *(("joined", name) for name in "bcdef")]


async def test_a_view_that_closes_ends_its_watchers() -> None:
    """The loop over the changes ends, also for who waits in it."""
    view = LiveView(FakeClock())
    view.put(node("a"), TTL)
    watcher = view.watcher()
    found: list[str] = []

    async with asyncio.timeout(1):
        async for change in watcher:
            found.append(change.node.id)
            asyncio.get_running_loop().call_soon(view.close)

    assert found == ["a"]


STEP = st.one_of(
    st.tuples(st.just("put"), st.sampled_from("abcd"), st.sampled_from(["1.0.0", "2.0.0"])),
    st.tuples(st.just("remove"), st.sampled_from("abcd"), st.just("")),
    st.tuples(st.just("pass"), st.integers(0, 40), st.just("")),
    st.tuples(st.just("compare"), st.sets(st.sampled_from("abcd")), st.sampled_from([0.0, 4.0])),
    st.tuples(st.just("listen"), st.integers(0, 3), st.just("")),
)


class Replay:
    """A view to which things happen, and one who knows only what a watcher tells."""

    def __init__(self, limit: int) -> None:
        self.clock = FakeClock()
        self.view = LiveView(self.clock, limit=limit)
        self.watcher = self.view.watcher()
        self.mine: dict[str, Node] = {}

    async def put(self, name: str, version: str) -> None:
        self.view.put(node(name, version), TTL)

    async def remove(self, name: str, _: str) -> None:
        self.view.remove("greeter", name)

    async def pass_(self, seconds: float, _: str) -> None:
        await self.clock.advance(seconds)
        self.view.expire()

    async def compare(self, names: set[str], grace: float) -> None:
        seen = [sighting(self.clock, name, age=1.0) for name in names]
        self.view.compare(seen, since=self.clock.now() - 2, grace=grace)

    async def listen(self, most: int, _: str) -> None:
        for change in await heard(self.watcher, most):
            assert change.kind is ChangeKind.JOINED or change.node.id in self.mine
            if change.kind is ChangeKind.LEFT:
                del self.mine[change.node.id]
            else:
                self.mine[change.node.id] = change.node


@given(steps=st.lists(STEP, max_size=60), limit=st.integers(1, 5))
def test_whoever_replays_the_changes_has_the_view(steps: list, limit: int) -> None:
    """However slowly it listens: nobody leaves or is updated who was not there before."""

    async def run() -> Replay:
        replay = Replay(limit)
        for what, first, second in steps:
            await getattr(replay, "pass_" if what == "pass" else what)(first, second)
        await replay.listen(1000, "")
        return replay

    replay = asyncio.run(run())

    assert replay.mine == {n.id: n for n in replay.view.nodes()}
