"""A process's place on the bus: one connection, its replies and its registry, opened together."""

from __future__ import annotations

from typing import Self

from busmicro.errors import SetupError
from busmicro.registry import Discovery
from busmicro.settings import Settings
from busmicro.timers import Timers
from busmicro.transport import NatsTransport, Replies, Subjects


class Bus:
    """What a service and its clients share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.subjects = Subjects(settings.namespace)
        self.transport = NatsTransport(settings)
        self.timers = Timers()
        self._closed = False
        self.replies = Replies(self.transport, self.timers, inbox_prefix=settings.inbox_prefix)
        self.discovery = Discovery(
            self.transport,
            self.replies,
            namespace=settings.namespace,
            ttl=settings.registry_ttl,
        )

    async def open(self, *, wait: bool = False) -> Self:
        """Connect and listen for replies.

        Args:
            wait: Wait for a server that is not there yet, saying so every ten seconds.

        Raises:
            SetupError: It has been closed before.
            Disconnected: No server answered (only without `wait`).
            Unauthenticated: The server refuses the credentials.
            PermissionDenied: The inbox may not be subscribed to.
        """
        if self._closed:
            raise SetupError("this connection has been closed: make a new Client")
        try:
            await self.transport.connect(wait=wait)
            await self.replies.start()
        except BaseException:
            await self.transport.close()
            raise
        return self

    async def close(self) -> None:
        """Leave the registry, send what waits, disconnect; for good."""
        self._closed = True
        await self.discovery.close()
        await self.transport.close()
        self.timers.close()
