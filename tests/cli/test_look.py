"""The verbs that look: services, describe, health, stats."""

from __future__ import annotations

import json
import signal

import pytest

pytestmark = pytest.mark.usefixtures("shop")


@pytest.fixture
def foreign_up(busmicro, foreign, eventually):
    """Wait until the foreign service answers; its name."""
    eventually(lambda: foreign in busmicro("ls").stdout)
    return foreign


def test_services_are_listed_as_columns(busmicro, foreign_up):
    """Without a terminal the table is plain columns; services of other frameworks are shown."""
    shown = busmicro("services")

    rows = [line.split() for line in shown.stdout.splitlines()]
    assert shown.returncode == 0
    assert rows[0] == ["NAME", "VERSIONS", "NODES", "ENDPOINTS"]
    assert rows[1] == [foreign_up, "0.0.1", "1", "ask"]
    assert rows[2][:3] == ["shop", "1.2.0", "2"]
    assert "Debug" not in shown.stdout


@pytest.mark.parametrize("plain", ["", "1"])
def test_services_are_drawn_on_a_terminal(terminal, plain):
    """A person gets a table with lines, in bold only where colours are wanted."""
    shown = terminal("services", TERM="xterm", NO_COLOR=plain)

    assert "─" in shown
    assert "shop" in shown
    assert ("\x1b[" in shown) is not bool(plain)


def test_services_as_json_have_their_shape(busmicro):
    """`--json` lists names, versions, nodes and endpoints."""
    shown = json.loads(busmicro("list", "--json").stdout)

    found = next(service for service in shown if service["name"] == "shop")
    assert found["versions"] == ["1.2.0"]
    assert found["nodes"] == ["node-1", "node-2"]
    assert {"hello", "Slow.down", "Debug.Health"} <= set(found["endpoints"])
    assert set(found) == {"name", "versions", "nodes", "endpoints"}


def test_nothing_up_says_what_to_try(busmicro, start, nowhere):
    """On an empty server each looking verb exits with 0 and names the next command."""
    server = start("server", "--port", nowhere.rpartition(":")[2])
    assert server.stdout.readline().strip() == nowhere

    for verb in ("services", "health", "stats"):
        shown = busmicro(verb, "--json", BUSMICRO_NATS_URL=nowhere)
        assert (shown.returncode, shown.stdout) == (0, "[]\n")
        assert "try: busmicro run" in shown.stderr
    assert not busmicro("services", "-q", BUSMICRO_NATS_URL=nowhere).stderr


def test_namespace_keeps_services_apart(busmicro):
    """Services of one namespace are not seen in another."""
    assert "shop" not in busmicro("services", "--namespace", "other").stdout


def test_describe_shows_fields_and_nodes(busmicro):
    """People see what to send, what comes back, and where it runs."""
    shown = busmicro("describe", "shop").stdout

    assert "name: string" in shown
    assert "size: integer = 1" in shown
    assert "Greet somebody." in shown
    assert "unary, idempotent, timeout 2.5 s" in shown
    assert '{"region": "eu"}' in shown
    assert "Debug" not in shown


def test_describe_as_json_has_its_shape(busmicro):
    """`--json` has the schemas and everything else that is known."""
    shown = json.loads(busmicro("get", "shop", "hello", "--json").stdout)

    (endpoint,) = shown["endpoints"]
    assert set(shown) == {"name", "versions", "endpoints", "nodes"}
    assert (endpoint["timeout"], endpoint["idempotent"]) == (2.5, True)
    assert endpoint["request"]["required"] == ["name"]
    assert [node["id"] for node in shown["nodes"]] == ["node-1", "node-2"]
    assert set(shown["nodes"][0]) == {"id", "version", "started", "running", "metadata"}


def test_template_is_a_request_that_is_taken(busmicro):
    """What `--template` prints can be sent as it is."""
    template = busmicro("describe", "shop", "hello", "--template").stdout

    reply = busmicro("call", "shop", "hello", "-", typed=template)

    assert json.loads(template) == {"name": "text", "size": 1}
    assert json.loads(reply.stdout) == {"greeting": "Hello text"}


def test_template_needs_one_endpoint(busmicro):
    """With many endpoints, `--template` asks which."""
    shown = busmicro("describe", "shop", "--template")

    assert shown.returncode == 2
    assert "say which endpoint" in shown.stderr


def test_describe_suggests_close_names(busmicro):
    """A service or endpoint that is not there is answered with what was probably meant."""
    service, endpoint = busmicro("describe", "shup"), busmicro("describe", "shop", "helo")

    assert (service.returncode, endpoint.returncode) == (69, 76)
    assert "did you mean shop?" in service.stderr
    assert "did you mean hello" in endpoint.stderr


def test_health_asks_every_node(busmicro):
    """Each node says for itself that it is well."""
    shown = busmicro("health", "shop", "--json")

    states = json.loads(shown.stdout)
    assert shown.returncode == 0
    assert [state["node"] for state in states] == ["node-1", "node-2"]
    assert all(s["healthy"] and s["connected"] and s["status"] == "serving" for s in states)
    fields = {"service", "node", "version", "healthy", "status", "connected", "uptime", "error"}
    assert set(states[0]) == fields


def test_health_takes_foreign_nodes_as_present(busmicro, foreign_up):
    """A service that cannot be asked is not called ill."""
    shown = busmicro("health", foreign_up)

    assert shown.returncode == 0
    assert "present" in shown.stdout


def test_health_of_nobody_is_bad(busmicro):
    """A service that is named and not there is exit code 1, or 124 after waiting."""
    assert busmicro("health", "nobody").returncode == 1

    waited = busmicro("health", "nobody", "--wait", "0.3")
    assert waited.returncode == 124
    assert "no service 'nobody' is up" in waited.stderr


def test_health_notices_a_node_that_hangs(busmicro, start, url):
    """A node that is stopped in its tracks is reported as bad, with the reason."""
    node = start("run", "shop:shop", "-n", "hang", BUSMICRO_NATS_URL=url)
    assert "serves as node" in node.stderr.readline()
    assert busmicro("-n", "hang", "health", "shop", "--wait", "5").returncode == 0
    node.send_signal(signal.SIGSTOP)

    shown = busmicro("-n", "hang", "health", "shop", "--timeout", "0.3")

    assert shown.returncode == 1
    assert "deadline_exceeded" in shown.stdout


def test_health_waits_for_nats_itself(start, nowhere):
    """`--wait` may begin before there is a server."""
    waiting = start("health", "shop", "--wait", "10", BUSMICRO_NATS_URL=nowhere)
    start("run", "shop:shop", BUSMICRO_NATS_URL=nowhere)

    assert waiting.wait(15) == 0


def test_stats_add_the_nodes_up(busmicro):
    """Requests and errors of all nodes are one figure."""
    before = _figures(busmicro, "missing")
    busmicro("call", "shop", "missing", "--count", "10")

    after = _figures(busmicro, "missing")

    assert after["requests"] - before["requests"] == 10
    assert after["errors"] - before["errors"] == 10
    assert after["nodes"] == 2
    assert set(after) == {
        *("service", "endpoint", "nodes", "requests", "errors", "average_ms", "last_error"),
    }


def _figures(busmicro, endpoint):
    found = json.loads(busmicro("stats", "shop", "-j").stdout)
    return next(one for one in found if one["endpoint"] == endpoint)


def test_stats_of_nobody_is_a_failure(busmicro):
    """A service that is named and not there is exit code 1."""
    assert busmicro("stats", "nobody").returncode == 1


def test_stats_are_watched_until_interrupted(start, url):
    """`-w` prints again every second; Ctrl-C ends it with 130."""
    watching = start("stats", "shop", "-w", "-j", BUSMICRO_NATS_URL=url)
    lines = [json.loads(watching.stdout.readline()) for _ in range(2)]
    watching.send_signal(signal.SIGINT)

    assert watching.wait(5) == 130
    assert all("per_second" in entry for entry in lines[1])
    assert "Traceback" not in watching.stderr.read()


def test_reader_that_leaves_is_no_failure(start, url):
    """`| head` ends a verb without a word."""
    watching = start("stats", "-w", BUSMICRO_NATS_URL=url)
    watching.stdout.readline()
    watching.stdout.close()

    assert watching.wait(10) == 0
    assert not watching.stderr.read()
