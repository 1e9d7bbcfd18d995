"""Where NATS is: options, environment, contexts; and what is said when it is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from busmicro.cli import cli


@pytest.fixture
def context(tmp_path):
    """Write contexts of the `nats` command; the folder they are in."""

    def write(name: str, *, selected: bool = False, **fields: object) -> str:
        folder = tmp_path / "nats" / "context"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(fields))
        if selected:
            (tmp_path / "nats" / "context.txt").write_text(f"{name}\n")
        return str(tmp_path)

    return write


@pytest.mark.parametrize(
    "words",
    [
        ["services"],
        ["call", "shop", "hello"],
        ["health"],
        ["run", "shop:shop", "--no-wait"],
    ],
    ids=" ".join,
)
def test_nats_that_is_not_there_ends_with_3(busmicro, nowhere, words):
    """Each verb that needs NATS says what, why and what to try, on stderr only."""
    shown = busmicro(*words, BUSMICRO_NATS_URL=nowhere)

    assert shown.returncode == 3
    assert not shown.stdout
    assert f"cannot reach NATS at {nowhere}" in shown.stderr
    assert "try: busmicro server" in shown.stderr


def test_three_lines_say_what_why_and_what_to_try(busmicro, nowhere):
    """A failure is three lines, without the password of the URL."""
    shown = busmicro("-s", nowhere.replace("//", "//me:hidden@"), "services")

    what, why, hint = shown.stderr.splitlines()
    assert what == f"cannot reach NATS at {nowhere}"
    assert why.startswith("why: ")
    assert hint == "try: busmicro server"


@pytest.mark.parametrize(
    "words", [["-s", "URL", "-j", "services"], ["services", "-j", "-s", "URL"]]
)
def test_global_options_stand_on_either_side(busmicro, url, nowhere, words):
    """An option before the verb means the same as after it, and wins over the environment."""
    given = [url if word == "URL" else word for word in words]

    shown = busmicro(*given, BUSMICRO_NATS_URL=nowhere)

    assert shown.returncode == 0, shown.stderr
    assert isinstance(json.loads(shown.stdout), list)


def test_named_context_wins_over_the_environment(busmicro, url, nowhere, context):
    """`--context` says where NATS is, whatever BUSMICRO_* says."""
    folder = context("prod", url=url)

    shown = busmicro(
        "--context", "prod", "services", XDG_CONFIG_HOME=folder, BUSMICRO_NATS_URL=nowhere
    )

    assert shown.returncode == 0, shown.stderr


def test_selected_context_counts_when_nobody_says_more(busmicro, url, nowhere, context):
    """The selected context is used only where nothing else says where NATS is."""
    folder = context("prod", selected=True, url=url)
    bad = {"XDG_CONFIG_HOME": folder, "NATS_URL": nowhere}

    assert busmicro("services", XDG_CONFIG_HOME=folder, BUSMICRO_NATS_URL="").returncode == 0
    assert busmicro("services", BUSMICRO_NATS_URL="", **bad).returncode == 3
    assert busmicro("services", BUSMICRO_NATS_URL=nowhere, XDG_CONFIG_HOME=folder).returncode == 3


def test_nats_context_and_nats_url_are_read(busmicro, url, context):
    """The variables of the `nats` command count where BUSMICRO_* says nothing."""
    folder = context("prod", url=url)
    own = {"BUSMICRO_NATS_URL": "", "XDG_CONFIG_HOME": folder}

    assert busmicro("services", NATS_CONTEXT="prod", **own).returncode == 0
    assert busmicro("services", NATS_URL=url, **own).returncode == 0


def test_unknown_context_names_those_there_are(busmicro, context):
    """A context that does not exist is wrong usage; close names are suggested."""
    shown = busmicro("--context", "prd", "services", XDG_CONFIG_HOME=context("prod"))

    assert shown.returncode == 2
    assert "did you mean prod?" in shown.stderr


def test_broken_context_is_said_without_its_secrets(busmicro, context):
    """A value that cannot be is wrong usage, and no password is printed."""
    folder = context("bad", url="http://x", password="hidden")

    shown = busmicro("--context", "bad", "services", XDG_CONFIG_HOME=folder)

    assert shown.returncode == 2
    assert "must begin with" in shown.stderr
    assert "hidden" not in shown.stderr


def test_contexts_become_settings(context, monkeypatch, tmp_path):
    """Every field that busmicro knows is taken from a context; an nkey is read from its file."""
    from busmicro.cli.contexts import read_context

    seed = tmp_path / "user.nk"
    seed.write_text("SUSEED\n")
    files = {"creds": "~/me.creds", "cert": "/c", "key": "/k", "ca": "/a", "nkey": str(seed)}
    plain = {"url": "tls://x", "user": "u", "password": "p", "token": "t", "inbox_prefix": "_I"}
    monkeypatch.setenv("XDG_CONFIG_HOME", context("all", **plain, **files, tls_first=True))

    found = read_context("all")

    assert found == {
        "nats_url": "tls://x",
        "user": "u",
        "password": "p",
        "token": "t",
        "inbox_prefix": "_I",
        "tls_first": True,
        "creds": Path.home() / "me.creds",
        "tls_cert": Path("/c"),
        "tls_key": Path("/k"),
        "tls_ca": Path("/a"),
        "nkey_seed": "SUSEED",
    }


def test_credentials_are_not_mixed(context, monkeypatch):
    """Who says who they are on the command line is not given a context's credentials."""
    from busmicro.cli.connection import values
    from busmicro.cli.options import Given

    folder = context("prod", url="nats://x", token="hidden")
    monkeypatch.setenv("XDG_CONFIG_HOME", folder)
    monkeypatch.delenv("BUSMICRO_NATS_URL", raising=False)

    assert "token" not in values(Given(context="prod", user="me", password="p"))
    assert values(Given(context="prod"))["token"] == "hidden"


@pytest.mark.parametrize("wrong", [["--timeout", "-1"], ["--timeout", "x"], ["--nonsense"]])
def test_wrong_usage_ends_with_2(wrong):
    """What cannot be meant is refused before anything is sent."""
    assert CliRunner().invoke(cli, ["services", *wrong]).exit_code == 2


def test_credentials_are_asked_for_and_taken(busmicro, start, nowhere, tmp_path):
    """A server that wants credentials is exit code 80 without them; they are never printed."""
    config = tmp_path / "nats.conf"
    config.write_text('authorization { user: "ann", password: "hidden" }')
    server = start("server", "--port", nowhere.rpartition(":")[2], "--config", str(config))
    assert server.stdout.readline().strip() == nowhere

    refused = busmicro("services", "-s", nowhere, "--user", "ann", "--password", "hidden2", "-vv")
    taken = busmicro("services", "-s", nowhere, "--user", "ann", BUSMICRO_PASSWORD="hidden")

    assert (refused.returncode, taken.returncode) == (80, 0)
    assert "refuses these credentials" in refused.stderr
    assert "hidden" not in refused.stderr
