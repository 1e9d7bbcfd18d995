"""One end of a stream in this process: joins the state machine, the connection and who waits.

`StreamEnd` decides, `Link` acts: it publishes the frames, calls `tick` in time, wakes the tasks
that wait for a message, for credit or for the end, and cuts what is too large for one frame.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from copy import copy
from typing import Final

from busmicro.bus import Bus
from busmicro.errors import (
    BusmicroError,
    CallError,
    Disconnected,
    FailedPrecondition,
    PayloadTooLarge,
    PermissionDenied,
    ResourceExhausted,
)
from busmicro.rpc.frames import DATA
from busmicro.rpc.halves import Frame
from busmicro.rpc.large import Large
from busmicro.rpc.limits import Limits
from busmicro.rpc.stream import StreamEnd
from busmicro.rpc.wire import ERROR_MARK, decode_error, encode_error
from busmicro.transport import OnMessage

log = logging.getLogger("busmicro.rpc")

_LARGEST_PIECE_BYTES: Final = 1024 * 1024


class _Statuses:
    """How a stream ended, as any reply says it."""

    def __init__(self, service: str) -> None:
        self._service = service
        self.trailers = b""

    def read(self, header: bytes, payload: bytes) -> CallError | None:
        if ERROR_MARK in header:
            return decode_error(header, payload, self._service)
        self.trailers = header
        return None

    def write(self, error: CallError) -> tuple[bytes, bytes]:
        return encode_error(error, self._service)


class _Tick:
    """One appointment with `tick`."""

    __slots__ = ("is_set", "link", "when")

    def __init__(self, link: Link, when: float) -> None:
        self.link = link
        self.when = when
        self.is_set = False

    def expire(self) -> None:
        self.link.tick()


class Link:
    """One end of a stream in this process."""

    __slots__ = (
        "_address",
        "_large",
        "_readers",
        "_senders",
        "_small_bytes",
        "_statuses",
        "_tick",
        "_time",
        "_transport",
        "_turn",
        "asked",
        "bus",
        "end",
        "limits",
        "on_closed",
        "on_frame",
        "on_over",
        "peer",
        "ready",
    )

    def __init__(
        self,
        bus: Bus,
        service: str,
        limits: Limits,
        *,
        serving: bool,
    ) -> None:
        """Make an end that has an address and no peer yet.

        Args:
            bus: The connection.
            service: The service, by name.
            limits: What it may hold and how long it waits.
            serving: Is this the node's end?

        Raises:
            ResourceExhausted: There are too many streams in this process.
        """
        self.bus = bus
        """The connection."""
        self._transport = bus.transport
        self.limits = limits
        """What it may hold and how long it waits."""
        self._large = Large(self)
        self.ready: Callable[[], Frame | None] = self._ready
        """Returns the next message if it is here and whole: the fast path of `receive`."""
        self._time = asyncio.get_running_loop().time
        self._readers: list[asyncio.Future[None]] = []
        self._senders: list[asyncio.Future[None]] = []
        self._turn = asyncio.Lock()
        self._tick: _Tick | None = None
        self.on_over: Callable[[], None] | None = None
        """Called once, when the outcome is known."""
        self.on_closed: Callable[[], None] | None = None
        """Called when this end is forgotten."""
        self._small_bytes = 0
        self.asked = b""
        """Where the caller has asked for the stream, while it is not accepted."""
        self.peer = b""
        """Where the other end's frames go: its address and a dot; empty while it is not known."""
        self._statuses = _Statuses(service)
        self.end = StreamEnd(
            self._emit,
            self._changed,
            window=limits.window,
            patience=limits.patience,
            now=self._time(),
            serving=serving,
            statuses=self._statuses,
        )
        """The state machine."""
        self.on_frame: OnMessage = self.on_peer_frame
        self._address = bus.frames.add(self, most=bus.settings.max_streams)

    @property
    def address(self) -> bytes:
        """Where this end's frames arrive."""
        return self._address

    def connect(self, peer: bytes) -> None:
        """Know from now on where the other end is, and look after it."""
        self.peer, self.asked = peer + b".", b""
        self._learn_size()
        self._arrange()

    # --- frames ---------------------------------------------------------------------------------

    def _emit(self, name: bytes, payload: bytes, header: bytes, ask: bool, /) -> None:  # noqa: FBT001 - see `Emit`
        """Publish a frame; what cannot leave now is repaired like what was lost on the way."""
        if not self._transport.connected or not self.peer:
            return
        reply = self._address if ask else b""
        try:
            self._transport.publish(self.peer + name, payload, reply, header)
        except PayloadTooLarge as refused:  # this server takes less than the last one did
            self.end.break_off(ResourceExhausted(f"a frame of the stream: {refused.message}"))
        except BusmicroError as refused:
            log.debug("a frame of a stream did not leave: %s", refused)

    def on_peer_frame(self, name: bytes, _reply: bytes, header: bytes, payload: bytes) -> None:
        """Take what came to this end's address."""
        if name:
            self.end.on_frame(name, header, payload, self._time())
        elif not payload:  # the server's 503: nobody listened where we sent
            self.end.on_nobody(self._time())
            self._arrange()

    def on_connected(self) -> None:
        """Hear that the connection is back; this server may take less at once."""
        self._learn_size()
        self.end.on_connected(self._time())
        self._arrange()

    def on_disconnected(self) -> None:
        """Hear that the connection is gone; a stream that is being opened will not be."""
        if self.asked:
            text = "the connection to NATS dropped while the stream was being opened"
            return self.end.drop(Disconnected(text, not_run=False))
        self.end.on_disconnected(self._time())
        return self._arrange()

    def on_closing(self) -> None:
        """Hear that the connection is about to be closed: the other end is told, no more."""
        text = "the connection to NATS was closed while the stream was open"
        closing = Disconnected(text, not_run=False)
        self.end.fail(closing)
        self.end.drop(closing)

    def on_publish_denied(self, subject: str) -> None:
        """End the stream if the server does not let us send to its other end."""
        denied, asked = subject.casefold(), self.asked.decode().casefold()
        if denied == asked or (self.peer and denied.startswith(self.peer.decode().casefold())):
            text = f"NATS does not permit publishing to {subject}"
            self.end.drop(PermissionDenied(text, not_run=bool(asked)))

    # --- time -----------------------------------------------------------------------------------

    def tick(self) -> None:
        """Let the machine do what is due."""
        self._tick = None
        self.end.tick(self._time())
        self._arrange()

    def _arrange(self) -> None:
        """See to it that `tick` is called in time."""
        if self.end.closed:
            return
        when = self.end.due(self._time())
        tick = self._tick
        if tick is not None:
            if tick.when <= when:
                return  # that one will arrange the next
            self.bus.timers.drop(tick)
        self._tick = tick = _Tick(self, when)
        self.bus.timers.set(tick, when)

    # --- who waits ------------------------------------------------------------------------------

    def _changed(self) -> None:
        end = self.end
        if self._readers and (end.incoming.waiting or end.over or end.incoming.ended):
            _wake(self._readers)
        if self._senders and (end.over or end.may_send):
            _wake(self._senders)
        if end.over:
            self._large.look()
            if (told := self.on_over) is not None:
                self.on_over = None
                told()
            if end.closed:
                self.forget()

    def forget(self) -> None:
        """Give the address back; nothing arrives any more."""
        self.bus.frames.remove(self._address)
        if self._tick is not None:
            self.bus.timers.drop(self._tick)
            self._tick = None
        if (told := self.on_closed) is not None:
            self.on_closed = None
            told()

    # --- messages -------------------------------------------------------------------------------

    async def send(self, payload: bytes, lines: bytes = b"") -> None:
        """Send a message, as soon as the other end has room for it.

        Args:
            payload: The message; cut, if it is larger than one frame can be.
            lines: Headers to send along, as the lines of a block.

        Raises:
            CallError: The stream is over, or this end has said that it sends no more. The message
                was not sent, or not all of it.
        """
        async with self._turn:
            await self._large.send(payload, lines)

    def send_now(self, payload: bytes) -> bool:
        """Send a message if nothing stands in its way: the fast path of `send`.

        Returns:
            False if it was not sent, and `send` has to see why: no credit, too large, the end.
        """
        end = self.end
        outgoing = end.outgoing
        if (
            outgoing.sent < outgoing.credit
            and outgoing.sent_bytes < outgoing.credit_bytes
            and len(payload) <= self._small_bytes
            and not (end.holding or end.over or outgoing.ended or self._turn.locked())
            and self._transport.writable
        ):
            end.send(DATA, payload, b"", self._time())
            return True
        return False

    def _ready(self) -> Frame | None:
        waiting = self.end.incoming.waiting
        if waiting and waiting[0][0] == DATA:
            return self.end.take()
        return None

    @property
    def piece_bytes(self) -> int:
        """What a frame may weigh, its header block counted."""
        return min(self._transport.max_payload_bytes, _LARGEST_PIECE_BYTES)

    def _learn_size(self) -> None:
        fits, threshold = self.piece_bytes, self.limits.claim_check_bytes
        self._small_bytes = fits if threshold is None else min(fits, threshold)

    async def clear_to_send(self) -> None:
        """Return when a message, or a piece of one, may be sent in this turn of the loop.

        Raises:
            CallError: As `send`.
        """
        end = self.end
        while True:
            if end.over:
                raise self._refusal()
            if end.outgoing.ended:
                raise FailedPrecondition("this end has said that it sends no more")
            if not self._transport.writable:
                await self._transport.drained()
            elif end.may_send:
                return
            else:
                end.wait_for_room(self._time())
                self._arrange()
                await _wait(self._senders)

    def send_frame(self, kind: bytes, payload: bytes, header: bytes) -> None:
        """Send a message, or a piece of one; only when it is clear to send."""
        self.end.send(kind, payload, header, self._time())

    async def close_send(self) -> None:
        """Say that no more messages come from this end, after those that are being sent."""
        if self._turn.locked():
            async with self._turn:
                self.end.end()
        else:
            self.end.end()

    async def receive(self) -> Frame | None:
        """Return the next message, as soon as there is one; None after the last one.

        Returns:
            Kind, header block and payload, of a message that is whole.

        Raises:
            CallError: The stream did not end well; everything that came before was returned.
        """
        end = self.end
        while (frame := self.ready()) is None:
            if end.incoming.waiting:
                await self._large.gather()
            elif end.outcome is not None:
                raise self.outcome()
            elif end.over or (end.incoming.ended and end.serving):
                self._large.check_end()
                return None
            else:
                await _wait(self._readers)
        return frame

    def joining(self, is_joining: bool) -> None:  # noqa: FBT001 - reads well where it is used
        """Say whether the next frame is part of a message of which pieces have been taken."""
        self.ready = _nothing if is_joining else self._ready

    @property
    def trailers(self) -> bytes:
        """The header block of a good status; empty before, or if it has none."""
        return self._statuses.trailers

    def outcome(self) -> CallError:
        """Make the error that says how the stream ended, to be raised."""
        ended = self.end.outcome
        return FailedPrecondition("the stream has ended") if ended is None else copy(ended)

    def _refusal(self) -> CallError:
        if self.end.outcome is None:
            return FailedPrecondition("the service has ended the stream and takes no more messages")
        return self.outcome()


def _nothing() -> None:
    """Have nothing ready."""


def _wake(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
    waiters.clear()


async def _wait(waiters: list[asyncio.Future[None]]) -> None:
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiters.append(waiter)
    try:
        await waiter
    finally:
        if waiter in waiters:  # cancelled, not woken
            waiters.remove(waiter)
