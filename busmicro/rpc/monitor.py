"""What a node says of itself: `Debug.Health` and `Debug.Stats`, built in at every service."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel

from busmicro.bus import Bus
from busmicro.endpoint import EndpointOptions
from busmicro.registry import EndpointStats, Node, ServiceStats
from busmicro.rpc.handlers import Endpoints


class CheckReport(BaseModel, defer_build=True):
    """How a check of a node went when it last ran."""

    name: str
    """Which."""
    passed: bool
    """Did it pass?"""
    critical: bool
    """Does the node take no requests while it fails, if another node can?"""
    error: str = ""
    """Why it failed."""
    took_ms: float = 0.0
    """Milliseconds that it took."""
    ago: float = 0.0
    """Seconds since then."""


class Health(BaseModel, defer_build=True):
    """Is this node well?"""

    status: str
    """`starting`; `serving`; `failing` while a critical check fails and no other node is well;
    `away` while one fails and others take the requests; `stopping` while it finishes what runs."""
    service: str
    """The name of the service."""
    node: str
    """The id of the node."""
    version: str
    """The version of the service."""
    connected: bool
    """Is the connection to NATS up?"""
    uptime: float
    """Seconds since it started."""
    checks: list[CheckReport] = []
    """How the checks of the service went."""


class EndpointFigures(BaseModel, defer_build=True):
    """What an endpoint has done so far."""

    name: str
    """Which."""
    requests: int
    """Answered or given up, good or bad."""
    errors: int
    """Of these, how many did not succeed."""
    last_error: str
    """What the latest failure said."""
    average_ms: float
    """Milliseconds a request, wrappers included."""


class SubscriberFigures(BaseModel, defer_build=True):
    """What a handler of events has done so far."""

    topic: str
    """What it listens to."""
    group: str
    """Who shares the events; empty if every node gets them."""
    handled: int
    """Events that went well."""
    failed: int
    """Attempts that failed."""
    dead: int
    """Events that went to the dead letters."""
    dropped: int
    """Events without a stream that came while too many waited."""
    last_error: str
    """What the latest failure said."""


class Stats(BaseModel, defer_build=True):
    """What this node has done so far, and what it costs."""

    service: str
    """The name of the service."""
    node: str
    """The id of the node."""
    started: str
    """When it started, ISO 8601, UTC."""
    uptime: float
    """Seconds since then."""
    running: int
    """Requests that run now."""
    requests: int
    """Requests so far, of all endpoints."""
    errors: int
    """Of these, how many did not succeed."""
    refused_replies: int
    """Requests that asked for their answer where none may go."""
    reconnects: int
    """How often the connection to NATS was lost and made again."""
    rss_bytes: int
    """Memory of the process; 0 where the system does not tell."""
    endpoints: list[EndpointFigures]
    """One by one."""
    subscribers: list[SubscriberFigures]
    """One by one."""


def resident_bytes() -> int:
    """Tell how much memory this process holds; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


class Monitor:
    """Answers for one node."""

    def __init__(self, node: Node, endpoints: Endpoints, bus: Bus) -> None:
        self._node = node
        self._endpoints = endpoints
        self._bus = bus
        self._began = time.monotonic()
        self.stopping = False
        """Has it begun to stop?"""
        self.running: Callable[[], int] = lambda: 0
        """How many requests run now."""
        self.refused: Callable[[], int] = lambda: 0
        """How many requests were refused for their reply subject."""
        self.status: Callable[[], str] = lambda: "serving"
        """Whether it takes requests, while it does not stop."""
        self.checks: Callable[[], list[CheckReport]] = list
        """How the checks went."""
        self.subscribers: Callable[[], list[SubscriberFigures]] = list
        """What the handlers of events have done."""

    async def health(self) -> Health:
        """Is this node well?"""
        return self.report()

    def report(self) -> Health:
        """Tell how this node is."""
        return Health(
            status="stopping" if self.stopping else self.status(),
            service=self._node.service,
            node=self._node.id,
            version=self._node.version,
            connected=self._bus.transport.connected,
            uptime=self._uptime,
            checks=self.checks(),
        )

    async def stats(self) -> Stats:
        """What has this node done so far, and what does it cost?"""
        figures = [
            EndpointFigures(
                name=endpoint.name,
                requests=endpoint.figures.requests,
                errors=endpoint.figures.errors,
                last_error=endpoint.figures.last_error,
                average_ms=round(endpoint.figures.average_ns / 1e6, 3),
            )
            for endpoint in self._endpoints
        ]
        return Stats(
            service=self._node.service,
            node=self._node.id,
            started=self._node.started,
            uptime=self._uptime,
            running=self.running(),
            requests=sum(f.requests for f in figures),
            errors=sum(f.errors for f in figures),
            refused_replies=self.refused(),
            reconnects=self._bus.transport.reconnects,
            rss_bytes=resident_bytes(),
            endpoints=figures,
            subscribers=self.subscribers(),
        )

    @property
    def _uptime(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def service_stats(self) -> ServiceStats:
        """Give the figures that `$SRV.STATS` shows; those of `Debug.Health` say how the node is."""
        health = self.report().model_dump(mode="json", include={"status", "checks"})
        return ServiceStats(
            endpoints=tuple(
                EndpointStats(
                    name=endpoint.name,
                    num_requests=endpoint.figures.requests,
                    num_errors=endpoint.figures.errors,
                    last_error=endpoint.figures.last_error,
                    processing_time=endpoint.figures.processing_time_ns,
                    average_processing_time=endpoint.figures.average_ns,
                    data=health if endpoint.name == HEALTH.name else None,
                )
                for endpoint in self._endpoints
            )
        )


HEALTH = EndpointOptions(name="Debug.Health", idempotent=True)
STATS = EndpointOptions(name="Debug.Stats", idempotent=True)


def iso(moment: datetime) -> str:
    """Write a moment as ISO 8601, UTC, to the millisecond."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
