"""`busmicro health`: is everybody well?"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import click

from busmicro.cli.complete import service_names
from busmicro.cli.connection import connected
from busmicro.cli.failures import FAILED, TIME_IS_UP
from busmicro.cli.find import ask_each, duration, what_else
from busmicro.cli.options import given, verb
from busmicro.cli.output import print_json, print_table
from busmicro.cli.words import complain, note
from busmicro.client import Client
from busmicro.errors import CallError, Disconnected
from busmicro.registry import Node, ServiceRecord
from busmicro.rpc import HEALTH

_PATIENCE = 2.0
_PAUSE = 0.25


@dataclass(frozen=True, slots=True)
class State:
    """How a node is."""

    service: str
    """The name of its service."""
    node: str
    """Its id."""
    version: str
    """The version it runs."""
    healthy: bool
    """Is it well?"""
    status: str
    """What it says: `serving`, `failing`, `away`, `stopping`; `present` if it says nothing; or the
    code of what went wrong."""
    connected: bool | None = None
    """Is its connection up? None if it does not say."""
    uptime: float | None = None
    """Seconds since it started; None if it does not say."""
    error: str | None = None
    """What went wrong, and which checks fail."""

    def row(self) -> tuple[str, ...]:
        """Return it as a row of the table."""
        uptime = "" if self.uptime is None else duration(self.uptime)
        status = self.status if self.error is None else f"{self.status}: {self.error}"
        mark = "ok" if self.healthy else "BAD"
        return self.service, self.node, self.version, mark, status, uptime


@verb("health")
@click.argument("service", required=False, shell_complete=service_names)
@click.option("--wait", type=float, metavar="SECONDS", help="Wait until all is well; else 124.")
def health(service: str | None, wait: float | None) -> int:
    """Ask every node whether it is well; 1 if one is not, or if SERVICE is not up.

    Nodes of other frameworks are `present`: they cannot be asked more. With --wait, also for NATS
    itself; then something has to be up.

    JSON: [{"service", "node", "version", "healthy", "status", "connected", "uptime", "error"}];
    uptime in seconds; the last three may be null.
    """
    if wait is not None:
        return asyncio.run(_wait(service, wait))
    states, others = asyncio.run(_look(service))
    _print(states)
    if not states:
        return _nothing(service, others)
    return 0 if all(state.healthy for state in states) else FAILED


def _print(states: list[State]) -> None:
    if given().json:
        print_json([asdict(state) for state in states])
    elif states:
        headings = ("service", "node", "version", "health", "status", "uptime")
        print_table(headings, [state.row() for state in states])


def _nothing(service: str | None, others: str) -> int:
    if service is None:
        note("no service is up")
        note("try: busmicro run busmicro.cli.demo_greeter")
        return 0
    complain(f"no service {service!r} is up", others, hint="busmicro services")
    return FAILED


async def _wait(service: str | None, seconds: float) -> int:
    states: list[State] = []
    why = "nothing is up" if service is None else f"no service {service!r} is up"
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    states, _others = await _look(service)
                except Disconnected as failure:
                    states, why = [], failure.message
                if states and all(state.healthy for state in states):
                    break
                await asyncio.sleep(_PAUSE)
    except TimeoutError:
        _print(states)
        bad = [f"{s.service} {s.node}: {s.status}" for s in states if not s.healthy]
        complain(f"not well after {seconds:g} s", *(bad or [why]), hint="busmicro health")
        return TIME_IS_UP
    _print(states)
    return 0


async def _look(service: str | None) -> tuple[list[State], str]:
    """Ask everybody; say what else there is if the one that is meant is not there."""
    async with connected() as client:
        records = await _records(client, service)
        patient = client.with_options(timeout=given().timeout or _PATIENCE)
        states = [state for record in records for state in await _states(patient, record)]
        others = await what_else(client, service) if service and not states else ""
        return states, others


async def _records(client: Client, service: str | None) -> list[ServiceRecord]:
    if service is None:
        return await client.bus.discovery.services()
    record = await client.bus.discovery.service(service)
    return [] if record is None else [record]


async def _states(client: Client, record: ServiceRecord) -> list[State]:
    silent = [node for node in record.nodes if _is_foreign(record, node)]
    asked = [node for node in record.nodes if node not in silent]
    answers = await ask_each(client, asked, HEALTH.name)
    states = [_state(node, answer) for node, answer in zip(asked, answers, strict=True)]
    states += [State(n.service, n.id, n.version, healthy=True, status="present") for n in silent]
    return sorted(states, key=lambda state: state.node)


def _is_foreign(record: ServiceRecord, node: Node) -> bool:
    description = record.descriptions.get(node.id)
    return description is not None and description.endpoint(HEALTH.name) is None


def _state(node: Node, answer: object) -> State:
    if isinstance(answer, CallError):
        code, why = answer.code.value, answer.message
        return State(node.service, node.id, node.version, healthy=False, status=code, error=why)
    said = answer if isinstance(answer, Mapping) else {}
    status, up = str(said.get("status", "unknown")), bool(said.get("connected"))
    uptime = said.get("uptime")
    checks = said.get("checks")
    failing = [c for c in checks if not c["passed"]] if isinstance(checks, list) else []
    return State(
        node.service,
        node.id,
        node.version,
        healthy=status == "serving" and up,
        status=status,
        connected=up,
        uptime=float(uptime) if isinstance(uptime, int | float) else None,
        error="; ".join(f"{c['name']}: {c['error']}" for c in failing) or None,
    )
