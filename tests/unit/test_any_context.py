"""Whatever lies where `nats` keeps its contexts: settings, or an error that says which file."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from busmicro import SetupError
from busmicro.cli.contexts import read_context, read_seed, selected_context

NAMES = ("url", "user", "password", "token", "creds", "cert", "key", "ca", "nkey", "tls_first")
PATHS = st.sampled_from(["~/me", "~nobody-here/me", "a\x00b", "\ud800", "/dev/null", "/nowhere/x"])
VALUES = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | PATHS | st.lists(st.text())
)
CONTEXTS = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), VALUES, max_size=6)
ANY_NUMBER_OF_TIMES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where contexts lie."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "nats" / "context").mkdir(parents=True)
    return tmp_path / "nats"


def read(folder: Path, content: bytes) -> dict[str, object]:
    """Read a context that holds these bytes; nothing if it is refused."""
    (folder / "context" / "mine.json").write_bytes(content)
    with suppress(SetupError):
        return read_context("mine")
    return {}


@ANY_NUMBER_OF_TIMES
@given(content=st.binary(max_size=60))
@example(content=b"[" * 100_000)
@example(content=b'{"url":"x"')
@example(content=b"\xff")
def test_any_bytes_are_a_context_or_refused(folder: Path, content: bytes):
    """A file that somebody has damaged ends in one error, not in a traceback."""
    assert isinstance(read(folder, content), dict)


@ANY_NUMBER_OF_TIMES
@given(context=CONTEXTS)
def test_any_context_becomes_settings_or_is_refused(folder: Path, context: dict[str, object]):
    """What is said plainly arrives as it is, whatever else the file says."""
    found = read(folder, json.dumps(context).encode())

    if found:
        for ours, theirs in (("nats_url", "url"), ("user", "user"), ("token", "token")):
            assert found.get(ours) == (context.get(theirs) or None)
        assert set(found) <= {"nats_url", "user", "password", "token", "tls_first"} | {
            "creds", "tls_cert", "tls_key", "tls_ca", "nkey_seed",
        }  # fmt: skip


@pytest.mark.parametrize(
    "context",
    [
        {"creds": "~nobody-here/me"},
        {"nkey": "~nobody-here/me"},
        {"nkey": "a\x00b"},
        {"nkey": "\ud800"},
        {"nkey": "/nowhere/x"},
        ["url"],
    ],
)
def test_context_that_names_what_cannot_be_read_is_refused(folder: Path, context: object):
    """A home that nobody has, or a path that no file can have, is said in one line."""
    (folder / "context" / "mine.json").write_text(json.dumps(context), "utf-8")

    with pytest.raises(SetupError, match=r"^[^\n]* cannot be read: "):
        read_context("mine")


@ANY_NUMBER_OF_TIMES
@given(before=st.binary(max_size=40).filter(lambda content: b"SU" not in content))
@example(before=b"-----BEGIN USER NKEY SEED-----")
def test_seed_is_found_after_any_text(folder: Path, before: bytes):
    """The line of an nkey file that is a seed is found; a file that is no text is refused."""
    file = folder / "user.nk"
    file.write_bytes(before + b"\n SUSEED \n")

    if _is_text(before):
        assert read_seed(file) == "SUSEED"
    else:
        with pytest.raises(SetupError, match="cannot be read"):
            read_seed(file)


@ANY_NUMBER_OF_TIMES
@given(content=st.binary(max_size=60))
def test_any_text_selects_a_context(folder: Path, content: bytes):
    """What selects a context is its name without blanks around; what is no text is refused."""
    (folder / "context.txt").write_bytes(content)

    if _is_text(content):
        assert selected_context().split() == content.decode().split()
    else:
        with pytest.raises(SetupError, match="cannot be read"):
            selected_context()


def _is_text(content: bytes) -> bool:
    with suppress(UnicodeDecodeError):
        content.decode()
        return True
    return False
