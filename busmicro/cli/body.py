"""The request on the command line: JSON, `-`, `@file` or `k=v k:=json`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import click

_PAIR = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)(:?=)(.*)", re.DOTALL)


def parse(words: Sequence[str], *, raw: bool = False) -> object:
    """Read the request.

    Args:
        words: What stood on the command line: nothing, one JSON value, `-` for stdin, `@file`, or
            fields: `k=v` for a text, `k:=json` for anything else; `a.b=v` goes one deeper.
        raw: Take what is not JSON as bytes.

    Returns:
        A JSON value, bytes, or None for no request.

    Raises:
        UsageError: It is none of these.
    """
    if not words:
        return None
    if all(_PAIR.fullmatch(word) for word in words):
        return _fields(words)
    if len(words) > 1:
        wrong = next(word for word in words if not _PAIR.fullmatch(word))
        raise click.UsageError(f'{wrong!r} is not k=v or k:=json; quote JSON: \'{{"name": "x"}}\'')
    payload = _read(words[0])
    try:
        return _json(payload.decode(), "the request")
    except (click.UsageError, UnicodeDecodeError) as wrong:
        if raw:
            return payload
        if isinstance(wrong, click.UsageError):
            raise
        raise click.UsageError("the request is not JSON: it is not even UTF-8 text") from wrong


def _read(word: str) -> bytes:
    if word == "-":
        return sys.stdin.buffer.read()
    if not word.startswith("@"):
        return word.encode("utf-8", "surrogateescape")  # the bytes that were typed
    try:
        return Path(word[1:]).read_bytes()
    except OSError as wrong:
        raise click.UsageError(f"{word[1:]} cannot be read: {wrong.strerror}") from wrong


def _json(text: str, what: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as wrong:
        raise click.UsageError(
            f'{what} is not JSON: {wrong}; write \'{{"name": "x"}}\', name=x or -'
        ) from wrong


def _fields(words: Sequence[str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for word in words:
        pair = _PAIR.fullmatch(word)
        if pair is not None:
            name, sign, text = pair.groups()
            _put(found, name.split("."), _json(text, name) if sign == ":=" else text)
    return found


def _put(into: dict[str, object], path: list[str], value: object) -> None:
    for word in path[:-1]:
        inner = into.setdefault(word, {})
        if not isinstance(inner, dict):
            raise click.UsageError(f"{word!r} cannot be both a value and have fields")
        into = inner
    into[path[-1]] = value


def parse_headers(lines: Sequence[str]) -> dict[str, str]:
    """Read `K: V` lines.

    Raises:
        UsageError: One has no colon or no name.
    """
    found = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise click.UsageError(f"header {line!r}: write 'Name: value'")
        found[name.strip()] = value.strip()
    return found
