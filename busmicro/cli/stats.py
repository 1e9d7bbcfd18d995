"""`busmicro stats`: what the endpoints have done so far."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import click

from busmicro.cli.complete import service_names
from busmicro.cli.connection import connected
from busmicro.cli.failures import FAILED
from busmicro.cli.find import BUILT_IN, what_else
from busmicro.cli.options import given, verb
from busmicro.cli.output import print_table, to_text
from busmicro.cli.words import complain, is_terminal, note
from busmicro.client import Client
from busmicro.clock import SYSTEM_CLOCK
from busmicro.registry import EndpointStats, NodeStats

_EVERY = 1.0

Key = tuple[str, str]


@dataclass(slots=True)
class Total:
    """What an endpoint has done on all nodes."""

    nodes: int = 0
    """How many have it."""
    requests: int = 0
    """Answered or given up, good or bad."""
    errors: int = 0
    """Of these, how many did not succeed."""
    time_ns: int = 0
    """Nanoseconds spent in all."""
    last_error: str = ""
    """What a latest failure said."""

    def add(self, figures: EndpointStats) -> None:
        """Add what one node did."""
        self.nodes += 1
        self.requests += figures.num_requests
        self.errors += figures.num_errors
        self.time_ns += figures.processing_time
        self.last_error = figures.last_error or self.last_error

    @property
    def average_ms(self) -> float:
        """Milliseconds a request, on average."""
        return round(self.time_ns / self.requests / 1e6, 3) if self.requests else 0.0


Totals = dict[Key, Total]


@verb("stats")
@click.argument("service", required=False, shell_complete=service_names)
@click.option("-w", "--watch", is_flag=True, help="Every second again, until Ctrl-C.")
def stats(service: str | None, *, watch: bool) -> int:
    """Show requests, errors and the average time of each endpoint, over all nodes.

    JSON: [{"service", "endpoint", "nodes", "requests", "errors", "average_ms", "last_error"}], the
    built-in Debug.* too, which the table leaves out; with --watch a line a second, and in each
    entry "per_second" too.
    """
    return asyncio.run(_stats(service, watch=watch))


async def _stats(service: str | None, *, watch: bool) -> int:
    async with connected() as client:
        if watch:
            await _watch(client, service)
        totals = add_up(await client.bus.discovery.stats(service))
        _print(totals, None)
        if totals:
            return 0
        if service is None:
            note("no service is up")
            note("try: busmicro run busmicro.cli.demo_greeter")
            return 0
        others = await what_else(client, service)
        complain(f"no service {service!r} is up", others, hint="busmicro services")
        return FAILED


def add_up(found: list[NodeStats]) -> Totals:
    """Add the figures of the nodes up, by service and endpoint."""
    totals: Totals = {}
    for one in found:
        for figures in one.endpoints:
            totals.setdefault((one.node.service, figures.name), Total()).add(figures)
    return totals


async def _watch(client: Client, service: str | None) -> None:
    """Print again and again; Ctrl-C ends it."""
    before: Totals = {}
    looked = SYSTEM_CLOCK.now()
    while True:
        totals = add_up(await client.bus.discovery.stats(service))
        now = SYSTEM_CLOCK.now()
        rates = {key: _rate(total, before.get(key), now - looked) for key, total in totals.items()}
        before, looked = totals, now
        if is_terminal() and not given().json:
            click.clear()
        _print(totals, rates)
        await asyncio.sleep(_EVERY)


def _rate(total: Total, before: Total | None, seconds: float) -> float:
    if before is None or not seconds:
        return 0.0
    return round(max(0, total.requests - before.requests) / seconds, 1)


def _print(totals: Totals, rates: Mapping[Key, float] | None) -> None:
    if given().json:
        click.echo(to_text([_as_json(key, total, rates) for key, total in totals.items()]))
        return
    headings = ["service", "endpoint", "nodes", "requests", "errors", "average"]
    rows = [
        _row(key, total, rates) for key, total in totals.items() if not key[1].startswith(BUILT_IN)
    ]
    if rows:
        print_table([*headings, *(["per second"] if rates is not None else [])], rows)


def _as_json(key: Key, total: Total, rates: Mapping[Key, float] | None) -> dict[str, object]:
    rate = {} if rates is None else {"per_second": rates[key]}
    return {
        "service": key[0],
        "endpoint": key[1],
        "nodes": total.nodes,
        "requests": total.requests,
        "errors": total.errors,
        "average_ms": total.average_ms,
        "last_error": total.last_error,
        **rate,
    }


def _row(key: Key, total: Total, rates: Mapping[Key, float] | None) -> list[str]:
    rate = [] if rates is None else [f"{rates[key]:g}"]
    figures = [str(total.nodes), str(total.requests), str(total.errors)]
    return [*key, *figures, f"{total.average_ms:g} ms", *rate]
