"""Run a wrapper chain around the body of an ``async with`` block, in the caller's own task.

Python has no way to suspend in the middle of an await chain and come back later, except to step
the coroutine by hand.  ``contextlib.asynccontextmanager`` does that for generators; this does it
for a coroutine.  So a wrapper's ``try``/``finally``, ``asyncio.timeout`` and context variables
hold for the whole block, with no task of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Generic, TypeVar

from busmicro.call import Call, Handler

S = TypeVar("S")
_OPEN = object()


class _Pause:
    def __await__(self) -> Generator[object, None, None]:
        yield _OPEN


class Session(Generic[S]):
    """Drive the chain up to its innermost point, hand the stream out, finish the chain on exit."""

    def __init__(
        self,
        compose: Callable[[Handler], Handler],
        call: Call,
        opener: Callable[[Call], AbstractAsyncContextManager[S]],
    ) -> None:
        async def innermost(call: Call) -> object:
            async with opener(call) as stream:
                self._stream.append(stream)
                await _Pause()
            return None

        async def run() -> None:
            await compose(innermost)(call)

        self._stream: list[S] = []
        self._coro: Coroutine[object, None, None] = run()

    async def __aenter__(self) -> S:
        self._task = asyncio.current_task()
        if not await _Step(self._coro):
            raise RuntimeError("a wrapper answered a stream without calling call_next")
        return self._stream[-1]

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        if asyncio.current_task() is not self._task:
            self._coro.close()
            raise RuntimeError("a stream must be left in the task that entered it")
        try:
            again = await _Step(self._coro, exc)
        except BaseException as raised:
            if raised is exc:
                return False
            raise
        if again:
            self._coro.close()
            raise RuntimeError("a wrapper called call_next again after the stream had opened")
        return False


class _Step:
    """Step a coroutine, handing its futures to the event loop, until it pauses or returns."""

    def __init__(
        self, coro: Coroutine[object, None, None], throw: BaseException | None = None
    ) -> None:
        self._coro, self._throw = coro, throw

    def __await__(self) -> Generator[object, None, bool]:
        throw = self._throw
        while True:
            try:
                wanted = self._coro.send(None) if throw is None else self._coro.throw(throw)
            except StopIteration:
                return False
            if wanted is _OPEN:
                return True
            throw = None
            try:
                yield wanted
            except BaseException as exc:
                throw = exc
