"""Find services and ask their nodes; what several verbs share."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from busmicro.cli.failures import report
from busmicro.cli.words import did_you_mean
from busmicro.client import Client
from busmicro.errors import CallError, NotFound, Unavailable, Unimplemented
from busmicro.registry import EndpointRecord, Node, ServiceRecord

BUILT_IN = "Debug."

KINDS = {
    "server_stream": "server stream",
    "client_stream": "client stream",
    "both": "stream both ways",
}
"""What people read of a kind of endpoint; of any other its own name."""


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


def endpoint_of(record: ServiceRecord, name: str) -> EndpointRecord:
    """Find an endpoint that has to be there.

    Raises:
        Unimplemented: The service does not have it; the text says which names come close.
    """
    found = record.endpoint(name)
    if found is None:
        names = visible(record)
        hint = did_you_mean(name, names) or f"there are {', '.join(names) or 'none'}"
        raise Unimplemented(f"{record.name} has no endpoint {name!r}: {hint}", origin=record.name)
    return found


async def nobody(client: Client, service: str, node: str, failure: Unavailable) -> int:
    """Say who is not there, and who is; the exit code."""
    record = await client.bus.discovery.service(service)
    if record is None:
        others = await what_else(client, service)
        return report(Unavailable(f"no service {service!r} is up: {others}"))
    nodes = ", ".join(known.id for known in record.nodes)
    if node and node not in nodes:
        failure = Unavailable(f"{service} has no node {node!r}: there are {nodes}")
    return report(failure, hint=f"busmicro describe {service}")


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
