"""The life of a service and of a client: begin, end, and what is left behind."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import nats
import pytest

from busmicro import (
    Client,
    Disconnected,
    NatsServer,
    PermissionDenied,
    Service,
    Settings,
    SetupError,
    Unauthenticated,
)


def hello(name: str = "hello", **options: object) -> Service:
    service = Service(name, **options)  # type: ignore[arg-type]

    @service.rpc
    async def hello() -> str:
        return "hello"

    return service


async def other_tasks() -> set[asyncio.Task[object]]:
    await asyncio.sleep(0)
    mine = asyncio.current_task()
    return {task for task in asyncio.all_tasks() if task is not mine}


async def test_service_and_client_leave_nothing_behind(server):
    """After stop and close no task runs and no subscription is left at the server."""
    before = await other_tasks()
    raw = await nats.connect(server.url)
    raw_tasks = await other_tasks()

    async with hello(url=server.url), Client(server.url) as client:
        assert await client.call("hello", "hello") == "hello"

    assert await other_tasks() - raw_tasks == set()
    with pytest.raises(nats.errors.NoRespondersError):
        await raw.request("rpc.hello.hello", b"", timeout=1)
    with pytest.raises(nats.errors.NoRespondersError):
        await raw.request("$SRV.PING.hello", b"", timeout=1)
    await raw.close()
    assert await other_tasks() - before == set()


async def test_service_starts_again_after_it_was_stopped(server):
    """One Service object can serve, stop and serve again, with fresh figures."""
    service = hello(url=server.url)
    async with Client(server.url) as client:
        for _ in range(3):
            async with service:
                assert await client.call("hello", "hello") == "hello"
                stats = await client.call("hello", "Debug.Stats")
                assert stats["endpoints"][0]["requests"] == 1


async def test_starting_twice_and_adding_late_are_refused(server):
    """What cannot take effect any more is an error, not a silent nothing."""
    service = hello(url=server.url)
    async with service:
        with pytest.raises(SetupError, match="serves already"):
            await service.start()
        with pytest.raises(SetupError, match="add handlers before"):
            service.rpc("late")(_late)
        with pytest.raises(SetupError, match="add wrappers before"):
            service.wrap_handler()
    await service.stop()  # a second stop is nothing


async def _late() -> None: ...


async def test_url_given_at_start_wins(server):
    """Tests and tools can point any service at their own server, whatever it was made with."""
    settings = Settings(nats_url="nats://127.0.0.1:1", max_running=7)
    for service in (hello(settings=settings), hello(url="nats://127.0.0.1:1")):
        await service.start(wait=False, url=server.url)
        assert service.bus.transport.connected
        await service.stop()


async def test_closed_client_says_that_it_is_closed(server):
    """A client is used in one `async with`; entering it again names the fix."""
    client = Client(server.url)
    async with client:
        pass

    with pytest.raises(SetupError, match="make a new Client"):
        await client.__aenter__()


async def test_start_without_a_server_and_without_waiting_fails_cleanly():
    """No NATS and `wait=False`: Disconnected with the address, and nothing left behind."""
    before = await other_tasks()
    service = hello(url="nats://127.0.0.1:1")

    with pytest.raises(Disconnected, match=r"cannot reach NATS at nats://127\.0\.0\.1:1"):
        await service.start(wait=False)

    assert await other_tasks() == before
    with pytest.raises(SetupError, match="does not run"):
        _ = service.client


async def test_wrong_credentials_end_the_start_at_once(tmp_path: Path):
    """A service does not wait for ever for a server that refuses it; no secret is shown."""
    config = tmp_path / "nats.conf"
    config.write_text("authorization { user: alice, password: right }")
    async with NatsServer(config=config) as server:
        settings = Settings(nats_url=server.url, user="alice", password="wr0ng")  # type: ignore[arg-type]

        async with asyncio.timeout(5):
            with pytest.raises(Unauthenticated, match="BUSMICRO_PASSWORD") as caught:
                await hello(settings=settings).start()

        assert "wr0ng" not in str(caught.value) + repr(settings)


async def test_forbidden_subject_is_named_at_start(tmp_path: Path):
    """A service that may not listen says which subject, before it pretends to serve."""
    config = tmp_path / "nats.conf"
    config.write_text(
        'authorization { users: [ {user: s, password: p, permissions: {subscribe: "_INBOX.>"}} ] }'
    )
    async with NatsServer(config=config) as server:
        url = server.url.replace("//", "//s:p@")

        with pytest.raises(PermissionDenied, match=r"rpc\.hello\.hello"):
            await hello(url=url).start()


async def test_two_services_in_one_process_do_not_meet(server):
    """Each service has its own connection, client and figures."""
    async with hello("one", url=server.url) as one, hello("two", url=server.url) as two:
        assert await one.client.call("two", "hello") == "hello"
        assert await two.client.call("one", "hello") == "hello"


async def test_grace_period_ends_what_does_not_finish(server, caplog):
    """A handler that outlasts the grace period is ended; the log says how many were."""
    caplog.set_level(logging.WARNING)
    service = Service("endless", url=server.url)
    began = asyncio.Event()

    @service.rpc
    async def work() -> None:
        began.set()
        await asyncio.sleep(60)

    async with Client(server.url) as client:
        await service.start()
        call = asyncio.get_running_loop().create_task(client.call("endless", "work", timeout=30))
        await began.wait()
        await service.stop(grace=0.1)

        with pytest.raises(Exception, match="stopped before it was done"):
            await call

    assert any("1 requests still run" in record.getMessage() for record in caplog.records)


async def test_server_without_jetstream_serves_with_one_warning(caplog):
    """Calls and discovery work without JetStream; one warning says what is missing."""
    caplog.set_level(logging.WARNING)
    async with (
        NatsServer(jetstream=False) as server,
        hello(url=server.url) as service,
        Client(server.url) as client,
    ):
        assert await client.call("hello", "hello") == "hello"
        record = await client.bus.discovery.service("hello")
        assert record is not None
        assert [node.id for node in record.nodes] == [service.id]
        assert await client.call_all("hello", "hello", returns=str, timeout=2.0) == ["hello"]

    said = [r.getMessage() for r in caplog.records if "JetStream" in r.getMessage()]
    assert len(said) == 2  # one in the service's process, one in the client's, were they two
    assert "nats-server -js" in said[0]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("BUSMICRO_NATS_URL", "http://x"),
        ("BUSMICRO_MAX_RUNNING", "0"),
        ("BUSMICRO_PING_INTERVAL", "-1"),
        ("BUSMICRO_REGISTRY_TTL", "soon"),
    ],
)
async def test_nonsense_in_the_environment_is_named(monkeypatch, variable, value):
    """A wrong setting is refused before any I/O, by the name of its variable."""
    monkeypatch.setenv(variable, value)

    with pytest.raises(SetupError, match=variable):
        await hello().start()
