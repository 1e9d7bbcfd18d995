"""Every exchange becomes one span with the right parent, and costs nothing while nobody looks."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from busmicro.call import Call, Handler, Kind, Side, Spec, compose
from busmicro.errors import CallError, DeadlineExceeded, Internal, NotFound, Unavailable
from busmicro.headers import Headers
from busmicro.session import Session
from busmicro.wrappers import Retry
from busmicro.wrappers.trace import Trace

ACK = b"$JS.ACK.ORDERS.billing.%d.17.21.1764000000000000000.3"


class Spans:
    """Everything that was traced in a test."""

    def __init__(self) -> None:
        self.provider = TracerProvider(shutdown_on_exit=False)
        self._memory = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._memory))

    @property
    def ended(self) -> tuple[ReadableSpan, ...]:
        return self._memory.get_finished_spans()

    @property
    def only(self) -> ReadableSpan:
        (span,) = self.ended
        return span


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
def wrapper(spans: Spans) -> Trace:
    return Trace(tracer_provider=spans.provider)


def call_of(
    kind: Kind = Kind.UNARY,
    side: Side = Side.CLIENT,
    endpoint: str = "get",
    headers: dict[str, str] | None = None,
    ack: bytes = b"",
) -> Call:
    spec = Spec(service="orders", endpoint=endpoint, kind=kind, side=side)
    given = Headers(headers) if headers is not None else None
    return Call(spec, "hello", headers=given, subject=b"orders.paid", ack=ack, payload=b'"x"')


async def answer(_call: Call) -> object:
    return "hello"


def failing(failure: BaseException) -> Handler:
    async def fail(_call: Call) -> object:
        raise failure

    return fail


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


@pytest.mark.parametrize(
    ("kind", "side", "endpoint", "name", "span_kind"),
    [
        (Kind.UNARY, Side.CLIENT, "get", "orders/get", SpanKind.CLIENT),
        (Kind.UNARY, Side.HANDLER, "Orders.get", "orders.Orders/get", SpanKind.SERVER),
        (Kind.STREAM, Side.CLIENT, "get", "orders/get", SpanKind.CLIENT),
        (Kind.STREAM, Side.HANDLER, "get", "orders/get", SpanKind.SERVER),
        (Kind.EVENT, Side.CLIENT, "orders.paid", "publish orders.paid", SpanKind.PRODUCER),
        (Kind.EVENT, Side.HANDLER, "orders.{id}", "process orders.{id}", SpanKind.CONSUMER),
    ],
)
async def test_each_kind_and_side_has_its_name(
    spans: Spans, wrapper: Trace, kind: Kind, side: Side, endpoint: str, name: str,
    span_kind: SpanKind,
):  # fmt: skip
    """Spans are called what the conventions call them."""
    assert await compose([wrapper], answer)(call_of(kind, side, endpoint)) == "hello"

    assert (spans.only.name, spans.only.kind) == (name, span_kind)
    assert spans.only.status.status_code is StatusCode.UNSET


async def test_caller_and_handler_are_parent_and_child(spans: Spans, wrapper: Trace):
    """What the caller sends is what the handler goes by, and not what is around it."""
    sent = call_of()
    await compose([wrapper], answer)(sent)
    got = call_of(side=Side.HANDLER, headers=dict(sent.headers))
    with trace.use_span(spans.provider.get_tracer("x").start_span("unrelated")):
        await compose([wrapper], answer)(got)

    client, server = spans.ended
    assert parent_of(server) == client.context.span_id
    assert server.context.trace_id == client.context.trace_id
    assert client.attributes == {
        "rpc.system.name": "busmicro",
        "rpc.method": "orders/get",
        "rpc.response.status_code": "ok",
        "server.address": "orders",
    }
    assert client.instrumentation_scope is not None
    assert client.instrumentation_scope.schema_url == "https://opentelemetry.io/schemas/1.44.0"


async def test_handler_without_trace_begins_one_even_inside_another(spans: Spans, wrapper: Trace):
    """A request from somebody who does not trace is a root, whatever the process does besides."""
    with trace.use_span(spans.provider.get_tracer("x").start_span("unrelated")):
        await compose([wrapper], answer)(call_of(side=Side.HANDLER))

    assert spans.only.parent is None


async def test_calls_made_by_a_handler_are_its_children(spans: Spans, wrapper: Trace):
    """A nested call hangs below the handler that makes it, however many tasks lie between."""

    async def handler(_call: Call) -> object:
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                nested = call_of(endpoint="nested", headers={"traceparent": "stale"})
                group.create_task(compose([wrapper], answer)(nested))  # type: ignore[arg-type]
        return None

    await compose([wrapper], handler)(call_of(side=Side.HANDLER))

    *nested, outer = spans.ended
    assert [parent_of(span) for span in nested] == [outer.context.span_id] * 2


async def test_trace_goes_on_where_only_the_client_is_traced(spans: Spans, wrapper: Trace):
    """A caller that passes a trace on by hand, in a header, stays its parent."""
    given = {"traceparent": f"00-{7:032x}-{9:016x}-01"}

    await compose([wrapper], answer)(call_of(headers=given))

    assert spans.only.context.trace_id == 7
    assert parent_of(spans.only) == 9


@pytest.mark.parametrize("side", Side)
async def test_given_twice_it_makes_one_span(spans: Spans, side: Side):
    """Defaults and a user's own list may both have it; attempts between them change nothing."""
    wrappers = [
        Trace(tracer_provider=spans.provider),
        Retry(),
        Trace(tracer_provider=spans.provider),
    ]

    await compose(wrappers, answer)(call_of(side=side))
    await compose(wrappers, answer)(call_of(side=side))

    assert len(spans.ended) == 2


async def test_attempts_are_one_span(spans: Spans, wrapper: Trace):
    """A call is one exchange to its caller, however often it was tried; all send one trace."""
    sent: list[str] = []

    async def second_time(call: Call) -> object:
        sent.append(call.headers["traceparent"])
        if len(sent) == 1:
            raise Unavailable("no", not_run=True, retry_after=0.0)
        return "hello"

    await compose([wrapper, Retry()], second_time)(call_of())

    assert len(spans.ended) == 1
    assert sent[0] == sent[1]
    assert f"{spans.only.context.span_id:016x}" in sent[0]


@pytest.mark.parametrize(
    ("failure", "side", "code", "status"),
    [
        (NotFound("no bob"), Side.CLIENT, "not_found", StatusCode.ERROR),
        (NotFound("no bob"), Side.HANDLER, "not_found", StatusCode.UNSET),
        (Internal("no"), Side.HANDLER, "internal", StatusCode.ERROR),
        (DeadlineExceeded("late"), Side.HANDLER, "deadline_exceeded", StatusCode.ERROR),
        (ZeroDivisionError("hunter2"), Side.HANDLER, "unknown", StatusCode.ERROR),
        (asyncio.CancelledError(), Side.HANDLER, "cancelled", StatusCode.UNSET),
    ],
    ids=str,
)
async def test_failures_are_told_by_code(
    spans: Spans, wrapper: Trace, failure: BaseException, side: Side, code: str, status: StatusCode
):
    """An answer is no fault of the service; what is one is marked, without what may be secret."""
    with pytest.raises(type(failure)):
        await compose([wrapper], failing(failure))(call_of(side=side))

    span = spans.only
    assert span.attributes is not None
    assert span.attributes["rpc.response.status_code"] == code
    assert span.status.status_code is status
    assert "hunter2" not in str(span.to_json())
    if status is StatusCode.ERROR and isinstance(failure, CallError):
        assert span.status.description == failure.message
        assert span.attributes["error.type"] == code


async def test_cancelled_because_the_time_was_up_is_told_apart(spans: Spans, wrapper: Trace):
    """A handler that is cancelled at its deadline ran out of time, and was not given up."""
    call = call_of(side=Side.HANDLER)
    call.deadline = 1.0

    with pytest.raises(asyncio.CancelledError):
        await compose([wrapper], failing(asyncio.CancelledError()))(call)

    assert spans.only.attributes is not None
    assert spans.only.attributes["rpc.response.status_code"] == "deadline_exceeded"


async def test_each_delivery_of_an_event_is_a_child_of_its_publishing(spans: Spans, wrapper: Trace):
    """A redelivered event keeps its trace; its spans say which delivery they are."""
    sent = call_of(Kind.EVENT, Side.CLIENT, "orders.paid")
    await compose([wrapper], answer)(sent)
    headers = {**sent.headers, "Nats-Msg-Id": "shop:17"}
    for attempt in (1, 2):
        got = call_of(Kind.EVENT, Side.HANDLER, "orders.paid", headers, ack=ACK % attempt)
        await compose([wrapper], answer)(got)

    published, first, second = spans.ended
    assert [parent_of(first), parent_of(second)] == [published.context.span_id] * 2
    assert second.attributes == {
        "messaging.system": "nats",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "orders.paid",
        "messaging.consumer.group.name": "billing",
        "messaging.message.id": "shop:17",
        "messaging.message.body.size": 3,
        "messaging.nats.delivery_attempt": 2,
    }


async def test_events_may_be_linked_in_place_of_nested(spans: Spans):
    """For long queues each handling has a trace of its own that points at the publisher's."""
    wrapper = Trace(tracer_provider=spans.provider, link_events=True)
    sent = call_of(Kind.EVENT, Side.CLIENT, "orders.paid")
    await compose([wrapper], answer)(sent)
    got = call_of(Kind.EVENT, Side.HANDLER, "orders.paid", dict(sent.headers))
    await compose([wrapper], answer)(got)

    published, handled = spans.ended
    assert handled.parent is None
    assert handled.context.trace_id != published.context.trace_id
    assert [link.context.span_id for link in handled.links] == [published.context.span_id]


async def test_list_of_events_is_linked_to_each(spans: Spans, wrapper: Trace):
    """A handler of lists has a trace of its own, which points at those of all its events."""
    parts = []
    for _ in range(2):
        sent = call_of(Kind.EVENT, Side.CLIENT, "orders.paid")
        await compose([wrapper], answer)(sent)
        parts.append(call_of(Kind.EVENT, Side.HANDLER, "orders.paid", dict(sent.headers)))
    many = Call(parts[0].spec, ["x", "x"])
    many.parts = parts

    await compose([wrapper], answer)(many)

    first, second, handled = spans.ended
    assert handled.parent is None
    published = [first.context.span_id, second.context.span_id]
    assert [link.context.span_id for link in handled.links] == published
    assert handled.attributes is not None
    assert handled.attributes["messaging.batch.message_count"] == 2


async def test_stream_is_one_span_and_its_calls_are_children(spans: Spans, wrapper: Trace):
    """A stream's span lasts as long as its block; one inside it is another."""

    @contextlib.asynccontextmanager
    async def opener(_call: Call) -> AsyncIterator[str]:
        yield "open"

    spec = call_of(Kind.STREAM).spec

    def session() -> Session[str]:
        return Session(partial(compose, [wrapper]), Call(spec, "hello"), opener)

    async with session():
        assert spans.ended == ()
        async with session():
            pass
        assert len(spans.ended) == 1
    inner, outer = spans.ended
    assert parent_of(inner) == outer.context.span_id
    assert outer.parent is None
    assert not trace.get_current_span().get_span_context().is_valid


async def test_unsampled_trace_is_passed_on_unsampled(spans: Spans, wrapper: Trace):
    """Whoever decided not to record a trace has decided for everybody behind."""
    given = {"traceparent": f"00-{7:032x}-{9:016x}-00"}
    nested = call_of(endpoint="nested")

    async def handler(_call: Call) -> object:
        return await compose([wrapper], answer)(nested)

    await compose([wrapper], handler)(call_of(side=Side.HANDLER, headers=given))

    assert spans.ended == ()
    assert nested.headers["traceparent"].startswith(f"00-{7:032x}-")
    assert nested.headers["traceparent"].endswith("-00")


async def test_baggage_travels_unless_it_is_too_long(spans: Spans, wrapper: Trace):
    """Baggage reaches the next service; a kilobyte of it does not, for every message would pay."""
    for size, arrives in ((10, True), (2000, False)):
        token = context.attach(baggage.set_baggage("tenant", "x" * size))
        call = call_of()
        await compose([wrapper], answer)(call)
        context.detach(token)
        assert ("baggage" in call.headers) is arrives


async def test_broken_trace_headers_hurt_nobody(spans: Spans, wrapper: Trace):
    """Whatever a stranger writes into `traceparent`, the request is answered."""
    for nonsense in ("", "00-x-y-z", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "é" * 600):
        got = call_of(side=Side.HANDLER, headers={"TraceParent": nonsense})
        assert await compose([wrapper], answer)(got) == "hello"

    assert all(span.parent is None for span in spans.ended)


async def test_million_endpoints_cost_no_more_memory_than_ten_thousand(
    spans: Spans, wrapper: Trace
):
    """What is remembered per endpoint is bounded."""
    for number in range(10_050):
        await compose([wrapper], answer)(call_of(endpoint=f"e{number}"))

    tracing = wrapper._tracing
    assert tracing is not None
    assert len(tracing._plans) <= 10_000


def test_nothing_is_imported_while_nobody_traces():
    """A service with `Trace`, `Metrics` and `Log` starts as quickly as one without."""
    program = (
        "import asyncio, sys\n"
        "from busmicro.call import Call, Kind, Side, Spec, compose\n"
        "from busmicro.wrappers.trace import Trace\n"
        "from busmicro.wrappers.metrics import Metrics\n"
        "from busmicro.wrappers.log import Log\n"
        "async def answer(call): return 'hello'\n"
        "spec = Spec(service='s', endpoint='e', kind=Kind.UNARY, side=Side.CLIENT)\n"
        "chain = compose([Trace(), Metrics(), Log()], answer)\n"
        "assert asyncio.run(chain(Call(spec))) == 'hello'\n"
        "print([name for name in sys.modules if 'opentelemetry' in name])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"
