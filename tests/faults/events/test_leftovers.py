"""What a power cut leaves of a store: half of it is no reason to skip an event."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from busmicro import Client, NatsServer, Service
from tests.faults.events.orders import ORDERS, STREAM, Order

PATIENCE = 20.0
"""Seconds for a connection to a server that has just started, where others use the machine."""


def recording(server: NatsServer, got: list[str], group: str) -> Service:
    """Make a service whose one handler notes the ids of its events."""
    service = Service("shop", url=server.url)

    @service.subscribe(ORDERS, group=group)
    async def on_order(order: Order) -> None:
        got.append(order.id)

    return service


def orders(name: str, count: int) -> list[Order]:
    return [Order(f"{name}-{number}", number) for number in range(count)]


def came(got: list[str], name: str, count: int) -> bool:
    """Tell whether all of these were handled; some come again if the server has not heard it."""
    return {order.id for order in orders(name, count)} <= set(got)


async def end(server: NatsServer, until) -> None:
    """Let the server write down all that it knows, and end."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGTERM)
    await until(lambda: not server.running)


def stream_folder(store: Path) -> Path:
    (folder,) = store.glob(f"jetstream/*/streams/{STREAM}")
    return folder


@pytest.mark.parametrize("emptied", ["obs/*/meta.*", "**/*.*"])
async def test_consumer_without_its_settings_skips_nothing(tmp_path: Path, until, emptied: str):
    """A consumer's progress survives, its settings or its stream do not: all that comes is handled.

    These files are often written last, and are then empty after a power cut.
    """
    got: list[str] = []
    async with (
        NatsServer(store=tmp_path / "store") as server,
        Client(server.url) as client,
        recording(server, got, "billing"),
    ):
        await client.publish_many(ORDERS, orders("early", 50))
        await until(lambda: came(got, "early", 50), timeout=PATIENCE)
        await end(server, until)
        for file in stream_folder(tmp_path / "store").glob(emptied):
            if file.is_file() and file.name != "o.dat":
                file.write_bytes(b"")
        await server.restart()
        await client.publish_many(ORDERS, orders("late", 30))
        await until(lambda: came(got, "late", 30), timeout=PATIENCE)


@pytest.mark.parametrize("consumer", ["kept", "gone"])
@pytest.mark.parametrize("group", ["billing", ""])
async def test_stream_that_ends_earlier_than_before_skips_nothing(
    tmp_path: Path, until, caplog, group: str, consumer: str
):
    """A stream has lost its last events, perhaps its consumer too: it is said, and all is handled.

    The numbers of the lost events are given to new ones.
    """
    got: list[str] = []
    store, earlier = tmp_path / "store", tmp_path / "earlier"
    async with (
        NatsServer(store=store) as server,
        Client(server.url) as client,
        recording(server, got, group),
    ):
        await client.publish_many(ORDERS, orders("kept", 20))
        await until(lambda: came(got, "kept", 20), timeout=PATIENCE)
        await end(server, until)
        shutil.copytree(store, earlier)
        if consumer == "gone":
            shutil.rmtree(stream_folder(earlier) / "obs")
        await server.restart()
        await client.publish_many(ORDERS, orders("lost", 200))
        await until(lambda: came(got, "lost", 200), timeout=PATIENCE)
        await end(server, until)
        shutil.rmtree(store)
        earlier.rename(store)
        await server.restart()
        await until(lambda: "its server has lost events" in caplog.text, timeout=PATIENCE)
        await client.publish_many(ORDERS, orders("late", 30))
        await until(lambda: came(got, "late", 30), timeout=PATIENCE)

    said = [record.getMessage() for record in caplog.records]
    assert not [line for line in said if "\n" in line], "every record is one line"
