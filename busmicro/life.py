"""One run of a service: from its connection to the end of it.

Start: connect (wait for NATS if need be) → `lifespan` → streams, schedules and subscriptions →
endpoints, pass a barrier → register.
Stop: deregister → unsubscribe, pass a barrier → finish what runs → `lifespan` ends → disconnect.
In this order no caller ever meets a node that cannot answer, and no event a node that cannot
handle it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from busmicro.bus import Bus
from busmicro.call import Side, Wrapper
from busmicro.client import Client
from busmicro.clock import SYSTEM_CLOCK
from busmicro.codecs import json_schema
from busmicro.health import (
    HEALTH_KEY,
    SERVING,
    Check,
    CheckRunner,
    Outcome,
    Standing,
    another_serves,
)
from busmicro.pubsub import Cron, CronTable, Subscriber, Subscribers, Subscriptions, Topic
from busmicro.registry import Description, EndpointRecord, Node
from busmicro.rpc import (
    HEALTH,
    STATS,
    CheckReport,
    Endpoint,
    Endpoints,
    Monitor,
    RpcServer,
    SubscriberFigures,
    iso,
)
from busmicro.settings import Settings
from busmicro.tasks import Tasks
from busmicro.telemetry import About, set_up
from busmicro.transport import QUEUE_GROUP
from busmicro.wrappers import Recover

if TYPE_CHECKING:
    from busmicro.gauges import LoopLag, NodeFigures
    from busmicro.probes import Probes

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
    checks: Sequence[Check]
    """What it needs in order to be well."""
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
        self._runner = CheckRunner(parts.checks)
        self.standing = self._standing()
        self._begun = False
        self._monitor.status = lambda: self.standing.status if self._begun else "starting"
        self._monitor.checks = lambda: [*map(_report, self._runner.outcomes.values())]
        self._monitor.running = lambda: self.running
        self._monitor.subscribers = lambda: [*map(_figures, parts.subscribers)]
        self._monitor.refused = lambda: self.server.refused_replies
        self._stack = AsyncExitStack()
        self._tasks = Tasks()
        self.probes: Probes | None = None
        """What answers over HTTP; None unless a port is set."""

    @property
    def running(self) -> int:
        """Requests and events that are being handled now."""
        return self.server.running + self.subscriptions.running

    async def begin(self, *, wait: bool) -> None:
        """Connect, serve and register; raises as `Service.start`."""
        parts = self._parts
        await self._show()
        await self.bus.open(wait=wait)
        if parts.lifespan is not None:
            await self._stack.enter_async_context(parts.lifespan())
        await self._start_events(parts.handler_wrappers)
        await self._runner.begin()
        away = await self.standing.starts_away()
        await self.server.start([*parts.handler_wrappers, Recover()], away=away)
        self._begun = True
        self.bus.discovery.publishes(
            stats=self._monitor.service_stats,
            running=lambda: self.running,
            replies_allowed=self.server.replies_allowed,
        )
        await self.bus.discovery.register(self._node, self.description())
        await self._crons.clean_up(parts.crons, await self._protect_streams())
        self._tasks.spawn(self._keep_protecting(), name=f"{parts.name} stream subjects")
        if parts.checks:
            self._tasks.spawn(self.standing.keep(), name=f"{parts.name} standing")

    async def _show(self) -> None:
        """Let others see from outside how this node is, as far as settings and `OTEL_*` say."""
        parts, settings = self._parts, self.bus.settings
        about = About(
            service=parts.name,
            version=parts.version,
            node=parts.id,
            namespace=settings.namespace,
        )
        set_up(about, scraped=settings.metrics_port is not None)
        if settings.metrics_port is not None or "opentelemetry.metrics" in sys.modules:
            await self._show_figures(settings.metrics_host, settings.metrics_port)

    async def _show_figures(self, host: str, port: int | None) -> None:
        from busmicro.gauges import LoopLag, current_gauges  # noqa: PLC0415 - start-up time
        from busmicro.probes import Probes  # noqa: PLC0415

        lag = LoopLag()
        self._tasks.spawn(lag.keep_measuring(), name=f"{self._parts.name} loop lag")
        if port is not None:
            self.probes = Probes(self._monitor.report, lambda: lag.worst, host=host, port=port)
            await self.probes.start()
            self._stack.push_async_callback(self.probes.stop)
        gauges = current_gauges()
        if gauges is not None:
            figures = self._figures(lag)
            gauges.show(figures)
            self._stack.callback(gauges.hide, figures)

    def _figures(self, lag: LoopLag) -> NodeFigures:
        from busmicro.gauges import NodeFigures  # noqa: PLC0415 - start-up time

        parts = self._parts
        return NodeFigures(
            service=parts.name,
            node=parts.id,
            bus=self.bus,
            running=lambda: self.running,
            waiting=lambda: self.subscriptions.waiting,
            endpoints=self._endpoints,
            subscribers=parts.subscribers,
            wrappers={Side.CLIENT: parts.client_wrappers, Side.HANDLER: parts.handler_wrappers},
            runner=self._runner,
            standing=self.standing,
            lag=lag,
        )

    async def _start_events(self, wrappers: Sequence[Wrapper]) -> None:
        """Make the streams, write the schedules, listen to the topics."""
        parts = self._parts
        await self.client.publisher.declarations.ensure(*parts.published)
        await self.subscriptions.start(wrappers)
        await self._crons.write(parts.crons)

    def _standing(self) -> Standing:
        """Make what decides whether this node takes requests that others can answer."""
        service, node = self._parts.name, self._parts.id
        asking = Client.on(self.bus, wrappers=(), name=service)
        return Standing(
            f"{service} {node}",
            self._runner,
            self.server,
            another_serves=lambda: another_serves(asking, service, node),
            announce=self._announce,
        )

    async def _announce(self, status: str) -> None:
        """Tell the registry how this node is; nothing is said of one that is well."""
        metadata = dict(self._parts.metadata)
        if status != SERVING:
            metadata[HEALTH_KEY] = status
        node = self._node.model_copy(update={"metadata": metadata})
        await self.bus.discovery.register(node, self.description())

    async def _protect_streams(self) -> list[str]:
        """Reserve what streams keep; while nobody can tell, that is what it was before."""
        kept = await self.bus.discovery.stream_subjects()
        if kept is not None:
            self.server.replies_allowed.protect(kept)
        return kept or []

    async def _keep_protecting(self) -> None:
        """Learn of streams that were made later; see `ReplyPolicy`."""
        while True:
            await asyncio.sleep(_LOOK_FOR_STREAMS_EVERY)
            await self._protect_streams()

    async def end(self, *, grace: float) -> None:
        """Deregister, take nothing new, finish what runs within so many seconds, disconnect."""
        self.ending = self._monitor.stopping = True
        await self._tasks.cancel()
        await self._runner.end()
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
            kind=signature.shape.value,
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


def _report(outcome: Outcome) -> CheckReport:
    check = outcome.check
    return CheckReport(
        name=check.name,
        passed=outcome.passed,
        critical=check.critical,
        error=outcome.error,
        took_ms=round(outcome.took * 1000, 3),
        ago=round(SYSTEM_CLOCK.now() - outcome.at, 3),
    )
