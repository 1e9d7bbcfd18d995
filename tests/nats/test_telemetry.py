"""Traces, metrics and logs of real exchanges, received by a real OTLP/HTTP endpoint."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client.parser import text_string_to_metric_families

from busmicro import Client, NatsServer, Service, Stream, Topic
from busmicro.errors import Unavailable
from busmicro.wrappers.log import JsonFormatter, Log, TraceIds
from busmicro.wrappers.trace import Trace


class Collector:
    """Receives what OTLP/HTTP exporters send, and reads it."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        self.metrics: dict[str, object] = {}
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                found = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(found[1]) if found else 0)
                self.receive(head.split(" ")[1], body)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
        writer.close()

    def receive(self, path: str, body: bytes) -> None:
        if path == "/v1/metrics":
            request = ExportMetricsServiceRequest.FromString(body)
            for resource in request.resource_metrics:
                for scope in resource.scope_metrics:
                    self.metrics.update({metric.name: metric for metric in scope.metrics})
            return
        for of in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append({a.key: a.value.string_value for a in of.resource.attributes})
            self.spans += [span for scope in of.scope_spans for span in scope.spans]

    def one(self, name: str) -> Span:
        (span,) = [span for span in self.spans if span.name == name]
        return span


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    """An OTLP/HTTP endpoint."""
    own = Collector()
    async with await asyncio.start_server(own.serve, "127.0.0.1", 0) as listening:
        own.port = listening.sockets[0].getsockname()[1]
        yield own


@pytest.fixture
async def provider(collector: Collector) -> AsyncIterator[TracerProvider]:
    """A tracer provider that sends to the collector."""
    own = TracerProvider(shutdown_on_exit=False)
    exporter = OTLPSpanExporter(f"http://127.0.0.1:{collector.port}/v1/traces")
    own.add_span_processor(BatchSpanProcessor(exporter))
    yield own
    await asyncio.to_thread(own.shutdown)


async def flush(provider: TracerProvider) -> None:
    await asyncio.to_thread(provider.force_flush)


async def test_one_trace_through_client_service_nested_service_and_event(
    server: NatsServer, collector: Collector, provider: TracerProvider
):
    """Every step is a child of the one that caused it, down to the handler of the event."""
    paid = Topic("orders.paid", str, stream=Stream("ORDERS", storage="memory"))
    traced = [Trace(tracer_provider=provider)]
    shop = Service("shop", url=server.url, client_wrappers=traced, handler_wrappers=traced)
    bank = Service("bank", url=server.url, client_wrappers=traced, handler_wrappers=traced)
    booked = asyncio.Event()

    @shop.rpc
    async def buy(what: str) -> object:
        return await shop.client.call("bank", "pay", what)

    @bank.rpc
    async def pay(what: str) -> str:
        await bank.publish(paid, what)
        return "paid"

    @shop.subscribe(paid, group="books")
    async def book(_what: str) -> None:
        booked.set()

    bank.publishes(paid)
    async with bank, shop, Client(server.url, wrappers=traced) as client:
        assert await client.call("shop", "buy", "tea") == "paid"
        await asyncio.wait_for(booked.wait(), 10)  # noqa: TID251
    await flush(provider)

    names = {span.span_id: span.name for span in collector.spans}
    tree = [
        (span.name, Span.SpanKind.Name(span.kind), names.get(span.parent_span_id))
        for span in sorted(collector.spans, key=lambda span: span.start_time_unix_nano)
    ]
    assert tree == [
        ("shop/buy", "SPAN_KIND_CLIENT", None),
        ("shop/buy", "SPAN_KIND_SERVER", "shop/buy"),
        ("bank/pay", "SPAN_KIND_CLIENT", "shop/buy"),
        ("bank/pay", "SPAN_KIND_SERVER", "bank/pay"),
        ("publish orders.paid", "SPAN_KIND_PRODUCER", "bank/pay"),
        ("process orders.paid", "SPAN_KIND_CONSUMER", "publish orders.paid"),
    ]
    kinds = {(span.name, span.kind): span for span in collector.spans}
    nested = kinds["bank/pay", Span.SPAN_KIND_CLIENT]
    assert nested.parent_span_id == kinds["shop/buy", Span.SPAN_KIND_SERVER].span_id
    assert len({span.trace_id for span in collector.spans}) == 1


async def test_redelivered_event_keeps_its_trace(
    server: NatsServer, collector: Collector, provider: TracerProvider
):
    """An event that fails and comes again is handled in the trace that it was published in."""
    topic = Topic("orders.lost", str, stream=Stream("LOST", storage="memory"))
    traced = [Trace(tracer_provider=provider)]
    service = Service("billing", url=server.url, client_wrappers=traced, handler_wrappers=traced)
    attempts: asyncio.Queue[int] = asyncio.Queue()
    count = 0

    @service.subscribe(topic, group="books")
    async def book(_event: str) -> None:
        nonlocal count
        count += 1
        attempts.put_nowait(count)
        if count == 1:
            raise Unavailable("not now", retry_after=0.01)

    async with service:
        await service.publish(topic, "x", id="17")
        async with asyncio.timeout(10):
            while await attempts.get() != 2:
                pass
    await flush(provider)

    published = collector.one("publish orders.lost")
    handled = [span for span in collector.spans if span.name == "process orders.lost"]
    assert [span.parent_span_id for span in handled] == [published.span_id] * 2
    assert {span.trace_id for span in handled} == {published.trace_id}
    attempt = [
        attribute.value.int_value
        for span in sorted(handled, key=lambda span: span.start_time_unix_nano)
        for attribute in span.attributes
        if attribute.key == "messaging.nats.delivery_attempt"
    ]
    assert attempt == [1, 2]
    codes = [span.status.code for span in handled]
    assert sorted(codes) == [0, 2]


async def test_log_lines_carry_the_trace(
    server: NatsServer, collector: Collector, provider: TracerProvider,
    caplog: pytest.LogCaptureFixture,
):  # fmt: skip
    """Whatever a handler logs can be found by its trace, and so can the line of the exchange."""
    around = [Trace(tracer_provider=provider), Log()]
    service = Service("shop", url=server.url, handler_wrappers=around)
    own = logging.getLogger("shop")

    @service.rpc
    async def buy() -> None:
        own.info("the shelf is empty")

    caplog.handler.addFilter(TraceIds())
    with caplog.at_level(logging.INFO):
        async with service, Client(server.url) as client:
            await client.call("shop", "buy")
    await flush(provider)

    span = collector.one("shop/buy")
    lines = {
        record.name: json.loads(JsonFormatter().format(record))
        for record in caplog.records
        if record.name in {"shop", "busmicro.exchange"}
    }
    assert lines["shop"]["message"] == "the shelf is empty"
    for line in lines.values():
        assert line["trace_id"] == span.trace_id.hex()
        assert line["span_id"] == span.span_id.hex()


SERVICE = """
from busmicro import Service
from busmicro.wrappers.metrics import Metrics
from busmicro.wrappers.trace import Trace

around = [Trace(), Metrics()]
service = Service("shop", version="1.2.3", client_wrappers=around, handler_wrappers=around)

@service.rpc
async def buy() -> str:
    return "bought"
"""


async def test_environment_alone_configures_it(
    server: NatsServer, collector: Collector, start_program, until, tmp_path: Path
):
    """`busmicro run` sends traces and metrics where the standard variables say, and at its end."""
    (tmp_path / "shop.py").write_text(SERVICE, encoding="utf-8")
    program = start_program(
        "-m", "busmicro", "run", str(tmp_path / "shop.py"),
        url=server.url,
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.port}",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
        OTEL_METRIC_EXPORT_INTERVAL="100",
    )  # fmt: skip
    async with Client(server.url, wait_for_ready=True) as client:
        assert await client.call("shop", "buy", timeout=10) == "bought"
    wanted = {"rpc.server.call.duration", "busmicro.requests", "busmicro.loop.lag"}
    await until(lambda: wanted <= set(collector.metrics))
    program.send_signal(signal.SIGTERM)
    await asyncio.to_thread(program.communicate)

    assert collector.one("shop/buy").kind == Span.SPAN_KIND_SERVER
    (resource,) = collector.resources
    assert resource["service.name"] == "shop"
    assert resource["service.version"] == "1.2.3"
    assert resource["deployment.environment.name"] == "test"


async def test_dead_collector_costs_calls_nothing_and_is_named_once(
    server: NatsServer, start_program, tmp_path: Path
):
    """Calls go on as if nothing was wrong, the log names it once, and the end is not held up."""
    (tmp_path / "shop.py").write_text(SERVICE, encoding="utf-8")
    program = start_program(
        "-m", "busmicro", "run", str(tmp_path / "shop.py"),
        url=server.url,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
        OTEL_METRICS_EXPORTER="none",
        OTEL_BSP_SCHEDULE_DELAY="50",
    )  # fmt: skip
    async with Client(server.url, wait_for_ready=True) as client:
        await client.call("shop", "buy", timeout=10)
        slowest = 0.0
        for _ in range(50):
            began = time.monotonic()
            await client.call("shop", "buy")
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.05)
    program.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _out, err = await asyncio.to_thread(program.communicate)

    assert program.returncode == 0
    assert time.monotonic() - began < 5
    assert slowest < 0.5
    assert err.count(b"cannot be delivered to the collector") == 1
    assert b"Connection refused" in err
    assert b"Traceback" not in err


SHOP = """
from busmicro import Reject, Service, Stream, Topic
from busmicro.wrappers.metrics import Metrics

paid = Topic("orders.paid", str, stream=Stream("ORDERS", storage="memory"))
service = Service("shop", id="n1", handler_wrappers=[Metrics()], client_wrappers=[Metrics()])
service.publishes(paid)
broken = False

@service.rpc
async def buy(what: str) -> None:
    await service.publish(paid, what)

@service.rpc("break")
async def break_it() -> None:
    global broken
    broken = True

@service.subscribe(paid, group="books")
async def book(what: str) -> None:
    raise Reject("no")

@service.check("database", interval=0.05)
async def database() -> bool:
    return not broken
"""


def port_of(program: subprocess.Popen[bytes]) -> int:
    """Read in its log where a service answers over HTTP."""
    assert program.stderr is not None
    for line in program.stderr:
        if found := re.search(rb"http://127.0.0.1:(\d+) has /metrics", line):
            return int(found[1])
    raise AssertionError("it said nothing of a port")


async def get(port: int, path: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    return int(answer.split(" ")[1]), answer.partition("\r\n\r\n")[2]


async def test_metrics_and_health_over_http(
    server: NatsServer, start_program, until, tmp_path: Path
):
    """With a port set, `/metrics` shows what the node has done, and `/health/ready` how it is."""
    (tmp_path / "shop.py").write_text(SHOP, encoding="utf-8")
    program = start_program(
        "-m", "busmicro", "run", str(tmp_path / "shop.py"),
        url=server.url,
        BUSMICRO_METRICS_PORT="0",
    )  # fmt: skip
    port = await asyncio.to_thread(port_of, program)

    async def value(name: str, **labels: str) -> float | None:
        _status, text = await get(port, "/metrics")
        samples = [s for f in text_string_to_metric_families(text) for s in f.samples]
        found = [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]
        return found[0] if found else None

    async def ready() -> bool:
        return (await get(port, "/health/ready"))[0] == 200

    await until(ready)
    async with Client(server.url) as client:
        await client.call("shop", "buy", "tea")
        method = {"rpc_method": "shop/buy"}
        assert await value("rpc_server_call_duration_seconds_count", **method) == 1
        assert await value("busmicro_requests_total", busmicro_endpoint="buy") == 1
        assert await value("messaging_client_sent_messages_total") == 1
        assert await value("busmicro_nats_reconnects_total", busmicro_node="n1") == 0
        assert await value("busmicro_running", busmicro_service="shop") == 0
        assert await value("busmicro_health", busmicro_check="database") == 1

        async def buried() -> bool:
            return await value("busmicro_dlq_messages_total") == 1

        await until(buried)
        assert await value("busmicro_consumer_lag") == 0
        assert (await value("busmicro_loop_lag_seconds") or 0.0) < 5.0
        await client.call("shop", "break")

        async def failing() -> bool:
            _status, body = await get(port, "/health/ready")
            return str(json.loads(body)["status"]) == "failing"

        await until(failing)
        assert await value("busmicro_health", busmicro_check="database") == 0
    assert json.loads((await get(port, "/health/live"))[1])["status"] == "live"


async def test_command_tells_what_is_wrong(
    server: NatsServer, start_program, until, tmp_path: Path
):
    """`busmicro health` names the check that fails, and its exit code says so."""
    (tmp_path / "shop.py").write_text(SHOP, encoding="utf-8")
    start_program("-m", "busmicro", "run", str(tmp_path / "shop.py"), url=server.url)
    async with Client(server.url, wait_for_ready=True) as client:
        await client.call("shop", "break", timeout=10)

        async def failing() -> bool:
            health = await client.call("shop", "Debug.Health")
            return isinstance(health, dict) and health["status"] == "failing"

        await until(failing)
    command = start_program("-m", "busmicro", "health", "shop", "--json", url=server.url)
    out, _err = await asyncio.to_thread(command.communicate)

    assert command.returncode == 1
    (state,) = json.loads(out)
    assert (state["status"], state["healthy"]) == ("failing", False)
    assert state["error"] == "database: it returned False"
