"""Nodes in processes of their own, how to wait for them, and what they have written down."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from busmicro import Client, Unavailable
from tests.faults.history import logged
from tests.faults.processes import Programs

Until = Callable[..., Awaitable[None]]

CATCHES_UP = 0.1
"""Seconds whose calls are made late, when this machine stood still; more would be a rush."""


def start_node(
    programs: Programs, url: str, service: str, node: str, *following: str, **env: str
) -> None:
    """Start a node of a service; `following` is the service that its `hop` calls."""
    programs.start(node, "node.py", service, node, *following, BUSMICRO_NATS_URL=url, **env)


async def nodes_up(client: Client, until: Until, **wanted: int) -> None:
    """Wait until each service has so many nodes."""

    async def are_up() -> bool:
        try:
            records = [await client.bus.discovery.service(service) for service in wanted]
        except Unavailable:  # it cannot be said just now
            return False
        found = [len(record.nodes) if record else 0 for record in records]
        return found == list(wanted.values())

    await until(are_up, timeout=45.0)


async def counted(client: Client, service: str, what: str, at_least: int) -> None:
    """Wait until a service with one node has noted something so often."""
    async with asyncio.timeout(20):
        while await client.call(service, "count", what, returns=int) < at_least:
            await asyncio.sleep(0.01)


def noted(programs: Programs, node: str, what: str) -> dict[int, float]:
    """Return by number when a node wrote something down, in seconds of `now()`."""
    lines = logged(programs.logs / f"{node}.log")
    return {int(number): float(at) for said, number, at in lines if said == what}


def times_noted(programs: Programs, node: str, what: str) -> Counter[int]:
    """Return by number how often a node wrote something down."""
    lines = logged(programs.logs / f"{node}.log")
    return Counter(int(number) for said, number, _ in lines if said == what)


def middle(values: list[float]) -> float:
    """Return the median, or the one above it."""
    return sorted(values)[len(values) // 2]
