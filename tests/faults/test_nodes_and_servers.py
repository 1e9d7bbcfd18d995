"""Nodes and servers that die, restart and freeze under load: what callers notice of it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from busmicro import CallError, Client, DeadlineExceeded, NatsServer, Service, Unavailable

GREETER = str(Path(__file__).parent / "greeter.py")
RATE = 500


class Load:
    """Calls at a steady rate; every outcome is kept."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.good: list[str] = []
        self.failed: list[tuple[float, CallError]] = []
        self.slowest = 0.0
        self._stop = asyncio.Event()

    async def run(self) -> None:
        due = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            while not self._stop.is_set():
                due += 1 / RATE
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(self._one())

    async def _one(self) -> None:
        began = time.perf_counter()
        try:
            self.good.append(await self.client.call("greeter", "hello", "Ann", returns=str))
        except CallError as failure:
            self.failed.append((began, failure))
        self.slowest = max(self.slowest, time.perf_counter() - began)

    def stop(self) -> None:
        self._stop.set()

    @property
    def calls(self) -> int:
        return len(self.good) + len(self.failed)


async def nodes_up(client: Client, until, count: int) -> None:
    async def up() -> bool:
        record = await client.bus.discovery.service("greeter")
        return record is not None and len(record.nodes) == count

    await until(up, timeout=20.0)


async def test_rolling_restart_under_load_fails_no_call(server, start_program, until):
    """Three nodes are replaced one by one by SIGTERM at 500 calls/s: 0 of >= 3,000 fail."""
    nodes = [start_program(GREETER, f"n{n}", url=server.url) for n in range(3)]
    async with Client(server.url) as client:
        await nodes_up(client, until, 3)
        load = Load(client)
        running = asyncio.get_running_loop().create_task(load.run())
        began = time.perf_counter()
        for n, old in enumerate(nodes):
            new = start_program(GREETER, f"m{n}", url=server.url)
            await nodes_up(client, until, 4)
            old.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(old.wait, 20) == 0
            await nodes_up(client, until, 3)
            assert new.poll() is None
        await asyncio.sleep(max(0.0, 6.5 - (time.perf_counter() - began)))
        load.stop()
        await running

    assert load.calls >= 3000
    assert load.failed == []
    assert {reply.split()[-1] for reply in load.good} >= {"m0", "m1", "m2"}


@pytest.mark.parametrize("idempotent", [False, True])
async def test_killed_node_fails_only_what_it_was_working_on(
    server, start_program, until, idempotent
):
    """SIGKILL: only calls in flight on that node can fail; if they may run twice, none does."""
    nodes = [start_program(GREETER, f"n{n}", url=server.url) for n in range(3)]
    async with Client(server.url, timeout=2.0) as plain:
        await nodes_up(plain, until, 3)
        load = Load(plain.with_options(idempotent=idempotent))
        running = asyncio.get_running_loop().create_task(load.run())
        await asyncio.sleep(1.0)
        killed_at = time.perf_counter()
        nodes[0].kill()
        await asyncio.sleep(1.5)
        load.stop()
        await running

    late = [failure for began, failure in load.failed if began > killed_at + 0.05]
    assert load.calls >= 1000
    assert late == []
    if idempotent:
        assert load.failed == []
    else:  # 5 ms of work at 500 calls/s over three nodes: about one is in flight on each
        assert len(load.failed) <= 15
        assert all(isinstance(failure, DeadlineExceeded) for _, failure in load.failed)
    after = Counter(reply.split()[-1] for reply in load.good[-300:])
    assert set(after) == {"n1", "n2"}


async def test_no_call_hangs_when_the_server_dies_with_200_in_flight(server, start_program, until):
    """NATS is killed and restarted: every call in flight ends at once as Unavailable."""
    start_program(GREETER, "n0", url=server.url)
    async with Client(server.url) as client:
        await nodes_up(client, until, 1)
        loop = asyncio.get_running_loop()
        calls = [loop.create_task(client.call("greeter", "sleep", 3.0)) for _ in range(200)]
        async with asyncio.timeout(5):
            while (await client.call("greeter", "Debug.Stats"))["running"] < 201:
                await asyncio.sleep(0.005)
        began = time.perf_counter()

        server.kill()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        took = time.perf_counter() - began
        await server.restart()

        assert {type(outcome).__mro__[1] for outcome in outcomes} == {Unavailable}
        assert took < 1.0
        patient = client.with_options(wait_for_ready=True)
        assert await patient.call("greeter", "hello", "Bo", timeout=10.0)


async def test_restart_of_nats_under_load_is_over_when_it_is_over(server, start_program, until):
    """Calls fail fast while NATS is down and succeed again after it; no task is left behind."""
    start_program(GREETER, "n0", url=server.url)
    async with Client(server.url) as client:
        await nodes_up(client, until, 1)
        load = Load(client)
        running = asyncio.get_running_loop().create_task(load.run())
        await asyncio.sleep(0.3)
        for _ in range(3):
            server.kill()
            await asyncio.sleep(0.2)
            await server.restart()
            await client.with_options(wait_for_ready=True).call(
                "greeter", "hello", "Bo", timeout=10.0
            )
            await asyncio.sleep(0.2)
        load.stop()
        await running
        assert await client.call("greeter", "hello", "Bo")
        assert len(client.bus.replies) == 0

    assert load.slowest < 2.0
    assert all(isinstance(failure, Unavailable) for _, failure in load.failed)


async def test_frozen_node_gets_no_calls_once_the_server_drops_it(tmp_path, start_program, until):
    """SIGSTOP of one of two nodes, server pings of 1 s: no call fails later than 4 s after it."""
    config = tmp_path / "nats.conf"
    config.write_text('ping_interval: "1s"\nping_max: 2\n')
    async with NatsServer(config=config) as server, Client(server.url, timeout=0.5) as client:
        nodes = [start_program(GREETER, f"n{n}", url=server.url) for n in range(2)]
        await nodes_up(client, until, 2)
        nodes[0].send_signal(signal.SIGSTOP)
        frozen_at = time.perf_counter()
        load = Load(client)
        running = asyncio.get_running_loop().create_task(load.run())
        await asyncio.sleep(5.5)
        load.stop()
        await running
        nodes[0].send_signal(signal.SIGCONT)

    last = max(began for began, _ in load.failed) - frozen_at
    assert load.failed
    assert last < 4.0


async def test_service_started_before_nats_waits_and_says_so(start_program, until, tmp_path):
    """A service waits for a NATS that is not there, says so, and serves when it comes."""
    first = NatsServer()
    await first.start()
    port = first.port
    await first.stop()
    node = start_program(GREETER, "early", url=f"nats://127.0.0.1:{port}")
    assert node.stderr is not None
    said = (await asyncio.to_thread(node.stderr.readline)).decode()
    async with NatsServer(port=port) as server, Client(server.url, wait_for_ready=True) as client:
        assert await client.call("greeter", "hello", "Bo", timeout=10.0)
        node.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(node.wait, 10) == 0
    assert f"cannot reach NATS at nats://127.0.0.1:{port}" in said
    assert "waiting for it" in said


async def test_second_signal_ends_what_still_runs(server, start_program, until):
    """SIGTERM waits for the running request; a second one ends it, and its caller is told."""
    node = start_program(GREETER, "n0", url=server.url)
    async with Client(server.url) as client:
        await nodes_up(client, until, 1)
        call = asyncio.get_running_loop().create_task(
            client.call("greeter", "sleep", 30.0, timeout=40.0)
        )
        await until(lambda: _running(client, 2))
        node.send_signal(signal.SIGTERM)

        async def left() -> bool:
            return await client.bus.discovery.service("greeter") is None

        await until(left)
        assert node.poll() is None
        node.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(node.wait, 5) == 0
        with pytest.raises(Unavailable, match="stopped"):
            await call


async def _running(client: Client, count: int) -> bool:
    stats = await client.call("greeter", "Debug.Stats")
    return bool(stats["running"] == count)


async def test_lifespan_surrounds_all_requests(server):
    """`lifespan` is entered before the first request and left after the last one."""
    order: list[str] = []

    class Life:
        def __init__(self, service: Service) -> None:
            self.service = service

        async def __aenter__(self) -> None:
            order.append(f"open, connected={self.service.bus.transport.connected}")

        async def __aexit__(self, *_: object) -> None:
            order.append("close")

    service = Service("living", url=server.url, lifespan=Life)

    @service.rpc
    async def work() -> None:
        await asyncio.sleep(0.1)
        order.append("work")

    async with Client(server.url) as client:
        await service.start()
        call = asyncio.get_running_loop().create_task(client.call("living", "work"))
        await asyncio.sleep(0.03)
        await service.stop()
        await call

    assert order == ["open, connected=True", "work", "close"]
