"""`busmicro run` and `busmicro server`."""

from __future__ import annotations

import json
import signal

import pytest


def _port(url):
    return url.rpartition(":")[2]


def test_server_prints_its_url_and_ends_on_a_signal(start, busmicro, nowhere):
    """The URL is data, the advice is not; SIGTERM ends it with 0 and nothing listens any more."""
    server = start("server", "--port", _port(nowhere))
    printed = server.stdout.readline()
    up = busmicro("services", "-s", nowhere)
    server.send_signal(signal.SIGTERM)

    assert server.wait(10) == 0
    assert printed == f"{nowhere}\n"
    assert up.returncode == 0
    assert "try: busmicro run" in server.stderr.read()
    assert busmicro("services", "-s", nowhere).returncode == 3


def test_server_as_json_has_its_shape(start, nowhere, tmp_path):
    """`--json` tells URL, process and store, for scripts."""
    store = tmp_path / "store"
    server = start("server", "--port", _port(nowhere), "--store", str(store), "--json")

    shown = json.loads(server.stdout.readline())

    assert set(shown) == {"url", "pid", "store", "monitoring_url"}
    assert (shown["url"], shown["store"]) == (nowhere, str(store))


def test_server_whose_port_is_taken_says_so(busmicro, url):
    """A taken port is exit code 1 and another port to try."""
    shown = busmicro("server", "--port", _port(url))

    assert shown.returncode == 1
    assert "port is taken" in shown.stderr
    assert f"try: busmicro server --port {int(_port(url)) + 1}" in shown.stderr


def test_run_starts_a_server_where_there_is_none(start, busmicro, nowhere):
    """A service runs with nothing else there; the server that was started ends with it."""
    node = start("run", "shop:shop", "--server", nowhere)
    said = [node.stderr.readline() for _ in range(2)]
    reply = busmicro("call", "shop", "hello", "name=x", BUSMICRO_NATS_URL=nowhere)
    node.send_signal(signal.SIGINT)

    assert node.wait(10) == 0
    assert "started one there" in said[0]
    assert "serves as node" in said[1]
    assert reply.stdout == '{"greeting": "Hello x"}\n'
    assert busmicro("services", BUSMICRO_NATS_URL=nowhere).returncode == 3


def test_run_from_a_file_drains(start, home, tmp_path, url):
    """A file is run from anywhere; the request that runs when the signal comes is answered."""
    node = start("run", f"{home}/shop.py:shop", "-s", url, "-n", "drain", cwd=tmp_path)
    assert "serves as node" in node.stderr.readline()
    calling = start("-n", "drain", "call", "shop", "nap", BUSMICRO_NATS_URL=url)
    assert node.stdout.readline() == "napping\n"
    node.send_signal(signal.SIGTERM)

    assert calling.wait(10) == 0
    assert calling.stdout.read() == '"rested"\n'
    assert node.wait(10) == 0


def test_option_wins_over_code(start, busmicro, url, nowhere, tmp_path):
    """`-s` says where NATS is, whatever the service's code says."""
    text = f'from busmicro import Service\nservice = Service("own", url="{nowhere}")\n'
    (tmp_path / "own.py").write_text(text)
    node = start("run", "own", "-s", url, cwd=tmp_path)

    assert "serves as node" in node.stderr.readline()
    assert busmicro("health", "own").returncode == 0


def test_no_server_waits_for_one(start, nowhere):
    """`--no-server` starts none and says what it waits for."""
    node = start("run", "shop:shop", "--no-server", BUSMICRO_NATS_URL=nowhere)

    assert "waiting for it" in node.stderr.readline()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("shup", ["no module 'shup'", "did you mean shop?"]),
        ("shop", ["shop has no 'service'", "its services: shop", "try: busmicro run shop:shop"]),
        ("shop:HelloReply", ["is a ModelMetaclass, not a Service", "its services: shop"]),
        ("shup.py:shop", ["there is no file shup.py", "did you mean shop?"]),
        ("broken.py:x", ["broken.py cannot be imported", "NameError", "broken.py, line 2"]),
        ("syntax", ["syntax cannot be imported", "SyntaxError", "line 1"]),
        ("needs", ["needs cannot be imported", "No module named 'not_installed'"]),
        ("sync", ["sync cannot be imported", "is not async"]),
    ],
)
def test_target_that_is_wrong_says_what_is_there(busmicro, home, target, said):
    """A module or name that does not do is exit code 2, told in lines and not in a traceback."""
    (home / "broken.py").write_text("a = 1\nnonsense\n")
    (home / "syntax.py").write_text("def\n")
    (home / "needs.py").write_text("import not_installed\n")
    sync = "from busmicro import Service\ns = Service('s')\n@s.rpc\ndef f() -> None: ...\n"
    (home / "sync.py").write_text(sync)

    shown = busmicro("run", target)

    assert shown.returncode == 2
    assert all(text in shown.stderr for text in said), shown.stderr
    assert "Traceback" not in shown.stderr
