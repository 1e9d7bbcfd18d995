"""The configuration in deploy/ does what its comments say."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from busmicro import Client, NatsServer, PermissionDenied, Service, Settings

CONF = Path(__file__).parent.parent.parent / "deploy" / "nats-server.conf"


async def test_users_of_the_configuration_may_do_what_they_need_and_no_more(tmp_path, monkeypatch):
    """With the users switched on, service and client can do their work and nothing else."""
    text = CONF.read_text(encoding="utf-8")
    plain, users = text.split("# authorization {")
    users = "# authorization {" + users
    config = tmp_path / "nats.conf"
    switched_on = re.sub(r"(?m)^# ?", "", users)
    config.write_text(re.sub(r"store_dir:.*", f'store_dir: "{tmp_path}"', plain) + switched_on)
    monkeypatch.setenv("ORDERS_PASSWORD", "one")
    monkeypatch.setenv("ALICE_PASSWORD", "two")
    async with NatsServer(config=config) as server:
        service = Service(
            "orders",
            settings=Settings(
                nats_url=server.url,
                user="orders",
                password="one",  # type: ignore[arg-type]
                inbox_prefix="_INBOX.orders",
            ),
        )

        @service.rpc
        async def get(number: int) -> str:
            return f"order {number}"

        @service.rpc
        async def watch(numbers: AsyncIterator[int]) -> AsyncIterator[str]:
            async for number in numbers:
                yield f"order {number}"

        alice = Settings(
            nats_url=server.url,
            user="alice",
            password="two",  # type: ignore[arg-type]
            inbox_prefix="_INBOX.alice",
        )
        async with service, Client(settings=alice) as client:
            assert await client.call("orders", "get", 17, returns=str) == "order 17"
            stream = client.stream("orders", "watch", sends=int, returns=str)
            async with stream as orders:
                await orders.send(18)
                assert await anext(orders) == "order 18"
            with pytest.raises(PermissionDenied, match=r"rpc\.orders\.Debug\.Stats"):
                await client.call("orders", "Debug.Stats")
            known = await service.bus.discovery.kv.service("orders")
            assert known is not None
            assert [node.id for node in known.nodes] == [service.id]

    with pytest.raises(PermissionDenied, match="BUSMICRO_INBOX_PREFIX"):
        async with NatsServer(config=config) as server:
            wrong = Settings(nats_url=server.url, user="alice", password="two")  # type: ignore[arg-type]
            async with Client(settings=wrong):
                pass
