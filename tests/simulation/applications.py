"""What runs at both ends of the simulated streams, and what each side has seen."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Literal

from busmicro import Call, CallError, Client, NotFound
from busmicro.rpc.callstream import CallStream
from tests.simulation.plans import Plan

PLAN = "Plan"
"""The header that says which plan a stream follows."""
_REQUEST = b"go"
Bytes = CallStream[bytes, bytes]


class OwnFailureError(Exception):
    """What an application raises by itself."""


@dataclass(slots=True)
class Seen:
    """What one side of a stream has done and seen."""

    sent: int = 0
    """Messages handed over to be sent."""
    received: int = 0
    """Messages taken, each the one that was due."""
    drained: bool = False
    """Was it told that no more messages come?"""
    closed: bool = False
    """Has it said that it sends no more?"""
    left: bool = False
    """Has it gone before the end?"""
    send_failure: CallError | None = None
    began_at: float | None = None
    ended_at: float | None = None
    outcome: str | BaseException | None = None
    """How it ended: a word, or what was raised."""


@dataclass(slots=True)
class Record:
    """What became of a plan."""

    plan: Plan
    caller: Seen = field(default_factory=Seen)
    node: Seen = field(default_factory=Seen)
    entered: int = 0
    """How often the handler was entered."""
    faults: list[str] = field(default_factory=list)
    """What must not happen and did."""

    def take(self, seen: Seen, way: Literal["up", "down"], message: bytes) -> None:
        """Note a message that arrived; it must be the next one."""
        if message != self.plan.message(way, seen.received):
            self.faults.append(f"{way} {seen.received} was due, {message[:40]!r} came")
        seen.received += 1


def now() -> float:
    return asyncio.get_running_loop().time()


async def pause(seconds: float) -> None:
    if seconds:
        await asyncio.sleep(seconds)


# --- at the node ----------------------------------------------------------------------------------


class Work:
    """The service: each handler follows its plan and writes down what it saw."""

    def __init__(self, records: list[Record]) -> None:
        self._records = records

    async def ask(self, request: bytes, call: Call) -> bytes:
        """Take one, give one."""
        with self._following(call) as record:
            self._check(record, request)
            self._end(record)
            return await self._next(record, 0)

    async def count(self, request: bytes, call: Call) -> AsyncIterator[bytes]:
        """Give many."""
        with self._following(call) as record:
            self._check(record, request)
            for at in range(len(record.plan.down.sizes)):
                yield await self._next(record, at)
            self._end(record)

    async def total(self, items: AsyncIterator[bytes], call: Call) -> bytes:
        """Take many."""
        with self._following(call) as record:
            await self._take(record, items)
            self._end(record)
            return await self._next(record, 0)

    async def talk(self, items: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        """Take many, give many, in the manner of the plan."""
        with self._following(call) as record:
            plan = record.plan
            if plan.manner == "echo":
                async for _item in self._taken(record, items):
                    yield await self._next(record, record.node.sent)
            else:
                if plan.manner == "after":
                    await self._take(record, items)
                beside = plan.manner == "beside"
                async with _beside(self._take(record, items) if beside else None):
                    for at in range(len(plan.down.sizes)):
                        yield await self._next(record, at)
                if plan.manner == "before":
                    await self._take(record, items)
            self._end(record)

    @contextlib.contextmanager
    def _following(self, call: Call) -> Iterator[Record]:
        record = self._records[int(call.headers[PLAN])]
        record.entered += 1
        record.node.began_at = now()
        try:
            yield record
        except BaseException as failure:
            record.node.outcome = failure
            raise
        else:
            record.node.outcome = "returned"
        finally:
            record.node.ended_at = now()

    def _check(self, record: Record, request: bytes) -> None:
        if request != _REQUEST:
            record.faults.append(f"the request was {request!r}")

    async def _next(self, record: Record, at: int) -> bytes:
        await pause(record.plan.down.pause(at))
        record.node.sent += 1
        return record.plan.message("down", at)

    async def _taken(self, record: Record, items: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        plan, seen = record.plan, record.node
        while seen.received != plan.node_takes:
            try:
                item = await anext(items)
            except StopAsyncIteration:
                seen.drained = True
                return
            record.take(seen, "up", item)
            yield item
            await pause(plan.node_pauses.pause(seen.received - 1))

    async def _take(self, record: Record, items: AsyncIterator[bytes]) -> None:
        async for _item in self._taken(record, items):
            pass

    def _end(self, record: Record) -> None:
        if record.plan.node_fails == "refusal":
            raise NotFound(f"plan {record.plan.number} refuses")
        if record.plan.node_fails == "crash":
            raise OwnFailureError("as planned")


@contextlib.asynccontextmanager
async def _beside(work: object) -> AsyncIterator[None]:
    """Do something beside; it is cancelled at the end."""
    if work is None:
        yield
        return
    task = asyncio.get_running_loop().create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # how a stream ended is heard by whoever sends, too


# --- at the caller --------------------------------------------------------------------------------


class Caller:
    """Follows a plan at the other end."""

    def __init__(self, client: Client, record: Record) -> None:
        self._record = record
        self._plan = record.plan
        self._seen = record.caller
        self._client = client.with_options(headers={PLAN: str(record.plan.number)})

    async def run(self) -> None:
        """Do it all, and write down how it ended."""
        plan, seen = self._plan, self._seen
        await pause(plan.starts)
        seen.began_at = now()
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        cancelling = None
        if plan.cancel_after is not None:
            cancelling = loop.call_later(plan.cancel_after, task.cancel)
        try:
            seen.outcome = await self._follow()
        except asyncio.CancelledError:
            task.uncancel()
            seen.outcome = "cancelled"
        except (CallError, OwnFailureError) as failure:
            seen.outcome = failure
        finally:
            seen.ended_at = now()
            if cancelling is not None:
                cancelling.cancel()

    async def _follow(self) -> str:
        if self._plan.shape == "ask":
            return await self._ask()
        return await (self._by_stub() if self._plan.stub else self._by_hand())

    async def _ask(self) -> str:
        """Make a plain call, which shares the connection with the streams."""
        reply = await self._client.call(
            "work", "Work.ask", _REQUEST, returns=bytes, timeout=self._plan.timeout
        )
        self._record.take(self._seen, "down", reply)
        return "well"

    # --- with a stub ----------------------------------------------------------------------------

    async def _by_stub(self) -> str:
        work = self._client.stub(Work, service="work")
        if self._plan.shape == "total":
            self._record.take(self._seen, "down", await work.total(self._source()))
            return "well"
        replies = work.count(_REQUEST) if self._plan.shape == "count" else work.talk(self._source())
        word = ""
        try:
            word = await self._receive(replies)
        finally:
            if not (self._plan.drops and word == "left"):
                await replies.aclose()
        return word

    async def _source(self) -> AsyncIterator[bytes]:
        async for message in self._messages():
            yield message
        self._seen.closed = True

    async def _messages(self) -> AsyncIterator[bytes]:
        for at in range(len(self._plan.up.sizes)):
            await pause(self._plan.up.pause(at))
            self._seen.sent += 1
            yield self._plan.message("up", at)
        if self._plan.stub and self._plan.caller_fails == "source":
            raise OwnFailureError("the source failed, as planned")

    # --- by hand --------------------------------------------------------------------------------

    async def _by_hand(self) -> str:
        plan = self._plan
        given = {"sends": bytes} if plan.shape != "count" else {"message": _REQUEST}
        async with self._client.stream(
            "work",
            f"Work.{plan.shape}",
            returns=bytes,
            timeout=plan.timeout,
            idle_timeout=plan.idle,
            **given,
        ) as stream:
            sending = None if plan.shape == "count" else self._send(stream)
            if sending is not None and plan.stubborn:
                await sending
                sending = None
            async with _beside(sending):
                return await self._receive(stream)

    async def _send(self, stream: Bytes) -> None:
        try:
            async for message in self._messages():
                await stream.send(message)
        except CallError as failure:
            self._seen.send_failure = failure
        else:
            if self._plan.closes:
                self._seen.closed = True
                await stream.close_send()

    async def _receive(self, replies: AsyncIterator[bytes]) -> str:
        try:
            return await self._receive_all(replies)
        except asyncio.CancelledError:
            self._seen.left = True
            raise

    async def _receive_all(self, replies: AsyncIterator[bytes]) -> str:
        plan, seen = self._plan, self._seen
        while seen.received != plan.caller_takes:
            try:
                message = await anext(replies)
            except StopAsyncIteration:
                await self._ends_again(replies, None)
                return "well"
            except CallError as failure:
                await self._ends_again(replies, failure)
                raise
            self._record.take(seen, "down", message)
            await pause(plan.caller_pauses.pause(seen.received - 1))
        seen.left = True
        if plan.caller_fails == "block":
            raise OwnFailureError("the block failed, as planned")
        return "left"

    async def _ends_again(self, replies: AsyncIterator[bytes], before: CallError | None) -> None:
        """Whoever asks again hears the same."""
        told = "stop" if before is None or self._plan.stub else str(before)
        try:
            await anext(replies)
        except StopAsyncIteration:
            again = "stop"
        except CallError as failure:
            again = str(failure)
        else:
            again = "another message"
        if again != told:
            self._record.faults.append(f"ended with {told!r}, and then with {again!r}")
