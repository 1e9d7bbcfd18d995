"""Checks run by themselves, and what follows from them never leaves a service without a node."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from busmicro import Service
from busmicro.errors import Disconnected, SetupError, Unavailable
from busmicro.health import AWAY, FAILING, SERVING, Check, CheckRunner, Standing
from busmicro.testing import FakeClock, settle


class Need:
    """Something that a service needs, and that can be broken."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self.asked = 0
        self.takes: Callable[[], Awaitable[object]] | None = None

    async def check(self) -> object:
        self.asked += 1
        if self.takes is not None:
            await self.takes()
        if self.failure is not None:
            raise self.failure
        return None


@pytest.fixture
def need() -> Need:
    return Need()


@pytest.fixture
async def runner(need: Need, clock: FakeClock) -> AsyncIterator[CheckRunner]:
    """A runner of one critical check, ten seconds apart."""

    async def check() -> object:
        return await need.check()

    own = CheckRunner([Check(name="database", function=check)], clock=clock)
    yield own
    await own.end()


async def test_check_runs_at_once_and_then_again_and_again(
    runner: CheckRunner, need: Need, clock: FakeClock
):
    """A node knows how it is when it starts, and never knows worse than the interval."""
    await runner.begin()
    assert need.asked == 1
    assert runner.outcomes["database"].passed

    await clock.advance(31.0)

    assert need.asked == 4


async def test_what_fails_is_told_without_secrets(
    runner: CheckRunner, need: Need, clock: FakeClock, caplog: pytest.LogCaptureFixture
):
    """Others learn that a check raised and what, the log has the text, once per change."""
    need.failure = ConnectionError("postgres://u:hunter2@db")
    with caplog.at_level(logging.INFO, "busmicro.health"):
        await runner.begin()
        await clock.advance(25.0)

    outcome = runner.outcomes["database"]
    assert not outcome.passed
    assert outcome.error == "it raised ConnectionError; the log of the node says more"
    assert caplog.text.count("check database fails") == 1
    assert "hunter2" in caplog.text
    need.failure = Unavailable("the database is being moved")
    await clock.advance(10.0)
    assert runner.outcomes["database"].error == "unavailable: the database is being moved"


async def test_check_that_hangs_fails_in_time_and_is_cancelled(
    runner: CheckRunner, need: Need, clock: FakeClock
):
    """A check that takes too long has failed; it does not pile up and does not hold up others."""
    cancelled = 0

    async def hang() -> object:
        nonlocal cancelled
        try:
            return await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled += 1
            raise

    need.takes = hang
    begun = asyncio.create_task(runner.begin())  # noqa: TID251
    await clock.advance(1.0)
    await begun

    assert runner.outcomes["database"].error == "took longer than 1 s"
    assert runner.failing == ["database"]
    await settle()
    assert cancelled == 1
    need.takes = None
    await clock.advance(10.0)
    assert runner.failing == []


async def test_check_that_cannot_be_cancelled_runs_once(
    runner: CheckRunner, need: Need, clock: FakeClock
):
    """However stubborn a check is, there is never a second one of it."""
    let_go = asyncio.Event()

    async def stubborn() -> object:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        return None

    need.takes = stubborn
    begun = asyncio.create_task(runner.begin())  # noqa: TID251
    await clock.advance(60.0)
    await begun

    assert need.asked == 1
    assert runner.failing == ["database"]
    let_go.set()
    await clock.advance(10.0)
    assert runner.failing == []


async def test_check_that_returns_false_fails(clock: FakeClock):
    """A check may simply say no; one that is not critical does not make the node ill."""

    async def no() -> bool:
        return False

    runner = CheckRunner([Check(name="cache", function=no, critical=False)], clock=clock)
    await runner.begin()

    assert runner.outcomes["cache"].error == "it returned False"
    assert runner.failing == []
    await runner.end()


class Group:
    """A queue group that remembers who came and went."""

    def __init__(self) -> None:
        self.log: list[str] = []

    async def join(self) -> None:
        self.log.append("join")

    async def leave(self) -> None:
        self.log.append("leave")


class Others:
    """The other nodes of a service, as far as this node can tell."""

    def __init__(self) -> None:
        self.well = True
        self.reachable = True
        self.told: list[str] = []

    async def serve(self) -> bool:
        if not self.reachable:
            raise Disconnected("not connected", not_run=True)
        return self.well

    async def announce(self, status: str) -> None:
        self.told.append(status)


@pytest.fixture
def group() -> Group:
    return Group()


@pytest.fixture
def others() -> Others:
    return Others()


@pytest.fixture
async def standing(
    runner: CheckRunner, group: Group, others: Others, clock: FakeClock
) -> AsyncIterator[Standing]:
    """A node that follows its checks."""
    own = Standing(
        "shop n1",
        runner,
        group,
        another_serves=others.serve,
        announce=others.announce,
        clock=clock,
    )
    await runner.begin()
    task = asyncio.create_task(own.keep())  # noqa: TID251
    yield own
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_ill_node_leaves_and_comes_back(
    standing: Standing, need: Need, group: Group, others: Others, clock: FakeClock
):
    """While a critical check fails the others do the work; the registry is told of it."""
    need.failure = OSError()
    await clock.advance(10.0)
    assert (standing.status, group.log) == (AWAY, ["leave"])

    need.failure = None
    await clock.advance(10.0)

    assert (standing.status, group.log) == (SERVING, ["leave", "join"])
    assert others.told == [AWAY, SERVING]


async def test_last_node_that_is_there_stays(
    standing: Standing, need: Need, group: Group, others: Others, clock: FakeClock
):
    """An ill node is better than none; it goes as soon as another one is well."""
    others.well = False
    need.failure = OSError()
    await clock.advance(15.0)
    assert (standing.status, group.log) == (FAILING, [])

    others.well = True
    await clock.advance(1.0)

    assert (standing.status, group.log) == (AWAY, ["leave"])
    assert others.told == [FAILING, AWAY]


async def test_node_that_is_away_comes_back_when_the_others_fall_ill(
    standing: Standing, need: Need, group: Group, others: Others, clock: FakeClock
):
    """If the node that took over dies, the ill one is back within a second."""
    need.failure = OSError()
    await clock.advance(10.0)
    assert standing.status == AWAY

    others.well = False
    await clock.advance(1.0)

    assert (standing.status, group.log) == (FAILING, ["leave", "join"])


async def test_node_that_can_ask_nobody_stays_as_it_is(
    standing: Standing, need: Need, group: Group, others: Others, clock: FakeClock
):
    """A lost connection is no news of the others."""
    others.reachable = False
    need.failure = OSError()
    await clock.advance(15.0)
    assert (standing.status, group.log) == (FAILING, [])
    others.reachable = True
    await clock.advance(1.0)
    others.reachable = False
    await clock.advance(5.0)
    assert (standing.status, group.log) == (AWAY, ["leave"])


async def test_of_two_nodes_that_fall_ill_at_once_one_serves(clock: FakeClock):
    """Whatever the order in which two nodes ask one another, somebody takes requests."""
    nodes: list[Standing] = []
    groups = [Group(), Group()]

    async def broken() -> None:
        raise OSError

    def other_serves(me: int) -> Callable[[], Awaitable[bool]]:
        async def ask() -> bool:
            await asyncio.sleep(0)  # the question takes a while, so both ask at once
            return nodes[1 - me].status == SERVING

        return ask

    async def announce(_status: str) -> None: ...

    runners = [CheckRunner([Check(name="x", function=broken)], clock=clock) for _ in groups]
    for me, runner in enumerate(runners):
        await runner.begin()
        nodes.append(
            Standing(
                f"n{me}",
                runner,
                groups[me],
                another_serves=other_serves(me),
                announce=announce,
                clock=clock,
            )
        )
    await asyncio.gather(*(node.follow() for node in nodes))

    assert [node.status for node in nodes] == [FAILING, FAILING]
    for runner in runners:
        await runner.end()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"timeout": 0.0}, "timeout=0.0: say seconds, more than 0"),
        ({"interval": -1.0}, "interval=-1.0: say seconds, more than 0"),
        ({"interval": float("nan")}, "interval=nan"),
    ],
)
def test_senseless_options_are_refused(options: dict[str, float], says: str):
    """A wrong number is told when the check is added, with the range."""
    service = Service("shop")
    with pytest.raises(SetupError, match=says):
        service.check("database", **options)(_fine)  # type: ignore[arg-type]


def test_what_cannot_be_a_check_is_refused():
    """A function that is not async, takes arguments, or has a name twice is told at once."""
    service = Service("shop")
    service.check("database")(_fine)

    with pytest.raises(SetupError, match="already"):
        service.check("database")(_fine)
    with pytest.raises(SetupError, match="not async"):
        service.check("disk")(lambda: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(SetupError, match="without parameters"):
        service.check("disk")(_picky)  # type: ignore[arg-type]
    with pytest.raises(SetupError, match="1 to 64 letters"):
        service.check("a disk")(_fine)


async def _fine() -> None: ...


async def _picky(_what: str) -> None: ...
