"""The options that every verb takes, wherever they stand on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

C = TypeVar("C", bound=Callable[..., object])


@dataclass(slots=True)
class Given:
    """The global options as they were given; None for what was not."""

    server: str | None = None
    """Where NATS is."""
    context: str | None = None
    """The context of the `nats` command to use."""
    creds: Path | None = None
    """A credentials file."""
    user: str | None = None
    """With `password`."""
    password: str | None = None
    """With `user`."""
    namespace: str | None = None
    """The prefix that the services were started with."""
    timeout: float | None = None
    """Seconds for a call, and for the answers to a question."""
    json: bool = False
    """Print JSON?"""
    no_color: bool = False
    """Print without colours?"""
    quiet: bool = False
    """Leave out all words but errors?"""
    verbose: int = 0
    """How much to log."""

    def __repr__(self) -> str:  # a password must not get into a traceback
        return f"<Given server={self.server!r} context={self.context!r}>"


def given() -> Given:
    """Return the global options of the command that runs."""
    context = click.get_current_context(silent=True)
    return Given() if context is None else _of(context)


def _of(context: click.Context) -> Given:
    found: Given = context.find_root().ensure_object(Given)
    return found


def _keep(context: click.Context, parameter: click.Parameter, value: object) -> None:
    """Remember an option that was given; the one nearer to the end of the line wins."""
    if value and parameter.name:
        setattr(_of(context), parameter.name, value)


def _show_version(context: click.Context, _parameter: click.Parameter, value: object) -> None:
    if value and not context.resilient_parsing:
        from busmicro import __version__

        click.echo(f"busmicro {__version__}")
        context.exit()


def _option(*names: str, help: str, **more: Any) -> click.Option:  # noqa: A002 - click's words
    return click.Option(names, help=help, expose_value=False, callback=_keep, **more)


def _options() -> list[click.Option]:
    seconds = click.FloatRange(min=0, min_open=True, max=86_400)
    return [
        _option("-s", "--server", metavar="URL", help="Where NATS is."),
        _option("--context", metavar="NAME", help="A context of the `nats` command."),
        _option("--creds", type=click.Path(path_type=Path), help="A credentials file."),
        _option("--user", metavar="NAME", help="A user name, with --password."),
        _option("--password", metavar="WORD", help="Better given as BUSMICRO_PASSWORD."),
        _option("-n", "--namespace", metavar="PREFIX", help="What the services were started with."),
        _option("--timeout", type=seconds, metavar="SECONDS", help="For a call, or for answers."),
        _option("-j", "--json", is_flag=True, help="Print JSON."),
        _option("--no-color", is_flag=True, help="Print without colours, as NO_COLOR does."),
        _option("-q", "--quiet", is_flag=True, help="Leave out all words but errors."),
        _option("-v", "--verbose", count=True, help="Log more; twice: even more."),
    ]


def _version_option() -> click.Option:
    return click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_show_version,
        help="Print the version.",
    )


def add_global_options(function: C) -> C:
    """Give the group its options: click reads them off the function."""
    options = [*_options(), _version_option()]
    function.__click_params__ = options[::-1]  # type: ignore[attr-defined]
    return function


class Verb(click.Command):
    """A command that takes the global options too, without listing them in its help again."""

    def __init__(self, *args: Any, **more: Any) -> None:
        epilog = "Global options may stand here too: see `busmicro --help`."
        super().__init__(*args, **{"epilog": epilog, **more})
        taken = {name for own in self.params for name in own.opts}
        for option in _options():
            if taken.isdisjoint(option.opts):
                option.hidden = True
                self.params.append(option)


def verb(name: str) -> Callable[[Callable[..., int | None]], click.Command]:
    """Make a verb of a function; what it returns is the exit code, None for 0."""
    return click.command(name, cls=Verb, context_settings={"help_option_names": ["-h", "--help"]})
