"""From options, environment and contexts to a connection."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from busmicro.cli.contexts import read_context, read_seed, selected_context
from busmicro.cli.options import Given, given
from busmicro.client import Client
from busmicro.rpc import DEFAULT_TIMEOUT
from busmicro.settings import Settings

_AUTH = ("user", "password", "token", "nkey_seed", "creds")
_FROM_NATS = {
    "NATS_URL": "nats_url",
    "NATS_USER": "user",
    "NATS_PASSWORD": "password",
    "NATS_TOKEN": "token",
    "NATS_CREDS": "creds",
    "NATS_CERT": "tls_cert",
    "NATS_KEY": "tls_key",
    "NATS_CA": "tls_ca",
    "NATS_INBOX_PREFIX": "inbox_prefix",
}


def settings(name: str = "busmicro") -> Settings:
    """Read the settings for the command that runs.

    What is said first wins: options, the context that `--context` names, `BUSMICRO_*`, `NATS_*`,
    the context of `NATS_CONTEXT`, and, if nobody says where NATS is, the selected context.

    Args:
        name: The connection's name, shown in the server's own monitoring.

    Raises:
        SetupError: A value is out of range, or there is no such context.
    """
    return Settings.load(name=name, **values(given()))


def insisted(options: Given) -> dict[str, object]:
    """Return what the command line itself says, by the name of the setting."""
    named = read_context(options.context) if options.context else {}
    return _over(_from_options(options), named)


def values(options: Given, *, known: bool = False) -> dict[str, object]:
    """Return what is to be set, by the name of the setting; `BUSMICRO_*` is left to `Settings`.

    Args:
        options: The global options.
        known: Has somebody else said where NATS is?
    """
    found = insisted(options)
    ours = _from_busmicro()
    known = known or bool({**found, **ours}.get("nats_url"))
    weaker = _over(_from_nats(), _from_contexts(known=known))
    usable = _over({**ours, **found}, weaker)
    return {key: value for key, value in usable.items() if key in found or key not in ours}


def _over(stronger: Mapping[str, object], weaker: Mapping[str, object]) -> dict[str, object]:
    """Put settings over others; one who says who they are is not mixed with somebody else."""
    mine = any(name in stronger for name in _AUTH)
    kept = {name: value for name, value in weaker.items() if not (mine and name in _AUTH)}
    return {**kept, **stronger}


def _from_options(options: Given) -> dict[str, object]:
    said = {
        "nats_url": options.server,
        "creds": options.creds,
        "user": options.user,
        "password": options.password,
        "namespace": options.namespace,
    }
    return {name: value for name, value in said.items() if value is not None}


def _from_busmicro() -> dict[str, object]:
    prefix = "BUSMICRO_"
    names = [name for name in os.environ if name.upper().startswith(prefix)]
    known = {name: name.upper().removeprefix(prefix).lower() for name in names}
    return {ours: os.environ[name] for name, ours in known.items() if ours in Settings.model_fields}


def _from_nats() -> dict[str, object]:
    found: dict[str, object] = {
        ours: os.environ[theirs] for theirs, ours in _FROM_NATS.items() if os.environ.get(theirs)
    }
    if seed := os.environ.get("NATS_NKEY"):
        found["nkey_seed"] = read_seed(Path(seed))
    return found


def _from_contexts(*, known: bool) -> dict[str, object]:
    """Read the context that the environment names; the selected one only if none knows the way."""
    name = os.environ.get("NATS_CONTEXT", "")
    if not name and not known and not os.environ.get("NATS_URL"):
        name = selected_context()
    return read_context(name) if name else {}


@asynccontextmanager
async def connected() -> AsyncIterator[Client]:
    """Connect a client for the command that runs.

    Raises:
        SetupError: The settings cannot work.
        Disconnected: No server answered.
        Unauthenticated: The server refuses the credentials.
    """
    set_up_logging()
    timeout = given().timeout or DEFAULT_TIMEOUT
    async with Client(settings=settings(), timeout=timeout) as client:
        yield client


def set_up_logging() -> None:
    """Log to stderr what `-v` asks for: errors, information, everything."""
    level = (logging.ERROR, logging.INFO, logging.DEBUG)[min(given().verbose, 2)]
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
