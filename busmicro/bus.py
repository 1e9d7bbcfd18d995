"""A process's place on the bus: one connection, its replies and its registry, opened together."""

from __future__ import annotations

from typing import Self

from busmicro.errors import SetupError
from busmicro.registry import Discovery
from busmicro.settings import Settings
from busmicro.tasks import Tasks
from busmicro.timers import Timers
from busmicro.transport import (
    Frames,
    Objects,
    Replies,
    ReplyPolicy,
    Subjects,
    Transport,
    transport_for,
)


class Bus:
    """What a service and its clients share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.subjects = Subjects(settings.namespace)
        self.transport: Transport = transport_for(settings)
        self.timers = Timers()
        self.tasks = Tasks()
        """What holds streams open for iterators; ended first when the bus is closed."""
        self._closed = False
        self.replies = Replies(self.transport, self.timers, inbox_prefix=settings.inbox_prefix)
        self.replies_allowed = ReplyPolicy(
            self.subjects.prefix, settings.inbox_prefix, strict=settings.strict_replies
        )
        """Where this process may be made to publish answers."""
        self.frames = Frames(
            self.transport, inbox_prefix=settings.inbox_prefix, policy=self.replies_allowed
        )
        self.objects = Objects(self.transport, namespace=settings.namespace)
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
        self.frames.close()
        await self.tasks.cancel()
        await self.objects.close()
        await self.discovery.close()
        await self.transport.close()
        self.timers.close()
