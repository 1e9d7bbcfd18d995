"""A nats-server with services of their own processes, and the command line as a process."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from click.testing import CliRunner

from busmicro import NatsServer
from busmicro.cli import cli
from tests.environment import PYTHONPATH

_SHOP = '''
import asyncio
from pydantic import BaseModel
from busmicro import Call, NotFound, Service

class HelloRequest(BaseModel):
    name: str
    size: int = 1

class HelloReply(BaseModel):
    greeting: str

shop = Service("shop", version="1.2.0", metadata={"region": "eu"})

@shop.rpc("hello", idempotent=True, timeout=2.5)
async def hello(request: HelloRequest) -> HelloReply:
    """Greet somebody."""
    return HelloReply(greeting=f"Hello {request.name}")

@shop.rpc
async def missing() -> None:
    raise NotFound("no such order: it was cancelled", details=["order 17", {"since": "May"}])

@shop.rpc
async def boom() -> None:
    raise ValueError("secret")

@shop.rpc("Slow.down", timeout=0.2)
async def slow() -> None:
    await asyncio.sleep(30)

@shop.rpc
async def nap() -> str:
    print("napping")
    await asyncio.sleep(0.5)
    return "rested"

@shop.rpc
async def size(request: bytes) -> bytes:
    return b"%d bytes" % len(request)

@shop.rpc
async def header(request: str, call: Call) -> str:
    return call.headers.get(request, "")
'''

_CHAT = '''
import asyncio
from collections.abc import AsyncIterator
from pydantic import BaseModel
from busmicro import Call, NotFound, Service

class Count(BaseModel):
    to: int
    pause: float = 0.0

class Tick(BaseModel):
    n: int

service = Service("chat")
going, given = [], []

@service.rpc
async def count(request: Count) -> AsyncIterator[Tick]:
    """Count up."""
    going.append("count")
    try:
        for n in range(request.to):
            given.append(n)
            yield Tick(n=n)
            await asyncio.sleep(request.pause)
        if request.to == 3:
            raise NotFound("no fourth: it was lost")
    finally:
        going.remove("count")

@service.rpc
async def total(numbers: AsyncIterator[int]) -> int:
    """Add up."""
    going.append("total")
    try:
        return sum([n async for n in numbers])
    finally:
        going.remove("total")

@service.rpc
async def shout(lines: AsyncIterator[str], call: Call) -> AsyncIterator[str]:
    """Say it louder, until somebody says bye."""
    going.append("shout")
    try:
        async for line in lines:
            if line == "bye":
                return
            yield line.upper() + call.headers.get("Sign", "!")
    finally:
        going.remove("shout")

@service.rpc
async def sip(lines: AsyncIterator[str]) -> int:
    """Take one line, and no more for half a second."""
    size = len(await anext(aiter(lines)))
    await asyncio.sleep(0.5)
    return size

@service.rpc
async def echo(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for part in parts:
        yield part

@service.rpc
async def streams() -> list[str]:
    """Tell what is going on."""
    return going

@service.rpc
async def sent() -> int:
    """Tell how many ticks there were."""
    return len(given)
'''

_FOREIGN = """
import asyncio, sys
import nats, nats.micro

async def main():
    client = await nats.connect(sys.argv[1])
    service = await nats.micro.add_service(client, name="foreign", version="0.0.1")
    async def answer(request):
        await request.respond(b"as text", headers={"Content-Type": "text/plain"})
    await service.add_endpoint(name="ask", subject="elsewhere.ask", handler=answer)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def _environment(home: Path, more: dict[str, str]) -> dict[str, str]:
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("BUSMICRO_", "NATS_", "XDG_"))}
    own = {"PYTHONPATH": PYTHONPATH, "HOME": str(home), "PYTHONUNBUFFERED": "1", "TERM": "dumb"}
    return {**kept, **own, **more}


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.kill()
    if process.stdin is not None and process.stdin.closed:
        process.stdin = None  # or `communicate` trips over it
    process.communicate()


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """Where a nats-server of this session listens."""
    server = NatsServer()
    with asyncio.Runner() as runner:
        runner.run(server.start())
        yield server.url
        runner.run(server.stop())


@pytest.fixture
def nowhere() -> str:
    """Name a URL where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"nats://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a home folder, with the file of a service."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "shop.py").write_text(_SHOP)
    (folder / "chat.py").write_text(_CHAT)
    return folder


Start = Callable[..., subprocess.Popen[str]]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """Start the command line; what still runs after the test is ended."""
    started: list[subprocess.Popen[str]] = []

    def begin(
        *args: str, cwd: Path = home, stdin: int = subprocess.DEVNULL, **env: str
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "busmicro", *args],
            env=_environment(home, env),
            cwd=cwd,
            text=True,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        _end(process)


@pytest.fixture
def busmicro(home: Path, url: str) -> Run:
    """Run the command line to its end, on the session's server unless told otherwise."""

    def run(
        *args: str, typed: str = "", cwd: Path = home, **env: str
    ) -> subprocess.CompletedProcess[str]:
        env.setdefault("BUSMICRO_NATS_URL", url)
        return subprocess.run(
            [sys.executable, "-m", "busmicro", *args],
            env=_environment(home, {k: v for k, v in env.items() if v}),
            cwd=cwd,
            text=True,
            input=typed,
            capture_output=True,
            timeout=20,
            check=False,
        )

    return run


@pytest.fixture
def quick(url: str) -> Callable[..., str]:
    """Run the command line in this process, on the way to what a test is about; what it printed."""

    def run(*args: str, typed: str = "") -> str:
        env = {"BUSMICRO_NATS_URL": url}
        result = CliRunner().invoke(cli, args, input=typed, env=env, standalone_mode=False)
        if result.exception is not None:
            raise result.exception
        return result.stdout

    return run


@pytest.fixture
def terminal(home: Path, url: str) -> Callable[..., str]:
    """Run the command line on a terminal; what it printed there."""

    def run(*args: str, **env: str) -> str:
        ours, theirs = pty.openpty()
        given = {"BUSMICRO_NATS_URL": url, "COLUMNS": "100", **env}
        with os.fdopen(ours, "rb", buffering=0) as screen:
            process = subprocess.Popen(
                [sys.executable, "-m", "busmicro", *args],
                env=_environment(home, {k: v for k, v in given.items() if v}),
                cwd=home,
                stdout=theirs,
                stderr=subprocess.DEVNULL,
            )
            os.close(theirs)
            printed = b"".join(_until_hung_up(screen))
        assert process.wait(10) == 0
        return printed.decode()

    return run


def _until_hung_up(screen: IO[bytes]) -> Iterator[bytes]:
    try:
        while chunk := screen.read(4096):
            yield chunk
    except OSError:  # Linux says so when the other end is closed
        return


def _ready(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if "serves as node" in line:
            return
    raise AssertionError(f"it ended with {process.wait()}")


@pytest.fixture(scope="session")
def shop(url: str, home: Path) -> Iterator[list[str]]:
    """Run two nodes of a service; their ids."""
    ids = ["node-1", "node-2"]
    nodes = []
    for node in ids:
        code = f"from shop import shop; shop.id = {node!r}; shop.run()"
        env = _environment(home, {"BUSMICRO_NATS_URL": url})
        nodes.append(
            subprocess.Popen(
                [sys.executable, "-c", code],
                env=env,
                cwd=home,
                text=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        )
    for process in nodes:
        _ready(process)
    yield ids
    for process in nodes:
        _end(process)


@pytest.fixture(scope="session")
def chat(url: str, home: Path) -> Iterator[str]:
    """Run a node of a service that streams; the name of the service."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from chat import service; service.run()"],
        env=_environment(home, {"BUSMICRO_NATS_URL": url}),
        cwd=home,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    _ready(process)
    yield "chat"
    _end(process)


@pytest.fixture(scope="session")
def foreign(url: str, home: Path) -> Iterator[str]:
    """Run a service of NATS' own framework; its name."""
    env = _environment(home, {})
    process = subprocess.Popen([sys.executable, "-c", _FOREIGN, url], env=env, text=True)
    yield "foreign"
    process.kill()
    process.wait()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Wait, at most ten seconds, for something to become true."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10.0
        while not condition():
            assert time.monotonic() < deadline, "it did not become true in ten seconds"

    return wait
