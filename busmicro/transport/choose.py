"""Which transport a URL asks for."""

from __future__ import annotations

from busmicro.settings import MEMORY_SCHEME, Settings
from busmicro.transport.base import Transport
from busmicro.transport.memory import MemoryTransport
from busmicro.transport.nats import NatsTransport


def transport_for(settings: Settings) -> Transport:
    """Make the connection that the settings ask for; `connect` opens it."""
    if settings.nats_url.startswith(MEMORY_SCHEME):
        return MemoryTransport(settings)
    return NatsTransport(settings)
