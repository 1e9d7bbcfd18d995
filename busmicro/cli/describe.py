"""`busmicro describe`: what a service offers and where it runs."""

from __future__ import annotations

import asyncio

import click

from busmicro.cli.complete import endpoint_names, service_names
from busmicro.cli.connection import connected
from busmicro.cli.failures import report
from busmicro.cli.find import KINDS, endpoint_of, require, visible
from busmicro.cli.options import given, verb
from busmicro.cli.output import print_json, print_table, print_text, to_text
from busmicro.cli.schemas import Schema
from busmicro.errors import NotFound
from busmicro.registry import EndpointRecord, Node, ServiceRecord


@verb("describe")
@click.argument("service", shell_complete=service_names)
@click.argument("endpoint", required=False, shell_complete=endpoint_names)
@click.option("--template", is_flag=True, help="Print an example of a request, as JSON.")
def describe(service: str, endpoint: str | None, *, template: bool) -> int:
    """Show what a service offers and where it runs.

    With ENDPOINT, only that one, else all but the built-in Debug.*. `--template` prints a request
    that `busmicro call greeter hello -` and `busmicro stream` take from their stdin. An endpoint
    that takes many messages, or gives many, shows `requests`, or `replies`: one of them.

    JSON: {"name", "versions": [], "endpoints": [{"name", "subject", "queue_group", "kind",
    "idempotent", "timeout", "doc", "request", "reply", "metadata": {}}], "nodes": [{"id",
    "version", "started", "running", "metadata": {}}]}; request and reply are JSON Schemas or null,
    timeout is in seconds or null.
    """
    try:
        record = asyncio.run(_find(service))
    except NotFound as failure:
        return report(failure, hint="busmicro services")
    endpoints = _chosen(record, endpoint)
    if template:
        print_json(_template(record, endpoints, endpoint))
    elif given().json:
        print_json(_as_json(record, endpoints))
    else:
        _show(record, endpoints if endpoint else _own(record))
    return 0


async def _find(service: str) -> ServiceRecord:
    async with connected() as client:
        return await require(client, service)


def _chosen(record: ServiceRecord, name: str | None) -> list[EndpointRecord]:
    return record.endpoints if name is None else [endpoint_of(record, name)]


def _own(record: ServiceRecord) -> list[EndpointRecord]:
    names = visible(record)
    return [endpoint for endpoint in record.endpoints if endpoint.name in names]


def _template(record: ServiceRecord, chosen: list[EndpointRecord], name: str | None) -> object:
    """Make up a request for the endpoint that is named, or the only one."""
    own = chosen if name else _own(record)
    if len(own) != 1:
        names = ", ".join(visible(record)) or "none"
        raise click.UsageError(f"say which endpoint the request is for: there are {names}")
    return Schema(own[0].request).example()


def _as_json(record: ServiceRecord, endpoints: list[EndpointRecord]) -> dict[str, object]:
    nodes = [node.model_dump(exclude={"service", "description"}) for node in record.nodes]
    return {
        "name": record.name,
        "versions": record.versions,
        "endpoints": [endpoint.model_dump() for endpoint in endpoints],
        "nodes": nodes,
    }


def _show(record: ServiceRecord, endpoints: list[EndpointRecord]) -> None:
    print_text(f"{record.name}  {', '.join(record.versions)}  nodes: {len(record.nodes)}")
    for endpoint in endpoints:
        print_text()
        _show_endpoint(endpoint)
    print_text()
    headings = ("node", "version", "started", "running", "metadata")
    print_table(headings, [_node_row(node) for node in record.nodes])


def _show_endpoint(endpoint: EndpointRecord) -> None:
    print_text(endpoint.name)
    if endpoint.doc:
        print_text(f"  {endpoint.doc}")
    _show_fields("requests" if endpoint.takes_many else "request", endpoint.request)
    _show_fields("replies" if endpoint.gives_many else "reply", endpoint.reply)
    kind = KINDS.get(endpoint.kind, endpoint.kind)
    facts = [kind, "idempotent" if endpoint.idempotent else "not idempotent"]
    if endpoint.timeout is not None:
        facts.append(f"timeout {endpoint.timeout:g} s")
    facts += [f"{name}={value}" for name, value in endpoint.metadata.items()]
    print_text(f"  {', '.join(facts)}")


def _show_fields(what: str, schema: object) -> None:
    lines = Schema(schema).fields()
    print_text(f"  {what:8} {lines[0] if lines else '-'}")
    for line in lines[1:]:
        print_text(f"  {'':8} {line}")


def _node_row(node: Node) -> tuple[str, ...]:
    metadata = to_text(node.metadata) if node.metadata else ""
    return node.id, node.version, node.started, str(node.running), metadata
