"""What the fault tests see with is right: the reader of streams, the keeper."""

from __future__ import annotations

import os
import signal

import pytest

from busmicro import NatsServer
from tests.faults.events.observer import observing
from tests.faults.events.stored import ask, raw_events, read_stream
from tests.faults.processes import Programs


async def test_stream_is_read_whole_and_in_order(server: NatsServer):
    """Every event is read, with headers and payload, and what was deleted is not made up."""
    async with observing(server.port) as observer:
        await ask(observer, "STREAM.CREATE.ORDERS", name="ORDERS", subjects=["orders.>"])
        for number in range(450):
            headers = {"Nats-Msg-Id": f"shop:orders.placed:{number}"}
            event = b'{"id": "%d"}' % number
            await observer.request("orders.placed", event, headers, timeout=10.0)
        await ask(observer, "STREAM.MSG.DELETE.ORDERS", seq=17)

        events = await read_stream(observer, "ORDERS")

    assert [event.sequence for event in events] == [n for n in range(1, 451) if n != 17]
    assert all(event.id == str(event.sequence - 1) for event in events)
    assert all(event.msg_id == f"shop:orders.placed:{event.id}" for event in events)


async def test_unreadable_stream_is_no_empty_stream(server: NatsServer):
    """Trouble is not taken for an empty stream."""
    async with observing(server.port) as observer:
        with pytest.raises(AssertionError, match="stream not found"):
            await raw_events(observer, "ORDERS")


async def test_observer_takes_the_server_that_answers():
    """A frozen or dead server does not blind the observer while another one is there."""
    async with NatsServer() as frozen, NatsServer() as dead, NatsServer() as well:
        async with observing(frozen.port, dead.port, well.port) as observer:
            assert "api" in await ask(observer, "INFO")
            frozen.pause()
            dead.kill()
            assert "api" in await ask(observer, "INFO")
        frozen.resume()


async def test_dead_programs_are_started_again(programs: Programs, until):
    """A program that is kept running is there again after its death, and its deaths are counted."""
    programs.keep_running("idle", "idle.py")
    log = programs.logs / "idle.log"
    await until(lambda: log.exists() and log.read_text().endswith("\n"))
    for deaths in (1, 2):
        lives = log.read_text().count("\n")
        os.kill(int(log.read_text().split()[-1]), signal.SIGKILL)
        await until(lambda lives=lives: log.read_text().count("\n") > lives)
        assert programs.deaths["idle"] == deaths
    assert await programs.end("idle") == {"idle": 0}
