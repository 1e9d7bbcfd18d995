"""Names of services and endpoints that are up, for the shell: quickly or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from busmicro.registry import ServiceRecord

_BUDGET = 0.3


def service_names(
    context: click.Context,
    parameter: click.Parameter,  # noqa: ARG001 - click's signature
    incomplete: str,
) -> list[CompletionItem]:
    """Complete the name of a service."""
    records = _quietly(context, _services)
    return [_item(r.name, ", ".join(r.versions)) for r in records if r.name.startswith(incomplete)]


def endpoint_names(
    context: click.Context,
    parameter: click.Parameter,  # noqa: ARG001 - click's signature
    incomplete: str,
) -> list[CompletionItem]:
    """Complete the name of an endpoint of the service before it."""
    service = context.params.get("service")
    records = [record for record in _quietly(context, _services) if record.name == service]
    endpoints = [endpoint for record in records for endpoint in record.endpoints]
    return [_item(e.name, e.doc) for e in endpoints if e.name.startswith(incomplete)]


def _item(name: str, text: str) -> CompletionItem:
    return CompletionItem(name, help=text.replace("\n", " "))


def _quietly(context: click.Context, ask: Callable[[], list[ServiceRecord]]) -> list[ServiceRecord]:
    """Ask, and take every failure for no answer: nobody wants to read it while typing."""
    import logging

    logging.disable(logging.CRITICAL)
    try:
        with context.scope(cleanup=False):  # the options before the word count too
            return ask()
    except Exception:
        return []


def _services() -> list[ServiceRecord]:
    import asyncio

    return asyncio.run(_ask())


async def _ask() -> list[ServiceRecord]:
    import asyncio

    from busmicro.cli.connection import connected

    async with asyncio.timeout(_BUDGET), connected() as client:
        return await client.bus.discovery.services()
