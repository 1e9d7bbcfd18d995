"""What the server forbids is told at once, and who is thrown out comes back."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import nkeys
import pytest

from busmicro import CallError, Client, NatsServer, PermissionDenied, Service, Settings
from tests.faults.limits.nodes import Until, middle
from tests.faults.log import now
from tests.faults.monitoring import ask
from tests.faults.report import Report
from tests.nats.test_connect import Key, jwt

DENIED = "S21 the server permits a user little"
THROWN_OUT = "S22 the server throws a node out"
BACK_WITHIN = 2.0
CONFIG = """
authorization {{ users: [
  {{ user: any, password: pw }}
  {{ user: node, password: "{password}" }}
  {{ user: little, password: pw, permissions: {{
      publish: {{ deny: ["rpc.secret.>"] }}, subscribe: {{ deny: ["rpc.theirs.>"] }} }} }}
] }}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The configuration of the server, to be changed while it runs."""
    file = tmp_path / "nats.conf"
    file.write_text(CONFIG.format(password="pw"))
    return file


@pytest.fixture
async def server(config: Path) -> AsyncIterator[NatsServer]:
    """A server with users."""
    async with NatsServer(config=config) as own:
        yield own


def settings(server: NatsServer, user: str) -> Settings:
    return Settings.load(nats_url=server.url, user=user, password="pw")


def answering(settings: Settings, name: str = "secret") -> Service:
    service = Service(name, settings=settings)

    @service.rpc
    async def hello() -> str:
        return "hello"

    return service


async def seconds_until_denied(deny: Callable[[], object]) -> float:
    began = now()
    with pytest.raises(PermissionDenied):
        await deny()
    return now() - began


async def test_what_may_not_be_published_or_subscribed_to_is_told_in_time(
    server: NatsServer, report: Report, full: bool
):
    """A caller and a node without permission hear it within 50 ms, while others work on."""
    starting = []
    async with (
        answering(settings(server, "any")),
        Client(settings=settings(server, "little")) as client,
    ):
        deny = partial(client.call, "secret", "hello", timeout=30.0)
        calling = [await seconds_until_denied(deny) for _ in range(500 if full else 100)]
        for _ in range(50 if full else 10):
            service = answering(settings(server, "little"), "theirs")
            starting.append(await seconds_until_denied(service.start))
        lost = client.bus.transport.reconnects

    for what, took in (("a call", calling), ("the start of a node", starting)):
        report.add(DENIED, f"{what} is denied after, s, usually", middle(took), "≤ 0.05")
        why = f"{sum(each > 0.05 for each in took)} of {len(took)}, with other work on the machine"
        report.add(DENIED, f"{what} is denied after, s, at worst", max(took), "≤ 0.05", why=why)
        assert middle(took) <= (0.05 if full else 0.5)
        assert max(took) <= (0.5 if full else 5.0)
    assert lost == 0


class Watch:
    """Asks a node again and again, and notes when it answered."""

    def __init__(self, client: Client) -> None:
        self.answers: list[float] = []
        self._client = client
        self._task = asyncio.get_running_loop().create_task(self._ask())

    async def _ask(self) -> None:
        while True:
            try:
                await self._client.call("secret", "hello", timeout=1.0)
                self.answers.append(now())
            except CallError:
                await asyncio.sleep(0.005)

    def gap_from(self, moment: float) -> float:
        """Return the seconds from a moment to the first answer after it."""
        return next((at - moment for at in self.answers if at > moment), float("inf"))

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


@asynccontextmanager
async def watched(service: Service, calling: Settings) -> AsyncIterator[Watch]:
    async with service, Client(settings=calling) as client:
        watch = Watch(client)
        try:
            yield watch
        finally:
            await watch.stop()


async def subscriptions(server: NatsServer, connection: str) -> list[str]:
    """Ask the server to what a connection of this name listens."""
    everybody = (await ask(server, "/connz?subs=1"))["connections"]
    found = [one for one in everybody if one.get("name") == connection]
    return sorted(found[0].get("subscriptions_list", [])) if found else []


async def missing(server: NatsServer, before: list[str]) -> int:
    """Return how many of the node's subscriptions are not soon there again."""
    until = now() + 5.0
    while (gone := set(before) - set(await subscriptions(server, "the-node"))) and now() < until:
        await asyncio.sleep(0.02)
    return len(gone)


def reload_with(server: NatsServer, config: Path, password: str) -> float:
    """Change the password of the node; who has logged in with another one is thrown out."""
    config.write_text(CONFIG.format(password=password))
    assert server.pid is not None
    os.kill(server.pid, signal.SIGHUP)
    return now()


@pytest.mark.timeout(120)
async def test_node_that_is_thrown_out_comes_back_with_all_it_listened_to(
    server: NatsServer, config: Path, until: Until, report: Report, full: bool
):
    """The server closes with an error and refuses the node for a while; then it answers again."""
    back, lost = [], 0
    given = settings(server, "node").model_copy(update={"name": "the-node"})
    service = answering(given)
    async with watched(service, settings(server, "any")) as watch:
        await until(lambda: watch.answers)
        before = await subscriptions(server, "the-node")
        for _ in range(10 if full else 2):
            reload_with(server, config, "another")
            await until(lambda: not service.bus.transport.connected)
            await asyncio.sleep(0.5)
            let_in = reload_with(server, config, "pw")
            await until(lambda let_in=let_in: watch.answers and watch.answers[-1] > let_in)
            back.append(watch.gap_from(let_in))
            lost += await missing(server, before)

    report.add(THROWN_OUT, "answers again after it may come back, s, at worst", max(back), "≤ 2")
    report.add(THROWN_OUT, f"subscriptions lost, of {len(before)}", lost, "0")
    assert len(before) > 5
    assert (lost, max(back) <= (BACK_WITHIN if full else 8.0)) == (0, True)


class Accounts:
    """An operator, an account and users whose credentials expire."""

    def __init__(self) -> None:
        self.operator = Key.make(nkeys.PREFIX_BYTE_OPERATOR)
        self.account = Key.make(nkeys.PREFIX_BYTE_ACCOUNT)
        self.user = Key.make(nkeys.PREFIX_BYTE_USER)

    @property
    def config(self) -> str:
        limits = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1}
        limits.update(wildcards=True, conn=-1, leaf=-1)
        account = jwt(self.operator, self.account.public, "account", limits=limits)
        return (
            f"operator: {jwt(self.operator, self.operator.public, 'operator')}\n"
            f"resolver: MEMORY\nresolver_preload: {{ {self.account.public}: {account} }}\n"
        )

    def write(self, file: Path, expires: float | None) -> None:
        """Write a credentials file, good for so many seconds."""
        claims = {"pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1}
        at = None if expires is None else int(dt.datetime.now(dt.UTC).timestamp() + expires)
        token = jwt(self.account, self.user.public, "user", expires=at, **claims)
        text = (
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{self.user.seed.decode()}\n"
            "------END USER NKEY SEED------\n"
        )
        new = file.with_suffix(".new")
        new.write_text(text)
        new.rename(file)


@pytest.mark.timeout(120)
async def test_node_whose_credentials_expire_goes_on_with_new_ones(
    tmp_path: Path, until: Until, report: Report, full: bool
):
    """Credentials that run out end the connection; those that lie there by then open the next."""
    accounts, expiring, lasting = Accounts(), tmp_path / "node.creds", tmp_path / "any.creds"
    (tmp_path / "nats.conf").write_text(accounts.config)
    accounts.write(lasting, None)
    gaps = []
    async with NatsServer(config=tmp_path / "nats.conf", jetstream=False) as server:
        for _ in range(4 if full else 1):
            accounts.write(expiring, 2.0 if full else 4.0)  # it has to be connected before
            service = answering(Settings.load(nats_url=server.url, creds=expiring))
            calling = Settings.load(nats_url=server.url, creds=lasting)
            async with watched(service, calling) as watch:
                await until(lambda watch=watch: watch.answers)
                accounts.write(expiring, None)
                await until(lambda service=service: service.bus.transport.reconnects == 1)
                back = now()
                await until(lambda watch=watch, back=back: watch.answers[-1] > back)
                pairs = zip(watch.answers, watch.answers[1:], strict=False)
                gaps.append(max(later - earlier for earlier, later in pairs))

    report.add(f"{THROWN_OUT}: its credentials expire", "longest silence, s", max(gaps), "≤ 2")
    assert max(gaps) <= (BACK_WITHIN if full else 8.0)
