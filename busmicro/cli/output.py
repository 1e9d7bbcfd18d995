"""Data, on stdout: JSON, tables for people, plain columns for pipes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import click

from busmicro.cli.options import given
from busmicro.cli.words import clean, is_terminal


def to_text(value: object) -> str:
    """Write a value as JSON, in one line."""
    return json.dumps(value, ensure_ascii=False, default=str)


def print_json(value: object) -> None:
    """Print a value as JSON: indented for a person, one line for a program."""
    indent = 2 if is_terminal() else None
    click.echo(json.dumps(value, ensure_ascii=False, default=str, indent=indent))


def print_text(text: str = "") -> None:
    """Print a line of data for people."""
    click.echo(clean(text))


def print_bytes(payload: bytes) -> None:
    """Print bytes as they are; for a person, end the line."""
    click.echo(payload, nl=is_terminal())


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows with their headings: drawn on a terminal, else as aligned columns.

    Args:
        headings: One word for each column.
        rows: As many texts in each.
    """
    cells = [[clean(cell).replace("\n", " ") for cell in row] for row in rows]
    if is_terminal():
        _draw(headings, cells)
    else:
        _align(headings, cells)


def _align(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = [[heading.upper() for heading in headings], *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def _draw(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    plain = given().no_color or bool(os.environ.get("NO_COLOR"))
    style = "" if plain else "bold"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style=style)
    for heading in headings:
        table.add_column(heading.upper(), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(file=sys.stdout, no_color=plain, highlight=False).print(table)
