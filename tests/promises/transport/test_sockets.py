"""What only a socket can do: hang, fill up, and send what is not NATS."""

from __future__ import annotations

import asyncio

import pytest

from busmicro import ResourceExhausted
from tests.promises.transport.buses import Collected, Ear, ServerBus, returned


async def test_silent_connection_is_noticed_within_three_pings(socket_bus: ServerBus):
    """A network that swallows everything is noticed, and left for a new connection."""
    proxy = await socket_bus.way()
    transport = await socket_bus.connect(way=proxy, ping_interval=0.5)
    ear = Ear(transport)

    proxy.freeze()
    async with asyncio.timeout(3 * 0.5 + 1.0):
        await ear.gone.wait()
        await ear.back.wait()

    await transport.barrier()


async def test_silent_connection_is_noticed_while_messages_wait_to_be_sent(tcp_bus: ServerBus):
    """What cannot be sent any more does not keep a process from connecting anew."""
    proxy = await tcp_bus.way()
    transport = await tcp_bus.connect(way=proxy, ping_interval=0.5)
    ear = Ear(transport)
    proxy.freeze()
    for _ in range(80):
        transport.publish(b"swallowed", bytes(100_000))

    async with asyncio.timeout(3 * 0.5 + 1.5):
        await ear.gone.wait()
        await ear.back.wait()

    await transport.barrier()


async def test_frozen_server_is_noticed_and_used_again_when_it_thaws(tcp_bus: ServerBus):
    """A server that hangs is given up, and is used again when it goes on."""
    transport = await tcp_bus.connect(ping_interval=0.3, connect_timeout=0.5)
    ear = Ear(transport)
    tcp_bus.server.pause()
    async with asyncio.timeout(5):
        await ear.gone.wait()

    tcp_bus.server.resume()
    await returned(transport, 1)

    await transport.barrier()


async def test_error_that_ends_the_client_library_for_good_is_survived(tcp_bus: ServerBus):
    """Even what makes the client library close itself for ever costs only a new connection."""
    transport = await tcp_bus.connect()
    heard = Collected()
    transport.subscribe("after", heard)
    await transport.barrier()

    transport._path.write(b"PUB a 2000000\r\n")  # Maximum Payload Violation
    await returned(transport, 1)
    transport.publish(b"after", b"x")
    await transport.barrier()

    assert heard.payloads == [b"x"]


async def test_garbage_from_the_server_ends_in_a_new_connection(tcp_bus: ServerBus):
    """Bytes that are not NATS cost one connection and harm nothing else."""
    transport = await tcp_bus.connect()
    await transport.barrier()
    garbage = [
        b"MSG a b1 -5\r\n",
        b"MSG a\r\n",
        b"MSG a b1 x\r\n",
        b"HMSG a b1 9 3\r\nNATS/1.0\r\n",
        b"NONSENSE\r\n",
        b"\x00" * 2_000_000,
    ]

    for number, rubbish in enumerate(garbage, 1):
        transport._path.data_received(rubbish)
        await returned(transport, number)
        await transport.barrier()


async def test_what_waits_to_be_sent_is_bounded_and_drained_tells_when_to_go_on(
    socket_bus: ServerBus,
):
    """A server that does not keep up makes publishing refuse, and it works again when it does."""
    proxy = await socket_bus.way()
    transport = await socket_bus.connect(way=proxy, max_buffered_bytes=4_000_000)
    proxy.freeze()
    accepted_bytes = 0

    with pytest.raises(ResourceExhausted, match="BUSMICRO_MAX_BUFFERED_BYTES"):
        for _ in range(10_000):
            transport.publish(b"fast", bytes(10_000))
            accepted_bytes += 10_000
            await asyncio.sleep(0)
    assert accepted_bytes < 40_000_000  # some of it lies in the kernel's and the proxy's buffers

    proxy.thaw()
    async with asyncio.timeout(10):
        await transport.drained()
        await transport.barrier(timeout=10)
    transport.publish(b"fast", b"again")
    await transport.barrier()
    assert transport.reconnects == 0


async def test_waiting_for_room_ends_when_the_connection_does(tcp_bus: ServerBus):
    """Nobody waits for ever for a connection that is gone."""
    proxy = await tcp_bus.way()
    transport = await tcp_bus.connect(way=proxy)
    proxy.freeze()
    while transport.writable:
        transport.publish(b"fast", bytes(100_000))
        await asyncio.sleep(0)

    waits = asyncio.get_running_loop().create_task(transport.drained())
    await asyncio.sleep(0)
    proxy.cut()

    async with asyncio.timeout(5):
        await waits
