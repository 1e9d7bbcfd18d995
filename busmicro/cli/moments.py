"""Moments on the command line: an ISO time, so long ago, or a place in a stream."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import click

from busmicro.clock import SYSTEM_CLOCK
from busmicro.pubsub import Start

_AGO = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def read_start(text: str) -> Start:
    """Read where a subscription begins.

    Args:
        text: `first`, `new`, a sequence number, `30m` for so long ago, or an ISO time.

    Raises:
        BadParameter: It is none of these.
    """
    if text == "first":
        return "first"
    if text == "new":
        return "new"
    if text.isascii() and text.isdigit():
        return _sequence(text)
    ago = _AGO.fullmatch(text)
    try:
        if ago:
            return SYSTEM_CLOCK.wall() - timedelta(seconds=float(ago[1]) * _SECONDS[ago[2]])
        return read_time(text)
    except (click.BadParameter, OverflowError) as wrong:
        raise click.BadParameter(
            f"{text!r} is no beginning: say first, new, a sequence number, 30m for half an hour "
            "ago (s, m, h, d), or a time like 2026-05-01T12:00:00Z"
        ) from wrong


def _sequence(text: str) -> int:
    number = int(text[:20])
    if not 1 <= number < 2**64:
        raise click.BadParameter(f"{text}: sequence numbers begin with 1 and have 64 bits")
    return number


def read_time(text: str) -> datetime:
    """Read an ISO time; one without a zone is that of this machine.

    Raises:
        BadParameter: It is none.
    """
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as wrong:
        raise click.BadParameter(
            f"{text!r} is no time: write it like 2026-05-01T12:00:00Z"
        ) from wrong


def write_time(moment: datetime) -> str:
    """Write a moment for people and programs: UTC, to the millisecond."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
