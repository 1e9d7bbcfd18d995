"""A connection without a network: `memory://name`, for tests and simulations in one process.

Everybody in one event loop who connects to the same name is on the same bus; see `broker.py`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator

from busmicro.errors import (
    BusmicroError,
    DeadlineExceeded,
    Disconnected,
    PayloadTooLarge,
    ResourceExhausted,
)
from busmicro.settings import MEMORY_SCHEME, Settings
from busmicro.transport.base import Listener, OnMessage, Publish, Subscription
from busmicro.transport.broker import HELD_OVERHEAD_BYTES, Connection, MemoryBroker, Message
from busmicro.transport.fastpath import DEFAULT_MAX_PAYLOAD_BYTES, overfull, sids

log = logging.getLogger("busmicro.transport")

_FIRST_WAIT = 0.05
_CLOSE_TIMEOUT = 2.0
_SAY_EVERY = 10.0


class MemoryTransport:
    """One connection to a `MemoryBroker` that lives until `close`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._url = settings.urls[0]
        self._broker: MemoryBroker | None = None
        self._connection: Connection | None = None
        self._subscriptions: dict[bytes, Subscription] = {}
        self._leaving: set[bytes] = set()
        self._listeners: list[Listener] = []
        self._up = asyncio.Event()
        self._retry: asyncio.Handle | None = None
        self._closing = False
        self._held: list[Message] = []
        self._held_bytes = 0
        self.name = settings.name
        """What the broker and a `Network` call it; made up on connecting if no setting says."""
        self.max_payload_bytes = DEFAULT_MAX_PAYLOAD_BYTES
        self.publish: Publish = self._hold
        self.connected = False
        """Is it up now?"""
        self.reconnects = 0
        """How often it was lost and made again."""

    # --- life -----------------------------------------------------------------------------------

    async def connect(self, *, wait: bool = False) -> None:
        """Connect, and stay connected from then on; see `Transport.connect`."""
        if self.connected:
            return None
        self._closing = False
        self._stop_trying()
        broker = self._broker = MemoryBroker.named(self._url.removeprefix(MEMORY_SCHEME))
        self.name = self.name or broker.new_name()
        loop, said = asyncio.get_running_loop(), float("-inf")
        for pause in self._pauses(broker.rng):
            try:
                return self._attempt(broker)
            except Disconnected as failure:
                if not wait:
                    self._broker = None
                    raise
                if loop.time() - said >= _SAY_EVERY:
                    said = loop.time()
                    log.warning("%s; waiting for it", failure.message)
            await asyncio.sleep(pause)
        return None

    def _pauses(self, rng: random.Random) -> Iterator[float]:
        """Seconds to wait before each next attempt: growing, with jitter, without end."""
        ceiling = _FIRST_WAIT
        while True:
            yield rng.uniform(0.5, 1.0) * ceiling
            ceiling = min(2 * ceiling, self._settings.reconnect_max_wait)

    def _attempt(self, broker: MemoryBroker) -> None:
        connection = broker.admit(
            self.name, self._on_lost, max_waiting_bytes=self._settings.max_buffered_bytes
        )
        for sid in self._leaving:
            self._subscriptions.pop(sid, None)
        self._leaving.clear()
        self._connection = connection
        self.max_payload_bytes = broker.max_payload_bytes
        for subscription in self._subscriptions.values():
            connection.subscribe(subscription)
        self.publish = connection.publish
        held, self._held, self._held_bytes = self._held, [], 0
        for message in held:
            self._publish_held(message)
        self.connected = True
        self._up.set()
        for listener in tuple(self._listeners):
            listener.on_connected()

    def _publish_held(self, message: Message) -> None:
        try:
            self.publish(*message)
        except ResourceExhausted as refused:  # this broker may take less than the last one
            log.error("a message held for %s is lost: %s", message[0].decode(), refused)  # noqa: TRY400

    def _on_lost(self, connection: Connection) -> None:
        if connection is not self._connection or self._broker is None:
            return
        self._down()
        log.warning("lost the connection to %s, connecting again", self._url)
        loop = asyncio.get_running_loop()
        pauses = self._pauses(self._broker.rng)
        self._retry = loop.call_soon(self._come_back, pauses, loop.time() + _SAY_EVERY)

    def _come_back(self, pauses: Iterator[float], say_at: float) -> None:
        """Try to connect; if that fails, try again later, and say so every ten seconds."""
        if self._broker is None:
            return
        try:
            self._attempt(self._broker)
        except Disconnected as failure:
            loop = asyncio.get_running_loop()
            if loop.time() >= say_at:
                say_at += _SAY_EVERY
                log.warning("still without a broker: %s", failure)
            self._retry = loop.call_later(next(pauses), self._come_back, pauses, say_at)
        else:
            self._retry = None
            self.reconnects += 1
            log.warning("connected to %s again", self._url)

    def _down(self) -> None:
        self._connection = None
        self.publish = self._hold
        if self._up.is_set():
            self._up.clear()
            self.connected = False
            for listener in tuple(self._listeners):
                listener.on_disconnected()

    async def close(self) -> None:
        """Send what waits and end the connection; nothing is delivered any more."""
        self._closing = True
        if self.connected:
            try:
                await self.barrier(timeout=_CLOSE_TIMEOUT)
            except BusmicroError as failure:
                log.debug("what waited may not have left: %s", failure)
        self._stop_trying()
        connection, self._broker = self._connection, None
        self._down()
        if connection is not None:
            connection.end()
        self._held.clear()
        self._subscriptions.clear()
        self._listeners.clear()

    def _stop_trying(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def lose(self) -> None:
        """Give this connection up and make another, as if the network had failed."""
        if self._connection is not None:
            self._connection.lose()

    # --- what Transport promises ----------------------------------------------------------------

    async def wait_connected(self) -> None:
        """Return when it is up."""
        await self._up.wait()

    @property
    def server_url(self) -> str:
        """The broker it is connected to; empty while the connection is down."""
        return self._url if self.connected else ""

    @property
    def writable(self) -> bool:
        """Has most of what was sent arrived?"""
        return self._connection is None or self._connection.writable

    async def drained(self) -> None:
        """Return when most of what was sent has arrived."""
        if self._connection is not None:
            await self._connection.drained()

    def _hold(
        self, subject: bytes, payload: bytes, reply: bytes = b"", header: bytes = b""
    ) -> None:
        """Keep a message until the connection is back: what `publish` does while it is down."""
        size = len(payload) + len(header)
        if self._closing:
            raise Disconnected("the connection is closed", not_run=True)
        if size > self.max_payload_bytes:
            raise PayloadTooLarge(size, self.max_payload_bytes)
        size += len(subject) + len(reply) + HELD_OVERHEAD_BYTES
        if self._held_bytes + size > self._settings.max_buffered_bytes:
            raise overfull(self._settings.max_buffered_bytes)
        self._held_bytes += size
        self._held.append((subject, payload, reply, header))

    def subscribe(self, subject: str, on_message: OnMessage, *, queue: str = "") -> Subscription:
        """Listen to a subject; see `Transport.subscribe`."""
        subscription = Subscription(b"b%d" % next(sids), subject, queue, on_message)
        self._subscriptions[subscription.sid] = subscription
        if self._connection is not None:
            self._connection.subscribe(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop listening; see `Transport.unsubscribe`."""
        if self._connection is not None:
            self._connection.unsubscribe(subscription)
        self._leaving.add(subscription.sid)

    async def barrier(self, *, timeout: float = 5.0) -> None:
        """Return when the broker has dealt with everything sent before."""
        if self._connection is None or not self.connected:
            raise Disconnected(f"the connection to {self._url} is down", not_run=True)
        leaving = tuple(self._leaving)
        try:
            async with asyncio.timeout(timeout):
                await self._connection.ping()
        except TimeoutError as late:
            raise DeadlineExceeded(f"no answer to a barrier within {timeout} s") from late
        for sid in leaving:
            self._subscriptions.pop(sid, None)
            self._leaving.discard(sid)

    def listen(self, listener: Listener) -> None:
        """Tell this listener of what happens to the connection."""
        self._listeners.append(listener)

    def unlisten(self, listener: Listener) -> None:
        """Tell this listener no more."""
        if listener in self._listeners:
            self._listeners.remove(listener)
