"""`busmicro run`: a service of yours, and the nats-server it needs."""

from __future__ import annotations

import asyncio
import logging
import traceback
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from urllib.parse import urlsplit

import click

from busmicro.cli.connection import insisted, set_up_logging, values
from busmicro.cli.failures import USAGE
from busmicro.cli.options import given, verb
from busmicro.cli.targets import TargetError, load
from busmicro.cli.words import complain, note
from busmicro.embedded import NatsServer, ServerFailed
from busmicro.errors import SetupError
from busmicro.service import Service
from busmicro.settings import Settings
from busmicro.transport.errors import hide_secrets

_LOOPBACK = ("127.0.0.1", "localhost")
_LOOK_FOR = 1.0


@verb("run")
@click.argument("target", metavar="MODULE:SERVICE")
@click.option("--no-server", is_flag=True, help="Do not start a nats-server, wait for one.")
@click.option("--no-wait", is_flag=True, help="Exit with 3 if there is no NATS; starts none.")
def run(target: str, *, no_server: bool, no_wait: bool) -> int | None:
    """Run a service until SIGINT or SIGTERM, which let running requests finish.

    MODULE:SERVICE is like greeter:service or path/to/greeter.py:service; without a name it is
    `service`. If no NATS answers and its URL is on this machine, one is started, and ends with
    the service.
    """
    if given().verbose or given().quiet:
        set_up_logging()
    try:
        service = load(target)
    except TargetError as wrong:
        return not_found(wrong)
    use(service)
    with ExitStack() as stack:
        if not (no_server or no_wait):
            _start_server(stack, effective(service).urls)
        service.run(wait=not no_wait)
    return None


def not_found(wrong: TargetError) -> int:
    """Say why there is no such service; the exit code."""
    if given().verbose and wrong.__cause__:
        click.echo("".join(traceback.format_exception(wrong.__cause__)), err=True)
    complain(wrong.what, *wrong.why, hint=wrong.hint)
    return USAGE


# --- settings -----------------------------------------------------------------------------------


def use(service: Service) -> None:
    """Let the command line win over what the service's code says."""
    service.configure(effective(service))


def effective(service: Service) -> Settings:
    """Return the settings that the service will run with."""
    said = service.said
    found = values(given(), known="nats_url" in said)
    return Settings.load(**{**found, **said, **insisted(given())})


# --- a nats-server ------------------------------------------------------------------------------


def _start_server(stack: ExitStack, urls: list[str]) -> None:
    """Start a nats-server where none answers, if that is here; say so."""
    port = _local_port(urls)
    if port is None or asyncio.run(_answers(port)):
        return
    where = hide_secrets(urls[0])
    try:
        own = stack.enter_context(_Running(NatsServer(port=port)))
    except SetupError as missing:
        note(f"no NATS at {where}, and none can be started: {missing}")
    except ServerFailed:
        if not asyncio.run(_answers(port)):  # unless somebody else was faster
            raise
    else:
        note(f"no NATS at {where}: started one there, which ends with this service")
        logging.getLogger("busmicro").debug("nats-server has pid %s", own.pid)


def _local_port(urls: list[str]) -> int | None:
    """Return the port of the only URL if it is on this machine and plain NATS, else None."""
    if len(urls) != 1:
        return None
    found = urlsplit(urls[0] if "://" in urls[0] else f"nats://{urls[0]}")
    if found.scheme != "nats" or found.hostname not in _LOOPBACK:
        return None
    return found.port or 4222


async def _answers(port: int) -> bool:
    try:
        async with asyncio.timeout(_LOOK_FOR):
            _reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


class _Running(AbstractContextManager[NatsServer]):
    """A nats-server for code that has no event loop yet."""

    def __init__(self, own: NatsServer) -> None:
        self._own = own

    def __enter__(self) -> NatsServer:
        asyncio.run(self._own.start())
        return self._own

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        asyncio.run(self._own.stop())
