"""The figures of the nodes of this process, read at the moment when somebody looks.

Nothing is counted here: requests, reconnects, dead letters and the states of breakers are known
where they happen, and are only shown under their names, through OpenTelemetry's metrics, so that a
collector and `/metrics` see the same.
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from busmicro.bus import Bus
from busmicro.call import Side, Wrapper
from busmicro.clock import SYSTEM_CLOCK, Clock
from busmicro.health import AWAY, CheckRunner, Standing
from busmicro.pubsub import Subscribers
from busmicro.rpc import Endpoints
from busmicro.wrappers import (
    AdaptiveLimit,
    CircuitBreaker,
    ConcurrencyLimit,
    Only,
    RateLimit,
    State,
)
from busmicro.wrappers import conventions as names

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

    Callback = Callable[[CallbackOptions], Iterable[Observation]]

_API: Final = "opentelemetry.metrics"
_LOOK_EVERY: Final = 0.25
_REMEMBERED: Final = 40
_MOST_CIRCUITS: Final = 1_000
_STATES: Final = {State.HALF_OPEN: 1, State.OPEN: 2, State.FORCED_OPEN: 2}
_REFUSING: Final = (AdaptiveLimit, CircuitBreaker, ConcurrencyLimit, RateLimit)


@dataclass(frozen=True, slots=True)
class Figure:
    """A number, as it stands."""

    name: str
    """What it is, one of the names in `conventions.py`."""
    value: float
    """How much."""
    attributes: Mapping[str, names.Value] = field(default_factory=dict)
    """Of what."""


class LoopLag:
    """Measures how late the event loop is: what every request waits for on top of its own work.

    Args:
        clock: Where time comes from.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._late: deque[float] = deque(maxlen=_REMEMBERED)

    @property
    def worst(self) -> float:
        """The longest that the loop was late in the last ten seconds, in seconds."""
        return max(self._late, default=0.0)

    async def keep_measuring(self) -> None:
        """Measure four times a second until cancelled."""
        while True:
            due = self._clock.now() + _LOOK_EVERY
            await self._clock.sleep(_LOOK_EVERY)
            self._late.append(max(0.0, self._clock.now() - due))


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFigures:
    """What is to be shown of one node."""

    service: str
    """The name of its service."""
    node: str
    """Its id."""
    bus: Bus
    """Its connection."""
    running: Callable[[], int]
    """How much it works on."""
    waiting: Callable[[], int]
    """How many events are here and not begun with."""
    endpoints: Endpoints
    """What answers requests."""
    subscribers: Subscribers
    """What handles events."""
    wrappers: Mapping[Side, Sequence[Wrapper]]
    """What goes around its calls and its handlers."""
    runner: CheckRunner
    """Its checks."""
    standing: Standing
    """Whether it takes requests."""
    lag: LoopLag
    """How late its loop is."""

    def figures(self) -> Iterable[Figure]:
        """Return them as they stand."""
        transport = self.bus.transport
        yield Figure(names.RUNNING, self.running())
        yield Figure(names.WAITING, self.waiting())
        yield Figure(names.CONNECTED, int(transport.connected))
        yield Figure(names.RECONNECTS, transport.reconnects)
        yield Figure(names.LOOP_LAG, self.lag.worst)
        yield from self._of_requests()
        yield from self._of_events()
        yield from self._of_health()
        for side, wrappers in self.wrappers.items():
            yield from _of_wrappers(side, wrappers)

    def _of_requests(self) -> Iterable[Figure]:
        for endpoint in self.endpoints:
            which = {names.ENDPOINT: endpoint.name}
            yield Figure(names.REQUESTS, endpoint.figures.requests, which)
            yield Figure(names.REQUEST_ERRORS, endpoint.figures.errors, which)

    def _of_events(self) -> Iterable[Figure]:
        for subscriber in self.subscribers:
            of = subscriber.figures
            which = {
                names.DESTINATION: subscriber.topic.subject,
                names.GROUP: subscriber.options.group,
            }
            yield Figure(names.EVENTS_HANDLED, of.handled, which)
            yield Figure(names.EVENTS_FAILED, of.failed, which)
            yield Figure(names.EVENTS_DROPPED, of.dropped, which)
            yield Figure(names.DEAD_LETTERS, of.dead, which)

    def _of_health(self) -> Iterable[Figure]:
        yield Figure(names.HEALTHY, int(self.standing.status != AWAY), {names.CHECK: ""})
        for name, outcome in tuple(self.runner.outcomes.items()):
            yield Figure(names.HEALTHY, int(outcome.passed), {names.CHECK: name})


def _of_wrappers(side: Side, wrappers: Sequence[Wrapper]) -> Iterable[Figure]:
    """Return what wrappers know: circuits, and how much they have refused."""
    refused: Counter[str] = Counter()
    for given in wrappers:
        wrapper = given.wrapper if isinstance(given, Only) else given
        if isinstance(wrapper, _REFUSING):
            refused[type(wrapper).__name__] += wrapper.refused
        if isinstance(wrapper, CircuitBreaker):
            yield from _of_breaker(wrapper)
    for kind, number in refused.items():
        which = {names.WRAPPER: kind, names.SIDE: side.value}
        yield Figure(names.REJECTIONS, number, which)


def _of_breaker(breaker: CircuitBreaker) -> Iterable[Figure]:
    circuits = islice(breaker.circuits.items(), _MOST_CIRCUITS)
    for (service, endpoint), circuit in circuits:
        which = {names.SERVER_ADDRESS: service, names.ENDPOINT: endpoint}
        yield Figure(names.BREAKER_STATE, _STATES.get(circuit.state, 0), which)


class Gauges:
    """The instruments of one provider, shared by all nodes of the process."""

    def __init__(self, provider: MeterProvider) -> None:
        from opentelemetry.metrics import Observation  # noqa: PLC0415 - start-up time

        self._observation = Observation
        self._nodes: list[NodeFigures] = []
        meter = provider.get_meter(names.SCOPE, schema_url=names.SCHEMA_URL)
        for name, (unit, says) in names.COUNTERS.items():
            meter.create_observable_counter(name, [self._callback(name)], unit, says)
        for name, (unit, says) in names.GAUGES.items():
            meter.create_observable_gauge(name, [self._callback(name)], unit, says)

    def _callback(self, name: str) -> Callback:
        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            for node in tuple(self._nodes):
                who = {names.SERVICE: node.service, names.NODE: node.node}
                for figure in node.figures():
                    if figure.name == name:
                        yield self._observation(figure.value, {**who, **figure.attributes})

        return observe

    def show(self, node: NodeFigures) -> None:
        """Show a node from now on."""
        self._nodes.append(node)

    def hide(self, node: NodeFigures) -> None:
        """Show it no more; not an error if it was not shown."""
        if node in self._nodes:
            self._nodes.remove(node)


_of_provider: WeakKeyDictionary[object, Gauges] = WeakKeyDictionary()


def current_gauges() -> Gauges | None:
    """Return what shows figures in this process; None while nobody has set up metrics."""
    if _API not in sys.modules:
        return None
    from opentelemetry import metrics  # noqa: PLC0415 - loaded already

    provider = metrics.get_meter_provider()
    if type(provider).__name__ == "_ProxyMeterProvider":  # it has no public name
        return None
    gauges = _of_provider.get(provider)
    if gauges is None:
        gauges = _of_provider[provider] = Gauges(provider)
    return gauges
