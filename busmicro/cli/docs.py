"""`busmicro docs`: what a service answers, publishes and listens to, as a document."""

from __future__ import annotations

import json

import click

from busmicro.asyncapi import asyncapi
from busmicro.cli.options import verb
from busmicro.cli.run import not_found, use
from busmicro.cli.targets import TargetError, load

_KINDS = {"asyncapi": asyncapi}


@verb("docs")
@click.argument("kind", metavar="asyncapi", type=click.Choice(list(_KINDS)))
@click.argument("target", metavar="MODULE:SERVICE")
def docs(kind: str, target: str) -> int | None:
    """Print an AsyncAPI 3.0 document of a service, without running it.

    MODULE:SERVICE is as for `busmicro run`. Server and namespace in the document are those that
    `busmicro run` would use here: give --server and --namespace to name others.

    JSON: always, indented; an AsyncAPI 3.0.0 document.
    """
    try:
        service = load(target)
    except TargetError as wrong:
        return not_found(wrong)
    use(service)
    click.echo(json.dumps(_KINDS[kind](service), ensure_ascii=False, indent=2))
    return None
