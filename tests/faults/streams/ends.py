"""One end of the streams in the test's own process, the other in a process that can be killed."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from busmicro import Client, Service
from busmicro.settings import Settings
from tests.faults.processes import Programs
from tests.faults.streams.chat import Chat


@asynccontextmanager
async def serving(url: str, interval: float) -> AsyncIterator[Chat]:
    """Serve in this process."""
    settings = Settings.load(
        nats_url=url, stream_ping_interval=interval, max_streams_per_caller=1000
    )
    service = Service("chat", settings=settings)
    chat = Chat(service)
    service.handle(chat)
    async with service:
        yield chat


@asynccontextmanager
async def calling(
    url: str, interval: float, *, stream_grace: float = 0.06
) -> AsyncIterator[Client]:
    """Call from this process, as soon as there is a node."""
    settings = Settings.load(nats_url=url, stream_ping_interval=interval, stream_grace=stream_grace)
    async with Client(settings=settings, wait_for_ready=True, timeout=20.0) as client:
        yield client


def start_node(programs: Programs, url: str, **env: str) -> subprocess.Popen[bytes]:
    given = {"BUSMICRO_NATS_URL": url, **env}
    return programs.start("node", "node.py", "node", **given)


def start_caller(
    programs: Programs, url: str, *args: object, **env: str
) -> subprocess.Popen[bytes]:
    given = {"BUSMICRO_NATS_URL": url, **env}
    return programs.start("caller", "caller.py", *map(str, args), **given)
