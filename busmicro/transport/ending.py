"""The end of a nats-py client, in whatever state it is."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from nats.aio.client import Client

from busmicro.transport.fastpath import FastPath
from busmicro.transport.websocket import PlainPath

log = logging.getLogger("busmicro.transport")

CLOSE_TIMEOUT: Final = 2.0
"""Seconds that a server gets for its last answer."""


async def release(client: Client) -> None:
    """Close what nats-py leaves open when it could not connect."""
    wire = client._transport  # noqa: SLF001 - the one private name of nats-py
    if isinstance(wire, FastPath):
        wire.abort()
    elif wire:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                wire.close()  # type: ignore[no-untyped-call]
                await wire.wait_closed()  # type: ignore[no-untyped-call]
        except Exception as error:
            log.debug("a WebSocket did not close in order: %s", error)


async def end(client: Client, path: FastPath | PlainPath | None) -> None:
    """End a connection; what nats-py has to say about that is of no interest."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await client.close()
    except Exception as error:
        log.debug("nats-py did not close in order: %s", error)
    finally:
        if isinstance(path, FastPath):
            path.abort()
