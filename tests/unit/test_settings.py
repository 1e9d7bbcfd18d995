"""Settings come from code or `BUSMICRO_*`, and what is wrong is told by name, without secrets."""

from __future__ import annotations

import os

import pytest

from busmicro import Settings, SetupError


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BUSMICRO_")]:
        monkeypatch.delenv(name)


def test_environment_sets_what_code_does_not(monkeypatch: pytest.MonkeyPatch):
    """A deployment sets `BUSMICRO_*`; what the code says wins, and None says nothing."""
    monkeypatch.setenv("BUSMICRO_NATS_URL", "nats://bus:4222")
    monkeypatch.setenv("BUSMICRO_PING_INTERVAL", "2.5")
    monkeypatch.setenv("BUSMICRO_TLS_FIRST", "true")

    settings = Settings.load(ping_interval=1.0, nats_url=None)

    assert (settings.nats_url, settings.ping_interval) == ("nats://bus:4222", 1.0)
    assert settings.tls_first


def test_defaults_work_with_a_server_on_this_machine():
    """Without any setting a process connects to the server next door."""
    assert Settings().urls == ["nats://127.0.0.1:4222"]


def test_several_servers_are_named_with_commas():
    """A cluster is one setting, blanks and empty parts do not matter."""
    assert Settings(nats_url="nats://a:1, tls://b:2,,ws://c:3").urls == [
        "nats://a:1",
        "tls://b:2",
        "ws://c:3",
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nats_url", "http://bus"),
        ("ping_interval", 0),
        ("connect_timeout", -1),
        ("reconnect_max_wait", 0),
        ("max_buffered_bytes", 0),
        ("max_running", 0),
        ("grace_period", -1),
        ("registry_ttl", 0.5),
        ("max_running", "many"),
        ("no_such_setting", 1),
    ],
)
def test_wrong_setting_is_told_by_both_its_names(name: str, value: object):
    """Who sets something that cannot work reads which setting, in code and in the environment."""
    with pytest.raises(SetupError, match=f"BUSMICRO_{name.upper()}") as refused:
        Settings.load(**{name: value})

    assert f"{name} (or" in str(refused.value)


@pytest.mark.parametrize("name", ["password", "token", "nkey_seed"])
def test_secrets_are_not_shown(name: str):
    """A secret in the settings appears in no log, and in no text about what is wrong."""
    settings = Settings.load(**{name: "hunter2"})

    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings)
    with pytest.raises(SetupError) as refused:
        Settings.load(**{name: ["hunter2"], "max_running": "hunter2"})
    assert "hunter2" not in str(refused.value)


def test_settings_do_not_change():
    """What a process was started with is what it runs with."""
    with pytest.raises(ValueError, match="frozen"):
        Settings().namespace = "other"  # type: ignore[misc]
