"""`busmicro server`: a nats-server in the foreground."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click

from busmicro.cli.failures import report
from busmicro.cli.options import given, verb
from busmicro.cli.output import print_json, print_text
from busmicro.cli.words import complain, note
from busmicro.embedded import NatsServer, ServerFailed

_LOOK_EVERY = 0.5


@verb("server")
@click.option("--port", type=click.IntRange(1, 65535), default=4222, show_default=True)
@click.option(
    "--store", type=click.Path(path_type=Path, file_okay=False), help="Keep streams here."
)
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Its settings.")
@click.option("--no-jetstream", is_flag=True, help="Without streams and key-value stores.")
def server(port: int, store: Path | None, config: Path | None, *, no_jetstream: bool) -> int:
    """Start a nats-server here, until Ctrl-C.

    Prints its URL. It listens on 127.0.0.1 only; without --store what it keeps is gone when it
    ends.

    JSON: {"url", "pid", "store", "monitoring_url"}; the last two may be null.
    """
    own = NatsServer(port=port, store=store, config=config, jetstream=not no_jetstream)
    try:
        return asyncio.run(_serve(own, kept=store is not None))
    except ServerFailed as failure:
        return report(failure, hint=f"busmicro server --port {port % 65535 + 1}")


async def _serve(own: NatsServer, *, kept: bool) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with own:
        _announce(own, kept=kept)
        while own.running and not stop.is_set():
            await _wait(stop)
        if not stop.is_set():
            complain("nats-server ended", *own.log_tail(3).splitlines(), hint="busmicro server")
            return 1
    note("stopped")
    return 0


def _announce(own: NatsServer, *, kept: bool) -> None:
    if given().json:
        store = str(own.store) if own.store else None
        url = own.monitoring_url
        print_json({"url": own.url, "pid": own.pid, "store": store, "monitoring_url": url})
    else:
        print_text(own.url)
    if own.store and not kept:
        note("what it keeps is gone when it ends; --store DIR keeps it")
    there = "" if own.port == 4222 else f" -s {own.url}"
    note(f"try: busmicro run busmicro.cli.demo_greeter{there}")
    note(f"     busmicro call greeter hello name=John{there}")
    note("Ctrl-C ends it")


async def _wait(stop: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(_LOOK_EVERY):
            await stop.wait()
    except TimeoutError:
        return
