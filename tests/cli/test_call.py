"""`busmicro call`."""

from __future__ import annotations

import json
import time

import pytest
from click.testing import CliRunner

from busmicro.cli import cli

pytestmark = pytest.mark.usefixtures("shop")


@pytest.mark.parametrize(
    "words",
    [['{"name": "John"}'], ["name=John", "size:=3"], ["-"], ["@request.json"]],
)
def test_request_is_read_in_every_form(busmicro, home, words):
    """JSON, fields, stdin and a file are the same request; the reply is all that is printed."""
    (home / "request.json").write_text('{"name": "John"}')

    shown = busmicro("call", "shop", "hello", *words, typed='{"name": "John"}')

    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == '{"greeting": "Hello John"}\n'


@pytest.mark.parametrize("words", [["{bad"], ["name=x", "{}"], ["@nowhere.json"], ["size:=x"]])
def test_request_that_cannot_be_read_is_wrong_usage(words):
    """What is not JSON is refused before anything is sent."""
    shown = CliRunner().invoke(cli, ["call", "shop", "hello", *words])

    assert shown.exit_code == 2
    assert "Error: " in shown.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (
            ["shop", "hello", "name:=5"],
            67,
            ["invalid_argument", "name: Input should be", "describe"],
        ),
        (["shop", "missing"], 69, ["not_found: no such order", "order 17", '{"since": "May"}']),
        (["shop", "boom"], 77, ["internal", "try: the log of shop"]),
        (["shop", "Slow.down"], 68, ["deadline_exceeded", "--timeout"]),
        (["shop", "helo"], 76, ["unimplemented", "did you mean hello?", "busmicro describe shop"]),
        (["shup", "hello"], 78, ["no service 'shup' is up", "did you mean shop?"]),
        (["shop", "hello", "--node", "node-9"], 78, ["no node 'node-9'", "node-1, node-2"]),
        (["no name", "hello"], 67, ["invalid_argument", "service name"]),
    ],
)
def test_failure_is_told_and_numbered(busmicro, words, code, said):
    """An error says what, why and what to try, and exits with 64 and its number."""
    shown = busmicro("call", *words)

    assert shown.returncode == code
    assert not shown.stdout
    assert all(text in shown.stderr for text in said), shown.stderr
    assert "secret" not in shown.stderr


def test_advertised_timeout_counts_and_an_option_wins(busmicro):
    """The endpoint's own timeout is used; `--timeout` goes before it."""
    began = time.monotonic()
    busmicro("call", "shop", "Slow.down")
    own = time.monotonic() - began
    began = time.monotonic()
    busmicro("call", "shop", "Slow.down", "--timeout", "1.2")

    assert time.monotonic() - began > own + 0.5


def test_headers_are_sent(busmicro):
    """`-H` sends a header; one without a colon is wrong usage."""
    shown = busmicro("call", "shop", "header", '"X-Tenant"', "-H", "X-Tenant: blue")

    assert shown.stdout == '"blue"\n'
    assert CliRunner().invoke(cli, ["call", "shop", "header", "-H", "nonsense"]).exit_code == 2


def test_one_node_is_asked(busmicro):
    """`--node` asks the node that it names."""
    shown = busmicro("call", "shop", "Debug.Health", "--node", "node-2")

    assert json.loads(shown.stdout)["node"] == "node-2"


def test_every_node_is_asked(busmicro):
    """`--all` prints a line for each node, good or bad."""
    good = busmicro("call", "shop", "Debug.Health", "--all")
    bad = busmicro("call", "shop", "missing", "--all")

    lines = [json.loads(line) for line in good.stdout.splitlines()]
    assert [line["node"] for line in lines] == ["node-1", "node-2"]
    assert lines[1]["reply"]["node"] == "node-2"
    assert bad.returncode == 69
    assert json.loads(bad.stdout.splitlines()[0])["error"]["code"] == "not_found"


def test_all_of_nobody_is_not_found(busmicro):
    """`--all` of a service that is not there exits with 69."""
    assert busmicro("call", "shup", "hello", "--all").returncode == 69


def test_all_and_node_exclude_each_other():
    """Every node and one node cannot both be meant."""
    words = ["call", "shop", "hello", "--all", "--node", "node-1"]

    assert CliRunner().invoke(cli, words).exit_code == 2


def test_many_calls_are_summed_up(busmicro):
    """`--count` prints how long calls took, in words or as JSON."""
    words = ["call", "shop", "hello", "name=x", "--count", "50", "--concurrency", "8"]

    text, figures = busmicro(*words), json.loads(busmicro(*words, "-j").stdout)

    assert text.stdout.startswith("50 calls in ")
    assert (figures["calls"], figures["failed"], figures["errors"]) == (50, 0, {})
    assert set(figures["latency_ms"]) == {"min", "p50", "p90", "p99", "max"}


def test_failures_among_many_calls_are_counted(busmicro):
    """The summary counts errors by code; the exit code is that of the first."""
    shown = busmicro("call", "shop", "missing", "--count", "5", "-j")

    assert shown.returncode == 69
    assert json.loads(shown.stdout)["errors"] == {"not_found": 5}


def test_raw_sends_and_prints_bytes(busmicro):
    """`--raw` sends what is not JSON as it is, and prints the reply as it came."""
    shown = busmicro("call", "shop", "size", "-", "--raw", typed="not JSON")

    assert shown.stdout == "8 bytes"


def test_foreign_service_is_called(busmicro, foreign, eventually):
    """A service of another framework is found where it listens; its text is printed as it came."""
    eventually(lambda: foreign in busmicro("ls").stdout)

    shown = busmicro("call", foreign, "ask")

    assert (shown.returncode, shown.stdout) == (0, "as text")
