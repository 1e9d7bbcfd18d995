"""`busmicro services`: who is up."""

from __future__ import annotations

import asyncio

from busmicro.cli.connection import connected
from busmicro.cli.find import BUILT_IN
from busmicro.cli.options import given, verb
from busmicro.cli.output import print_json, print_table
from busmicro.cli.words import note
from busmicro.registry import ServiceRecord


@verb("services")
def services() -> None:
    """List the services that are up, also those of other frameworks.

    JSON: [{"name", "versions": [], "nodes": [id], "endpoints": [name]}], by name; the endpoints
    include the built-in Debug.* that the table leaves out. `busmicro describe` tells more.
    """
    found = asyncio.run(_find())
    if given().json:
        print_json([_as_json(record) for record in found])
    elif found:
        print_table(("name", "versions", "nodes", "endpoints"), [_row(record) for record in found])
    if not found:
        note("no service is up")
        note("try: busmicro run busmicro.cli.demo_greeter")


async def _find() -> list[ServiceRecord]:
    async with connected() as client:
        return await client.bus.discovery.services()


def _as_json(record: ServiceRecord) -> dict[str, object]:
    return {
        "name": record.name,
        "versions": record.versions,
        "nodes": [node.id for node in record.nodes],
        "endpoints": [endpoint.name for endpoint in record.endpoints],
    }


def _row(record: ServiceRecord) -> tuple[str, str, str, str]:
    own = (e for e in record.endpoints if not e.name.startswith(BUILT_IN))
    endpoints = ", ".join(f"{e.name} (stream)" if e.streams else e.name for e in own)
    return record.name, ", ".join(record.versions), str(len(record.nodes)), endpoints
