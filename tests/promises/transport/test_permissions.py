"""What a server does not permit is told at once to whoever asks for it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from busmicro import NoResponders, PermissionDenied
from busmicro.transport import require_allowed
from tests.promises.transport.buses import Ear, ServerBus, returned


async def test_subject_that_may_not_be_published_to_is_told_at_once(socket_bus: ServerBus):
    """A caller without permission hears so within 50 ms, not after its time-out."""
    transport = await socket_bus.connect(user="some", password="pw")
    replies = await socket_bus.replies(transport)
    waits = asyncio.get_running_loop().create_task(replies.ask(b"nobody", b"", timeout=30))

    began = time.perf_counter()
    with pytest.raises(PermissionDenied, match=r"forbidden\.Fruit") as denied:
        await replies.ask(b"forbidden.Fruit", b"", timeout=30)
    took = time.perf_counter() - began

    assert denied.value.not_run
    assert took < 0.05
    with pytest.raises(NoResponders):
        await waits
    assert transport.connected


async def test_subject_that_may_not_be_subscribed_to_is_known_after_the_barrier(
    socket_bus: ServerBus,
):
    """A service without permission to listen learns it when it starts."""
    transport = await socket_bus.connect(user="some", password="pw")

    allowed = transport.subscribe("open.Door", lambda *_: None)
    denied = transport.subscribe("secret.Door", lambda *_: None, queue="q")
    await transport.barrier()

    assert (allowed.denied, denied.denied) == (False, True)
    require_allowed(allowed)
    with pytest.raises(PermissionDenied, match=r"secret\.Door"):
        require_allowed(allowed, denied)
    assert transport.connected


async def test_inbox_that_may_not_be_used_is_told_at_connect(socket_bus: ServerBus):
    """A client that could never get a reply is told at once which setting to change."""
    transport = await socket_bus.connect(user="mine", password="pw")

    with pytest.raises(PermissionDenied, match="BUSMICRO_INBOX_PREFIX"):
        await socket_bus.replies(transport)

    replies = await socket_bus.replies(transport, "_INBOX.mine")
    with pytest.raises(NoResponders):
        await replies.ask(b"nobody", b"", timeout=5)


async def test_user_who_is_locked_out_comes_back_when_let_in_again(
    tcp_bus: ServerBus, tmp_path: Path
):
    """Credentials that stop working for a while do not end a process for good."""
    transport = await tcp_bus.connect(user="some", password="pw")
    ear = Ear(transport)
    config = tmp_path / "nats.conf"
    text = config.read_text()
    assert tcp_bus.server.pid is not None

    config.write_text(text.replace("user: some", "user: nobody"))
    os.kill(tcp_bus.server.pid, signal.SIGHUP)
    async with asyncio.timeout(5):
        await ear.gone.wait()
    config.write_text(text)
    os.kill(tcp_bus.server.pid, signal.SIGHUP)
    await returned(transport, 1)

    await transport.barrier()
