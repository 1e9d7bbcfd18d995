"""The contexts of the `nats` command: read, never written.

Source: natscli (NATS' command line), the files below `~/.config/nats`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from busmicro.cli.words import did_you_mean
from busmicro.errors import SetupError

_PLAIN = {
    "url": "nats_url",
    "user": "user",
    "password": "password",
    "token": "token",
    "tls_first": "tls_first",
    "inbox_prefix": "inbox_prefix",
}
_FILES = {"creds": "creds", "cert": "tls_cert", "key": "tls_key", "ca": "tls_ca"}


def config_folder() -> Path:
    """Return where `nats` keeps its contexts."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "nats"


def selected_context() -> str:
    """Return the name of the selected context; empty if none is.

    Raises:
        SetupError: What selects it is no text.
    """
    path = config_folder() / "context.txt"
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return ""
    except ValueError as wrong:
        raise SetupError(f"{path} cannot be read: {wrong}") from wrong


def context_names() -> list[str]:
    """List the contexts there are."""
    return sorted(path.stem for path in (config_folder() / "context").glob("*.json"))


def read_context(name: str) -> dict[str, object]:
    """Read a context as settings.

    Args:
        name: Its name.

    Returns:
        Settings by name; only those that the context has.

    Raises:
        SetupError: There is none of this name, or it cannot be read. The text lists what is there.
    """
    if name not in context_names():
        known = context_names()
        hint = did_you_mean(name, known) or f"there are {', '.join(known) or 'none'}"
        raise SetupError(f"no context {name!r} in {config_folder() / 'context'}: {hint}")
    path = config_folder() / "context" / f"{name}.json"
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as wrong:
        raise SetupError(f"the context {path} cannot be read: {wrong}") from wrong
    if not isinstance(found, dict):
        raise SetupError(f"the context {path} cannot be read: it is not a JSON object")
    return _settings(found)


def _settings(context: dict[str, object]) -> dict[str, object]:
    settings = {ours: context[theirs] for theirs, ours in _PLAIN.items() if context.get(theirs)}
    for theirs, ours in _FILES.items():
        if context.get(theirs):
            settings[ours] = _at_home(Path(str(context[theirs])))
    if context.get("nkey"):
        settings["nkey_seed"] = read_seed(Path(str(context["nkey"])))
    return settings


def read_seed(path: Path) -> str:
    """Read an nkey seed from its file.

    Raises:
        SetupError: It cannot be read.
    """
    try:
        lines = _at_home(path).read_text("utf-8").splitlines()
    except OSError as wrong:
        raise SetupError(f"the nkey {path} cannot be read: {wrong.strerror}") from wrong
    except ValueError as wrong:
        raise SetupError(f"the nkey {path} cannot be read: {wrong}") from wrong
    return next((line.strip() for line in lines if line.strip().startswith("SU")), "")


def _at_home(path: Path) -> Path:
    """Return a path with the home folder that `~` stands for."""
    try:
        return path.expanduser()
    except RuntimeError as nobody:
        raise SetupError(f"{path} cannot be read: whose home is that?") from nobody
