"""Names of services, endpoints and streams that are there, for the shell: quickly or not at all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from busmicro.client import Client
    from busmicro.registry import EndpointRecord, ServiceRecord

_BUDGET = 0.3

T = TypeVar("T")


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
    return [_item(e.name, e.doc) for e in _endpoints(context, incomplete)]


def unary_names(
    context: click.Context,
    parameter: click.Parameter,  # noqa: ARG001 - click's signature
    incomplete: str,
) -> list[CompletionItem]:
    """Complete the name of an endpoint that can be called."""
    return [_item(e.name, e.doc) for e in _endpoints(context, incomplete) if not e.streams]


def streaming_names(
    context: click.Context,
    parameter: click.Parameter,  # noqa: ARG001 - click's signature
    incomplete: str,
) -> list[CompletionItem]:
    """Complete the name of an endpoint that streams."""
    return [_item(e.name, e.doc) for e in _endpoints(context, incomplete) if e.streams]


def _endpoints(context: click.Context, incomplete: str) -> list[EndpointRecord]:
    service = context.params.get("service")
    records = [record for record in _quietly(context, _services) if record.name == service]
    endpoints = [endpoint for record in records for endpoint in record.endpoints]
    return [endpoint for endpoint in endpoints if endpoint.name.startswith(incomplete)]


def stream_names(
    context: click.Context,
    parameter: click.Parameter,  # noqa: ARG001 - click's signature
    incomplete: str,
) -> list[CompletionItem]:
    """Complete the name of a stream; buckets of keys are left out."""
    names = _quietly(context, _streams)
    return [_item(name, "") for name in names if name.startswith(incomplete)]


def _item(name: str, text: str) -> CompletionItem:
    return CompletionItem(name, help=text.replace("\n", " "))


def _quietly(context: click.Context, ask: Callable[[Client], Awaitable[list[T]]]) -> list[T]:
    """Ask, and take every failure for no answer: nobody wants to read it while typing."""
    import asyncio
    import logging

    logging.disable(logging.CRITICAL)
    try:
        with context.scope(cleanup=False):  # the options before the word count too
            return asyncio.run(_ask(ask))
    except Exception:
        return []


async def _ask(ask: Callable[[Client], Awaitable[list[T]]]) -> list[T]:
    import asyncio

    from busmicro.cli.connection import connected

    async with asyncio.timeout(_BUDGET), connected() as client:
        return await ask(client)


async def _services(client: Client) -> list[ServiceRecord]:
    return await client.bus.discovery.services()


async def _streams(client: Client) -> list[str]:
    from busmicro.cli.kept import Kept, is_bucket

    return [name for name in await Kept(client).names() if not is_bucket(name)]
