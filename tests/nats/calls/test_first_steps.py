"""Handlers begin many in one task; none of them notices."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import pytest

from busmicro import Client, DeadlineExceeded, Service
from busmicro.errors import Cancelled

MANY = 100
tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


async def ask_many(client: Client, endpoint: str, count: int = MANY) -> list[object]:
    """Call an endpoint so often at once that many requests arrive in one read."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.call("many", endpoint, n)) for n in range(count)]
    return [task.result() for task in tasks]


@pytest.mark.parametrize("waits", [False, True])
async def test_context_variables_are_the_requests_own(busmicro_client, busmicro_start, waits):
    """What a handler sets in a context variable and never resets is unknown to other requests."""
    service = Service("many")

    @service.rpc
    async def work(number: int) -> list[str]:
        before = tenant.get()
        tenant.set(f"t{number}")
        if waits:
            await asyncio.sleep(0.01)
        return [before, tenant.get()]

    await busmicro_start(service)

    assert await ask_many(busmicro_client, "work") == [["nobody", f"t{n}"] for n in range(MANY)]


async def test_a_handler_that_waits_has_its_task_for_itself(busmicro_client, busmicro_start):
    """Handlers that run at the same time see tasks of their own, each the same all along."""
    service = Service("many")
    running: dict[int, asyncio.Task[object] | None] = {}
    same: list[bool] = []
    all_there = asyncio.Event()

    @service.rpc
    async def work(number: int) -> None:
        running[number] = asyncio.current_task()
        if len(running) == MANY:
            all_there.set()
        await all_there.wait()
        same.append(asyncio.current_task() is running[number])

    await busmicro_start(service)
    await ask_many(busmicro_client, "work")

    assert len(set(running.values())) == MANY
    assert None not in running.values()
    assert same == [True] * MANY


async def test_those_that_do_not_wait_overtake_those_that_do(busmicro_client, busmicro_start):
    """A handler that waits holds nobody up, wherever it stands among those that do not."""
    service = Service("many")
    release = asyncio.Event()
    order: list[int] = []

    @service.rpc
    async def work(number: int) -> None:
        if number % 3 == 0:
            await release.wait()
        order.append(number)
        if len(order) == 20:
            release.set()

    await busmicro_start(service)
    await ask_many(busmicro_client, "work", 30)

    assert order[:20] == [n for n in range(30) if n % 3]
    assert sorted(order) == list(range(30))


async def test_timeouts_and_groups_work_from_the_first_line(busmicro_client, busmicro_start):
    """`asyncio.timeout` and `TaskGroup` in a handler end that handler's own waiting, no other's."""
    service = Service("many")

    @service.rpc
    async def work(number: int) -> str:
        if number % 2:
            return "at once"
        try:
            async with asyncio.timeout(0.01), asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(60))
        except TimeoutError:
            await asyncio.sleep(0.02)  # a cancellation that came too late would strike here
            return "timed out"
        return "never"

    await busmicro_start(service)

    assert await ask_many(busmicro_client, "work") == ["timed out", "at once"] * (MANY // 2)


@pytest.mark.parametrize("waits", [False, True])
async def test_a_handler_that_cancels_its_own_task_cancels_no_other(
    busmicro_client, busmicro_start, waits
):
    """Of many requests that came together only the one is cancelled whose handler says so."""
    service = Service("many")

    @service.rpc
    async def work(number: int) -> int:
        if number % 10 == 0:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            if not waits:
                return number
        await asyncio.sleep(0.01)
        return number

    await busmicro_start(service)
    calls = [busmicro_client.call("many", "work", n, returns=int) for n in range(MANY)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)

    others = [outcome for n, outcome in enumerate(outcomes) if n % 10]
    assert others == [n for n in range(MANY) if n % 10]
    cancelled = outcomes[::10]
    if waits:
        assert {type(outcome) for outcome in cancelled} == {Cancelled}
    else:  # it was done before the cancellation could reach it
        assert cancelled == list(range(0, MANY, 10))


async def test_a_deadline_ends_a_handler_at_its_first_wait_and_later(
    busmicro_client, busmicro_start, until
):
    """A handler is cancelled when its time is up, whether or not others ended in its task."""
    service = Service("many")
    ended: list[int] = []

    @service.rpc
    async def work(number: int) -> int:
        if number % 2:
            try:
                await asyncio.sleep(0.02)
                await asyncio.sleep(60)
            finally:
                ended.append(number)
        return number

    await busmicro_start(service)
    quick = busmicro_client.with_options(timeout=0.2)
    calls = [quick.call("many", "work", n, returns=int) for n in range(20)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert outcomes[::2] == list(range(0, 20, 2))
    assert {type(outcome) for outcome in outcomes[1::2]} == {DeadlineExceeded}
    await until(lambda: sorted(ended) == list(range(1, 20, 2)))


async def test_stopping_amid_a_burst_answers_every_request(busmicro_client, busmicro_start):
    """A handler stops its own service: requests that came with it are answered or told so."""
    service = Service("many")
    stopping: list[asyncio.Task[None]] = []

    @service.rpc
    async def work(number: int) -> int:
        if number == 3:
            stopping.append(asyncio.get_running_loop().create_task(service.stop()))
        return number

    await busmicro_start(service)
    async with asyncio.timeout(10):
        calls = [busmicro_client.call("many", "work", n, returns=int) for n in range(50)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.gather(*stopping)

    assert outcomes == list(range(50))
