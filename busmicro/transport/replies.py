"""Requests: one inbox subscription for all of them, one slot for each.

The slot's future is resolved in the read loop, in the same turn that saw the reply; nothing waits
out its time when the connection drops, when nobody listens or when the subject is forbidden.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

from busmicro.errors import (
    BusmicroError,
    DeadlineExceeded,
    Disconnected,
    NoResponders,
    PermissionDenied,
)
from busmicro.headers import NO_RESPONDERS
from busmicro.timers import Timers
from busmicro.transport.base import Transport
from busmicro.transport.nats import require_allowed

log = logging.getLogger("busmicro.transport")

Reply: TypeAlias = tuple[bytes, bytes]
"""Header block and payload."""
OnReply: TypeAlias = Callable[[Reply], None]


class Slot:
    """One reply that is awaited."""

    __slots__ = ("future", "is_set", "subject", "token")

    def __init__(self, subject: bytes, token: bytes, future: asyncio.Future[Reply]) -> None:
        self.subject = subject
        self.token = token
        self.future = future
        self.is_set = False

    def fail(self, error: BusmicroError) -> None:
        """Raise an error where the reply is awaited."""
        if not self.future.done():
            self.future.set_exception(error)

    def expire(self) -> None:
        """Hear that no reply came in time."""
        self.fail(DeadlineExceeded(f"no reply from {self.subject.decode()} in time"))


class Replies:
    """The replies that this process waits for."""

    def __init__(
        self, transport: Transport, timers: Timers, *, inbox_prefix: str = "_INBOX"
    ) -> None:
        self._transport = transport
        self._timers = timers
        self.inbox = f"{inbox_prefix}.{secrets.token_hex(8)}"
        """Where they arrive, plus a dot and the slot's token."""
        self._prefix = self.inbox.encode() + b"."
        self._token_at = len(self._prefix)
        self._tokens = itertools.count()
        self._slots: dict[bytes, Slot] = {}
        self._many: dict[bytes, OnReply] = {}
        self._new_future: Callable[[], asyncio.Future[Reply]] = _new_future

    def __len__(self) -> int:
        return len(self._slots) + len(self._many)

    async def start(self) -> None:
        """Subscribe to the inbox, and make sure of it.

        Raises:
            PermissionDenied: The inbox may not be subscribed to; the text says which setting.
        """
        self._new_future = asyncio.get_running_loop().create_future  # 0.1 µs of a call less
        self._transport.listen(self)
        subscription = self._transport.subscribe(f"{self.inbox}.*", self._on_message)
        await self._transport.barrier()
        require_allowed(subscription)

    async def request(
        self,
        subject: bytes,
        payload: bytes,
        header: bytes = b"",
        *,
        deadline: float,
        abandon: bytes = b"",
    ) -> Reply:
        """Send a message and wait for the one reply to it.

        Args:
            subject: Where to.
            payload: The message.
            header: A header block, or empty.
            deadline: When to give up, seconds of the loop's clock.
            abandon: Where to say that nobody waits any more, if it comes to that.

        Returns:
            Header block and payload of the reply.

        Raises:
            NoResponders: Nobody listens there. Nothing ran.
            Disconnected: The connection is down (`not_run`), or dropped while waiting.
            PermissionDenied: This client may not publish there. Nothing ran.
            DeadlineExceeded: No reply in time. It may or may not have run.
            PayloadTooLarge: Refused before the wire.

        Cancelled: as DeadlineExceeded.
        """
        slot = self.send(subject, payload, header, deadline)
        try:
            return await slot.future
        except (DeadlineExceeded, asyncio.CancelledError):
            self.abandon(slot, abandon)
            raise
        finally:
            self.let_go(slot)

    def send(self, subject: bytes, payload: bytes, header: bytes, deadline: float) -> Slot:
        """Send a message and return the slot of its reply: the first half of `request`.

        Whoever awaits its future has to call `let_go` afterwards, however it ends.  A coroutine
        between a caller and its future costs 0.3 µs, so calls do the halves themselves.
        """
        transport = self._transport
        if not transport.connected:
            raise Disconnected("not connected to NATS", not_run=True)
        token = b"%x" % next(self._tokens)
        transport.publish(subject, payload, self._prefix + token, header)
        slot = self._slots[token] = Slot(subject, token, self._new_future())
        self._timers.set(slot, deadline)
        return slot

    def abandon(self, slot: Slot, subject: bytes) -> None:
        """Tell whoever runs this request, on a subject, that nobody waits for it; never fails."""
        if subject and self._transport.connected:
            try:
                self._transport.publish(subject, self._prefix + slot.token)
            except BusmicroError as refused:  # the handler ends with its deadline
                log.debug("nobody could be told that a call was given up: %s", refused)

    def let_go(self, slot: Slot) -> None:
        """Forget a slot."""
        self._timers.drop(slot)
        del slot.future
        self._slots.pop(slot.token, None)

    async def ask(
        self, subject: bytes, payload: bytes, header: bytes = b"", *, timeout: float
    ) -> Reply:
        """Send a message and wait so many seconds for the one reply to it; see `request`."""
        deadline = asyncio.get_running_loop().time() + timeout
        return await self.request(subject, payload, header, deadline=deadline)

    @asynccontextmanager
    async def many(self, on_reply: OnReply) -> AsyncIterator[bytes]:
        """Open a slot for any number of replies.

        Args:
            on_reply: Called with each, in the read loop: must be short, must not block.

        Yields:
            The reply subject to publish with.
        """
        token = b"m%x" % next(self._tokens)
        self._many[token] = on_reply
        try:
            yield self._prefix + token
        finally:
            del self._many[token]

    def _on_message(self, subject: bytes, _reply: bytes, header: bytes, payload: bytes) -> None:
        token = subject[self._token_at :]
        slot = self._slots.pop(token, None)
        if slot is None:
            if (on_reply := self._many.get(token)) is not None:
                on_reply((header, payload))
            return  # else a late reply, to somebody who has gone
        future = slot.future
        if future.done():
            return
        if not payload and header.startswith(NO_RESPONDERS):
            future.set_exception(NoResponders(slot.subject.decode()))
        else:
            future.set_result((header, payload))

    # --- Listener -------------------------------------------------------------------------------

    def on_connected(self) -> None:
        """Nothing to do: the transport has restored the inbox."""

    def on_disconnected(self) -> None:
        """Fail whatever is under way: its replies will not come."""
        slots, self._slots = self._slots, {}
        for slot in slots.values():
            slot.fail(Disconnected("the connection to NATS dropped during the call", not_run=False))

    def on_publish_denied(self, subject: str) -> None:
        """Fail the requests that the server has just refused."""
        for slot in tuple(self._slots.values()):
            asked = slot.subject.decode()
            if asked.casefold() == subject.casefold():
                slot.fail(
                    PermissionDenied(f"NATS does not permit publishing to {asked}", not_run=True)
                )


def _new_future() -> asyncio.Future[Reply]:
    return asyncio.get_running_loop().create_future()


async def collect(
    replies: Replies,
    transport: Transport,
    subject: str,
    payload: bytes = b"",
    header: bytes = b"",
    *,
    timeout: float,
    stall: float | None = None,
    most: int | None = None,
) -> list[Reply]:
    """Ask everybody who listens, and gather what they answer.

    Args:
        replies: Where the answers arrive.
        transport: The connection.
        subject: Where to ask.
        payload: What to ask.
        header: A header block, or empty.
        timeout: Seconds in all.
        stall: Seconds without a further answer after which everybody is taken to have answered.
        most: How many answers are enough.

    Returns:
        The answers in the order they came; none if nobody listens.

    Raises:
        Disconnected: The connection is down.

    Source: NATS ADR-47.
    """
    if not transport.connected:
        raise Disconnected("not connected to NATS", not_run=True)
    arrived: asyncio.Queue[Reply] = asyncio.Queue()
    found: list[Reply] = []
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    async with replies.many(arrived.put_nowait) as inbox:
        transport.publish(subject.encode(), payload, inbox, header)
        while most is None or len(found) < most:
            quiet = end if stall is None or not found else min(end, loop.time() + stall)
            try:
                async with asyncio.timeout_at(quiet):
                    reply = await arrived.get()
            except TimeoutError:
                break
            if not reply[1] and reply[0].startswith(NO_RESPONDERS):
                break
            found.append(reply)
    return found
