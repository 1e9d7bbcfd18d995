"""The connection to NATS: made by nats-py, kept alive here.

nats-py can come back from some losses by itself, gives up on others for good, and hangs on a few
(`docs/adr/0004-one-way-back.md`).  So there is one way back from every loss: the nats-py client is
thrown away, a new one is made, every subscription is sent again.  `_keep_alive` is that loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Iterator
from typing import Any

from nats.aio.client import Client

from busmicro.errors import (
    BusmicroError,
    DeadlineExceeded,
    Disconnected,
    PayloadTooLarge,
    PermissionDenied,
    ResourceExhausted,
    SetupError,
)
from busmicro.settings import Settings
from busmicro.tasks import Tasks
from busmicro.transport.base import Listener, OnMessage, Publish, Subscription
from busmicro.transport.errors import denied_subject, explain, hide_secrets, is_refusal
from busmicro.transport.fastpath import (
    DEFAULT_MAX_PAYLOAD_BYTES,
    FastPath,
    overfull,
    sids,
    sub_command,
)
from busmicro.transport.websocket import PlainPath

log = logging.getLogger("busmicro.transport")

_FIRST_WAIT = 0.05
_CLOSE_TIMEOUT = 2.0
_SAY_EVERY = 10.0
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
        self._path: FastPath | PlainPath | None = None
        self._lost = asyncio.Event()
        self._up = asyncio.Event()
        self._closing = False
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
                return await self._round()
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

    async def _round(self) -> None:
        """Try each server once."""
        failure: BusmicroError | None = None
        for url in random.sample(self._urls, len(self._urls)):
            try:
                return await self._attempt(url)
            except BusmicroError as error:
                failure = error
                if not isinstance(error, Disconnected):
                    break
        raise failure or Disconnected("no server is named in BUSMICRO_NATS_URL", not_run=True)

    async def _attempt(self, url: str) -> None:
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
            await self._release(client)
            if not isinstance(error, Exception):
                raise
            if isinstance(error, BusmicroError):
                raise
            causes.append(error)
            raise explain(next(filter(is_refusal, causes), causes[0]), url) from error
        await self._established(client, path)

    async def _release(self, client: Client) -> None:
        """Close what nats-py leaves open when it could not connect."""
        wire = client._transport  # noqa: SLF001 - the same private name
        if isinstance(wire, FastPath):
            wire.abort()
        elif wire:
            try:
                async with asyncio.timeout(_CLOSE_TIMEOUT):
                    wire.close()  # type: ignore[no-untyped-call]
                    await wire.wait_closed()  # type: ignore[no-untyped-call]
            except Exception as error:
                log.debug("a WebSocket did not close in order: %s", error)

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

        await client.connect(
            url,
            error_cb=on_error,
            closed_cb=on_closed,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            **self._options(),
        )

    def _options(self) -> dict[str, Any]:
        """Say with nats-py's words what the settings say."""
        s = self._settings
        options: dict[str, Any] = {
            "name": s.name or None,
            "connect_timeout": s.connect_timeout,
            "ping_interval": s.ping_interval,
            "max_outstanding_pings": 2,
            "inbox_prefix": s.inbox_prefix,
            "user": s.user,
            "password": s.password.get_secret_value() if s.password else None,
            "token": s.token.get_secret_value() if s.token else None,
            "nkeys_seed_str": s.nkey_seed.get_secret_value() if s.nkey_seed else None,
            "user_credentials": str(s.creds) if s.creds else None,
            "tls_handshake_first": s.tls_first,
        }
        if s.tls_ca or s.tls_cert or s.tls_first:
            options["tls"] = _tls_context(s)
        if s.tls_hostname:
            options["tls_hostname"] = s.tls_hostname
        return options

    def _fast_path(self) -> FastPath:
        return FastPath(
            self._subscriptions,
            on_denied=self._denied,
            on_lost=self._on_path_lost,
            max_waiting_bytes=self._settings.max_buffered_bytes,
        )

    async def _established(self, client: Client, path: FastPath | None) -> None:
        if path is not None and path.lost:
            raise Disconnected("the connection dropped at once", not_run=True)
        self._client, self._lost = client, asyncio.Event()
        for sid in self._leaving:
            self._subscriptions.pop(sid, None)
        self._leaving.clear()
        self.max_payload_bytes = client.max_payload
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
        self._path.max_payload_bytes = client.max_payload
        self.publish = self._path.publish
        held, self._held, self._held_bytes = self._held, [], 0
        for message in held:
            self._publish_held(message)
        self.connected = True
        self._up.set()
        log.debug(
            "connected to %s",
            hide_secrets(str(client.connected_url and client.connected_url.geturl())),
        )
        for listener in tuple(self._listeners):
            listener.on_connected()

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
                return await self._round()
            except BusmicroError as failure:
                if loop.time() >= say_at:
                    say_at += _SAY_EVERY
                    log.warning("still without NATS: %s", failure)
            if self._closing:
                break
            await asyncio.sleep(pause)
        return None

    async def _discard(self) -> None:
        """End a nats-py client; what it has to say about that is of no interest."""
        client, path, self._client, self._path = self._client, self._path, None, None
        if isinstance(path, PlainPath):
            await path.stop()
        if client is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await client.close()
        except Exception as error:
            log.debug("nats-py did not close in order: %s", error)
        if isinstance(path, FastPath):
            path.abort()

    async def close(self) -> None:
        """Send what waits and end the connection; nothing is delivered any more."""
        self._closing = True
        if self._path is not None and self.connected:
            try:
                await self.barrier(timeout=_CLOSE_TIMEOUT)
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
        if isinstance(self._path, FastPath):
            self._path.write(sub_command(subscription))
        elif self._path is not None:
            self._path.subscribe(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop listening; see `Transport.unsubscribe`."""
        if isinstance(self._path, FastPath):
            self._path.write(b"UNSUB %b\r\n" % subscription.sid)
        elif self._path is not None:
            self._path.unsubscribe(subscription)
        self._leaving.add(subscription.sid)  # messages on their way must still find the entry

    async def barrier(self, *, timeout: float = 5.0) -> None:
        """Return when the server has dealt with everything sent before."""
        if self._path is None or not self.connected:
            raise Disconnected("the connection to NATS is down", not_run=True)
        leaving = tuple(self._leaving)
        try:
            async with asyncio.timeout(timeout):
                await self._path.ping()
        except TimeoutError as late:
            raise DeadlineExceeded(f"NATS did not answer a ping within {timeout} s") from late
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


def _tls_context(settings: Settings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca)
        if settings.tls_cert:
            context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except OSError as unusable:  # ssl.SSLError is one; it does not say which file
        raise SetupError(
            "BUSMICRO_TLS_CA, BUSMICRO_TLS_CERT and BUSMICRO_TLS_KEY must name PEM files that "
            f"can be read and belong together ({unusable})"
        ) from unusable
    return context


def require_allowed(*subscriptions: Subscription) -> None:
    """Raise `PermissionDenied` if the server refused any of these, known after a barrier."""
    denied = [s.subject for s in subscriptions if s.denied]
    if denied:
        raise PermissionDenied(
            f"NATS does not permit subscribing to {', '.join(denied)}; "
            "grant it to this user, or set BUSMICRO_INBOX_PREFIX if it is an inbox",
            not_run=True,
        )
