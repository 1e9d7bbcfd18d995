"""`busmicro demo`: the main job, shown on this machine in a few seconds.

A nats-server, three nodes of a greeter in processes of their own, and a client: calls, the
registry, how load spreads, and a node killed under load with no call lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack

import click

from busmicro.cli.demo_greeter import HelloReply, HelloRequest
from busmicro.cli.options import verb
from busmicro.client import Client
from busmicro.embedded import NatsServer
from busmicro.errors import CallError

_NODES = 3
_CALLS_A_SECOND = 500
_SECONDS = 4.0
_AT_ONCE = 64


@verb("demo")
def demo() -> None:
    """Show a service with three nodes, and one of them killed under load."""
    logging.getLogger("busmicro").setLevel(logging.ERROR)
    failed = asyncio.run(_show())
    if failed:
        click.echo(f"{failed} calls failed, which should not happen", err=True)
        raise SystemExit(1)


async def _show() -> int:
    async with AsyncExitStack() as stack:
        _say("Starting a nats-server, the only thing busmicro needs ...")
        server = await stack.enter_async_context(NatsServer())
        _say(f"  it listens on {server.url}")
        _say(f"Starting {_NODES} nodes of the service 'greeter', each a process of its own ...")
        processes = {}
        for number in range(1, _NODES + 1):
            node = f"node-{number}"
            processes[node] = stack.enter_context(_node(node, server.url))
        try:
            client = await stack.enter_async_context(Client(server.url, timeout=3.0))
            await _wait_for_nodes(client)
            await _first_call(client)
            await _registry(client)
            failed = await _under_load(client, processes)
        finally:
            for process in processes.values():
                process.terminate()
    _say("All stopped, nothing left behind.")
    _what_next()
    return failed


def _say(text: str = "") -> None:
    click.echo(text)


def _node(node: str, url: str) -> subprocess.Popen[bytes]:
    code = f"from busmicro.cli.demo_greeter import service\nservice.id = {node!r}\nservice.run()\n"
    env = {**os.environ, "BUSMICRO_NATS_URL": url}
    return subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.DEVNULL)  # noqa: S603


async def _wait_for_nodes(client: Client) -> None:
    async with asyncio.timeout(20.0):
        while True:
            record = await client.bus.discovery.service("greeter")
            if record is not None and len(record.nodes) == _NODES:
                return
            await asyncio.sleep(0.02)


async def _first_call(client: Client) -> None:
    began = time.perf_counter()
    reply = await client.call("greeter", "hello", HelloRequest(name="John"), returns=HelloReply)
    took = (time.perf_counter() - began) * 1000
    _say()
    _say('client.call("greeter", "hello", HelloRequest(name="John"), returns=HelloReply)')
    _say(f"  {reply!r}   {took:.1f} ms")


async def _registry(client: Client) -> None:
    _say()
    _say("The registry knows, without anybody having configured an address:")
    _say(f"  {'SERVICE':10}{'NODE':10}{'VERSION':10}{'STARTED':28}ENDPOINTS")
    record = await client.bus.discovery.service("greeter")
    for node in record.nodes if record else ():
        description = record.descriptions.get(node.id) if record else None
        names = ", ".join(e.name for e in description.endpoints) if description else ""
        _say(f"  {node.service:10}{node.id:10}{node.version:10}{node.started:28}{names}")


class _Load:
    """Calls at a steady rate, counted by who answered."""

    def __init__(self, client: Client) -> None:
        self._client = client.with_options(idempotent=True)
        self._room = asyncio.Semaphore(_AT_ONCE)
        self.by_node: Counter[str] = Counter()
        self.failures: list[str] = []
        self.slowest = 0.0

    async def run(self, seconds: float) -> None:
        """Call for so many seconds and wait for the last reply."""
        end = time.perf_counter() + seconds
        due = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            while time.perf_counter() < end:
                due += 1 / _CALLS_A_SECOND
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                await self._room.acquire()
                group.create_task(self._one())

    async def _one(self) -> None:
        began = time.perf_counter()
        try:
            reply = await self._client.call(
                "greeter", "hello", HelloRequest(name="Ann"), returns=HelloReply
            )
            self.by_node[reply.node] += 1
        except CallError as failure:
            self.failures.append(str(failure))
        finally:
            self._room.release()
        self.slowest = max(self.slowest, time.perf_counter() - began)

    def report(self) -> None:
        """Print who answered how much."""
        total = sum(self.by_node.values()) or 1
        for node, count in sorted(self.by_node.items()):
            _say(f"  {node:8}{count:6}  {'#' * round(40 * count / total)}")


async def _under_load(client: Client, processes: dict[str, subprocess.Popen[bytes]]) -> int:
    _say()
    _say(f"{_CALLS_A_SECOND} calls a second; the queue group balances them, no balancer does:")
    load = _Load(client)
    await load.run(_SECONDS / 2)
    load.report()
    victim = next(iter(processes))
    _say()
    _say(f"The same again, and {victim} is killed (SIGKILL) in the middle of it:")
    load = _Load(client)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run(_SECONDS))
        await asyncio.sleep(_SECONDS / 3)
        processes[victim].kill()
    load.report()
    total = sum(load.by_node.values()) + len(load.failures)
    _say(f"  {total} calls, {len(load.failures)} failed; the slowest took {load.slowest:.2f} s")
    for failure in load.failures[:3]:
        _say(f"    {failure}")
    _say()
    return len(load.failures)


def _what_next() -> None:
    _say()
    _say("Try it yourself, in three terminals:")
    _say("  busmicro server")
    _say("  busmicro run busmicro.cli.demo_greeter:service")
    _say("""  busmicro call greeter hello '{"name": "John"}'""")
    _say("and then: busmicro services, busmicro describe greeter, busmicro stats")
