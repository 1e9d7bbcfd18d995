"""The command `busmicro`: one file per verb, imported only when that verb is used.

Data goes to stdout, words to stderr. Exit codes: 0 it worked, 1 it failed or is unhealthy, 2 wrong
usage or settings, 3 NATS cannot be reached, 64 + number a call failed, 124 time is up, 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from busmicro.cli.options import add_global_options

VERBS = {
    "server": "Start a nats-server here.",
    "run": "Run a service, and a nats-server if there is none.",
    "services": "List the services that are up.",
    "describe": "Show what a service offers and where it runs.",
    "call": "Call an endpoint and print the reply.",
    "stream": "Open a stream: messages in, replies out.",
    "publish": "Publish an event.",
    "subscribe": "Print events as they come, and those that came before.",
    "streams": "List the streams of events, what they keep and who reads them.",
    "dlq": "List, show, replay or drop the dead letters.",
    "health": "Ask every node whether it is well.",
    "stats": "Show what the endpoints have done so far.",
    "docs": "Print an AsyncAPI document of a service.",
    "demo": "Show a service with three nodes, and one of them killed under load.",
    "completion": "Print what makes a shell complete verbs and names.",
}
"""What `--help` says of each verb; it is in `busmicro.cli.<verb>`, under its own name."""

ALIASES = {
    "list": "services",
    "ls": "services",
    "get": "describe",
    "top": "stats",
    "tail": "subscribe",
}

_EPILOG = (
    "Global options may stand before or after the verb. Settings also come from BUSMICRO_*, NATS_* "
    "and the contexts of the `nats` command, in this order."
)


class _LazyGroup(click.Group):
    """A group that imports a verb only to run it, not to name it."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        verb = ALIASES.get(cmd_name, cmd_name)
        if verb not in VERBS:
            return None
        command: click.Command = getattr(import_module(f"busmicro.cli.{verb}"), verb)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        verb = args[0]
        known = verb in VERBS or verb in ALIASES
        if not known and not verb.startswith("-") and not ctx.resilient_parsing:
            raise _unknown_verb(verb, ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            return _nobody_reads()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


def _nobody_reads() -> int:
    """Stop printing: whoever read has enough, as in `| head`, and nothing went wrong."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 0


def _unknown_verb(verb: str, ctx: click.Context) -> click.UsageError:
    from busmicro.cli.words import did_you_mean

    hint = did_you_mean(verb, [*VERBS, *ALIASES]) or f"there are {', '.join(VERBS)}"
    return click.UsageError(f"there is no verb {verb!r}: {hint}", ctx)


@click.group(
    cls=_LazyGroup,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)
@add_global_options
def cli() -> None:
    """Message-bus-first microservices over NATS."""


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        code = cli.main(prog_name="busmicro", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        code = _nobody_reads()
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except click.ClickException as wrong:
        wrong.show()
        code = wrong.exit_code
    except Exception as failure:
        from busmicro.cli.failures import report

        code = report(failure)
    sys.exit(code)
