"""One trace through client, service, nested service and event handler, as a collector gets it."""

import asyncio
import os
import re

from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp

from busmicro import Client, NatsServer, Service, Topic
from busmicro.wrappers import Trace

paid = Topic("orders.paid", str)
shop = Service("shop", client_wrappers=[Trace()], handler_wrappers=[Trace()])
bank = Service("bank", client_wrappers=[Trace()], handler_wrappers=[Trace()])
spans, names = [], {b"": "nobody"}


@shop.rpc
async def buy(what: str) -> object:
    return await shop.client.call("bank", "pay", what)


@bank.rpc
async def pay(what: str) -> None:
    await bank.publish(paid, what)


@shop.subscribe(paid)
async def book(what: str) -> None:
    print(f"{what} is booked")


async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    size = re.search(rb"(?i)content-length: (\d+)", await reader.readuntil(b"\r\n\r\n"))
    request = otlp.ExportTraceServiceRequest.FromString(await reader.readexactly(int(size[1])))
    spans.extend(s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


async def main() -> None:
    collector = await asyncio.start_server(collect, "127.0.0.1", 0)
    host, port = collector.sockets[0].getsockname()
    os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = f"http://{host}:{port}/v1/traces"
    async with NatsServer() as server, Client(server.url, wrappers=[Trace()]) as client:
        await asyncio.gather(shop.start(url=server.url), bank.start(url=server.url))
        await client.call("shop", "buy", "tea")
        await asyncio.gather(shop.stop(), bank.stop())
    await asyncio.to_thread(trace.get_tracer_provider().force_flush)
    for s in sorted(spans, key=lambda s: s.start_time_unix_nano):
        names[s.span_id] = f"{s.name} ({s.SpanKind.Name(s.kind)[10:].lower()})"
        print(f"{names[s.span_id]} is a child of {names[s.parent_span_id]}")


if __name__ == "__main__":
    asyncio.run(main())
