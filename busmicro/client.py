"""A client: calls services, publishes events and listens to them, on one connection."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Self, TypeVar, cast

from busmicro.bus import Bus
from busmicro.call import Wrapper
from busmicro.pubsub import (
    PUBLISH_TIMEOUT,
    Events,
    Publisher,
    PublishOptions,
    Start,
    Stored,
    StoredMany,
    Topic,
    moment,
    publish_many,
)
from busmicro.rpc import DEFAULT_TIMEOUT, Caller, CallOptions
from busmicro.settings import Settings
from busmicro.wrappers import checked

T = TypeVar("T")
_identity = id  # `id` is also what an event has


class Client(Caller):
    """Calls services by name, publishes events and listens to them.

    Args:
        url: Where NATS is; left out, `BUSMICRO_NATS_URL` or `nats://127.0.0.1:4222`.
        wrappers: Put around every call and every event published, the first one outermost. Around
            calls a `Retry` of what certainly did not run is added innermost unless one is given.
        timeout: Seconds for a call that does not say.
        namespace: The prefix that the services were started with.
        wait_for_ready: Wait for a connection and for a node instead of failing at once.
        settings: Everything else; left out, read from `BUSMICRO_*`.

    Raises:
        SetupError: What was given cannot be a wrapper. The text names it and the fix.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        wrappers: Sequence[Wrapper] = (),
        timeout: float = DEFAULT_TIMEOUT,
        namespace: str | None = None,
        wait_for_ready: bool = False,
        settings: Settings | None = None,
    ) -> None:
        given = settings or Settings.load(nats_url=url, namespace=namespace)
        options = CallOptions(timeout=timeout, wait_for_ready=wait_for_ready)
        wrappers = tuple(map(checked, wrappers))
        super().__init__(Bus(given), wrappers=wrappers, options=options, name="")
        self._publisher = Publisher(self._bus, wrappers=wrappers, producer="")

    @classmethod
    def on(cls, bus: Bus, *, wrappers: Sequence[Wrapper], name: str) -> Self:
        """Make a client that uses somebody else's connection and does not close it."""
        client = cls.__new__(cls)
        Caller.__init__(client, bus, wrappers=wrappers, options=CallOptions(), name=name)
        client._publisher = Publisher(bus, wrappers=wrappers, producer=name)  # noqa: SLF001
        return client

    async def __aenter__(self) -> Self:
        await self._bus.open(wait=self._options.wait_for_ready)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self._bus.close()

    # --- events ---------------------------------------------------------------------------------

    @property
    def publisher(self) -> Publisher:
        """What publishes this client's events, and knows the streams they are kept in."""
        return self._publisher

    def publish(
        self,
        topic: Topic[T],
        event: T,
        *,
        id: str | None = None,
        after: float | None = None,
        at: datetime | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = PUBLISH_TIMEOUT,
    ) -> Coroutine[object, object, Stored | None]:
        """Publish an event; with a stream, return once it is stored.

        Args:
            topic: Where; with names in braces, `topic.format(…)`.
            event: What.
            id: What makes it this event. A second one with the same id on the same subject is not
                stored, as long as the stream's `dedup_window` lasts. Left out, it gets its own.
            after: Seconds from now at which the server shall publish it.
            at: The moment, with a time zone, at which the server shall publish it.
            headers: Sent along.
            timeout: Seconds to try until it is stored.

        Returns:
            Where it is stored; None if the topic has no stream.

        Raises:
            PublishUnknown: The time is up, and it may be stored or not. Publish it again with the
                same id.
            StreamFull, StreamMissing, StreamConflict, NoJetStream, NotSupported: Not stored.
            InvalidArgument: It is not what the topic's events are, or cannot be sent. Not stored.
            PayloadTooLarge, PermissionDenied, Unavailable: Not stored.
        """
        plain = self._publisher.plain.get(_identity(topic))
        if plain is not None and id is None and after is None and at is None:
            sent = plain(event, headers)
        else:
            options = PublishOptions(id=id or "", at=moment(after, at), timeout=timeout)
            sent = self._publisher.publish(topic, event, options, headers)
        return cast("Coroutine[object, object, Stored | None]", sent)

    async def publish_many(
        self,
        topic: Topic[T],
        events: Iterable[T] | AsyncIterable[T],
        *,
        id: Callable[[T], str] | None = None,
        in_flight: int = 1000,
        atomic: bool = False,
        timeout: float = PUBLISH_TIMEOUT,
    ) -> StoredMany:
        """Publish many events, in order, without waiting for each; return once all are stored.

        Args:
            topic: Where.
            events: What; taken one by one, as there is room.
            id: Makes the id of an event; see `publish`.
            in_flight: How many may be under way.
            atomic: Store all or none, at most 1,000 (nats-server 2.12 or newer).
            timeout: Seconds to try each.

        Returns:
            How many are stored, and the number of the last.

        Raises:
            NotAllPublished: Some were refused, or nobody knows; `failures` says which and why. None
                that comes after the first failure was sent.
            AlreadyExists: An event of an atomic batch is stored already, by its id, so none of them
                was stored now; after `PublishUnknown` it means that the batch had got through.
            NotSupported: The server has no atomic batches. Nothing was sent.
        """
        return await publish_many(
            self._publisher,
            topic,
            events,
            id_of=id,
            in_flight=in_flight,
            atomic=atomic,
            timeout=timeout,
        )

    def subscribe(
        self,
        topic: Topic[T],
        *,
        group: str | None = None,
        start: Start | None = None,
        waiting: int = 1024,
    ) -> Events[T]:
        """Listen to a topic: `async with client.subscribe(topic) as events: async for event in …`.

        An event that a stream keeps is acknowledged when the next one is asked for, or when the
        block ends well; if it ends with an error, the one at hand is given back.

        Args:
            topic: What to listen to.
            group: Who shares the events: each goes to one member. Left out, all of them come.
            start: With a stream: `"first"`, `"new"`, a moment or a sequence number. Left out,
                `"first"` with a group and `"new"` without.
            waiting: How many events may wait here. Without a stream, more are dropped.

        Raises:
            SetupError: `start` without a stream. The rest is raised when the block is entered.
        """
        return Events(
            self._bus,
            topic,
            self._publisher.declarations,
            group=group or "",
            start=start,
            owner=self._name or "client",
            waiting=waiting,
        )
