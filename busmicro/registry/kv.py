"""The registry in a key-value bucket of JetStream.

Two kinds of keys.  `node.<service>.<node>` is a heartbeat, a few hundred bytes, written again every
third of its time to live.  `service.<service>.<hash>` is what nodes of the same code share: the
description, written by whoever misses it, and written again while somebody uses it.

Reading: one request gives a snapshot of everything.  Watching: a plain subscription hears puts
and deletes as they are sent, a snapshot at the start, after every reconnect and every minute
corrects what it missed, and silence is noticed here.  No consumer on the server is involved, so
there is none that could die.

Source: docs/protocol.md (Registry); NATS ADR-8.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Literal

from pydantic import BaseModel, Field, ValidationError

from busmicro.clock import SYSTEM_CLOCK, Clock
from busmicro.errors import BusmicroError, CallError, Disconnected, SetupError
from busmicro.registry.base import (
    Change,
    Complaints,
    Description,
    Node,
    ServiceRecord,
    assemble,
    fingerprint,
    log,
    without_schemas,
)
from busmicro.registry.watch import LiveView, Sighting
from busmicro.tasks import Tasks
from busmicro.transport import (
    Bucket,
    Entry,
    JetStream,
    Replies,
    Subscription,
    Transport,
    bucket_name,
    check_node,
    check_service,
)

MAX_HEARTBEAT_BYTES: Final = 512
DESCRIPTION_TTL: Final = 3600.0
RESYNC_EVERY: Final = 60.0
RETURN_GRACE: Final = 3.0
"""Seconds after a lost connection that others get to say they are there."""
SETTLE: Final = 2.0
"""Seconds for which word of mouth beats a snapshot, which may be read before it is written."""
_FIRST_RETRY: Final = 0.25
_GOOD_BYE: Final = 2.0
"""Seconds that a good-bye may take; a registry that hangs must not keep a service from stopping."""


class _Heartbeat(BaseModel, defer_build=True):
    """What `node.<service>.<node>` holds."""

    v: Literal[1]
    version: str
    started: str = ""
    metadata: dict[str, str] = Field(default_factory=dict)
    running: int = Field(default=0, ge=0)
    description: str = ""
    ttl: float = Field(gt=0, le=86_400)


class _Stored(Description):
    """What `service.<service>.<hash>` holds."""

    v: Literal[1]


def encode_node(node: Node, ttl: float) -> bytes:
    """Write a heartbeat.

    Args:
        node: Who.
        ttl: Seconds of silence after which readers take it to be gone.
    """
    beat = _Heartbeat(v=1, ttl=ttl, **node.model_dump(exclude={"service", "id"}))
    return beat.model_dump_json(exclude_defaults=True).encode()


def decode_node(key: str, value: bytes) -> tuple[Node, float]:
    """Read a heartbeat: the node and its time to live.

    Raises:
        ValueError: It is none, or one of another version.
    """
    service, node = _names(key)
    beat = _Heartbeat.model_validate_json(value)
    fields = beat.model_dump(exclude={"v", "ttl"})
    return Node(service=service, id=check_node(node), **fields), beat.ttl


def encode_description(description: Description, limit_bytes: int) -> bytes:
    """Write a description, without schemas if it would be longer than that."""
    payload = _Stored(v=1, **dict(description)).model_dump_json(exclude_defaults=True).encode()
    if len(payload) > limit_bytes and description != (slim := without_schemas(description)):
        return encode_description(slim, limit_bytes)
    return payload


def decode_description(key: str, value: bytes) -> tuple[tuple[str, str], Description]:
    """Read a description, with the service and hash it belongs to.

    Raises:
        ValueError: It is none, or one of another version.
    """
    service, digest = _names(key)
    stored = _Stored.model_validate_json(value)
    return (service, digest), Description(service=service, endpoints=stored.endpoints)


def _names(key: str) -> tuple[str, str]:
    words = key.split(".")
    if len(words) != 3:
        raise ValueError("the key must have three words")
    return check_service(words[1]), words[2]


class _Reader:
    """Makes nodes and descriptions of what the bucket holds; skips what it cannot read."""

    def __init__(self) -> None:
        self._complaints = Complaints()

    def node(self, key: str, value: bytes) -> tuple[Node, float] | None:
        try:
            return decode_node(key, value)
        except ValueError as wrong:
            self._complaints.about(f"registry entry {key!r}", _brief(wrong))
            return None

    def description(self, key: str, value: bytes) -> tuple[tuple[str, str], Description] | None:
        try:
            return decode_description(key, value)
        except ValueError as wrong:
            self._complaints.about(f"registry entry {key!r}", _brief(wrong))
            return None

    def sightings(self, entries: dict[str, Entry], now: float) -> list[Sighting]:
        found = []
        for key, entry in entries.items():
            if key.startswith("node.") and (known := self.node(key, entry.value)) is not None:
                node, ttl = known
                heard = now - entry.age
                found.append(Sighting(node, ttl, heard, heard + ttl))
        return found

    def descriptions(self, entries: dict[str, Entry]) -> dict[tuple[str, str], Description]:
        read = (
            self.description(key, entry.value)
            for key, entry in entries.items()
            if key.startswith("service.")
        )
        return dict(known for known in read if known is not None)


def _brief(wrong: ValueError) -> str:
    if isinstance(wrong, ValidationError):
        first = wrong.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
    return str(wrong)


class _Follower:
    """Keeps a view of the bucket true."""

    def __init__(self, bucket: Bucket, transport: Transport, reader: _Reader, clock: Clock) -> None:
        self.view = LiveView(clock)
        self.descriptions: dict[tuple[str, str], Description] = {}
        self._bucket = bucket
        self._transport = transport
        self._reader = reader
        self._clock = clock
        self._fresh: dict[tuple[str, str], Description] = {}
        self._subscription: Subscription | None = None
        self._sync_at = 0.0
        self._created = ""
        self._connected_at = 0.0
        self._trusted = False
        self._syncing = asyncio.Lock()
        self._tasks = Tasks()

    async def start(self) -> None:
        """Listen, take a snapshot, and stay up to date from then on.

        Raises:
            CallError: The bucket cannot be read now. Nothing is left behind.
        """
        self._subscription = self._bucket.listen(self._on_entry)
        try:
            await self._transport.barrier()
            await self._sync()
        except BaseException:
            await self.stop()
            raise
        self._tasks.spawn(self._run(), name="busmicro registry watch")

    async def stop(self) -> None:
        """Listen no more."""
        await self._tasks.cancel()
        if self._subscription is not None:
            self._transport.unsubscribe(self._subscription)
        self._subscription = None

    def _on_entry(self, key: str, value: bytes | None) -> None:
        if key.startswith("service."):
            if value is not None and (read := self._reader.description(key, value)) is not None:
                self._fresh[read[0]] = self.descriptions[read[0]] = read[1]
        elif not key.startswith("node."):
            return
        elif value is not None:
            if (known := self._reader.node(key, value)) is not None:
                self.view.put(*known)
        elif key.count(".") == 2:
            _kind, service, node = key.split(".")
            self.view.remove(service, node)

    async def _run(self) -> None:
        while True:
            now = self._clock.now()
            wake_at = max(min(self.view.next_expiry, self._sync_at, now + 1.0), now + 0.02)
            await self._clock.sleep(wake_at - now)
            now = self._clock.now()
            if now >= self._sync_at or now > wake_at + 1.0:  # late: there is much yet to be read
                await self.sync()
            if self._trusted:  # else nobody can be heard: the last good copy stays
                self.view.expire()

    async def sync(self) -> None:
        """Take a snapshot; if that fails, try again soon."""
        try:
            async with self._syncing:
                await self._sync()
        except BusmicroError as failure:
            log.debug("no snapshot of the registry: %s", failure)
            self._trusted = False
            self._sync_at = self._clock.now() + 1.0

    async def _sync(self) -> None:
        since = max(self._clock.now() - SETTLE, self._connected_at)
        self._fresh.clear()
        entries = await self._entries()
        seen = self._reader.sightings(entries, self._clock.now())
        is_new = self._bucket.created != self._created  # then whoever is missing has yet to write
        self.view.compare(seen, since=since, grace=RETURN_GRACE if is_new else 0.0)
        self._created = self._bucket.created
        self.descriptions = {**self._reader.descriptions(entries), **self._fresh}
        self._trusted = True
        self._sync_at = self._clock.now() + RESYNC_EVERY

    async def _entries(self) -> dict[str, Entry]:
        try:
            return await self._bucket.snapshot() if await self._bucket.open(create=False) else {}
        except CallError:
            self._bucket.forget()
            raise

    def on_disconnected(self) -> None:
        """Trust nothing until the next snapshot."""
        self._trusted = False

    def on_connected(self) -> None:
        """Take a snapshot now."""
        self._connected_at = self._clock.now()
        self._tasks.spawn(self.sync(), name="busmicro registry snapshot")


class _Own:
    """A node that this process keeps known."""

    def __init__(self, node: Node, description: Description) -> None:
        self.digest = fingerprint(description)
        self.node = node.model_copy(update={"description": self.digest})
        self.description = description
        self.described_until = 0.0
        self.failures = 0
        self.task: asyncio.Task[None] | None = None


class KvRegistry:
    """Who is up, kept in a bucket.

    Args:
        transport: The connection.
        replies: Where answers arrive.
        namespace: Registries of different namespaces do not see one another.
        ttl: Seconds of silence after which a node of this process is gone, 1 or more.
        description_ttl: Seconds that a description is kept after its last use.
        clock: Tells time and waits.
        running: Tells how many requests this process works on now.
    """

    def __init__(
        self,
        transport: Transport,
        replies: Replies,
        *,
        namespace: str = "",
        ttl: float = 30.0,
        description_ttl: float = DESCRIPTION_TTL,
        clock: Clock = SYSTEM_CLOCK,
        running: Callable[[], int] = lambda: 0,
    ) -> None:
        if ttl < 1:
            raise SetupError(
                f"registry_ttl is {ttl} s; NATS counts whole seconds, so 1 is the least"
            )
        self.jetstream = JetStream(transport, replies)
        self.bucket = Bucket(
            self.jetstream, bucket_name(namespace, "registry"), oldest=description_ttl
        )
        self.running = running
        """Tells how many requests this process works on now."""
        self._transport = transport
        self._ttl = ttl
        self._description_ttl = description_ttl
        self._clock = clock
        self._reader = _Reader()
        self._own: dict[tuple[str, str], _Own] = {}
        self._follower: _Follower | None = None
        self._starting = asyncio.Lock()
        self._tasks = Tasks()
        transport.listen(self)

    # --- Listener -------------------------------------------------------------------------------

    def on_connected(self) -> None:
        """Say at once that we are there: after a restart of the server nobody knows."""
        self.bucket.forget()
        for own in self._own.values():
            own.described_until = 0.0
            self._keep(own, pause=0.0)
        if self._follower is not None:
            self._follower.on_connected()

    def on_disconnected(self) -> None:
        """Note that nothing is heard any more."""
        self.bucket.forget()
        if self._follower is not None:
            self._follower.on_disconnected()

    def on_publish_denied(self, subject: str) -> None:
        """Nothing to do: whoever waits for the answer is told."""

    # --- being known ----------------------------------------------------------------------------

    async def register(self, node: Node, description: Description) -> None:
        """Make a node known and keep it known; see `Registry.register`."""
        key = (node.service, node.id)
        own = self._adopt(node, description)
        try:
            await self._beat(own)
        except BaseException:
            if self._own.get(key) is own:
                self._release(key)
            raise
        if self._own.get(key) is own:
            self._keep(own, pause=self._interval())

    def keep(self, node: Node, description: Description) -> None:
        """Make a node known as soon as that is possible, without waiting for it.

        Args:
            node: Who; replaces what was known of the same id.
            description: What it offers.
        """
        self._keep(self._adopt(node, description), pause=_FIRST_RETRY)

    def _adopt(self, node: Node, description: Description) -> _Own:
        check_service(node.service)
        check_node(node.id)
        key = (node.service, node.id)
        self._release(key)
        own = self._own[key] = _Own(node, description)
        size = len(encode_node(own.node, self._ttl))
        if size > MAX_HEARTBEAT_BYTES:
            log.warning(
                "the metadata of %s makes each heartbeat %d bytes long, more than %d: "
                "every watcher hears it every %.0f s, so keep it short",
                node.service,
                size,
                MAX_HEARTBEAT_BYTES,
                self._ttl / 3,
            )
        return own

    def _release(self, key: tuple[str, str]) -> _Own | None:
        own = self._own.pop(key, None)
        if own is not None and own.task is not None:
            own.task.cancel()
        return own

    def _keep(self, own: _Own, *, pause: float) -> None:
        if own.task is not None:
            own.task.cancel()
        own.task = self._tasks.spawn(
            self._beat_for_ever(own, pause), name=f"busmicro heartbeat of {own.node.service}"
        )

    async def _beat_for_ever(self, own: _Own, pause: float) -> None:
        while True:
            await self._clock.sleep(pause)
            if not self._transport.connected:
                pause = self._ttl  # `on_connected` starts this anew
                continue
            try:
                await self._beat(own)
            except Exception as failure:
                pause = self._failed(own, failure)
            else:
                pause = self._succeeded(own)

    def _failed(self, own: _Own, failure: Exception) -> float:
        own.failures += 1
        own.described_until = 0.0
        self.bucket.forget()
        if own.failures == 1:
            log.info("%s %s is not in the registry: %s", own.node.service, own.node.id, failure)
        ceiling = min(_FIRST_RETRY * 2.0 ** min(own.failures, 16), self._ttl / 3)
        return random.uniform(0.5, 1.0) * ceiling  # noqa: S311 - spreads load, hides nothing

    def _succeeded(self, own: _Own) -> float:
        if own.failures:
            own.failures = 0
            log.info("%s %s is in the registry", own.node.service, own.node.id)
        return self._interval()

    def _interval(self) -> float:
        return self._ttl / 3 * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, hides nothing

    async def _beat(self, own: _Own) -> None:
        await self.bucket.open()
        if self._clock.now() >= own.described_until:
            await self._describe(own)
        node = own.node.model_copy(update={"running": max(0, self.running())})
        await self.bucket.put(_node_key(node), encode_node(node, self._ttl), ttl=self._ttl)

    async def _describe(self, own: _Own) -> None:
        """Make sure that the description is there and stays there until the next look."""
        key = f"service.{own.node.service}.{own.digest}"
        known = await self.bucket.get(key)
        third = self._description_ttl / 3
        age = known.age if known is not None else third
        if age >= third:
            payload = encode_description(own.description, self._transport.max_payload_bytes // 2)
            await self.bucket.put(key, payload, ttl=self._description_ttl)
            age = 0.0
        own.described_until = self._clock.now() + max(third - age, self._ttl)

    async def deregister(self, node: Node) -> None:
        """Make a node unknown at once; see `Registry.deregister`."""
        if self._release((node.service, node.id)) is None:
            return
        try:
            async with asyncio.timeout(_GOOD_BYE):
                if await self.bucket.open(create=False):
                    await self.bucket.delete(_node_key(node))
        except (BusmicroError, TimeoutError) as failure:
            log.debug("%s stays in the registry until its time is over: %s", node.id, failure)

    # --- asking ---------------------------------------------------------------------------------

    async def service(self, name: str) -> ServiceRecord | None:
        """Find a service; see `Registry.service`."""
        check_service(name)
        found = await self._records(name)
        return found[0] if found else None

    async def services(self) -> list[ServiceRecord]:
        """List every service; see `Registry.services`."""
        return await self._records(None)

    async def _records(self, name: str | None) -> list[ServiceRecord]:
        if self._follower is not None:
            return assemble(self._follower.view.nodes(name), self._follower.descriptions)
        patterns = (f"node.{name}.*", f"service.{name}.*") if name else ("node.>", "service.>")
        if not await self.bucket.open(create=False):
            return []
        try:
            entries = await self.bucket.snapshot(*patterns)
        except CallError:
            self.bucket.forget()
            raise
        seen = self._reader.sightings(entries, 0.0)
        alive = [s.node for s in seen if s.expires > 0.0]
        return assemble(alive, self._reader.descriptions(entries))

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[Change]]:
        """Hear of everyone who is there, then of every change; see `Registry.watch`."""
        follower = await self._follow()
        watcher = follower.view.watcher()
        try:
            yield watcher
        finally:
            follower.view.dismiss(watcher)
            if not follower.view.watched and self._follower is follower:
                self._follower = None
                await follower.stop()

    async def _follow(self) -> _Follower:
        async with self._starting:
            if self._follower is None:
                if not self._transport.connected:
                    raise Disconnected("not connected to NATS", not_run=True)
                follower = _Follower(self.bucket, self._transport, self._reader, self._clock)
                await follower.start()
                self._follower = follower
            return self._follower

    async def close(self) -> None:
        """Deregister what was registered here and end every watcher."""
        for own in tuple(self._own.values()):
            await self.deregister(own.node)
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.view.close()
            await follower.stop()
        await self._tasks.cancel()


def _node_key(node: Node) -> str:
    return f"node.{node.service}.{node.id}"
