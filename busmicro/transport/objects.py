"""Payloads that lie in JetStream's object store until they are fetched; `nats object` reads them.

nats-py's object store does the work, on nats-py's half of the connection.  What it leaves open is
closed here: a get whose chunks are gone would wait for ever, one whose connection drops returns
what had arrived as if it were all, both leave their consumer behind, a link leads to any other
bucket, and nothing checks the size before all of it is in memory.

Source: NATS ADR-20 (object store).
"""

from __future__ import annotations

import asyncio
import io
import logging
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import nats.errors
from nats.aio.client import Client
from nats.js import JetStreamContext, api
from nats.js.errors import APIError, BadObjectMetaError, DigestMismatchError, ObjectNotFoundError
from nats.js.object_store import OBJ_DEFAULT_CHUNK_SIZE, ObjectStore

from busmicro.errors import CallError, DataLoss, Disconnected, NoJetStream, Unavailable
from busmicro.tasks import Tasks
from busmicro.transport.base import Transport
from busmicro.transport.errors import MAPPED
from busmicro.transport.jetstream import NAME_IN_USE, TOO_FEW_SERVERS, server_error
from busmicro.transport.nats import NatsTransport
from busmicro.transport.subjects import bucket_name

log = logging.getLogger("busmicro.transport")

KEPT_FOR: Final = 3600
"""Seconds until the server forgets what nobody has fetched."""
_BUCKET_BYTES: Final = 1024 * 1024 * 1024
_ANSWER_WITHIN: Final = 3.0
_PATIENCE: Final = 20.0
_SLOWEST_BYTES: Final = 1_000_000
"""Bytes a second at which a payload has to move at least, besides `_PATIENCE`."""
_TRY_AGAIN_AFTER: Final = 10.0
_NAME: Final = re.compile(r"[0-9a-f]{32}")
_DIGEST: Final = re.compile(r"SHA-256=[A-Za-z0-9_-]{43}=")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Where a payload lies, and what it must be."""

    bucket: str
    """The bucket of the object store."""
    name: str
    """The object: 32 random hex digits, so that nobody finds it who was not told."""
    size_bytes: int
    """What it weighs."""
    digest: str
    """Its SHA-256: `SHA-256=` and the URL-safe base64 of it."""


class Objects:
    """The object store of a namespace, as far as one process uses it.

    Args:
        transport: The connection.
        namespace: Buckets of different namespaces are apart.
    """

    def __init__(self, transport: Transport, *, namespace: str) -> None:
        self.bucket = bucket_name(namespace, "objects")
        """Made when it is first needed, for an hour, up to 1 GiB."""
        self._transport = transport
        self._tasks = Tasks()
        self._scopes: set[asyncio.Timeout] = set()
        self._made_on: Client | None = None
        self._not_before = 0.0
        self._said = ""
        transport.listen(self)

    async def put(self, payload: bytes) -> Claim | None:
        """Store a payload, for an hour or until it is discarded.

        Args:
            payload: What.

        Returns:
            Where it is; None if that cannot be done now, which is said once. After a failure
            nothing is tried for ten seconds.
        """
        if asyncio.get_running_loop().time() < self._not_before:
            return None
        try:
            claim = await self._put(payload)
        except CallError as failure:
            self._made_on = None
            self._not_before = asyncio.get_running_loop().time() + _TRY_AGAIN_AFTER
            if self._said != failure.message:
                self._said = failure.message
                log.warning("large messages go without the object store: %s", failure.message)
            return None
        self._said = ""
        return claim

    async def _put(self, payload: bytes) -> Claim:
        name = secrets.token_hex(16)
        chunk = min(OBJ_DEFAULT_CHUNK_SIZE, self._transport.max_payload_bytes // 2)
        meta = api.ObjectMeta(options=api.ObjectMetaOptions(max_chunk_size=chunk))
        async with self._use(len(payload)) as context:
            if self._made_on is not context.client:
                await self._make(context)
                self._made_on = context.client
            info = await self._store(context).put(name, payload, meta)
        digest = info.digest or ""
        return Claim(bucket=self.bucket, name=name, size_bytes=len(payload), digest=digest)

    async def _make(self, context: _Context) -> None:
        """Make the bucket on three servers if there are so many, else on one."""
        for replicas in (3, 1):
            try:
                await context.create_object_store(
                    self.bucket,
                    ttl=KEPT_FOR,
                    max_bytes=_BUCKET_BYTES,
                    storage=api.StorageType.FILE,
                    replicas=replicas,
                )
            except APIError as refused:
                if refused.err_code == NAME_IN_USE:  # made by somebody who wanted it otherwise
                    return
                if refused.err_code not in TOO_FEW_SERVERS or replicas == 1:
                    raise
            else:
                return

    def is_ours(self, claim: Claim) -> bool:
        """Tell whether a claim names what `put` of this namespace may have made."""
        return claim.bucket == self.bucket and _NAME.fullmatch(claim.name) is not None

    async def get(self, claim: Claim) -> bytes:
        """Fetch a payload; a lost connection is waited for.

        Args:
            claim: One that `is_ours`, of a size that is welcome.

        Returns:
            The payload, of the size and with the digest that the claim says.

        Raises:
            DataLoss: It is gone, or is not what the claim says.
            Unavailable: The object store could not be read in time.
            NoJetStream: There is none.
            CallError: The server's error, as the class that fits.
        """
        try:
            async with asyncio.timeout(_patience(claim.size_bytes)):
                while True:
                    try:
                        return await self._get(claim)
                    except Disconnected:
                        await self._transport.wait_connected()
        except TimeoutError as late:
            raise Unavailable("the connection to NATS was not back in time") from late

    async def _get(self, claim: Claim) -> bytes:
        sink = _Sink(claim.size_bytes)
        async with self._use(claim.size_bytes) as context:
            found = await self._store(context).get(claim.name, writeinto=sink)
            if sink.tell() < claim.size_bytes and not self._transport.connected:
                raise Disconnected("the connection to NATS dropped meanwhile", not_run=False)
        if sink.tell() != claim.size_bytes or found.info.digest != claim.digest:
            raise DataLoss(f"object {claim.name} in {self.bucket} is not what was stored")
        return sink.getvalue()

    def discard(self, claim: Claim) -> None:
        """Delete a payload soon; if that fails, the server does it within the hour."""
        self._tasks.spawn(self._delete(claim), name="busmicro discard")

    async def _delete(self, claim: Claim) -> None:
        try:
            async with self._use(0) as context:
                await self._store(context).delete(claim.name)
        except CallError as failure:
            log.debug("object %s stays until its time is up: %s", claim.name, failure)

    async def close(self) -> None:
        """Finish what is being deleted, for a moment."""
        await self._tasks.wait(_ANSWER_WITHIN)
        await self._tasks.cancel()

    # --- nats-py --------------------------------------------------------------------------------

    def _store(self, context: _Context) -> _Store:
        return _Store(self.bucket, f"OBJ_{self.bucket}", context)

    @asynccontextmanager
    async def _use(self, size_bytes: int) -> AsyncIterator[_Context]:
        """Lend nats-py's JetStream: in time, on this connection, leaving nothing behind."""
        if not isinstance(self._transport, NatsTransport):
            raise NoJetStream
        client = self._transport.client
        if client is None:
            raise Disconnected("not connected to NATS", not_run=True)
        context = _Context(client)
        try:
            async with asyncio.timeout(_patience(size_bytes)) as scope:
                self._scopes.add(scope)
                try:
                    yield context
                finally:
                    self._scopes.discard(scope)
        except asyncio.CancelledError as failure:
            mine = asyncio.current_task()
            if client.is_closed and mine is not None and not mine.cancelling():
                raise _dropped() from failure  # nats-py cancels what waits on a client it closes
            raise
        except (nats.errors.Error, TimeoutError) as failure:
            if self._transport.client is not client:
                raise _dropped() from failure
            raise _explained(failure, self.bucket) from failure
        finally:
            await context.leave()

    # --- Listener -------------------------------------------------------------------------------

    def on_connected(self) -> None:
        """Nothing to do: the bucket is looked at when it is needed next."""

    def on_disconnected(self) -> None:
        """End what is under way: nats-py would wait for answers that do not come."""
        self._not_before = 0.0
        scopes, self._scopes = self._scopes, set()
        for scope in scopes:
            scope.reschedule(0.0)

    def on_publish_denied(self, subject: str) -> None:
        """Nothing to do: the answer does not come, and that is noticed."""


def _dropped() -> Disconnected:
    return Disconnected("the connection to NATS dropped meanwhile", not_run=False)


class _Context(JetStreamContext):
    """nats-py's JetStream, remembering what was subscribed to."""

    def __init__(self, client: Client) -> None:
        super().__init__(client, timeout=_ANSWER_WITHIN)
        self.client = client
        self._opened: list[JetStreamContext.PushSubscription] = []

    async def subscribe(self, *args: Any, **options: Any) -> JetStreamContext.PushSubscription:
        """Subscribe, to be ended with `leave`; only if there is something to get."""
        opened = await super().subscribe(*args, **options)
        self._opened.append(opened)
        consumer = await opened.consumer_info()
        delivered = consumer.delivered.consumer_seq if consumer.delivered else 0
        if not (consumer.num_pending or delivered):  # chunks are older, and go before their object
            raise ObjectNotFoundError
        return opened

    async def leave(self) -> None:
        """End the subscriptions that have not ended."""
        for opened in self._opened:
            with suppress(nats.errors.Error):  # ended, or the connection is gone
                await opened.unsubscribe()


class _Store(ObjectStore):
    """nats-py's object store, for objects that are themselves and in one bucket."""

    async def get_info(self, name: str, show_deleted: bool | None = False) -> api.ObjectInfo:  # noqa: FBT001, FBT002 - nats-py's signature
        """Return what is known of an object, unless it is a link or could not be one of ours."""
        info = await super().get_info(name, show_deleted)
        if not isinstance(info.options, api.ObjectMetaOptions | None):
            raise BadObjectMetaError  # nats-py leaves what is no JSON object as it is
        is_whole = _DIGEST.fullmatch(str(info.digest)) and str(info.nuid).isalnum()
        if info.is_link() or not is_whole:
            raise BadObjectMetaError
        return info


class _Sink(io.BytesIO):
    """Takes so many bytes and no more."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self._most_bytes = most_bytes

    def write(self, chunk: Any) -> int:
        """Take a chunk.

        Raises:
            DataLoss: It is more than there should be.
        """
        if self.tell() + len(chunk) > self._most_bytes:
            raise DataLoss(f"an object is larger than the {self._most_bytes:,} bytes it should be")
        return super().write(chunk)


def _patience(size_bytes: int) -> float:
    return _PATIENCE + size_bytes / _SLOWEST_BYTES


def _explained(failure: Exception, bucket: str) -> CallError:
    """Turn what nats-py raises into an error of ours."""
    if isinstance(failure, ObjectNotFoundError):
        return DataLoss(f"what was stored in bucket {bucket} is not there any more")
    if isinstance(failure, BadObjectMetaError | DigestMismatchError):
        return DataLoss(f"what was stored in bucket {bucket} has been changed")
    if isinstance(failure, APIError) and failure.err_code:
        error = {"code": failure.code, "err_code": failure.err_code}
        return server_error({**error, "description": failure.description}, f"bucket {bucket}")
    if isinstance(failure, nats.errors.NoRespondersError | APIError):
        return NoJetStream()
    if isinstance(failure, TimeoutError):
        return Unavailable(f"bucket {bucket} did not answer in time")
    known = MAPPED.get(type(failure), Unavailable)
    text = f"bucket {bucket}: {str(failure) or type(failure).__name__}"
    return known(text) if issubclass(known, CallError) else Unavailable(text)
