"""One run of a service: from its connection to the end of it.

Start: connect (wait for NATS if need be) → `lifespan` → streams, schedules and subscriptions →
endpoints, pass a barrier → register.
Stop: deregister → unsubscribe, pass a barrier → finish what runs → `lifespan` ends → disconnect.
In this order no caller ever meets a node that cannot answer, and no event a node that cannot
handle it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Any

from busmicro.bus import Bus
from busmicro.call import Wrapper
from busmicro.client import Client
from busmicro.clock import SYSTEM_CLOCK
from busmicro.codecs import json_schema
from busmicro.pubsub import Cron, CronTable, Subscriber, Subscribers, Subscriptions, Topic
from busmicro.registry import Description, EndpointRecord, Node
from busmicro.rpc import (
    HEALTH,
    STATS,
    Endpoint,
    Endpoints,
    Monitor,
    RpcServer,
    SubscriberFigures,
    iso,
)
from busmicro.settings import Settings
from busmicro.tasks import Tasks
from busmicro.transport import QUEUE_GROUP
from busmicro.wrappers import Recover

_LOOK_FOR_STREAMS_EVERY = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a service is made of, as it stands when it starts."""

    name: str
    """What callers call it."""
    version: str
    """Three numbers."""
    id: str
    """The node's id."""
    metadata: Mapping[str, str]
    """Shown to whoever looks the service up."""
    endpoints: Endpoints
    """What answers requests."""
    subscribers: Subscribers
    """What handles events."""
    published: Sequence[Topic[Any]]
    """The topics it publishes to."""
    crons: Sequence[Cron]
    """The events that recur."""
    client_wrappers: Sequence[Wrapper]
    """Put around calls and events that go out."""
    handler_wrappers: Sequence[Wrapper]
    """Put around every handler."""
    lifespan: Callable[[], AbstractAsyncContextManager[object]] | None
    """Entered once connected, left after the last request."""


class Life:
    """One run of a service, from its connection to the end of it."""

    def __init__(self, parts: Parts, settings: Settings) -> None:
        self.ending = False
        self.bus = Bus(settings)
        self.client = Client.on(self.bus, wrappers=parts.client_wrappers, name=parts.name)
        self._parts = parts
        self._node = Node(
            service=parts.name,
            id=parts.id,
            version=parts.version,
            started=iso(SYSTEM_CLOCK.wall()),
            metadata=dict(parts.metadata),
        )
        self._endpoints = parts.endpoints
        self._monitor = Monitor(self._node, self._endpoints, self.bus)
        self._endpoints.add(self._monitor.health, HEALTH)
        self._endpoints.add(self._monitor.stats, STATS)
        self.server = RpcServer(parts.name, parts.id, self._endpoints, self.bus)
        declarations = self.client.publisher.declarations
        self.subscriptions = Subscriptions(parts.name, parts.subscribers, self.bus, declarations)
        self._crons = CronTable(declarations, self.bus.subjects, parts.name)
        self._monitor.running = lambda: self.running
        self._monitor.subscribers = lambda: [*map(_figures, parts.subscribers)]
        self._monitor.refused = lambda: self.server.refused_replies
        self._stack = AsyncExitStack()
        self._tasks = Tasks()

    @property
    def running(self) -> int:
        """Requests and events that are being handled now."""
        return self.server.running + self.subscriptions.running

    async def begin(self, *, wait: bool) -> None:
        """Connect, serve and register; raises as `Service.start`."""
        await self.bus.open(wait=wait)
        parts = self._parts
        if parts.lifespan is not None:
            await self._stack.enter_async_context(parts.lifespan())
        await self._start_events(parts.handler_wrappers)
        await self.server.start([*parts.handler_wrappers, Recover()])
        self.bus.discovery.publishes(
            stats=self._monitor.service_stats,
            running=lambda: self.running,
            replies_allowed=self.server.replies_allowed,
        )
        await self.bus.discovery.register(self._node, self.description())
        kept = await self.bus.discovery.stream_subjects()
        self._protect(kept)
        await self._crons.clean_up(parts.crons, kept)
        self._tasks.spawn(self._keep_protecting(), name=f"{parts.name} stream subjects")

    async def _start_events(self, wrappers: Sequence[Wrapper]) -> None:
        """Make the streams, write the schedules, listen to the topics."""
        parts = self._parts
        await self.client.publisher.declarations.ensure(*parts.published)
        await self.subscriptions.start(wrappers)
        await self._crons.write(parts.crons)

    def _protect(self, subjects: list[str]) -> None:
        self.server.replies_allowed.protect(subjects)

    async def _keep_protecting(self) -> None:
        """Learn of streams that were made later; see `ReplyPolicy`."""
        while True:
            await asyncio.sleep(_LOOK_FOR_STREAMS_EVERY)
            self._protect(await self.bus.discovery.stream_subjects())

    async def end(self, *, grace: float) -> None:
        """Deregister, take nothing new, finish what runs within so many seconds, disconnect."""
        self.ending = self._monitor.stopping = True
        await self._tasks.cancel()
        await self.bus.discovery.deregister(self._node)
        await asyncio.gather(self.server.stop(grace), self.subscriptions.stop(grace))
        try:
            await self._stack.aclose()
        finally:
            await self.bus.close()

    def description(self) -> Description:
        """Tell what the service offers."""
        return Description(
            service=self._parts.name,
            endpoints=tuple(map(self._endpoint_record, self._endpoints)),
        )

    def _endpoint_record(self, endpoint: Endpoint) -> EndpointRecord:
        signature, options = endpoint.signature, endpoint.options
        return EndpointRecord(
            name=endpoint.name,
            subject=self.bus.subjects.rpc(self._parts.name, endpoint.name),
            queue_group=QUEUE_GROUP,
            idempotent=options.idempotent,
            timeout=options.timeout,
            doc=signature.doc,
            request=json_schema(signature.request_type),
            reply=json_schema(signature.reply_type),
            metadata=options.metadata,
        )


def _figures(subscriber: Subscriber) -> SubscriberFigures:
    figures = subscriber.figures
    return SubscriberFigures(
        topic=subscriber.topic.subject,
        group=subscriber.options.group,
        handled=figures.handled,
        failed=figures.failed,
        dead=figures.dead,
        dropped=figures.dropped,
        last_error=figures.last_error,
    )
