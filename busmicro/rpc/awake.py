"""How old is a request that has just been read?  Older than it looks, if this process hung.

`Bus-Timeout` counts from the arrival of a request, and what is read has just arrived, as long as
the event loop runs.  But a process that was stopped, swapped out or blocked finds in its socket
what came meanwhile, and callers that have long given up may be among those who sent it.  So until
it has surely read all that, a request counts from the moment when this process was last awake:
nothing in the socket is older, and no handler begins for a caller that has gone.
"""

from __future__ import annotations

import asyncio
import logging
import time

from busmicro.errors import BusmicroError, CallError, DeadlineExceeded, Unavailable
from busmicro.transport import Transport

log = logging.getLogger("busmicro.rpc")

_LOOK_EVERY = 0.5
_HUNG = 1.0
"""Seconds without a look that are no mere delay."""


class Awake:
    """Knows when this process was last seen to run and to have read all that had come."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._at = time.monotonic()

    def arrived(self) -> float:
        """Return when a request that has just been read may have arrived, at the earliest."""
        now = time.monotonic()
        return now if now - self._at < _HUNG else self._at

    async def keep_looking(self) -> None:
        """Look twice a second until cancelled."""
        while True:
            self._at = time.monotonic()
            await asyncio.sleep(_LOOK_EVERY)
            hung = time.monotonic() - self._at
            if hung >= _HUNG:
                log.warning("this process hung for %.1f s", hung)
                await self._read_all()

    async def _read_all(self) -> None:
        """Return when everything has been read that came while this process hung."""
        while self._transport.connected:  # what came on a connection that is lost is gone with it
            try:
                await self._transport.barrier()
            except DeadlineExceeded:
                continue
            except BusmicroError as failure:
                log.debug("the connection dropped meanwhile: %s", failure)
            return


def out_of_time(arrived: float) -> CallError:
    """Say why a request that arrived then, at the earliest, is not run."""
    age = time.monotonic() - arrived
    if age < _HUNG:
        return DeadlineExceeded("the time ran out before the handler began", not_run=True)
    return Unavailable(  # its caller may wait still, and another node may have the time
        f"this node hung, and the request may be {age:.1f} s old, too old to begin", not_run=True
    )
