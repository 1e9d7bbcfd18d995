"""Owned tasks: whoever starts one keeps it, hears of its failure and ends it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine

log = logging.getLogger("busmicro.tasks")


class Tasks:
    """The tasks of one owner; a task that fails is logged by name, never lost."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[object, object, None], *, name: str) -> asyncio.Task[None]:
        """Start `work` and own it until it is done.

        Args:
            work: What to run. Its failure is logged under `name`.
            name: For logs and debuggers.

        Returns:
            The task, for whoever wants to wait for it or cancel it alone.
        """
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.error("task %s failed", task.get_name(), exc_info=failure)

    async def wait(self, timeout: float) -> int:
        """Wait for the tasks there are now, at most so many seconds.

        Returns:
            How many still run.
        """
        if not self._tasks:
            return 0
        _done, pending = await asyncio.wait(set(self._tasks), timeout=timeout)
        return len(pending)

    def end_all(self) -> None:
        """Cancel every task, without waiting for the end of it."""
        for task in self._tasks:
            task.cancel()

    async def cancel(self) -> None:
        """Cancel every task and wait until each has ended; the caller's own task is left out."""
        mine = asyncio.current_task()
        while doomed := [task for task in self._tasks if task is not mine]:
            for task in doomed:
                task.cancel()
            await asyncio.wait(doomed)
            await asyncio.sleep(0)  # lets `_ended` run, or this loop would not see the end
