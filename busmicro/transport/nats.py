"""The connection to NATS: made by nats-py, kept alive here.

nats-py can come back from some losses by itself, gives up on others for good, and hangs on a few
(`docs/adr/0004-one-way-back.md`).  So there is one way back from every loss: the nats-py client is
thrown away, a new one is made, every subscription is sent again.  `_keep_alive` is that loop.

A server that says that it leaves (lame duck mode) is left before it closes the connection: `_move`
makes the next connection first, and nothing is lost (`handover.py`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator
from weakref import WeakSet

from nats.aio.client import Client

from busmicro.errors import (
    BusmicroError,
    DeadlineExceeded,
    Disconnected,
    PayloadTooLarge,
    PermissionDenied,
    ResourceExhausted,
)
from busmicro.settings import Settings
from busmicro.tasks import Tasks
from busmicro.transport.base import Listener, OnMessage, Publish, Subscription
from busmicro.transport.ending import CLOSE_TIMEOUT, end, release
from busmicro.transport.errors import denied_subject, explain, hide_secrets, is_refusal
from busmicro.transport.fastpath import (
    DEFAULT_MAX_PAYLOAD_BYTES,
    FastPath,
    overfull,
    sids,
    sub_command,
)
from busmicro.transport.handover import Handover
from busmicro.transport.login import login_options
from busmicro.transport.websocket import PlainPath

log = logging.getLogger("busmicro.transport")

_FIRST_WAIT = 0.05
_SAY_EVERY = 10.0
_MOVE_WITHIN = 4.0
"""A server that leaves waits ten seconds, by default, before it closes connections; clients that
move at random moments in the first four do not all fall upon the next server at once."""
_LISTEN_TO_BOTH = 0.25
"""Seconds in which a cluster learns that this process listens somewhere else now."""
_HELD_OVERHEAD_BYTES = 200
"""What Python needs to remember a message that waits, however short it is."""


class NatsTransport:
    """One connection to NATS that lives until `close`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._urls: list[str] = settings.urls
        self._subscriptions: dict[bytes, Subscription] = {}
        self._listeners: list[Listener] = []
        self._leaving: set[bytes] = set()
        self._tasks = Tasks()
        self._client: Client | None = None
        self._used = ""
        """The server of the last connection: if it is frozen, it costs a whole time-out."""
        self._path: FastPath | PlainPath | None = None
        self._lost = asyncio.Event()
        self._up = asyncio.Event()
        self._closing = False
        self._handover: Handover | None = None
        self._mover: asyncio.Task[None] | None = None
        self._ducks: WeakSet[Client] = WeakSet()
        """Connections whose server has said that it leaves: it says so once, perhaps too early."""
        self._through = asyncio.Event()
        """Do messages leave, or does the connection that is being left have to be empty first?"""
        self._through.set()
        self._held: list[tuple[bytes, bytes, bytes, bytes]] = []
        self._held_bytes = 0
        self.max_payload_bytes = DEFAULT_MAX_PAYLOAD_BYTES
        # The path's own method while the connection is up: one call less for each message.
        self.publish: Publish = self._hold
        self.connected = False
        """Is it up now?"""
        self.reconnects = 0
        """How often it was lost and made again."""

    # --- life -----------------------------------------------------------------------------------

    async def connect(self, *, wait: bool = False) -> None:
        """Connect, and stay connected from then on.

        Args:
            wait: Keep trying until a server answers, saying so every ten seconds; otherwise one
                round over the servers has to do.

        Raises:
            Disconnected: No server answered (only without `wait`). Nothing is left behind.
            Unauthenticated: The server refuses the credentials.
            PermissionDenied: Replies could not arrive: `inbox_prefix` may not be subscribed to.
            SetupError: Settings that cannot work, such as a certificate that is not there.
        """
        if self.connected:
            return
        self._closing = False
        await self._first_connection(wait=wait)
        self._tasks.spawn(self._keep_alive(), name="busmicro connection")

    async def _first_connection(self, *, wait: bool) -> None:
        loop = asyncio.get_running_loop()
        said = float("-inf")
        for pause in self._pauses():
            try:
                return await self._established(*await self._round())
            except Disconnected as failure:
                if not wait:
                    raise
                if loop.time() - said >= _SAY_EVERY:
                    said = loop.time()
                    log.warning("%s; waiting for it", failure.message)
            await asyncio.sleep(pause)
        return None

    def _pauses(self) -> Iterator[float]:
        """Seconds to wait before each next round: growing, with jitter, without end."""
        ceiling = _FIRST_WAIT
        while True:
            yield random.uniform(0.5, 1.0) * ceiling  # noqa: S311 - spreads load, hides nothing
            ceiling = min(2 * ceiling, self._settings.reconnect_max_wait)

    async def _round(self, *, leaving: str = "") -> tuple[Client, FastPath | None]:
        """Try each server once, last the one that is left: its URL may lead to others as well."""
        failure: BusmicroError | None = None
        urls = random.sample(self._urls, len(self._urls))
        for url in sorted(urls, key=lambda url: hide_secrets(url) == leaving):
            try:
                return await self._attempt(url)
            except BusmicroError as error:
                failure = error
                if not isinstance(error, Disconnected):
                    break
        raise failure or Disconnected("no server is named in BUSMICRO_NATS_URL", not_run=True)

    async def _attempt(self, url: str) -> tuple[Client, FastPath | None]:
        """Make one nats-py client and one connection."""
        client = Client()
        is_plain = url.startswith(("ws://", "wss://"))
        path = None if is_plain else self._fast_path()
        if path is not None:
            client._transport = path  # noqa: SLF001 - the one private name of nats-py
        causes: list[BaseException] = []
        try:
            await self._connect_client(client, url, causes, is_plain=is_plain)
        except BaseException as error:
            await release(client)
            if not isinstance(error, Exception):
                raise
            if isinstance(error, BusmicroError):
                raise
            causes.append(error)
            raise explain(next(filter(is_refusal, causes), causes[0]), url) from error
        if path is not None and path.lost:
            raise Disconnected("the connection dropped at once", not_run=True)
        return client, path

    async def _connect_client(
        self, client: Client, url: str, causes: list[BaseException], *, is_plain: bool
    ) -> None:
        async def on_error(error: Exception) -> None:
            causes[:] = [error]
            log.debug("nats-py: %s", error)
            if is_plain:  # the fast path reads these off the wire itself
                self._denied(str(error))

        async def on_closed() -> None:
            if client is self._client:
                self._lost.set()

        async def on_lame_duck() -> None:
            self._ducks.add(client)
            if client is self._client:
                self._learn(client)
                self._leave_server()

        await client.connect(
            url,
            error_cb=on_error,
            closed_cb=on_closed,
            lame_duck_mode_cb=on_lame_duck,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            **login_options(self._settings),
        )

    def _fast_path(self) -> FastPath:
        return FastPath(
            self._subscriptions,
            on_denied=self._denied,
            on_lost=self._on_path_lost,
            max_waiting_bytes=self._settings.max_buffered_bytes,
        )

    async def _established(self, client: Client, path: FastPath | None) -> None:
        self._client, self._lost = client, asyncio.Event()
        self._forget_left()
        self._learn(client)
        if path is None:
            self._path = plain = PlainPath(
                client,
                self._subscriptions,
                max_waiting_bytes=self._settings.max_buffered_bytes,
            )
            await plain.start()
            for subscription in self._subscriptions.values():
                plain.subscribe(subscription)
        else:
            self._path = path
            path.write(b"".join(map(sub_command, self._subscriptions.values())))
        self._send_by(self._path, client)
        self.connected = True
        self._up.set()
        log.debug(
            "connected to %s",
            hide_secrets(str(client.connected_url and client.connected_url.geturl())),
        )
        for listener in tuple(self._listeners):
            listener.on_connected()

    def _forget_left(self) -> None:
        """Forget the subscriptions that have ended: no message for them is under way any more."""
        for sid in self._leaving:
            self._subscriptions.pop(sid, None)
        self._leaving.clear()

    def _send_by(self, path: FastPath | PlainPath, client: Client) -> None:
        """Publish on this connection from now on, first what was held."""
        url = client.connected_url
        self._used = hide_secrets(url.geturl()) if url else ""
        self.max_payload_bytes = path.max_payload_bytes = client.max_payload
        self.publish = path.publish
        held, self._held, self._held_bytes = self._held, [], 0
        for message in held:
            self._publish_held(message)

    def _publish_held(self, message: tuple[bytes, bytes, bytes, bytes]) -> None:
        try:
            self.publish(*message)
        except ResourceExhausted as refused:  # this server may take less than the last one
            log.error("a message held for %s is lost: %s", message[0].decode(), refused)  # noqa: TRY400

    def _learn(self, client: Client) -> None:
        """Remember the cluster's other servers, so that one of them can take over."""
        secrets = client.connected_url
        login = secrets.netloc.rpartition("@")[0] + "@" if secrets and secrets.username else ""
        for found in client.discovered_servers:
            url = found._replace(netloc=login + found.netloc).geturl()
            if url not in self._urls:
                self._urls.append(url)

    def _on_path_lost(self, path: FastPath) -> None:
        """Act at once, in the turn of the loop that saw the socket close."""
        if path is self._path:
            self._lost.set()
            self._down()

    def _down(self) -> None:
        if not self._up.is_set():
            return
        self._up.clear()
        self.connected = False
        self.publish = self._hold
        for listener in tuple(self._listeners):
            listener.on_disconnected()

    async def _keep_alive(self) -> None:
        """Come back from every loss, for ever."""
        while not self._closing:  # asyncio.wait_for, in nats-py, may swallow a cancellation
            await self._lost.wait()
            self._down()
            await self._move_no_more()
            log.warning("lost the connection to NATS, connecting again")
            await self._discard()
            await self._come_back()
            self.reconnects += 1
            log.warning("connected to NATS again")

    async def _come_back(self) -> None:
        """Try until a server takes us; what keeps failing is said every ten seconds."""
        loop = asyncio.get_running_loop()
        say_at = loop.time() + _SAY_EVERY
        for pause in self._pauses():
            try:
                return await self._established(*await self._round(leaving=self._used))
            except BusmicroError as failure:
                if loop.time() >= say_at:
                    say_at += _SAY_EVERY
                    log.warning("still without NATS: %s", failure)
            if self._closing:
                break
            await asyncio.sleep(pause)
        return None

    async def _discard(self) -> None:
        """End the connection there is."""
        client, path, self._client, self._path = self._client, self._path, None, None
        if isinstance(path, PlainPath):
            await path.stop()
        if client is not None:
            await end(client, path)

    # --- moving ---------------------------------------------------------------------------------

    def _leave_server(self) -> None:
        """Move to another server soon, because this one says that it leaves."""
        if self._closing or (self._mover is not None and not self._mover.done()):
            return
        self._mover = self._tasks.spawn(self._move(), name="busmicro moves")

    async def _move(self) -> None:
        """Move as soon as another server takes us; if none does, the loss of this one comes."""
        leaving = self.server_url
        log.info("%s leaves, moving to another server", leaving)
        await asyncio.sleep(random.uniform(0.0, _MOVE_WITHIN))  # noqa: S311 - spreads load
        old, of_old = self._path, self._client
        if of_old is None or not isinstance(old, FastPath):
            self.lose()
            return
        for pause in self._pauses():
            try:
                client, path = await self._round(leaving=leaving)
            except BusmicroError as failure:
                log.debug("no other server yet: %s", failure)
            else:
                await self._move_to((client, path), (of_old, old))
                return
            if self._closing or not self.connected:  # nats-py may have swallowed a cancellation
                return
            await asyncio.sleep(pause)

    async def _move_to(
        self, new: tuple[Client, FastPath | None], old: tuple[Client, FastPath]
    ) -> None:
        """Hand everything over to a new connection, and end the one that is of no more use."""
        of_no_use: tuple[Client, FastPath | None] = new
        client, path = new
        try:
            if path is not None and self._path is old[1]:
                handover = Handover(old[1], path, self._subscriptions)
                await self._hand_over(handover)
                self._switch(client, handover)
                of_no_use = old
                await asyncio.sleep(_LISTEN_TO_BOTH)
        except (Disconnected, TimeoutError) as failure:
            log.info("could not move to another server: %s", failure)
            if not self._through.is_set():  # the old one is not listened to any more
                self.lose()
                self._down()  # what is held waits for the next connection
        finally:
            self._mover = None  # from here on it must not be cancelled by a loss
            self._stay()
            await end(*of_no_use)
        if self.connected and self._client in self._ducks:
            self._leave_server()

    async def _hand_over(self, handover: Handover) -> None:
        """Listen on both connections, then empty the old one while messages wait here."""
        self._handover = handover
        handover.begin(self._leaving)
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await handover.new.ping()
        await asyncio.sleep(_LISTEN_TO_BOTH)
        _require(handover.new)
        self._through.clear()
        self.publish = self._hold
        handover.leave_old()
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await handover.old.ping()
        _require(handover.new)

    def _switch(self, client: Client, handover: Handover) -> None:
        """Use the new connection alone."""
        self._client, self._path = client, handover.new
        self._learn(client)
        handover.end()
        self._send_by(handover.new, client)
        self._through.set()
        log.info("moved to %s", self.server_url)

    def _stay(self) -> None:
        """Go on with one connection: the new one, or the old one if the move was not completed."""
        handover, self._handover = self._handover, None
        if handover is not None:
            if handover.is_over:
                handover.settle()
            else:
                handover.give_up()
        if not self._through.is_set():
            self._through.set()
            if self.connected and self._client is not None and self._path is not None:
                self._send_by(self._path, self._client)

    async def _move_no_more(self) -> None:
        """Give up a move that is under way."""
        mover, self._mover = self._mover, None
        if mover is not None and not mover.done():
            mover.cancel()
            await asyncio.wait({mover})

    async def close(self) -> None:
        """Send what waits and end the connection; nothing is delivered any more."""
        self._closing = True
        if self._path is not None and self.connected:
            await self._move_no_more()
            try:
                await self.barrier(timeout=CLOSE_TIMEOUT)
            except BusmicroError as failure:
                log.debug("what waited may not have left: %s", failure)
        await self._tasks.cancel()
        self._down()
        await self._discard()
        self._subscriptions.clear()
        self._listeners.clear()

    def lose(self) -> None:
        """Give this connection up and make another, as if the network had failed."""
        if isinstance(self._path, FastPath):
            self._path.abort()
        else:
            self._lost.set()

    # --- what Transport promises ----------------------------------------------------------------

    async def wait_connected(self) -> None:
        """Return when it is up."""
        await self._up.wait()

    @property
    def server_url(self) -> str:
        """The server it is connected to, without secrets; empty while the connection is down."""
        url = self._client.connected_url if self._client else None
        return hide_secrets(url.geturl()) if url else ""

    @property
    def client(self) -> Client | None:
        """What nats-py has made of this connection; None while it is down."""
        return self._client if self.connected else None

    @property
    def writable(self) -> bool:
        """Does the server keep up with what is sent?"""
        return self._path is None or self._path.writable

    async def drained(self) -> None:
        """Return when the server keeps up again."""
        if self._path is not None:
            await self._path.drained()

    def _hold(
        self, subject: bytes, payload: bytes, reply: bytes = b"", header: bytes = b""
    ) -> None:
        """Keep a message until the connection is back: what `publish` does while it is down."""
        size = len(payload) + len(header)
        if self._closing:
            raise Disconnected("the connection is closed", not_run=True)
        if size > self.max_payload_bytes:
            raise PayloadTooLarge(size, self.max_payload_bytes)
        size += len(subject) + len(reply) + _HELD_OVERHEAD_BYTES
        if self._held_bytes + size > self._settings.max_buffered_bytes:
            raise overfull(self._settings.max_buffered_bytes)
        self._held_bytes += size
        self._held.append((subject, payload, reply, header))

    def subscribe(self, subject: str, on_message: OnMessage, *, queue: str = "") -> Subscription:
        """Listen to a subject; see `Transport.subscribe`."""
        subscription = Subscription(b"b%d" % next(sids), subject, queue, on_message)
        self._subscriptions[subscription.sid] = subscription
        if self._handover is not None:
            self._handover.subscribe(subscription)
        elif isinstance(self._path, FastPath):
            self._path.write(sub_command(subscription))
        elif self._path is not None:
            self._path.subscribe(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop listening; see `Transport.unsubscribe`."""
        command = b"UNSUB %b\r\n" % subscription.sid
        if self._handover is not None:
            self._handover.write(command)
        elif isinstance(self._path, FastPath):
            self._path.write(command)
        elif self._path is not None:
            self._path.unsubscribe(subscription)
        self._leaving.add(subscription.sid)  # messages on their way must still find the entry

    async def barrier(self, *, timeout: float = 5.0) -> None:
        """Return when the server has dealt with everything sent before."""
        leaving = tuple(self._leaving)
        try:
            async with asyncio.timeout(timeout):
                await self._through.wait()
                await self._pong()
        except TimeoutError as late:
            raise DeadlineExceeded(f"NATS did not answer a ping within {timeout} s") from late
        for sid in leaving:
            self._subscriptions.pop(sid, None)
            self._leaving.discard(sid)

    async def _pong(self) -> None:
        if self._path is None or not self.connected:
            raise Disconnected("the connection to NATS is down", not_run=True)
        await (self._path.ping() if self._handover is None else self._handover.barrier())

    def listen(self, listener: Listener) -> None:
        """Tell this listener of what happens to the connection."""
        self._listeners.append(listener)

    def unlisten(self, listener: Listener) -> None:
        """Tell this listener no more."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def _denied(self, text: str) -> None:
        denied = denied_subject(text)
        if denied is None:
            return
        what, subject = denied
        log.error("NATS does not permit this client's %s to %s", what, subject)
        if what == "publish":
            for listener in tuple(self._listeners):
                listener.on_publish_denied(subject)
            return
        for subscription in self._subscriptions.values():
            if subscription.subject.casefold() == subject.casefold():
                subscription.denied = True


def _require(path: FastPath) -> None:
    if path.lost:
        raise Disconnected("the new connection dropped", not_run=True)


def require_allowed(*subscriptions: Subscription) -> None:
    """Raise `PermissionDenied` if the server refused any of these, known after a barrier."""
    denied = [s.subject for s in subscriptions if s.denied]
    if denied:
        raise PermissionDenied(
            f"NATS does not permit subscribing to {', '.join(denied)}; "
            "grant it to this user, or set BUSMICRO_INBOX_PREFIX if it is an inbox",
            not_run=True,
        )
