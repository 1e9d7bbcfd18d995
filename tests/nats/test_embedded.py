import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import nats
import nats.errors
import pytest
from nats.js import JetStreamContext
from nats.js.api import StreamConfig

from busmicro.embedded import (
    NatsCluster,
    NatsServer,
    ServerFailed,
    ServerOptions,
    find_nats_server,
    nats_server_version,
)
from busmicro.errors import SetupError


def eventually(check: Callable[[], bool], within: float) -> bool:
    deadline = time.monotonic() + within
    while not (done := check()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return done


def left_in(directory: Path) -> list[Path]:
    return list(directory.iterdir())


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def answers(port: int, host: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def server_info(server: NatsServer) -> dict[str, object]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=2.0) as peer:
        line = peer.makefile("rb").readline()
    return json.loads(line.removeprefix(b"INFO "))


def monitoring(server: NatsServer, page: str) -> dict[str, object]:
    with urllib.request.urlopen(f"{server.monitoring_url}/{page}", timeout=2.0) as reply:
        return json.load(reply)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go during a test, so that it can count what is left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


async def test_server_takes_clients_as_soon_as_it_is_started():
    """Inside the `async with` block `url` connects at once and streams can be used."""
    async with NatsServer() as server:
        async with await nats.connect(server.url, allow_reconnect=False) as nc:
            await nc.jetstream().add_stream(name="S", subjects=["s"])

            ack = await nc.jetstream().publish("s", b"hello")

        assert server.url == f"nats://127.0.0.1:{server.port}"
        assert ack.seq == 1


async def test_server_listens_on_loopback_only():
    """Neither clients nor monitoring can be reached under any address but 127.0.0.1."""
    async with NatsServer() as server:
        ports = [server.port, int(str(server.monitoring_url).rpartition(":")[2])]

        assert [answers(port) for port in ports] == [True, True]
        assert [answers(port, "127.0.0.2") for port in ports] == [False, False]


async def test_server_takes_the_port_it_is_given():
    """`port=` is the port, known before the start."""
    async with NatsServer() as first:
        port = first.port

    server = NatsServer(port=port)

    assert server.url == f"nats://127.0.0.1:{port}"
    async with server:
        assert answers(port)


async def test_start_and_stop_can_be_called_twice(scratch: Path):
    """The second `start` and the second `stop` change nothing; a stopped server starts."""
    server = NatsServer()

    await server.start()
    pid = server.pid
    await server.start()
    assert server.pid == pid
    await server.stop()
    await server.stop()
    assert (server.running, server.pid, server.monitoring_url) == (False, None, None)
    async with server:
        assert server.running


async def test_stop_leaves_no_process_and_no_file(scratch: Path):
    """After `stop` there is no process, not even a zombie, no listener and no temporary store."""
    async with NatsServer() as server:
        pid, port, store = server.pid, server.port, server.store
        assert pid is not None
        assert store is not None
        assert store.is_relative_to(scratch)

    assert not alive(pid)
    assert not answers(port)
    assert not left_in(scratch)


async def test_server_runs_on_when_the_thread_that_started_it_is_gone():
    """A server that was started in another thread and event loop can be used and stopped here."""
    server = NatsServer()

    await asyncio.to_thread(lambda: asyncio.run(server.start()))

    async with await nats.connect(server.url, allow_reconnect=False) as nc:
        await nc.flush(timeout=2)
    await server.stop()
    assert not server.running


def test_server_needs_no_event_loop_while_it_runs():
    """It can be started in one event loop and stopped in another."""
    server = NatsServer()

    asyncio.run(server.start())

    assert answers(server.port)
    asyncio.run(server.stop())


async def test_two_servers_know_nothing_of_each_other():
    """A message to one of two servers does not reach the other."""
    async with (
        NatsServer() as one,
        NatsServer() as two,
        await nats.connect(one.url) as here,
        await nats.connect(two.url) as there,
    ):
        inbox = await there.subscribe("x")
        await there.flush()
        await here.publish("x", b"")
        await here.flush()
        await there.flush()  # what was sent there before its answer would be here by now

        assert inbox.pending_msgs == 0


async def test_restart_after_kill_keeps_port_and_store():
    """What was stored before `kill` is there after `restart`, under the same URL."""
    async with NatsServer() as server:
        url, pid = server.url, server.pid
        async with await nats.connect(url, allow_reconnect=False) as nc:
            await nc.jetstream().add_stream(name="S", subjects=["s"])
            await nc.jetstream().publish("s", b"kept")

        server.kill()
        assert not server.running
        await server.restart()

        assert server.url == url
        assert server.pid != pid
        async with await nats.connect(url, allow_reconnect=False) as nc:
            assert (await nc.jetstream().get_msg("S", 1)).data == b"kept"


@pytest.mark.parametrize("state", ["running", "paused"])
async def test_restart_works_in_any_state(state: str):
    """`restart` replaces a server that runs or hangs."""
    async with NatsServer() as server:
        url, pid = server.url, server.pid
        if state == "paused":
            server.pause()

        await server.restart()

        assert (server.url, server.running) == (url, True)
        assert server.pid != pid
        assert answers(server.port)


async def test_paused_server_hangs_until_resume():
    """While paused it answers nothing on a connection that stays open; after `resume` it does."""
    async with NatsServer() as server, await nats.connect(server.url) as nc:
        inbox = await nc.subscribe("x")
        await nc.flush()

        server.pause()
        await nc.publish("x", b"late")
        with pytest.raises(nats.errors.TimeoutError):
            await inbox.next_msg(timeout=0.2)
        assert server.running
        server.resume()

        assert (await inbox.next_msg(timeout=2)).data == b"late"
        assert nc.stats["reconnects"] == 0


async def test_paused_server_can_be_stopped():
    """`stop` does not wait for a server that hangs."""
    server = NatsServer()
    await server.start()
    server.pause()

    async with asyncio.timeout(2):
        await server.stop()

    assert not server.running


async def test_lame_duck_sends_its_clients_away():
    """`lame_duck` lets connected clients know that they should go elsewhere."""
    sent_away = asyncio.Event()

    async def on_lame_duck() -> None:
        sent_away.set()

    async with (
        NatsServer() as server,
        await nats.connect(server.url, lame_duck_mode_cb=on_lame_duck),
    ):
        server.lame_duck()

        async with asyncio.timeout(5):
            await sent_away.wait()


async def test_given_store_outlives_the_server(tmp_path: Path):
    """`store=` is used, kept by `stop`, and read again by the next server."""
    async with NatsServer(store=tmp_path / "deep" / "store") as server:
        assert server.store == tmp_path / "deep" / "store"
        async with await nats.connect(server.url) as nc:
            await nc.jetstream().add_stream(name="S", subjects=["s"])
            await nc.jetstream().publish("s", b"kept")

    async with (
        NatsServer(store=tmp_path / "deep" / "store") as server,
        await nats.connect(server.url) as nc,
    ):
        assert (await nc.jetstream().get_msg("S", 1)).data == b"kept"


async def test_server_without_jetstream_has_no_store():
    """`jetstream=False` starts a server that carries messages and keeps none."""
    async with NatsServer(jetstream=False) as server:
        assert server.store is None
        assert "jetstream" not in server_info(server)


async def test_options_reach_the_server():
    """Every option shows in what the server says about itself."""
    options = ServerOptions(
        name="tiny", sync_always=True, max_payload_bytes=2048, flags=("--auth", "secret")
    )
    async with NatsServer(options=options) as server:
        info = server_info(server)
        storage = monitoring(server, "jsz")["config"]

        assert (info["server_name"], info["max_payload"]) == ("tiny", 2048)
        assert info["auth_required"] is True
        assert storage["sync_always"] is True


async def test_defaults_are_those_for_production():
    """Silent and slow clients are dropped within seconds, a message may have 1 MiB."""
    async with NatsServer() as server:
        said = monitoring(server, "varz")

        assert said["ping_interval"] == 5_000_000_000
        assert said["write_deadline"] == 2_000_000_000
        assert said["max_payload"] == 1024 * 1024


async def test_config_file_is_honoured_below_the_arguments(tmp_path: Path):
    """A file's settings hold, but its address and ports give way to the ones of the call."""
    config = tmp_path / "my.conf"
    config.write_text(f"""
        listen: 0.0.0.0:1
        server_name: from-file
        authorization: {{ token: secret }}
        jetstream: {{ store_dir: "{tmp_path}/mine" }}
    """)

    async with NatsServer(config=config) as server:
        async with await nats.connect(server.url, token="secret", allow_reconnect=False) as nc:
            await nc.jetstream().add_stream(name="S", subjects=["s"])

        assert server_info(server)["server_name"] == "from-file"
        assert not answers(server.port, "127.0.0.2")
        assert server.store is None
    assert (tmp_path / "mine" / "jetstream").is_dir()


async def test_taken_port_is_explained(scratch: Path):
    """A port that is in use ends the start with an error that says so and leaves nothing behind."""
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ServerFailed, match="leave `port` out") as failed,
    ):
        await NatsServer(port=taken.getsockname()[1]).start()

    assert "address already in use" in failed.value.log
    assert not left_in(scratch)


@pytest.mark.parametrize(
    ("mistake", "complaint"),
    [("nonsense {{{", "Parse error"), ("max_payload: blue", "broken.conf:1")],
)
async def test_broken_config_is_explained(tmp_path: Path, mistake: str, complaint: str):
    """A configuration file with a mistake is named, beside what nats-server says about it."""
    config = tmp_path / "broken.conf"
    config.write_text(mistake)

    with pytest.raises(ServerFailed, match=r"correct .*broken\.conf") as failed:
        await NatsServer(config=config).start()

    assert complaint in failed.value.log


async def test_program_that_is_no_server_is_explained(tmp_path: Path):
    """A program that ends at once is reported with what it said."""
    program = tmp_path / "nats-server"
    program.write_text("#!/bin/sh\necho wrong program\n")
    program.chmod(0o755)

    with pytest.raises(ServerFailed, match=r"ended at once(.|\n)*wrong program"):
        await NatsServer(binary=program).start()
    with pytest.raises(SetupError, match="is not nats-server"):
        nats_server_version(program)


async def test_silent_program_is_given_up(tmp_path: Path, scratch: Path):
    """A program that never gets ready is ended after `start_timeout`."""
    program = tmp_path / "nats-server"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    server = NatsServer(binary=program, options=ServerOptions(start_timeout=0.1))

    with pytest.raises(ServerFailed, match=r"not ready within 0\.1 s"):
        await server.start()

    assert not server.running
    assert left_in(scratch) == [program]


async def test_file_that_cannot_run_is_explained(tmp_path: Path, scratch: Path):
    """A binary for another machine is a SetupError, not an OSError."""
    program = tmp_path / "nats-server"
    program.write_bytes(b"\x7fELF")
    program.chmod(0o755)

    with pytest.raises(SetupError, match="does not run"):
        await NatsServer(binary=program).start()

    assert left_in(scratch) == [program]


async def test_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A binary or configuration file that is not there is named with its path."""
    missing = tmp_path / "missing"

    with pytest.raises(SetupError, match=str(missing)):
        await NatsServer(binary=missing).start()
    with pytest.raises(SetupError, match=str(missing)):
        await NatsServer(config=missing).start()
    monkeypatch.setenv("BUSMICRO_NATS_SERVER", str(missing))
    with pytest.raises(SetupError, match=f"{missing}.*BUSMICRO_NATS_SERVER"):
        await NatsServer().start()


def test_variable_names_the_binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`BUSMICRO_NATS_SERVER` wins over what is installed."""
    mine = tmp_path / "my-server"
    mine.write_bytes(b"")
    mine.chmod(0o755)

    monkeypatch.setenv("BUSMICRO_NATS_SERVER", str(mine))

    assert find_nats_server() == mine


def test_version_is_told():
    """The version of the binary comes as numbers with dots."""
    major, minor, _patch = nats_server_version(find_nats_server()).split(".")

    assert (int(major), int(minor)) >= (2, 10)


@pytest.mark.parametrize(
    "make",
    [
        lambda: NatsServer(port=0),
        lambda: NatsServer(port=65536),
        lambda: NatsServer(jetstream=False, store=Path("x")),
        lambda: NatsServer(jetstream=False, options=ServerOptions(sync_always=True)),
        lambda: NatsServer(config=Path("x"), options=ServerOptions(sync_always=True)),
        lambda: ServerOptions(name="with blank"),
        lambda: ServerOptions(max_payload_bytes=0),
        lambda: ServerOptions(start_timeout=0),
        lambda: NatsCluster(1),
        lambda: NatsServer().url,
        lambda: NatsServer().pause(),
    ],
)
def test_wrong_use_is_refused(make: Callable[[], object]):
    """What cannot work raises SetupError, before anything is started."""
    with pytest.raises(SetupError):
        make()


async def test_cancelled_start_leaves_nothing(scratch: Path):
    """A start that is cancelled half-way ends its process and removes its files."""
    server = NatsServer()
    start = asyncio.get_running_loop().create_task(server.start())
    await asyncio.sleep(0)  # the process is there now, not ready yet
    assert server.running

    start.cancel()

    with pytest.raises(asyncio.CancelledError):
        await start
    assert not server.running
    assert not left_in(scratch)


async def test_server_that_ends_by_itself_is_seen():
    """`running` turns false when somebody else ends the server; `start` brings it back."""
    async with NatsServer() as server:
        url = server.url
        os.kill(server.pid or 0, signal.SIGTERM)
        assert eventually(lambda: not server.running, within=5)
        assert "Server Exiting" in server.log_tail()

        await server.start()

        assert (server.url, server.running) == (url, True)


async def test_ctrl_c_in_a_terminal_does_not_reach_the_server():
    """It is in no process group with us, so a service can drain before its server ends."""
    async with NatsServer() as server:
        assert os.getpgid(server.pid or 0) != os.getpgrp()


PARENT = """
import asyncio, signal
from busmicro.embedded import NatsServer

async def main():
    server = NatsServer()
    await server.start()
    print(server.pid, server.port, server.store, flush=True)
    if {paused}:
        server.pause()
        print("paused", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("paused", [False, True])
def test_server_dies_with_its_parent(tmp_path: Path, paused: bool):
    """When the process that started it is killed, server and temporary files are gone in 2 s."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT.format(paused=paused)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid, port, store = parent.stdout.readline().split()
        if paused:
            assert parent.stdout.readline() == "paused\n"
        assert alive(int(pid))
        assert answers(int(port))
        assert Path(store).is_dir()

        parent.kill()
        parent.wait()

    assert eventually(lambda: not answers(int(port)), within=2)
    assert eventually(lambda: not left_in(tmp_path), within=2)


async def publish_until_stored(js: JetStreamContext, payload: bytes) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await js.publish("s", payload, timeout=0.5)
            except nats.errors.Error:  # no leader yet
                await asyncio.sleep(0.05)
            else:
                return


async def test_cluster_replicates_and_survives_the_loss_of_one(scratch: Path):
    """Three servers hold a stream three times; with its leader killed nothing is lost."""
    async with (
        NatsCluster() as cluster,
        await nats.connect(cluster.urls, reconnect_time_wait=0.05) as nc,
    ):
        js = nc.jetstream()
        info = await js.add_stream(StreamConfig(name="S", subjects=["s"], num_replicas=3))
        assert info.cluster is not None
        assert cluster.url == ",".join(cluster.urls)
        await js.publish("s", b"before")
        names = [server_info(server)["server_name"] for server in cluster.servers]

        lost = cluster.servers[names.index(info.cluster.leader)]
        lost.kill()

        await publish_until_stored(js, b"after")
        assert (await js.get_msg("S", 1)).data == b"before"
        await lost.restart()
        await cluster.ready()
        assert [server.running for server in cluster.servers] == [True] * 3
    assert not left_in(scratch)


async def test_cluster_without_majority_is_not_ready():
    """`ready` fails at once where too few servers are left to elect a leader."""
    async with NatsCluster() as cluster:
        for server in cluster.servers[:2]:
            server.kill()

        with pytest.raises(ServerFailed, match="only 1 of 3 run"):
            await cluster.ready()
