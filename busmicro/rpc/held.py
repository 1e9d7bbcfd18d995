"""Streams behind the methods of a stub: an iterator, or a call that takes one.

Wrappers go around the whole life of a stream and must end in the task that they began in.  An
iterator that is dropped half-way is closed from anywhere, so its stream is held open by a task of
its own (`HeldStream`), which ends when the iterator does.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Self, TypeAlias

from busmicro.errors import CallError, Cancelled, Disconnected, SetupError
from busmicro.rpc.callstream import CallStream
from busmicro.session import Session
from busmicro.tasks import Tasks

Source: TypeAlias = AsyncIterable[object] | Iterable[object]
"""Where the messages come from that a caller sends."""
AnyStream: TypeAlias = CallStream[object, object]


class Pump:
    """Sends what an iterator gives, in a task of its own, until it ends or the stream does."""

    def __init__(self, source: Source, stream: AnyStream) -> None:
        self._source = source
        self._stream = stream
        self._failure: BaseException | None = None
        self._task = asyncio.get_running_loop().create_task(self._run(), name="busmicro pump")

    async def _run(self) -> None:
        try:
            async with contextlib.aclosing(_iterate(self._source)) as messages:
                async for message in messages:
                    await self._stream.send(message)
            await self._stream.close_send()
        except Exception as failure:
            if not self._stream.is_over:  # else whoever reads hears how it ended
                self._failure = failure
                self._stream.cancel(Cancelled("the caller's messages ended in an error"))

    @property
    def failure(self) -> BaseException | None:
        """What the iterator has raised, or what it gave that could not be sent."""
        return self._failure

    async def stop(self) -> None:
        """Send no more, and close the iterator if it can be closed."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if inspect.isgenerator(self._source):
            self._source.close()
        elif (aclose := getattr(self._source, "aclose", None)) is not None:
            await aclose()


async def _iterate(source: Source) -> AsyncGenerator[object, None]:
    if isinstance(source, AsyncIterable):
        async for message in source:
            yield message
        return
    if not isinstance(source, Iterable):
        raise SetupError(f"a {type(source).__name__} is no iterator of messages")
    for message in source:
        yield message


async def call_with_many(session: Session[AnyStream], source: Source) -> object:
    """Send what an iterator gives, and return the one reply.

    Raises:
        CallError: The stream did not end well.
        Exception: What the iterator has raised.
    """
    async with session as stream:
        pump = Pump(source, stream)
        try:
            return await stream.only_reply()
        except CallError as failure:
            if pump.failure is not None:
                raise pump.failure from failure
            raise
        finally:
            await pump.stop()


class HeldStream(AsyncIterator[object]):
    """What the service gives, as an iterator; opened on the first step, closed on the last.

    Leaving it half-way, with `break` or `aclose`, cancels what the service does.
    """

    def __init__(
        self, tasks: Tasks, session: Callable[[], Session[AnyStream]], source: Source | None
    ) -> None:
        """Make one that opens nothing yet; `source` gives what is sent, if anything is."""
        self._tasks = tasks
        self._session = session
        self._source = source
        self._held: _Held | None = None
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> object:
        """Return the next message.

        Raises:
            CallError: The stream did not open, or did not end well.
            StopAsyncIteration: It ended well, or was closed.
        """
        if self._held is None:
            if self._closed:
                raise StopAsyncIteration
            self._held = _Held(self._session(), self._source, self._tasks)
        return await self._held.next()

    async def aclose(self) -> None:
        """Close the stream; the service cancels what it does.

        Raises:
            CallError: It had ended in a failure that nobody has seen.
        """
        self._closed = True
        if self._held is not None:
            await self._held.close()

    def __del__(self) -> None:
        if self._held is not None:
            self._held.drop()


class _Held:
    """A stream that a task holds open; apart from its iterator, whose end it must not outlive."""

    def __init__(self, session: Session[AnyStream], source: Source | None, tasks: Tasks) -> None:
        self._session = session
        self._source = source
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[AnyStream] = self._loop.create_future()
        self._leave: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._task = tasks.spawn(self._hold(), name="busmicro stream")
        self._task.add_done_callback(self._on_cancelled)

    async def _hold(self) -> None:
        """Keep the stream open until somebody leaves it."""
        try:
            await self._hold_open()
        except Exception as failure:
            self._tell(failure)
        else:
            self._tell(None)

    def _on_cancelled(self, task: asyncio.Task[None]) -> None:
        """Tell whoever waits that the task was cancelled; it may not even have begun."""
        if task.cancelled():
            text = "the connection to NATS was closed while the stream was open"
            self._tell(None if self._is_left else Disconnected(text, not_run=False))

    def _tell(self, failure: Exception | None) -> None:
        if not self._opened.done():
            self._opened.set_exception(failure or StopAsyncIteration())
            self._opened.exception()  # nobody may be left to look
        if failure is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(failure)
            self._ended.exception()

    async def _hold_open(self) -> None:
        async with self._session as stream, contextlib.AsyncExitStack() as stack:
            self._opened.set_result(stream)
            if self._source is not None:
                pump = Pump(self._source, stream)
                stack.push_async_callback(pump.stop)
                try:
                    await self._leave
                except CallError as failure:
                    if pump.failure is not None:
                        raise pump.failure from failure
                    raise
                if pump.failure is not None:  # that has ended the stream, and nobody has heard it
                    raise pump.failure
            else:
                await self._leave

    async def next(self) -> object:
        """Return the next message, or end."""
        if self._ended.done():
            raise StopAsyncIteration
        try:
            stream = await asyncio.shield(self._opened)
            return await anext(stream)
        except StopAsyncIteration:
            await self.close()
            raise
        except asyncio.CancelledError:
            self._left(None)
            raise
        except CallError as failure:
            self._left(failure)
            await asyncio.shield(self._ended)
            if self._is_left:
                raise StopAsyncIteration from failure
            raise

    async def close(self) -> None:
        """Leave the stream and wait for the end of its wrappers."""
        if not self._ended.done():
            self._left(None)
            await asyncio.shield(self._ended)

    def drop(self) -> None:
        """Leave the stream, from whatever thread collects what nobody needs."""
        if not self._leave.done() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._left, None)

    @property
    def _is_left(self) -> bool:
        """Has somebody left it before its end?"""
        leave = self._leave
        return leave.done() and not leave.cancelled() and leave.exception() is None

    def _left(self, failure: CallError | None) -> None:
        if self._leave.done():
            return
        if failure is None:
            self._leave.set_result(None)
            if not self._opened.done():
                self._task.cancel()  # it may wait for long until it is open
        else:
            self._leave.set_exception(failure)
            self._leave.exception()  # nobody waits for it if the stream did not open
