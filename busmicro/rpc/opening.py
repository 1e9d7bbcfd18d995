"""The caller's way to a stream: ask for it, wait until it is accepted, leave it in order.

A stream's way: `Client.stream` → `Session` (the composed wrappers, held open) → `StreamRoute.open`:
take an address, publish the request → ACCEPT, or the error that refuses it → `CallStream`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from busmicro.bus import Bus
from busmicro.call import Call, Spec, through
from busmicro.codecs import Coder
from busmicro.errors import (
    CallError,
    Cancelled,
    CodecError,
    DeadlineExceeded,
    Disconnected,
    Internal,
    InvalidArgument,
    NoResponders,
    Unimplemented,
)
from busmicro.headers import NO_RESPONDERS, Headers
from busmicro.rpc.callstream import CallStream
from busmicro.rpc.frames import ACCEPT, CANCEL, read_standing
from busmicro.rpc.limits import Limits
from busmicro.rpc.link import Link
from busmicro.rpc.remote import ReplyDecoder, not_expected
from busmicro.rpc.route import CallOptions, Route
from busmicro.rpc.wire import ERROR_MARK, decode_error

_LEFT: Final = "the caller has left the stream"


class _Deadline:
    """The moment by which a stream must be over."""

    __slots__ = ("_link", "is_set")

    def __init__(self, link: Link) -> None:
        self._link = link
        self.is_set = False

    def expire(self) -> None:
        self._link.end.fail(DeadlineExceeded("the stream did not end in time"))


class _Opening:
    """The answer to a request for a stream: what arrives before the stream is open."""

    def __init__(self, link: Link, subject: bytes, service: str, bus: Bus) -> None:
        self._link = link
        self._subject = subject
        self._service = service
        self._allows = bus.replies_allowed.allows_below
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        """The header block of the ACCEPT."""
        link.on_frame = self._on_frame
        link.asked = subject
        link.on_over = self._on_over

    def _on_frame(self, name: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        if self.answer.done():
            return self._link.on_peer_frame(name, reply, header, payload)
        if not name:
            return self._fail(self._refusal(header, payload))
        if name == CANCEL:  # accepted, but what says so can never leave
            return self._fail(self._refusal(header, payload))
        if name != ACCEPT:
            return None  # the accept is missing: it comes again, and this after it
        standing = read_standing(payload)
        if standing is None or not reply or not self._allows(reply):
            return self._fail(Internal("the service accepted the stream with what is no address"))
        self._link.connect(reply)
        self._link.end.on_frame(name, header, payload, asyncio.get_running_loop().time())
        self._link.on_frame = self._link.on_peer_frame
        if not self.answer.done():  # as when it allows more than it may, which ends the stream
            self.answer.set_result(header)
        return None

    def _refusal(self, header: bytes, payload: bytes) -> CallError:
        if not payload and header.startswith(NO_RESPONDERS):
            return NoResponders(self._subject.decode())
        if ERROR_MARK in header:
            return decode_error(header, payload, self._service)
        return Unimplemented(f"{self._subject.decode()} does not stream: call it")

    def _on_over(self) -> None:
        """Hear that it is over before it began: no connection, or no permission."""
        self._fail(self._link.outcome())

    def _fail(self, error: CallError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """What a caller says of a stream that it will open."""

    sends: object
    """The type of what it sends."""
    reply: ReplyDecoder
    """What comes back."""
    sends_one: bool
    """Is it one message, sent on opening?"""
    idle_timeout: float | None = None
    """Seconds without a message after which it is ended; None for what the settings say."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.idle_timeout is not None and not self.idle_timeout > 0:
            raise InvalidArgument(
                f"idle_timeout={self.idle_timeout}: say seconds, more than 0", not_run=True
            )


class StreamRoute(Route):
    """A streaming endpoint as a caller sees it."""

    def __init__(
        self,
        bus: Bus,
        spec: Spec,
        coder: Coder,
        options: CallOptions,
        caller: str,
        opening: StreamOptions,
    ) -> None:
        super().__init__(bus, spec, coder, options, caller)
        self._reply = opening.reply
        self._limits = Limits.of(bus.settings, idle=opening.idle_timeout)
        self._sends_one = opening.sends_one

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[CallStream[object, object]]:
        """Open the stream, and close it when the block ends; the innermost of every chain.

        Leaving early cancels what the node does.  A failure that has arrived is raised at
        the end of a block that went well; if the block has met it, for the wrappers alone.

        Args:
            call: Says what to send.

        Yields:
            The stream, accepted.

        Raises:
            CallError: It was refused, or nobody answered in time. Nothing is left open.
        """
        link, accepted = await self._opened(call)
        call.reply_headers = Headers(accepted)
        deadline = _Deadline(link)
        if call.deadline is not None:
            self._bus.timers.set(deadline, call.deadline)
        try:
            stream = self._stream(link, call, accepted)
            yield stream
            stream.leave()
        finally:
            self._bus.timers.drop(deadline)
            link.end.cancel(Cancelled(_LEFT))

    def _stream(self, link: Link, call: Call, accepted: bytes) -> CallStream[object, object]:
        try:
            decode = self._reply.decoder(accepted)
        except CodecError as wrong:
            raise not_expected(wrong) from wrong
        if self._sends_one:
            link.end.end()
        return CallStream(link, call, self.encode, decode)

    async def _opened(self, call: Call) -> tuple[Link, bytes]:
        now = asyncio.get_running_loop().time()
        deadline = now + self.timeout
        if call.deadline is not None:
            deadline = min(deadline, call.deadline)
        payload = b""
        if self._sends_one:
            message = through(call, call.message, out=True) if call.has_taps else call.message
            payload = self.encode(message)
        lines = self.lines(call)

        async def attempt() -> tuple[Link, bytes]:
            return await self._ask(call, payload, lines, deadline)

        try:
            return await attempt()
        except (NoResponders, Disconnected) as nobody:
            return await self.elsewhere(attempt, deadline, nobody)

    async def _ask(
        self, call: Call, payload: bytes, lines: bytes, deadline: float
    ) -> tuple[Link, bytes]:
        """Ask for the stream once."""
        transport = self._bus.transport
        if not transport.connected:
            raise Disconnected("not connected to NATS", not_run=True)
        await self._bus.frames.start()
        block = self._block(call, lines)
        link = Link(self._bus, self.spec.service, self._limits, serving=False)
        opening = _Opening(link, self._subject, self.spec.service, self._bus)
        try:
            transport.publish(self._subject, payload, link.address, block)
            async with asyncio.timeout_at(deadline):
                return link, await opening.answer
        except TimeoutError as late:
            self._abandon(link)
            text = f"{self.spec.service} did not accept the stream in time"
            raise DeadlineExceeded(text) from late
        except asyncio.CancelledError:
            self._abandon(link)
            raise
        except BaseException:
            link.forget()
            raise

    def _block(self, call: Call, lines: bytes) -> bytes:
        window = self._limits.window.header().encode()
        timeout = b""
        if call.deadline is not None:
            left = call.deadline - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded("no time was left to open the stream", not_run=True)
            timeout = b"Bus-Timeout: %d\r\n" % (left * 1000 or 1)
        return b"%bBus-Stream: %b\r\n%b%b\r\n" % (self._block_start, window, timeout, lines)

    def _abandon(self, link: Link) -> None:
        """Tell the node that has the request, whichever it is, that nobody waits any more."""
        if link.peer:
            link.end.cancel(Cancelled(_LEFT))
        elif self._bus.transport.connected:
            self._bus.transport.publish(self._cancel, link.address)
        link.forget()
