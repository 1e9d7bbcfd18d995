"""The Node program of these tests, and a loud word where it cannot run."""

from __future__ import annotations

import asyncio
import fcntl
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from busmicro import NatsServer

HERE = Path(__file__).parent
INSTALL_FOR = 45.0
NPM_FLAGS = (
    "--no-audit",
    "--no-fund",
    "--no-package-lock",
    "--ignore-scripts",
    "--fetch-retries=0",
)
ANSWER_WITHIN = 10.0
SKIPPED = pytest.StashKey[str]()


class Peer:
    """A running `peer.js`: a program in another language that does what it is told."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._last = 0
        self._ready = asyncio.get_running_loop().create_future()
        self._asked: dict[int, asyncio.Future[dict]] = {0: self._ready}
        self._reader = asyncio.create_task(self._read())  # noqa: TID251 - `stop` ends it

    async def _read(self) -> None:
        async for line in self._process.stdout:
            answer = json.loads(line)
            asked = self._asked.pop(answer.pop("id"))
            if not asked.done():
                asked.set_result(answer)
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(EOFError("peer.js ended; its own words are on stderr"))

    async def ready(self) -> None:
        """Wait until it is connected."""
        async with asyncio.timeout(ANSWER_WITHIN):
            await self._ready

    def tell(self, do: str, **what: object) -> tuple[int, asyncio.Future[dict]]:
        """Give a command; the number by which others refer to it, and where its answer comes."""
        self._last += 1
        answer = self._asked[self._last] = asyncio.get_running_loop().create_future()
        line = json.dumps({"id": self._last, "do": do, **what})
        self._process.stdin.write(line.encode() + b"\n")
        return self._last, answer

    async def ask(self, do: str, **what: object) -> dict:
        """Give a command and wait for its answer."""
        async with asyncio.timeout(ANSWER_WITHIN):
            answer = await self.tell(do, **what)[1]
        assert "fault" not in answer, answer["fault"]
        return answer

    async def call(
        self, service: str, endpoint: str, message: object = None, *, text: str = "", **options
    ) -> dict:
        """Let it call an endpoint with JSON, or with a text as it is: `reply` or `error`."""
        payload = text or json.dumps(message)
        return await self.ask(
            "call", service=service, endpoint=endpoint, text=payload, options=options
        )

    async def kill(self) -> None:
        """End it by force, so that it can tell nobody."""
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> None:
        """End it by closing its input, or else by force."""
        self._process.stdin.close()
        try:
            async with asyncio.timeout(5.0):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reader


def _installed() -> bool:
    wanted = json.loads((HERE / "package.json").read_text(encoding="utf-8"))["dependencies"]
    for name, version in wanted.items():
        found = HERE / "node_modules" / name / "package.json"
        if not found.is_file():
            return False
        if json.loads(found.read_text(encoding="utf-8"))["version"] != version:
            return False
    return True


def _install() -> str:
    """Install the packages unless they are there; say what stands in the way."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            return f"{program} is not on the PATH"
    with (HERE / "package.json").open(encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several runs share the folder
        return "" if _installed() else _npm_install()


def _npm_install() -> str:
    try:
        done = subprocess.run(
            ["npm", "install", *NPM_FLAGS],
            cwd=HERE,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_FOR,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as failure:
        return f"npm install failed: {failure}"
    if done.returncode or not _installed():
        said = [line for line in done.stderr.splitlines() if "error" in line]
        return f"npm install failed ({done.returncode}): {' | '.join(said[:2])}"
    return ""


@pytest.fixture(scope="session")
def node_packages(request: pytest.FixtureRequest) -> None:
    """The packages that the Node program needs; skips, loudly, where they cannot be had."""
    if why := _install():
        request.config.stash[SKIPPED] = why
        pytest.skip(f"the tests with Node cannot run: {why}")


@pytest.fixture
async def start_peer(
    node_packages: None, busmicro_server: NatsServer
) -> AsyncIterator[Callable[..., Awaitable[Peer]]]:
    """Start Node programs, connected to the server; they are stopped after the test."""
    started: list[Peer] = []

    async def start(url: str = busmicro_server.url) -> Peer:
        process = await asyncio.create_subprocess_exec(
            "node",
            str(HERE / "peer.js"),
            url,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        peer = Peer(process)
        started.append(peer)
        await peer.ready()
        return peer

    yield start
    for peer in started:
        await peer.stop()


@pytest.fixture
async def peer(start_peer: Callable[..., Awaitable[Peer]]) -> Peer:
    """A Node program that is connected to the server."""
    return await start_peer()


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Say at the end of the run that nothing in another language was tried."""
    if why := config.stash.get(SKIPPED, ""):
        terminalreporter.write_line(
            f"WARNING: interoperation with another language was NOT tested: {why}",
            yellow=True,
            bold=True,
        )
