"""Find services and ask their nodes; what several verbs share."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from busmicro.cli.words import did_you_mean
from busmicro.client import Client
from busmicro.errors import CallError, NotFound
from busmicro.registry import Node, ServiceRecord

BUILT_IN = "Debug."


def visible(record: ServiceRecord) -> list[str]:
    """List the endpoints that a service's author wrote."""
    return [e.name for e in record.endpoints if not e.name.startswith(BUILT_IN)]


async def require(client: Client, service: str) -> ServiceRecord:
    """Find a service that has to be there.

    Raises:
        SetupError: This cannot be the name of a service.
        NotFound: No node of it is up; the text says which names come close.
    """
    record = await client.bus.discovery.service(service)
    if record is None or not record.nodes:
        raise NotFound(f"no service {service!r} is up: {await what_else(client, service)}")
    return record


async def what_else(client: Client, service: str) -> str:
    """Say which services are up whose names come close, or else all of them."""
    names = [record.name for record in await client.bus.discovery.services()]
    listed = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    return did_you_mean(service, names) or (f"there are {listed}" if names else "nothing is up")


async def ask_each(
    client: Client,
    nodes: Sequence[Node],
    endpoint: str,
    message: object = None,
    headers: Mapping[str, str] | None = None,
) -> list[object]:
    """Call an endpoint of each of these nodes, all at once.

    Returns:
        In the same order, the reply of each or the `CallError` that came instead.
    """

    async def ask(node: Node) -> object:
        one = client.with_options(node=node.id)
        try:
            return await one.call(node.service, endpoint, message, headers=headers)
        except CallError as failure:
            return failure

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(node)) for node in nodes]
    return [task.result() for task in tasks]


def duration(seconds: float) -> str:
    """Write seconds so that they are read at a glance."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
