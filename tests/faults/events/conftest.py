"""What the fault tests of events share: an observer past everything that is tested."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from busmicro import NatsServer
from tests.faults.events.observer import Observer, observing


@pytest.fixture
async def observer(server: NatsServer) -> AsyncIterator[Observer]:
    """Sees what the server has, past everything that is tested."""
    async with observing(server.port) as own:
        yield own
