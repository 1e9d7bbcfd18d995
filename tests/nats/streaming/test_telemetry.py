"""Streams as traces, figures and log lines show them."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from busmicro import Client, DeadlineExceeded, NatsServer, NotFound, ResourceExhausted, Service
from busmicro.call import Call, Handler, Wrapper
from busmicro.wrappers import RECOMMENDED, Log, Metrics, Recover, Trace
from tests.nats.streaming.test_resilience import ENDS, Failing, busy
from tests.nats.streaming.wrapped import Ends, Feed, Item, connected, items

Until = Callable[[Callable[[], object]], Awaitable[None]]


class Telemetry:
    """Everything that was traced and measured in a test."""

    def __init__(self) -> None:
        self._memory = InMemorySpanExporter()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._memory))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)

    def spans(self, kind: SpanKind) -> list[ReadableSpan]:
        return [span for span in self._memory.get_finished_spans() if span.kind is kind]

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def in_flight(self) -> dict[str, int]:
        """How many streams of `Feed` are under way, by side."""
        found: Counter[str] = Counter({"client": 0, "handler": 0})
        for point in self.points("busmicro.in_flight"):
            if "Feed" in point.attributes["rpc.method"]:
                found[point.attributes["busmicro.side"]] += point.value
        return dict(found)


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture
def trace(telemetry: Telemetry) -> dict[str, list[Wrapper]]:
    """Traces at both ends."""
    ends = ("client", "handler")
    return {end: [Trace(tracer_provider=telemetry.tracers)] for end in ends}


@pytest.fixture
def metrics(telemetry: Telemetry) -> dict[str, list[Wrapper]]:
    """Figures at both ends."""
    ends = ("client", "handler")
    return {end: [Metrics(meter_provider=telemetry.meters, messages=True)] for end in ends}


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


async def drain(ends: Ends, endpoint: str = "count", n: int = 1) -> list[int]:
    async with ends.open(endpoint, n) as stream:
        return [item.n async for item in stream]


# --- Trace --------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_stub", [False, True], ids=["block", "stub"])
async def test_stream_is_one_span_at_each_end(
    busmicro_server: NatsServer,
    telemetry: Telemetry,
    trace: dict[str, list[Wrapper]],
    *,
    by_stub: bool,
):
    """The handler's is a child of the caller's, whatever the number of messages."""
    async with connected(busmicro_server.url, **trace) as ends:
        if by_stub:
            assert len([item async for item in ends.stub.echo(items(*range(50)))]) == 50
        else:
            assert len(await drain(ends, "count", 50)) == 50

    (mine,), (theirs,) = telemetry.spans(SpanKind.CLIENT), telemetry.spans(SpanKind.SERVER)
    assert mine.name == theirs.name == ("feed.Feed/echo" if by_stub else "feed.Feed/count")
    assert theirs.parent is not None
    assert theirs.parent.span_id == mine.context.span_id
    assert (mine.status.status_code, theirs.status.status_code) == (StatusCode.UNSET,) * 2
    assert mine.attributes is not None
    assert mine.attributes["rpc.response.status_code"] == "ok"


async def test_span_lasts_as_long_as_the_stream(
    busmicro_memory: str, telemetry: Telemetry, trace: dict[str, list[Wrapper]], until: Until
):
    """Its duration is the life of the stream, at the caller and at the handler."""
    async with connected(busmicro_memory, **trace) as ends:
        async with ends.open("hold", 1) as stream:
            await anext(stream)
            await asyncio.sleep(0.1)
        await until(lambda: telemetry.spans(SpanKind.SERVER))

    (mine,), (theirs,) = telemetry.spans(SpanKind.CLIENT), telemetry.spans(SpanKind.SERVER)
    assert seconds(mine) >= 0.1
    assert seconds(theirs) >= 0.1


async def test_what_a_block_calls_is_a_child_of_its_stream(
    busmicro_memory: str, telemetry: Telemetry, trace: dict[str, list[Wrapper]]
):
    """A call that is made while a stream is read belongs to it; one that comes after does not."""
    async with connected(busmicro_memory, **trace) as ends:

        async def add() -> None:
            await ends.client.call("feed", "Feed.add", Item(n=1), returns=Item)

        async with ends.open("count", 1) as stream:
            await anext(stream)
            await add()
        await add()

    within, stream_span, after = telemetry.spans(SpanKind.CLIENT)
    assert within.parent is not None
    assert within.parent.span_id == stream_span.context.span_id
    assert after.parent is None


async def test_trace_goes_on_through_a_handler_that_streams(
    busmicro_memory: str, telemetry: Telemetry, trace: dict[str, list[Wrapper]]
):
    """A relay opens a stream of its own; all four spans are one line of descent."""
    relay = Service(
        "relay",
        url=busmicro_memory,
        handler_wrappers=trace["handler"],
        client_wrappers=trace["client"],
    )

    @relay.rpc
    async def pass_on(request: Item) -> AsyncIterator[Item]:
        feed = relay.client.stub(Feed, service="feed")
        async for item in feed.count(request):
            yield item

    async with (
        connected(busmicro_memory, **trace) as ends,
        relay,
        ends.client.stream("relay", "pass_on", Item(n=3), returns=Item) as stream,
    ):
        assert len([item async for item in stream]) == 3

    spans = telemetry.spans(SpanKind.CLIENT) + telemetry.spans(SpanKind.SERVER)
    names = {span.context.span_id: f"{span.kind.name} {span.name}" for span in spans}
    parents = {
        names[span.context.span_id]: names[span.parent.span_id] if span.parent else None
        for span in spans
    }
    assert parents == {
        "CLIENT relay/pass_on": None,
        "SERVER relay/pass_on": "CLIENT relay/pass_on",
        "CLIENT feed.Feed/count": "SERVER relay/pass_on",
        "SERVER feed.Feed/count": "CLIENT feed.Feed/count",
    }


@pytest.mark.parametrize(
    ("endpoint", "code", "theirs_is_error"),
    [("fail", "not_found", False), ("crash", "internal", True)],
)
@pytest.mark.parametrize("seen", [False, True], ids=["raised", "dealt with"])
async def test_span_says_how_the_stream_ended(
    busmicro_memory: str,
    telemetry: Telemetry,
    trace: dict[str, list[Wrapper]],
    endpoint: str,
    code: str,
    *,
    theirs_is_error: bool,
    seen: bool,
):
    """Code and status, even if the block deals with it; an answer is no fault of a service."""
    async with connected(busmicro_memory, **trace) as ends:
        if seen:
            async with ends.open(endpoint, 2) as stream:
                with pytest.raises((NotFound, Exception)):
                    [item async for item in stream]
        else:
            with pytest.raises((NotFound, Exception)):
                await drain(ends, endpoint, 2)

    (mine,), (theirs,) = telemetry.spans(SpanKind.CLIENT), telemetry.spans(SpanKind.SERVER)
    for span, is_error in ((mine, True), (theirs, theirs_is_error)):
        assert span.attributes is not None
        assert span.attributes["rpc.response.status_code"] == code
        assert (span.status.status_code is StatusCode.ERROR) == is_error


async def test_stream_that_was_left_is_no_error(
    busmicro_memory: str, telemetry: Telemetry, trace: dict[str, list[Wrapper]], until: Until
):
    """To have enough is fine at the caller; the handler's span says that it was cancelled."""
    async with connected(busmicro_memory, **trace) as ends:
        async for _ in ends.stub.hold(Item(n=1)):
            break
        await until(lambda: len(telemetry.spans(SpanKind.SERVER)) == 1)
        await until(lambda: len(telemetry.spans(SpanKind.CLIENT)) == 1)

    (mine,), (theirs,) = telemetry.spans(SpanKind.CLIENT), telemetry.spans(SpanKind.SERVER)
    assert mine.attributes is not None
    assert theirs.attributes is not None
    assert mine.attributes["rpc.response.status_code"] == "ok"
    assert theirs.attributes["rpc.response.status_code"] == "cancelled"
    assert theirs.status.status_code is StatusCode.UNSET


async def test_opening_that_is_tried_again_is_one_span_at_the_caller(
    busmicro_memory: str, telemetry: Telemetry, trace: dict[str, list[Wrapper]]
):
    """And one at the handler for each attempt, all of them its children."""
    trace["handler"].append(Failing(2, busy))

    async with connected(busmicro_memory, **trace) as ends:
        assert await drain(ends) == [0]

    (mine,) = telemetry.spans(SpanKind.CLIENT)
    theirs = telemetry.spans(SpanKind.SERVER)
    assert len(theirs) == 3
    assert {span.parent and span.parent.span_id for span in theirs} == {mine.context.span_id}


async def test_two_streams_of_one_endpoint_are_two_spans(
    busmicro_memory: str, telemetry: Telemetry, trace: dict[str, list[Wrapper]]
):
    """One stream within the block of another is an exchange of its own."""
    async with connected(busmicro_memory, **trace) as ends:
        async for item in ends.stub.count(Item(n=1)):
            async for _ in ends.stub.count(item.model_copy(update={"n": 1})):
                pass

    assert len(telemetry.spans(SpanKind.CLIENT)) == 2
    assert len(telemetry.spans(SpanKind.SERVER)) == 2


# --- Metrics ------------------------------------------------------------------------------------


async def test_durations_are_those_of_the_streams(
    busmicro_memory: str, telemetry: Telemetry, metrics: dict[str, list[Wrapper]], until: Until
):
    """One measurement a stream and side: from the opening to the end."""
    async with connected(busmicro_memory, **metrics) as ends:
        async with ends.talk() as stream:
            await stream.send(Item())
            await anext(stream)
            await asyncio.sleep(0.1)
            await stream.close_send()
            assert [item async for item in stream] == []
        await until(lambda: telemetry.points("rpc.server.call.duration"))

    for name in ("rpc.client.call.duration", "rpc.server.call.duration"):
        (point,) = telemetry.points(name)
        assert point.count == 1
        assert 0.1 <= point.sum < 5
        assert point.attributes["rpc.method"] == "feed.Feed/echo"
        assert point.attributes["rpc.response.status_code"] == "ok"


async def test_streams_are_under_way_while_they_are_open(
    busmicro_memory: str, telemetry: Telemetry, metrics: dict[str, list[Wrapper]], until: Until
):
    """Each of them counts at both ends, and not any more when it is over."""
    async with connected(busmicro_memory, **metrics) as ends:
        async with ends.open("hold"), ends.talk():
            assert telemetry.in_flight() == {"client": 2, "handler": 2}
        await until(lambda: telemetry.in_flight() == {"client": 0, "handler": 0})


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
async def test_nothing_is_under_way_however_a_stream_has_ended(
    busmicro_memory: str,
    telemetry: Telemetry,
    metrics: dict[str, list[Wrapper]],
    trace: dict[str, list[Wrapper]],
    end: Callable[[Ends], Awaitable[None]],
    until: Until,
):
    """And each stream has been measured and traced once, at both ends."""
    both = {side: [*trace[side], *metrics[side]] for side in trace}

    async with connected(busmicro_memory, **both) as ends:
        await end(ends)
        await until(lambda: telemetry.in_flight() == {"client": 0, "handler": 0})

        for name in ("rpc.client.call.duration", "rpc.server.call.duration"):
            assert sum(point.count for point in telemetry.points(name)) == 1
        assert len(telemetry.spans(SpanKind.CLIENT)) == 1
        await until(lambda: len(telemetry.spans(SpanKind.SERVER)) == 1)


async def test_messages_are_counted_where_somebody_asks(
    busmicro_memory: str, telemetry: Telemetry, metrics: dict[str, list[Wrapper]]
):
    """What left and what arrived, at each end, while the stream is still open."""
    async with connected(busmicro_memory, **metrics) as ends, ends.talk("total") as stream:
        for n in range(5):
            await stream.send(Item(n=n))
        sent = [p.value for p in telemetry.points("busmicro.stream.messages")]
        assert max(sent) == 5
        await stream.result()

    counted = {
        (p.attributes["busmicro.side"], p.attributes["network.io.direction"]): p.value
        for p in telemetry.points("busmicro.stream.messages")
    }
    assert counted == {
        ("client", "transmit"): 5,
        ("client", "receive"): 1,
        ("handler", "receive"): 5,
        ("handler", "transmit"): 1,
    }


async def test_messages_cost_nothing_where_nobody_asks(busmicro_memory: str, telemetry: Telemetry):
    """Without `messages=True` no message passes through anything."""
    seen: list[bool] = []

    async def look(call: Call, call_next: Handler) -> object:
        seen.append(call.has_taps)
        return await call_next(call)

    wrappers: list[Wrapper] = [Metrics(meter_provider=telemetry.meters), Log(), look]
    async with connected(busmicro_memory, client=wrappers, handler=wrappers) as ends:
        await drain(ends, "count", 3)

    assert seen == [False, False]
    assert telemetry.points("busmicro.stream.messages") == []


# --- Log ----------------------------------------------------------------------------------------


def lines(caplog: pytest.LogCaptureFixture) -> dict[str, logging.LogRecord]:
    """The lines of `Feed`'s streams, by side; there is one at each."""
    found = [
        record
        for record in caplog.records
        if record.name == "busmicro.exchange" and "Feed" in record.getMessage()
    ]
    by_side = {str(record.__dict__["side"]): record for record in found}
    assert len(by_side) == len(found)
    return by_side


async def test_stream_is_one_line_at_each_end(
    busmicro_memory: str, caplog: pytest.LogCaptureFixture
):
    """It says what was streamed, how it ended and how long it took."""
    caplog.set_level(logging.INFO)

    async with (
        connected(busmicro_memory, client=[Log()], handler=[Log()]) as ends,
        ends.talk() as stream,
    ):
        await asyncio.sleep(0.05)
        await stream.close_send()
        assert [item async for item in stream] == []

    found = lines(caplog)
    assert found["client"].getMessage().startswith("streamed with feed.Feed/echo: ok in ")
    assert found["handler"].getMessage().startswith("streamed from feed.Feed/echo: ok in ")
    for record in found.values():
        assert record.__dict__["duration_ms"] >= 50
        assert (record.__dict__["code"], record.__dict__["kind"]) == ("ok", "stream")


async def test_line_says_how_many_messages_went_either_way(
    busmicro_memory: str, caplog: pytest.LogCaptureFixture
):
    """Where somebody wants to see messages: of many requests the number, of one request itself."""
    caplog.set_level(logging.INFO)
    told = [Log(messages=True)]

    async with connected(busmicro_memory, client=told, handler=told) as ends:
        await ends.stub.total(items(1, 2, 3))
        found = lines(caplog)
        assert found["client"].getMessage().endswith(", 3 sent, 1 received")
        assert found["handler"].getMessage().endswith(", 1 sent, 3 received")
        assert not any("request" in record.__dict__ for record in found.values())

        caplog.clear()
        await drain(ends, "count", 2)
        found = lines(caplog)
        assert found["client"].getMessage().endswith(", 1 sent, 2 received")
        assert found["handler"].getMessage().endswith(", 2 sent, 1 received")
        assert all(record.__dict__["request"]["n"] == 2 for record in found.values())


@pytest.mark.parametrize(
    ("endpoint", "code", "level"),
    [("fail", "not_found", logging.INFO), ("crash", "internal", logging.ERROR)],
)
async def test_line_of_a_failed_stream_says_why(
    busmicro_memory: str, caplog: pytest.LogCaptureFixture, endpoint: str, code: str, level: int
):
    """At both ends, with the level that the code has."""
    caplog.set_level(logging.INFO)

    async with connected(busmicro_memory, client=[Log()], handler=[Log()]) as ends:
        with pytest.raises((NotFound, Exception)):
            await drain(ends, endpoint, 1)

    for record in lines(caplog).values():
        assert (record.__dict__["code"], record.levelno) == (code, level)
        assert record.__dict__["error"]


@pytest.mark.parametrize("limit", ["timeout", "idle_timeout"])
async def test_line_of_a_stream_whose_time_is_up_says_so_at_both_ends(
    busmicro_memory: str, caplog: pytest.LogCaptureFixture, until: Until, limit: str
):
    """A handler that was cancelled because its time was up is not logged as given up."""
    caplog.set_level(logging.INFO)

    async with connected(busmicro_memory, client=[Log()], handler=[Log()]) as ends:
        with pytest.raises(DeadlineExceeded):
            async with ends.open("hold", **{limit: 0.05}) as stream:
                while True:
                    await anext(stream)
        await until(lambda: len(lines(caplog)) == 2)

    codes = {record.__dict__["code"] for record in lines(caplog).values()}
    assert codes == {"deadline_exceeded"}


# --- all of them --------------------------------------------------------------------------------


async def test_recommended_wrappers_around_a_stream(
    busmicro_server: NatsServer,
    caplog: pytest.LogCaptureFixture,
    until: Until,
):
    """A service that takes the defaults relays streams of every end, and nothing is left over."""
    caplog.set_level(logging.INFO)
    relay = Service("relay", url=busmicro_server.url, defaults=True)

    @relay.rpc
    async def pass_on(request: Item) -> AsyncIterator[Item]:
        feed = relay.client.stub(Feed, service="feed")
        which = {13: feed.fail, 99: feed.hold}.get(request.n, feed.count)
        async for item in which(request):
            yield item

    async def drained(client: Client, n: int) -> int:
        async with client.stream("relay", "pass_on", Item(n=n), returns=Item) as stream:
            return len([item async for item in stream])

    client_side = [make() for make in RECOMMENDED.client]
    handler_side = [make() for make in RECOMMENDED.handler if make is not Recover]
    async with (
        connected(busmicro_server.url, client=client_side, handler=handler_side) as ends,
        relay,
    ):
        assert await drained(ends.client, 300) == 300
        with pytest.raises(NotFound, match="no more"):
            await drained(ends.client, 13)
        async with ends.client.stream("relay", "pass_on", Item(n=99), returns=Item) as stream:
            await anext(stream)
        await until(lambda: ends.feed.left == 3)

    said = Counter(
        (str(record.__dict__["side"]), str(record.__dict__["code"]))
        for record in caplog.records
        if record.name == "busmicro.exchange" and record.__dict__["kind"] == "stream"
    )
    # the caller and the relay each have a client, the relay and the feed each a handler
    assert said["client", "ok"] + said["client", "cancelled"] == 4
    assert (said["client", "not_found"], said["handler", "not_found"]) == (2, 2)
    assert (said["handler", "ok"], said["handler", "cancelled"]) == (2, 2)


async def test_refusals_are_seen_by_what_stands_outside(
    busmicro_memory: str,
    telemetry: Telemetry,
    metrics: dict[str, list[Wrapper]],
    caplog: pytest.LogCaptureFixture,
):
    """A stream that a limit refuses is measured and logged at both ends, with its code."""
    caplog.set_level(logging.INFO)
    both = {side: [*metrics[side], Log()] for side in metrics}
    both["handler"].append(Failing(9, busy))

    async with connected(busmicro_memory, **both) as ends:
        with pytest.raises(ResourceExhausted):
            await drain(ends)

    found = [r for r in caplog.records if r.name == "busmicro.exchange" and "Feed" in r.message]
    assert Counter((r.__dict__["side"], r.__dict__["code"]) for r in found) == {
        ("handler", "resource_exhausted"): 3,
        ("client", "resource_exhausted"): 1,
    }
    (again,) = telemetry.points("busmicro.retries")
    assert again.value == 2
