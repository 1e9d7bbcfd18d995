"""No more than so many run, so many wait in order, and the rest hears of it at once."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busmicro.call import Call, Kind, Side, Spec
from busmicro.errors import DeadlineExceeded, ResourceExhausted, SetupError
from busmicro.testing import settle
from busmicro.wrappers import ConcurrencyLimit


class Room:
    """A handler that runs until it is told to end."""

    def __init__(self) -> None:
        self.inside: dict[object, asyncio.Event] = {}
        self.order: list[object] = []
        self.most = 0

    async def __call__(self, call: Call) -> object:
        ends = self.inside[call.message] = asyncio.Event()
        self.order.append(call.message)
        self.most = max(self.most, len(self.inside))
        try:
            await ends.wait()
        finally:
            del self.inside[call.message]
        return call.message

    def end(self, message: object) -> None:
        self.inside[message].set()


def start(limit: ConcurrencyLimit, call: Call, room: Room) -> asyncio.Task[object]:
    return asyncio.get_running_loop().create_task(limit(call, room))  # type: ignore[arg-type]


async def test_rest_is_refused_at_once_and_did_not_run(call_of):
    """Who finds no room to run or wait is told so, and when to come back."""
    limit, room = ConcurrencyLimit(2, queued=1), Room()
    tasks = [start(limit, call_of(number), room) for number in range(3)]
    await settle()

    with pytest.raises(ResourceExhausted, match="2 run already, and 1 wait") as refused:
        await limit(call_of(3), room)

    assert refused.value.not_run
    assert refused.value.retry_after is not None
    assert (limit.running, limit.queued, limit.refused) == (2, 1, 1)
    for number in range(3):
        await settle()
        room.end(number)
    assert await asyncio.gather(*tasks) == [0, 1, 2]
    assert (limit.running, limit.queued) == (0, 0)


async def test_who_waits_longest_is_next(call_of):
    """Places go in order of arrival, and newcomers do not push in."""
    limit, room = ConcurrencyLimit(1, queued=10), Room()
    tasks = [start(limit, call_of(number), room) for number in range(5)]

    for number in range(5):
        await settle()
        assert room.order == list(range(number + 1))
        room.end(number)
        if number < 3:
            tasks.append(start(limit, call_of(10 + number), room))
    for number in (10, 11, 12):
        await settle()
        room.end(number)

    await asyncio.gather(*tasks)
    assert room.order == [0, 1, 2, 3, 4, 10, 11, 12]
    assert room.most == 1


async def test_nobody_waits_past_his_deadline(call_of):
    """A call whose time runs out in the queue ends then, and did not run."""
    limit, room = ConcurrencyLimit(1, queued=1), Room()
    first = start(limit, call_of(0), room)
    await settle()

    began = time.monotonic()
    with pytest.raises(DeadlineExceeded) as late:
        await limit(call_of(1, deadline=began + 0.02), room)

    assert late.value.not_run
    assert time.monotonic() - began < 1.0
    assert limit.queued == 0
    room.end(0)
    assert await first == 0


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["start", "end", "cancel", "turn"]), max_size=60), st.integers(1, 3)
)
def test_places_are_neither_lost_nor_multiplied(steps: list[str], running: int):
    """However calls begin, end and are cancelled, the limit holds, and in the end all is free."""
    asyncio.run(_play(steps, running))


async def _play(steps: list[str], running: int) -> None:
    limit, room = ConcurrencyLimit(running, queued=3), Room()
    spec = Spec(service="s", endpoint="m", kind=Kind.UNARY, side=Side.HANDLER)
    tasks: list[asyncio.Task[object]] = []
    for number, step in enumerate(steps):
        if step == "start":
            tasks.append(start(limit, Call(spec, number), room))
        elif step == "end" and room.inside:
            room.end(next(iter(room.inside)))
        elif step == "cancel" and tasks:
            tasks[number * 7 % len(tasks)].cancel()
        elif step == "turn":
            await asyncio.sleep(0)
        assert room.most <= running
    await settle()
    await _end(tasks, room)
    assert (limit.running, limit.queued, room.most <= running) == (0, 0, True)


async def _end(tasks: list[asyncio.Task[object]], room: Room) -> None:
    while room.inside:
        for ends in room.inside.values():
            ends.set()
        await settle()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_place_given_to_one_who_leaves_goes_to_the_next(call_of):
    """A place handed over in the very moment in which its taker is cancelled is not lost."""
    limit, room = ConcurrencyLimit(1, queued=2), Room()
    first, second, third = (start(limit, call_of(number), room) for number in range(3))
    await settle()
    room.end(0)
    await first  # the place belongs to the second now, which has not run since
    second.cancel()

    await settle()

    assert list(room.inside) == [2]
    room.end(2)
    assert await third == 2
    assert second.cancelled()


async def test_place_is_not_given_to_one_who_has_just_left(call_of):
    """Who is cancelled in the moment in which a place becomes free is passed over."""
    limit, room = ConcurrencyLimit(1, queued=2), Room()
    first, second, third = (start(limit, call_of(number), room) for number in range(3))
    await settle()
    room.end(0)
    second.cancel()  # before the first has had its turn to end

    await settle()

    assert await first == 0
    assert list(room.inside) == [2]
    room.end(2)
    assert await third == 2
    assert limit.running == 0


@pytest.mark.parametrize(("running", "queued"), [(0, 0), (-1, 0), (1, -1)])
def test_senseless_settings_are_refused(running: int, queued: int):
    """A wrong number is told at construction, with the range."""
    with pytest.raises(SetupError, match="1 or more"):
        ConcurrencyLimit(running, queued)
