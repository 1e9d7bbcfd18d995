"""What the fault tests see with is right: the reader of streams, the proxy, the keeper."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from busmicro import NatsServer
from tests.faults.events.observer import observing
from tests.faults.events.stored import ask, raw_events, read_stream
from tests.faults.processes import Programs
from tests.faults.proxy import Proxy


async def test_stream_is_read_whole_and_in_order(server: NatsServer):
    """Every event is read, with headers and payload, and what was deleted is not made up."""
    async with observing(server.port) as observer:
        await ask(observer, "STREAM.CREATE.ORDERS", name="ORDERS", subjects=["orders.>"])
        for number in range(450):
            headers = {"Nats-Msg-Id": f"shop:orders.placed:{number}"}
            await observer.request("orders.placed", b'{"id": "%d"}' % number, headers)
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


async def test_proxy_cuts_and_freezes(server: NatsServer):
    """The proxy does what it says: frozen means silent, and a cut is a reset."""
    async with Proxy(server.port) as proxy, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert (await reader.readline()).startswith(b"INFO ")
        writer.write(b"CONNECT {}\r\nPING\r\n")
        assert await _line_after(reader, b"PONG")
        assert proxy.connections == 1

        proxy.freeze()
        writer.write(b"PING\r\n")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await reader.readline()
        proxy.thaw()
        assert await _line_after(reader, b"PONG")

        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await reader.readline()
        writer.transport.abort()


async def _line_after(reader: asyncio.StreamReader, wanted: bytes) -> bool:
    while (line := await reader.readline()).startswith((b"+OK", b"PING", b"INFO")):
        pass  # what the server says of its own accord
    return line.startswith(wanted)


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
