"""The command line itself: help, versions, speed, suggestions."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
from click.testing import CliRunner

from busmicro import __version__
from busmicro.cli import ALIASES, VERBS, cli


@pytest.mark.parametrize("verb", [*VERBS, *ALIASES])
def test_every_verb_has_help(verb):
    """`--help` of each verb and alias explains it and exits with 0."""
    shown = CliRunner().invoke(cli, [verb, "--help"])

    assert shown.exit_code == 0
    assert "Usage:" in shown.output
    assert "--help" in shown.output


@pytest.mark.parametrize("verb", list(VERBS))
def test_verb_carries_its_own_name(verb):
    """What `--help` lists is what is found."""
    command = cli.get_command(None, verb)

    assert command is not None
    assert command.name == verb


def test_help_lists_every_verb_quickly(busmicro):
    """`busmicro --help` names all verbs and imports nothing that is slow."""
    took = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        shown = busmicro("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    print(f"busmicro --help: {min(took) * 1000:.0f} ms of a processor")

    assert shown.returncode == 0
    assert all(f"  {verb} " in shown.stdout for verb in VERBS)
    assert min(took) < 0.30


def test_command_line_imports_nothing_heavy():
    """Naming the verbs costs neither asyncio nor pydantic nor nats nor rich."""
    code = "import busmicro.cli, sys; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["asyncio", "pydantic", "nats", "rich", "logging"]

    command = [sys.executable, "-c", code, *heavy]
    found = subprocess.run(command, capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"


def test_version_is_printed(busmicro):
    """`--version` prints it on stdout."""
    assert busmicro("--version").stdout == f"busmicro {__version__}\n"


def test_unknown_verb_suggests_close_ones(busmicro):
    """A mistyped verb is answered with what was probably meant, and 2."""
    shown = busmicro("servicse")

    assert shown.returncode == 2
    assert "did you mean services" in shown.stderr
    assert not shown.stdout


def test_every_export_is_found():
    """`busmicro` has each name that it lists, and says so when it lacks one."""
    import busmicro as package

    assert all(
        getattr(package, name).__name__ for name in package.__all__ if name not in package.__dict__
    )
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = package.nonsense


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(busmicro, shell):
    """`completion SHELL` prints what to source."""
    shown = busmicro("completion", shell)

    assert shown.returncode == 0
    assert "_BUSMICRO_COMPLETE" in shown.stdout


def _complete(run, words, **env):
    asked = {"_BUSMICRO_COMPLETE": "bash_complete", "COMP_WORDS": f"busmicro {words}"}
    shown = run(COMP_CWORD=str(len(words.split(" "))), **asked, **env)
    assert not shown.stderr
    return [line.partition(",")[2] for line in shown.stdout.split()]


def test_completion_knows_verbs(busmicro):
    """Verbs are completed without asking anybody."""
    assert _complete(busmicro, "de") == ["describe", "demo"]


@pytest.mark.usefixtures("shop")
def test_completion_knows_what_is_up(busmicro, eventually):
    """Names of services and endpoints are those that are up now."""
    eventually(lambda: _complete(busmicro, "call sh") == ["shop"])
    eventually(lambda: _complete(busmicro, "call shop S") == ["Slow.down"])
    assert _complete(busmicro, "-n other call sh") == []


def test_completion_is_silent_without_nats(busmicro, nowhere):
    """Where nobody can be asked, nothing is completed and nothing is said."""
    assert _complete(busmicro, "call sh", BUSMICRO_NATS_URL=nowhere) == []
