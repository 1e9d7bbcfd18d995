"""What every test may use: the fixtures that users get, and a way to run programs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import hypothesis
import nats
import pytest

from busmicro import NatsServer
from tests.environment import PYTHONPATH

# An example that takes longer than others says more of the machine than of us; what hangs meets
# the timeout that every test has.
hypothesis.settings.register_profile("busmicro", deadline=None)
hypothesis.settings.load_profile("busmicro")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Say how many workers `-n auto` starts: half as many again as cores, for most tests wait."""
    return (os.cpu_count() or 1) * 3 // 2


@pytest.fixture
async def server() -> AsyncIterator[NatsServer]:
    """A nats-server of the test's own, to be killed, paused and restarted."""
    async with NatsServer() as own:
        yield own


Node = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start_program() -> Iterator[Node]:
    """Start Python programs that are ended after the test, if they have not ended by then."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*args: str, url: str = "", **env: str) -> subprocess.Popen[bytes]:
        given = {**os.environ, **env, "PYTHONPATH": PYTHONPATH, "PYTHONUNBUFFERED": "1"}
        if url:
            given["BUSMICRO_NATS_URL"] = url
        process = subprocess.Popen(
            [sys.executable, *args], env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.communicate()


@pytest.fixture
def settled() -> Callable[[nats.NATS], Awaitable[None]]:
    """Wait until the server knows all that a plain nats-py client has sent; `flush` does not."""

    async def wait(raw: nats.NATS) -> None:
        with pytest.raises(nats.errors.NoRespondersError):
            await raw.request("nobody.listens.here", b"", timeout=5)

    return wait


@pytest.fixture
def until() -> Callable[[Callable[[], object]], Awaitable[None]]:
    """Wait, at most ten seconds, for something to become true."""

    async def wait(condition: Callable[[], object], *, timeout: float = 10.0) -> None:
        async with asyncio.timeout(timeout):
            while True:
                found = condition()
                if asyncio.iscoroutine(found):
                    found = await found
                if found:
                    return
                await asyncio.sleep(0.01)

    return wait
