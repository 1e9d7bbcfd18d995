"""`busmicro call`: call an endpoint and print the reply."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import click

from busmicro.cli.body import parse, parse_headers
from busmicro.cli.complete import service_names, unary_names
from busmicro.cli.connection import connected
from busmicro.cli.failures import report
from busmicro.cli.find import KINDS, ask_each, nobody, require
from busmicro.cli.load import measure
from busmicro.cli.options import given, verb
from busmicro.cli.output import print_bytes, print_json, to_text
from busmicro.cli.words import clean
from busmicro.client import Client
from busmicro.errors import BusmicroError, CallError, Unavailable, Unimplemented, exit_code
from busmicro.registry import EndpointRecord

_LOOK_FOR = 0.3


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of whom."""

    service: str
    """The service."""
    endpoint: str
    """Its endpoint."""
    message: object
    """The request; None for none."""
    headers: dict[str, str]
    """Sent with it."""
    raw: bool
    """Leave the reply as it came?"""
    node: str
    """The id of the only node to ask; empty for any."""

    async def send(self, client: Client) -> object:
        """Send it once.

        Raises:
            CallError: What the handler raised, or what went wrong on the way.
        """
        if self.raw:
            return await client.call(
                self.service, self.endpoint, self.message, headers=self.headers, returns=bytes
            )
        return await client.call(self.service, self.endpoint, self.message, headers=self.headers)


@verb("call")
@click.argument("service", shell_complete=service_names)
@click.argument("endpoint", shell_complete=unary_names)
@click.argument("body", nargs=-1, metavar="[JSON | - | @FILE | K=V K:=JSON]")
@click.option("-H", "--header", "headers", multiple=True, metavar="'K: V'", help="Send a header.")
@click.option("--node", default="", metavar="ID", help="Ask this node.")
@click.option("--all", "everywhere", is_flag=True, help="Ask every node; one line for each.")
@click.option("--count", type=click.IntRange(1), help="Call so often and print how long it took.")
@click.option("--concurrency", type=click.IntRange(1), default=1, help="How many calls at once.")
@click.option(
    "--raw", is_flag=True, help="Print the reply as it came; send as bytes what is no JSON."
)
def call(
    service: str,
    endpoint: str,
    body: tuple[str, ...],
    *,
    headers: tuple[str, ...],
    node: str,
    everywhere: bool,
    count: int | None,
    concurrency: int,
    raw: bool,
) -> int:
    """Call an endpoint and print the reply, and nothing else.

    The request is JSON, `-` for stdin, `@file`, or fields: `name=John age:=30 address.city=Bern`.
    Without --timeout the endpoint's own counts, or 5 seconds.

    JSON: the reply. With --all a line for each node: {"node", "reply"} or {"node", "error":
    {"code", "message", "details": []}}. With --count: {"calls", "failed", "seconds",
    "calls_per_second", "latency_ms": {"min", "p50", "p90", "p99", "max"}, "errors": {code: count}}
    (without --json in words).
    """
    if sum((everywhere, bool(node), count is not None and everywhere)) > 1:
        raise click.UsageError("--all goes neither with --node nor with --count")
    request = Request(service, endpoint, parse(body, raw=raw), parse_headers(headers), raw, node)
    return asyncio.run(_call(request, count=count, concurrency=concurrency, everywhere=everywhere))


async def _call(request: Request, *, count: int | None, concurrency: int, everywhere: bool) -> int:
    async with connected() as client:
        known = await _advertised(client, request)
        if known is not None and known.streams:
            return _streams(request, known)
        fitting = _fit(client, request, known)
        if everywhere:
            return await _everywhere(fitting, request)
        if count is not None:
            return await measure(lambda: request.send(fitting), count, concurrency)
        return await _once(fitting, request)


def _streams(request: Request, known: EndpointRecord) -> int:
    what = f"{request.endpoint} is a {KINDS.get(known.kind, known.kind)}, not a call"
    return report(Unimplemented(what), hint=f"busmicro stream {request.service} {request.endpoint}")


def _fit(client: Client, request: Request, known: EndpointRecord | None) -> Client:
    """Return a client that calls as the endpoint wishes, if anybody knows how that is."""
    return client.with_options(
        timeout=given().timeout or (known.timeout if known else None),
        idempotent=known.idempotent if known else None,
        node=request.node or None,
    )


async def _advertised(client: Client, request: Request) -> EndpointRecord | None:
    try:
        async with asyncio.timeout(_LOOK_FOR):
            record = await client.bus.discovery.service(request.service)
    except (TimeoutError, BusmicroError):
        return None  # a call needs no registry
    return record.endpoint(request.endpoint) if record else None


async def _once(client: Client, request: Request) -> int:
    try:
        reply = await request.send(client)
    except CallError as failure:
        if isinstance(failure, Unavailable) and failure.not_run and client.bus.transport.connected:
            return await nobody(client, request.service, request.node, failure)
        return report(failure, service=request.service)
    _print(reply)
    return 0


def _print(reply: object) -> None:
    if isinstance(reply, bytes):
        print_bytes(reply)
    else:
        print_json(reply)


# --- every node ---------------------------------------------------------------------------------


async def _everywhere(client: Client, request: Request) -> int:
    try:
        record = await require(client, request.service)
    except CallError as failure:
        return report(failure, hint="busmicro services")
    answers = await ask_each(
        client, record.nodes, request.endpoint, request.message, request.headers
    )
    for node, answer in zip(record.nodes, answers, strict=True):
        click.echo(to_text({"node": node.id, **_outcome(answer)}))
    failures = [answer for answer in answers if isinstance(answer, CallError)]
    return exit_code(failures[0]) if failures else 0


def _outcome(answer: object) -> dict[str, object]:
    if isinstance(answer, CallError):
        message = clean(answer.message)
        error = {"code": answer.code.value, "message": message, "details": answer.details}
        return {"error": error}
    if isinstance(answer, bytes):
        return {"reply": answer.decode("utf-8", "replace")}
    return {"reply": answer}
