"""Trace every exchange: a span at each end, one trace from the first caller to the last handler.

The trace travels in the headers `traceparent`, `tracestate` and `baggage` (W3C), through calls,
streams, events and each further delivery of an event.  Spans go wherever OpenTelemetry's SDK sends
them; until somebody has set one up, nothing is recorded and a call costs less than a microsecond.

OpenTelemetry takes 40 ms to import, twice as long as all of busmicro.  So it is not imported
here before a provider is there, which nobody can have set without having imported it.

Source: W3C Trace Context; names in `conventions.py`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from busmicro.call import Call, Handler, Kind, Side, Spec
from busmicro.errors import CallError, Code
from busmicro.headers import TRACE
from busmicro.wrappers import conventions as names

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.propagators.textmap import TextMapPropagator
    from opentelemetry.trace import Link, Span, SpanKind, Tracer, TracerProvider

_API: Final = "opentelemetry.trace"
_TRACEPARENT, _TRACESTATE, _BAGGAGE = TRACE
_PLAIN: Final = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_MOST_PLANS: Final = 10_000
_MOST_BAGGAGE: Final = 1024
"""Characters: baggage travels in every message, and its bytes count against the largest one."""


class Trace:
    """Makes a span of every exchange, and passes the trace on.

    A call's handler is a child of the call, with one span at the caller over all attempts. A stream
    is one span at each end, for all of its life; what its block calls is a child of it. The
    handler of an event is a child of its publishing, for each delivery anew; the handler of a list
    of events has a trace of its own, linked to all of theirs. Given twice around one exchange, it
    makes one span.

    Args:
        tracer_provider: Where spans go; left out, the one that was set up for the process.
        link_events: Give each handling of an event a trace of its own, linked to the publisher's,
            for queues where hours lie between.
    """

    def __init__(
        self, *, tracer_provider: TracerProvider | None = None, link_events: bool = False
    ) -> None:
        self._provider = tracer_provider
        self._link_events = link_events
        self._tracing: _Tracing | None = None

    def __call__(self, call: Call, call_next: Handler, /) -> Awaitable[object]:
        """Run the exchange in a span, if somebody wants spans."""
        tracing = self._tracing
        if tracing is None:
            if self._provider is None and _API not in sys.modules:
                return call_next(call)
            tracing = self._begin()
            if tracing is None:
                return call_next(call)
        return tracing.run(call, call_next)

    def _begin(self) -> _Tracing | None:
        """Get ready, as soon as there is a provider that makes spans."""
        from opentelemetry import trace  # noqa: PLC0415 - start-up time: see above

        provider = self._provider or trace.get_tracer_provider()
        if isinstance(provider, trace.ProxyTracerProvider):
            return None
        tracer = provider.get_tracer(names.SCOPE, schema_url=names.SCHEMA_URL)
        self._tracing = _Tracing(tracer, link_events=self._link_events)
        return self._tracing


class _Plan:
    """What all spans of an endpoint have in common."""

    __slots__ = ("attributes", "is_client", "is_event", "kind", "name", "spec")

    def __init__(self, spec: Spec, kind: SpanKind) -> None:
        self.spec = spec
        self.kind = kind
        self.name = names.span_name(spec)
        self.attributes = names.fixed_attributes(spec)
        if spec.kind is not Kind.EVENT:  # so it is unless it fails; 2 µs less than saying it later
            self.attributes[names.RPC_STATUS_CODE] = Code.OK.value
        self.is_client = spec.side is Side.CLIENT
        self.is_event = spec.kind is Kind.EVENT


class _Tracing:
    """Makes the spans, once there is somebody who wants them."""

    def __init__(self, tracer: Tracer, *, link_events: bool) -> None:
        from opentelemetry import baggage, context, propagate, trace  # noqa: PLC0415 - start-up time

        self._tracer = tracer
        self._link_events = link_events
        self._api = trace
        self._context = context
        self._propagator: TextMapPropagator = propagate.get_global_textmap()
        self._usual = self._propagator.fields == set(TRACE)
        """Nothing but W3C's headers: then the usual case is done here, in a third of the time."""
        self._baggage = baggage
        self._empty = context.Context()
        self._plans: dict[int, _Plan] = {}

    def _plan(self, spec: Spec) -> _Plan:
        plan = self._plans.get(id(spec))  # a plan holds its spec, so that the id stays its own
        if plan is None:
            kinds = self._api.SpanKind
            if spec.kind is Kind.EVENT:
                kind = kinds.PRODUCER if spec.side is Side.CLIENT else kinds.CONSUMER
            else:
                kind = kinds.CLIENT if spec.side is Side.CLIENT else kinds.SERVER
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            plan = self._plans[id(spec)] = _Plan(spec, kind)
        return plan

    def run(self, call: Call, call_next: Handler) -> Awaitable[object]:
        """Run an exchange in a span, unless it has one."""
        if _is_traced(call):
            return call_next(call)
        return self._run(call, call_next)

    async def _run(self, call: Call, call_next: Handler) -> object:
        plan = self._plan(call.spec)
        span, context, sent = self._open(call, plan)
        outer = _exchange.set((call.spec, sent))
        token = self._context.attach(context)
        try:
            return await call_next(call)
        except BaseException as failure:
            if span.is_recording():
                self._fail(span, call, failure)
            raise
        finally:
            span.end()  # first: the rest cannot be done for a stream that another task closes
            self._context.detach(token)
            _exchange.reset(outer)

    def _open(self, call: Call, plan: _Plan) -> tuple[Span, Context, str | None]:
        """Begin the span; return the context that holds for the exchange, and what is sent."""
        parent = self._parent(call, plan)
        links = self._links(call, parent) if plan.is_event and not plan.is_client else None
        if links:
            parent = self._api.set_span_in_context(self._api.INVALID_SPAN, parent)
        attributes: names.Attributes = plan.attributes
        if plan.is_event:
            attributes = {**attributes, **names.event_attributes(call)}
        span = self._tracer.start_span(plan.name, parent, plan.kind, attributes, links)
        context = self._api.set_span_in_context(span, parent)
        return span, context, self._send(call, span, context) if plan.is_client else None

    def _links(self, call: Call, parent: Context) -> list[Link] | None:
        """Return what a handling is linked to: a list of events to each, another one if asked."""
        if not (call.parts or self._link_events):
            return None
        contexts = [self._read(part) for part in call.parts] or [parent]
        found = (self._api.get_current_span(c).get_span_context() for c in contexts)
        return [self._api.Link(publisher) for publisher in found if publisher.is_valid]

    def _send(self, call: Call, span: Span, context: Context) -> str | None:
        """Put the trace into the headers; return what stands there as `traceparent`."""
        here = span.get_span_context()
        # a context that holds the span and nothing else has no baggage
        bare = len(context) == 1 or not self._baggage.get_all(context)
        if self._usual and bare and not here.trace_state:
            sent = f"00-{here.trace_id:032x}-{here.span_id:016x}-{here.trace_flags:02x}"
            call.headers[_TRACEPARENT] = sent
            return sent
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, context)
        headers = call.headers
        for name, value in carrier.items():
            if name != _BAGGAGE or len(value) <= _MOST_BAGGAGE:
                headers[name] = value
        return carrier.get(_TRACEPARENT)

    def _parent(self, call: Call, plan: _Plan) -> Context:
        """Return what the exchange is part of: at a handler, only its headers can tell."""
        if plan.is_client:
            current = self._context.get_current()
            if self._api.get_current_span(current).get_span_context().is_valid:
                return current
            if not call.has_headers:
                return current
        return self._read(call)

    def _read(self, call: Call) -> Context:
        """Return what the headers say."""
        if not call.has_headers:
            return self._empty
        items = call.headers.items_by_name
        plain = _PLAIN.fullmatch(items.get(_TRACEPARENT, "")) if self._usual else None
        if plain and _TRACESTATE not in items and _BAGGAGE not in items:
            trace_id, span_id, flags = (int(part, 16) for part in plain.groups())
            api = self._api
            caller = api.SpanContext(trace_id, span_id, True, api.TraceFlags(flags))  # noqa: FBT003
            parent: Context = api.set_span_in_context(api.NonRecordingSpan(caller), self._empty)
            return parent
        carrier = {name.lower(): value for name, value in items.items()}
        return self._propagator.extract(carrier, self._empty)

    def _fail(self, span: Span, call: Call, failure: BaseException) -> None:
        """Say in a span how the exchange failed."""
        code = names.code_of(call, failure)
        if call.spec.kind is not Kind.EVENT:
            span.set_attribute(names.RPC_STATUS_CODE, (code or Code.UNKNOWN).value)
        if names.is_error(call.spec, code):
            # what other exceptions say may hold secrets; the log of the service has it
            text = failure.message if isinstance(failure, CallError) else None
            span.set_attribute(names.ERROR_TYPE, names.error_type(call, failure))
            span.set_status(self._api.StatusCode.ERROR, text)


def _is_traced(call: Call) -> bool:
    """Tell whether the span around this code is that of the exchange itself."""
    spec, sent = _exchange.get()
    if spec is not call.spec:
        return False
    # At the caller, another call of the same endpoint from within a stream is no attempt of it.
    return sent is None or (call.has_headers and call.headers.get(_TRACEPARENT) == sent)


_exchange: ContextVar[tuple[Spec | None, str | None]] = ContextVar(
    "busmicro_traced", default=(None, None)
)
"""Whose span is around the code that runs, and the `traceparent` that was sent for it."""
