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
from typing import Final, Generic, Literal, TypeVar

from busmicro.call import Call, Handler

S = TypeVar("S")
_OPEN: Final = object()
"""What the innermost point of a chain hands up, past the wrappers, when the stream is open."""


class Session(Generic[S]):
    """An exchange that lasts as long as an ``async with`` block; used once.

    Entering runs the chain down to the opened stream, leaving runs it to its end: with the body's
    error, if it has one.  A wrapper may turn that error into another, but not into none.

    Args:
        compose: Puts the wrappers round a handler.
        call: What the wrappers see.
        opener: Opens the stream; a wrapper that tries again calls it again.
        seen: Tells what failure of the stream the body has met; left out, none. If the body has
            dealt with it, the wrappers get it all the same, and it is not raised once more.

    Raises:
        RuntimeError: A wrapper, or the task that leaves, does what no stream can bear.
    """

    def __init__(
        self,
        compose: Callable[[Handler], Handler],
        call: Call,
        opener: Callable[[Call], AbstractAsyncContextManager[S]],
        seen: Callable[[S], BaseException | None] = lambda _stream: None,
    ) -> None:
        self._compose = compose
        self._call = call
        self._opener = opener
        self._seen = seen
        self._task: asyncio.Task[object] | None = None
        self._chain: Coroutine[object, None, None] | None = None
        self._opened: list[S] = []

    async def __aenter__(self) -> S:
        if self._chain is not None:
            raise RuntimeError("this stream was entered before; open another one")
        self._task = asyncio.current_task()
        self._chain = self._run()
        if not await _Step(self._chain):
            raise RuntimeError("a wrapper ended a stream without call_next; let it raise instead")
        return self._opened[-1]

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> Literal[False]:
        if self._chain is None:
            raise RuntimeError("this stream was never entered; use `async with`")
        if asyncio.current_task() is not self._task:
            raise _closed(self._chain, "leave a stream in the task that entered it")
        known = self._seen(self._opened[-1]) if exc is None else exc
        try:
            again = await _Step(self._chain, exc)
        except BaseException as raised:
            if raised is known:
                return False
            raise
        if again:
            raise _closed(self._chain, "a wrapper called call_next again after the stream opened")
        return False

    async def _run(self) -> None:
        await self._compose(self._hold)(self._call)

    async def _hold(self, call: Call) -> object:
        """Open the stream and keep it open until the body has ended: the innermost handler."""
        async with self._opener(call) as stream:
            if asyncio.current_task() is not self._task:
                raise RuntimeError(
                    "a wrapper awaited call_next in another task; use asyncio.timeout, not wait_for"
                )
            self._opened.append(stream)
            for told in (call, self._call):  # what tries again has made a copy
                told.began, told.stream = True, stream
            await _Pause()
        return None


def _closed(chain: Coroutine[object, None, None], text: str) -> RuntimeError:
    """Close a chain that cannot be run to its end, and make the error that says why."""
    error = RuntimeError(text)
    try:
        chain.close()
    except BaseException as failure:  # wrappers that cannot clean up in this task
        error.__cause__ = failure
    return error


class _Pause:
    def __await__(self) -> Generator[object, None, None]:
        yield _OPEN


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
            except BaseException as exc:  # the chain decides what becomes of it
                throw = exc
