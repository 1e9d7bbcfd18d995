"""How requests begin: many in one task, as long as none of them has to wait.

Most handlers never wait, and a task for each would cost them more than all else that is done for a
small request: 1.1 of 8.5 µs (`benchmarks/rpc.py` on uvloop 0.23).  So a task takes one request
after the other up to where it waits for the first time.  One that does wait keeps the task for
itself from then on, and another task goes on with the rest; so `asyncio.timeout`, `TaskGroup` and
whatever else asks for the current task find one that is theirs until they are done::

    read loop ── add ──► queue ──► task: first step of a, of b, of c ✋ (c waits: the task is c's)
                                   task:                           first step of d, of e, …

Each request has a context of its own: a variable that one handler sets is unknown to the next.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Generator
from contextvars import Context, copy_context
from functools import partial
from typing import Protocol, cast


class Beginning(Protocol):
    """A request that is to begin."""

    task: asyncio.Task[None] | None
    """The task that it runs in, once it has begun."""
    answered: bool
    """Has it ended before it began?"""

    def run(self) -> Coroutine[object, None, None]:
        """Work the request through; raises nothing."""
        ...

    def waits(self) -> None:
        """Hear that its first step is over and it is not; must not raise."""
        ...


class FirstSteps:
    """Begins requests in the order in which they came, in the turn of the loop after that."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._context = copy_context()
        """Where each begins: not that of a caller, who may be in this process."""
        self._waiting: deque[Beginning] = deque()
        self._called = False
        """Is there a task that goes through the queue, or will there be one in the next turn?"""

    def add(self, request: Beginning) -> None:
        """Begin a request soon."""
        self._waiting.append(request)
        if not self._called:
            self._call()

    def _call(self) -> None:
        self._called = True
        self._loop.create_task(self._work(), context=self._context)

    async def _work(self) -> None:
        task, waiting = cast("asyncio.Task[None]", asyncio.current_task()), self._waiting
        rest: _Rest | None = None
        try:
            while waiting and rest is None:
                request = waiting.popleft()
                if request.answered:
                    continue
                request.task = task
                context, steps = copy_context(), request.run()
                try:
                    wanted = context.run(steps.send, None)
                except StopIteration:
                    if task.cancelling():  # meant for that request: the next one gets a new task
                        break
                else:
                    request.waits()
                    rest = _Rest(context, steps, wanted)
        finally:
            self._called = False
            if waiting:
                self._call()
        if rest is not None:
            await rest


class _Rest:
    """What is left of a request after its first step, in the request's own context."""

    def __init__(
        self, context: Context, steps: Coroutine[object, None, None], wanted: object
    ) -> None:
        self._context, self._steps, self._wanted = context, steps, wanted

    def __await__(self) -> Generator[object, None, None]:
        run, steps, wanted = self._context.run, self._steps, self._wanted
        while True:
            try:
                yield wanted
            except BaseException as thrown:  # the request decides what becomes of it
                step = partial(steps.throw, thrown)
            else:
                step = partial(steps.send, None)
            try:
                wanted = run(step)
            except StopIteration:
                return
