"""Words for people: on stderr, and safe to show whoever wrote them."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import click


def note(text: str) -> None:
    """Say something to whoever watches; `-q` leaves it out."""
    from busmicro.cli.options import given

    if not given().quiet:
        click.echo(clean(text), err=True)


def complain(what: str, *why: str, hint: str = "") -> None:
    """Say what went wrong, why, and what to try next: one line each, more for more reasons."""
    click.echo(clean(what), err=True)
    for line in why:
        click.echo(f"why: {clean(line)}", err=True)
    if hint:
        click.echo(f"try: {clean(hint)}", err=True)


def clean(text: str) -> str:
    """Return a text without what would steer a terminal; others may have written it."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `did you mean …?` with the names that come close; empty if none does."""
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else ""


def is_terminal() -> bool:
    """Tell whether a person reads what is printed."""
    return sys.stdout.isatty()
