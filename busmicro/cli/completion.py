"""`busmicro completion`: what makes a shell complete verbs, services and endpoints."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from busmicro.cli.options import verb
from busmicro.cli.words import is_terminal, note

_HOW = {
    "bash": 'eval "$(busmicro completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(busmicro completion zsh)"   # in ~/.zshrc',
    "fish": "busmicro completion fish | source   # in ~/.config/fish/config.fish",
}


@verb("completion")
@click.argument("shell", type=click.Choice(list(_HOW)))
def completion(shell: str) -> None:
    """Print what makes a shell complete verbs, and the services and endpoints that are up."""
    cls = get_completion_class(shell)
    if cls is None:
        raise click.UsageError(f"click cannot complete in {shell}")
    root = click.get_current_context().find_root().command
    click.echo(cls(root, {}, "busmicro", "_BUSMICRO_COMPLETE").source())
    if is_terminal():
        note(f"try: {_HOW[shell]}")
