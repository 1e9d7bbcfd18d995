"""Every task has an owner who hears of its failure and ends it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from busmicro.tasks import Tasks


async def test_task_that_ends_is_forgotten():
    """Work that is done takes no memory."""
    tasks = Tasks()

    await tasks.spawn(asyncio.sleep(0), name="short")
    await asyncio.sleep(0)

    assert len(tasks) == 0


async def test_task_that_fails_is_logged_by_name(caplog: pytest.LogCaptureFixture):
    """A background failure is seen in the log with its name and its traceback."""

    async def fail() -> None:
        raise LookupError("nothing there")

    tasks = Tasks()

    with caplog.at_level(logging.ERROR, "busmicro.tasks"):
        await asyncio.wait([tasks.spawn(fail(), name="the one that fails")])
        await asyncio.sleep(0)

    assert "the one that fails" in caplog.text
    assert "nothing there" in caplog.text
    assert [record.name for record in caplog.records] == ["busmicro.tasks"]


async def test_waiting_tells_how_many_still_run():
    """Whoever stops a service learns how many requests did not finish."""
    tasks, gate = Tasks(), asyncio.Event()

    async def wait() -> None:
        await gate.wait()

    tasks.spawn(wait(), name="a")
    tasks.spawn(asyncio.sleep(0), name="b")

    assert await tasks.wait(0.01) == 1
    gate.set()
    assert await tasks.wait(5) == 0
    assert await tasks.wait(5) == 0


async def test_cancel_waits_for_what_tasks_have_to_clean_up():
    """After cancel nothing runs any more, and what a task does on its way out is done."""
    tasks, cleaned = Tasks(), []

    async def clean_up() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(1)

    for number in range(3):
        tasks.spawn(clean_up(), name=str(number))
    await asyncio.sleep(0)

    async with asyncio.timeout(5):
        await tasks.cancel()

    assert len(tasks) == 0
    assert cleaned == [1, 1, 1]


async def test_cancel_ends_tasks_that_are_started_meanwhile():
    """A task that starts another one while it is cancelled leaves none behind."""
    tasks = Tasks()

    async def wait() -> None:
        await asyncio.Event().wait()

    async def spawn_another() -> None:
        try:
            await wait()
        finally:
            tasks.spawn(wait(), name="late")

    tasks.spawn(spawn_another(), name="first")
    await asyncio.sleep(0)

    async with asyncio.timeout(5):
        await tasks.cancel()

    assert len(tasks) == 0


async def test_task_that_cancels_its_own_group_goes_on():
    """A handler may stop its own service without ending itself half-way."""
    tasks, done = Tasks(), asyncio.Event()

    async def stop() -> None:
        await tasks.cancel()
        done.set()

    tasks.spawn(asyncio.Event().wait(), name="other")
    task = tasks.spawn(stop(), name="stopper")

    async with asyncio.timeout(5):
        await task

    assert done.is_set()
