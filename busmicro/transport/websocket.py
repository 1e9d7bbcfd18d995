"""The plain path: WebSocket URLs, through nats-py's own subscriptions, behind the same interface.

Slower than the fast path (`ws://` frames are nats-py's business), same promises.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsPySubscription

from busmicro.errors import Disconnected, PayloadTooLarge
from busmicro.headers import VERSION_LINE, parse
from busmicro.tasks import Tasks
from busmicro.transport.base import Subscription
from busmicro.transport.fastpath import DEFAULT_MAX_PAYLOAD_BYTES, overfull

log = logging.getLogger("busmicro.transport")

_MAX_WAITING = 10_000
_FLUSH_WITHIN = 60
"""Whoever waits for a barrier has a time-out of their own, a shorter one."""


class PlainPath:
    """One connection made by nats-py alone; commands wait in a queue that one task empties."""

    def __init__(
        self, client: Client, subscriptions: dict[bytes, Subscription], *, max_waiting_bytes: int
    ) -> None:
        self._client = client
        self._subscriptions = subscriptions
        self._native: dict[bytes, NatsPySubscription] = {}
        self._commands: asyncio.Queue[Callable[[], object]] = asyncio.Queue()
        self._tasks = Tasks()
        self.waiting_bytes = 0
        self._max_waiting_bytes = max_waiting_bytes
        self.max_payload_bytes = DEFAULT_MAX_PAYLOAD_BYTES
        self._pongs: set[asyncio.Future[None]] = set()

    async def start(self) -> None:
        """Begin to send."""
        self._tasks.spawn(self._run(), name="busmicro websocket")

    async def _run(self) -> None:
        while True:
            command = await self._commands.get()
            try:
                result = command()
                if asyncio.iscoroutine(result):
                    await result
            except Exception:
                log.exception("nats-py could not send over the WebSocket")

    def publish(
        self, subject: bytes, payload: bytes, reply: bytes = b"", header: bytes = b""
    ) -> None:
        """Queue one message; see `Transport.publish`."""
        size = len(payload) + len(header)
        if size > self.max_payload_bytes:
            raise PayloadTooLarge(size, self.max_payload_bytes)
        if self.waiting_bytes > self._max_waiting_bytes or self._commands.qsize() >= _MAX_WAITING:
            raise overfull(self._max_waiting_bytes)
        self.waiting_bytes += size

        async def send() -> None:
            self.waiting_bytes -= size
            await self._client.publish(
                subject.decode(), payload, reply.decode(), parse(header) if header else None
            )

        self._commands.put_nowait(send)

    def subscribe(self, subscription: Subscription) -> None:
        """Queue a subscription."""

        async def on_message(message: Msg) -> None:
            header = b""
            if message.headers:
                status = message.headers.get("Status")
                lines = "".join(f"{k}: {v}\r\n" for k, v in message.headers.items())
                first = f"NATS/1.0 {status}\r\n".encode() if status else VERSION_LINE
                header = first + lines.encode() + b"\r\n"
            try:
                subscription.on_message(
                    message.subject.encode(), message.reply.encode(), header, message.data
                )
            except (Exception, asyncio.CancelledError):
                log.exception("the callback of %r failed", subscription)

        async def send() -> None:
            self._native[subscription.sid] = await self._client.subscribe(
                subscription.subject, queue=subscription.queue, cb=on_message
            )

        self._commands.put_nowait(send)

    def unsubscribe(self, subscription: Subscription) -> None:
        """Queue the end of a subscription; what has arrived is still delivered."""

        async def send() -> None:
            native = self._native.pop(subscription.sid, None)
            if native is not None:
                # nats-py's drain sends its PING ahead of its UNSUB, and what the server sends in
                # between is lost; so one UNSUB goes first.
                if (wire := self._client._transport) is not None:  # noqa: SLF001
                    wire.write(b"UNSUB %d\r\n" % native._id)  # noqa: SLF001
                await native.drain()  # type: ignore[no-untyped-call]

        self._commands.put_nowait(send)

    def ping(self) -> asyncio.Future[None]:
        """Ask the server twice whether it is there, after everything queued so far.

        nats-py's `flush` sends its PING ahead of what waits to be sent, so the first answer proves
        nothing but that all of it has left; the second PING follows it.
        """
        pong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pongs.add(pong)
        pong.add_done_callback(self._pongs.discard)

        async def flush() -> None:
            try:
                for _ in range(2):
                    await self._client.flush(timeout=_FLUSH_WITHIN)
            except Exception as failure:  # `stop` tells whoever waits
                log.debug("a barrier over the WebSocket failed: %s", failure)
            else:
                if not pong.done():
                    pong.set_result(None)

        def begin() -> None:
            self._tasks.spawn(flush(), name="busmicro barrier")

        self._commands.put_nowait(begin)
        return pong

    @property
    def writable(self) -> bool:
        """Is the queue less than half full?"""
        return self._commands.qsize() < _MAX_WAITING // 2

    async def drained(self) -> None:
        """Return when the queue is less than half full."""
        while not self.writable and not self._client.is_closed:  # noqa: ASYNC110 - qsize has no event
            await asyncio.sleep(0.001)

    async def stop(self) -> None:
        """Send nothing more; whoever waits for a barrier is told."""
        await self._tasks.cancel()
        for pong in tuple(self._pongs):
            if not pong.done():
                pong.set_exception(Disconnected("the connection dropped", not_run=False))
                pong.exception()
