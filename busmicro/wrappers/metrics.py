"""Measure every exchange: how long it took, how it ended, how many are under way.

The figures go to OpenTelemetry's metrics, and from there to a collector or to `/metrics`; until
somebody has set up an SDK nothing is measured and nothing is imported (see `trace.py`).

Durations are histograms in seconds with the bounds of the conventions.  What is under way, and how
many events wait behind the latest one, is read when somebody looks.

Source: names and bounds in `conventions.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from busmicro.call import Call, Handler, Kind, Side, Spec
from busmicro.clock import SYSTEM_CLOCK, Clock
from busmicro.delivery import read_delivery
from busmicro.errors import Code
from busmicro.headers import ATTEMPT, Headers
from busmicro.wrappers import conventions as names
from busmicro.wrappers.count import Count

if TYPE_CHECKING:
    from opentelemetry.metrics import (
        CallbackOptions,
        Counter,
        Histogram,
        MeterProvider,
        Observation,
    )

_API: Final = "opentelemetry.metrics"
_MOST_SPECS: Final = 10_000
_MOST_PLANS: Final = 1_000
_MOST_ERRORS: Final = 32
_OTHER: Final = "_OTHER"


class Metrics:
    """Measures every exchange.

    Given twice around the same exchange, it measures once. Endpoints beyond the first thousand of
    a process are measured together, as `_OTHER`.

    Args:
        meter_provider: Where the figures go; left out, the one that was set up for the process.
        messages: Count the messages of streams, too, as they pass?
        clock: Where time comes from.
    """

    def __init__(
        self,
        *,
        meter_provider: MeterProvider | None = None,
        messages: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._provider = meter_provider
        self._messages = messages
        self._clock = clock
        self._gauge: _Gauge | None = None

    def __call__(self, call: Call, call_next: Handler, /) -> Awaitable[object]:
        """Run the exchange and measure it, if somebody wants figures."""
        gauge = self._gauge
        if gauge is None:
            if self._provider is None and _API not in sys.modules:
                return call_next(call)
            gauge = self._begin()
            if gauge is None:
                return call_next(call)
        if _measured.get() is call:
            return call_next(call)
        return self._measure(gauge, call, call_next)

    def _begin(self) -> _Gauge | None:
        """Get ready, as soon as there is a provider."""
        from opentelemetry import metrics  # noqa: PLC0415 - start-up time

        provider = self._provider or metrics.get_meter_provider()
        # There is no public name for the provider that stands for none.
        if type(provider).__name__ == "_ProxyMeterProvider":
            return None
        gauge = _gauges.get(provider)
        if gauge is None:
            gauge = _gauges[provider] = _Gauge(provider)
        self._gauge = gauge
        return gauge

    async def _measure(self, gauge: _Gauge, call: Call, call_next: Handler) -> object:
        plan = gauge.plan(call.spec)
        outer = _measured.set(call)
        plan.in_flight += 1
        if self._messages and call.spec.kind is Kind.STREAM:
            call.taps.append(plan.messages)
        began = self._clock.now()
        ended = Code.OK.value
        try:
            return await call_next(call)
        except BaseException as failure:
            ended = names.error_type(call, failure)
            raise
        finally:
            plan.in_flight -= 1
            plan.over(call, self._clock.now() - began, ended)
            _measured.reset(outer)


_measured: ContextVar[Call | None] = ContextVar("busmicro_measured", default=None)
"""The exchange that is being measured around the code that runs."""


class _Plan:
    """What all exchanges of an endpoint have in common, and what has become of them."""

    __slots__ = (
        "_by_end",
        "_counter",
        "_durations",
        "_fixed",
        "_spec",
        "in_flight",
        "latest",
        "messages",
    )

    def __init__(
        self, spec: Spec, fixed: names.Attributes, durations: Histogram, counter: Counter | None
    ) -> None:
        self.in_flight = 0
        """How many are under way."""
        self.latest = b""
        """The acknowledgement subject of the latest event; it says how many wait behind it."""
        self.messages = Count()
        """The messages of its streams, where somebody counts them."""
        self._spec = spec
        self._fixed = fixed
        self._durations = durations
        self._counter = counter  # of messages, or of requests that were tried before
        self._by_end: dict[str, names.Attributes] = {}

    @property
    def fixed(self) -> names.Attributes:
        """What says which endpoint this is."""
        return self._fixed

    def over(self, call: Call, seconds: float, ended: str) -> None:
        """Count an exchange that is over."""
        attributes = self._by_end.get(ended) or self._attributes(ended)
        self._durations.record(seconds, attributes)
        if self._counter is None:
            return
        if self._spec.kind is Kind.EVENT:
            self._counter.add(_number_of_events(call), attributes)
            self.latest = call.ack_bytes or self.latest
        elif call.has_headers and ATTEMPT in call.headers:
            self._counter.add(1, self._fixed)

    def _attributes(self, ended: str) -> names.Attributes:
        """Return what says how exchanges ended this way; made once, for a few ways."""
        if len(self._by_end) >= _MOST_ERRORS:
            ended = _OTHER
        found = dict(self._fixed)
        code = next((code for code in Code if code.value == ended), None)
        if self._spec.kind is not Kind.EVENT:
            found[names.RPC_STATUS_CODE] = (code or Code.UNKNOWN).value
        if names.is_error(self._spec, code):
            found[names.ERROR_TYPE] = ended
        self._by_end[ended] = found
        return found


def _number_of_events(call: Call) -> int:
    if call.payload or call.spec.side is Side.CLIENT:
        return 1
    return len(call.message) if call.began and isinstance(call.message, list) else 1


class _Gauge:
    """The instruments of one provider, shared by all `Metrics` of the process."""

    def __init__(self, provider: MeterProvider) -> None:
        from opentelemetry.metrics import Observation  # noqa: PLC0415 - start-up time

        meter = provider.get_meter(names.SCOPE, schema_url=names.SCHEMA_URL)
        self._observation = Observation
        self._by_spec: dict[int, tuple[Spec, _Plan]] = {}
        self._plans: dict[tuple[str, Side], _Plan] = {}
        self._durations = {
            name: meter.create_histogram(
                name,
                names.SECONDS,
                said,
                explicit_bucket_boundaries_advisory=names.DURATION_BOUNDS,
            )
            for name, said in names.DURATIONS.items()
        }
        counters = {name: meter.create_counter(name, *of) for name, of in names.COUNTED.items()}
        self._counters = {
            (True, Side.CLIENT): counters[names.SENT_MESSAGES],
            (True, Side.HANDLER): counters[names.CONSUMED_MESSAGES],
            (False, Side.HANDLER): counters[names.RETRIES],
        }
        meter.create_observable_up_down_counter(
            names.IN_FLIGHT, [self._under_way], "{exchange}", "Exchanges under way."
        )
        meter.create_observable_counter(
            names.STREAM_MESSAGES, [self._passed], "{message}", "Messages of streams."
        )
        meter.create_observable_gauge(
            names.CONSUMER_LAG,
            [self._behind],
            "{message}",
            "Events that waited at the server behind the latest one handled.",
        )

    def plan(self, spec: Spec) -> _Plan:
        """Return what is known of an endpoint."""
        known = self._by_spec.get(id(spec))  # it holds the spec, so that the id stays its own
        if known is None:
            if len(self._by_spec) >= _MOST_SPECS:
                self._by_spec.clear()
            known = self._by_spec[id(spec)] = (spec, self._new_plan(spec))
        return known[1]

    def _new_plan(self, spec: Spec) -> _Plan:
        """Return the plan of an endpoint; clients of the same one share it."""
        name = names.span_name(spec)
        fixed = names.fixed_attributes(spec)
        if (name, spec.side) not in self._plans and len(self._plans) >= _MOST_PLANS:
            name = f"{_OTHER} {spec.kind.value}"
            which = names.DESTINATION if spec.kind is Kind.EVENT else names.RPC_METHOD
            fixed = {**fixed, which: _OTHER}
            fixed.pop(names.DESTINATION_TEMPLATE, None)
            fixed.pop(names.SERVER_ADDRESS, None)
        plan = self._plans.get((name, spec.side))
        if plan is None:
            durations = self._durations[names.duration(spec)]
            counter = self._counters.get((spec.kind is Kind.EVENT, spec.side))
            plan = self._plans[name, spec.side] = _Plan(spec, fixed, durations, counter)
        return plan

    def _under_way(self, _options: CallbackOptions) -> Iterable[Observation]:
        for (_name, side), plan in tuple(self._plans.items()):
            attributes = {**plan.fixed, names.SIDE: side.value}
            yield self._observation(plan.in_flight, attributes)

    def _passed(self, _options: CallbackOptions) -> Iterable[Observation]:
        for (_name, side), plan in tuple(self._plans.items()):
            ways = (("transmit", plan.messages.sent), ("receive", plan.messages.received))
            for way, number in ways:
                if number:
                    said = {**plan.fixed, names.SIDE: side.value, names.DIRECTION: way}
                    yield self._observation(number, said)

    def _behind(self, _options: CallbackOptions) -> Iterable[Observation]:
        for plan in tuple(self._plans.values()):
            if plan.latest:
                delivery = read_delivery(plan.latest, Headers({}))
                attributes = {**plan.fixed, names.CONSUMER_GROUP: delivery.consumer}
                yield self._observation(delivery.pending, attributes)


_gauges: WeakKeyDictionary[object, _Gauge] = WeakKeyDictionary()
